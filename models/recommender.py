"""Recommenders: ratings of (user, item) pairs, and rankings of items for users, by one of three networks on ids and features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, doc
from torch import Tensor

from . import ranking
from .family import Batch, Schema
from .pairs import PairConfig, Pairs, named, top

MOST_SCORES = 1 << 24  # of users times items at once in an evaluation: 64 MB
MOST_LOGITS = 1 << 31  # ... in a step of the full softmax: 8 GB, and five times that with gradients


class Recommender(Pairs):
    """Ratings: a mean, biases, and what two vectors say; by squared error, or by cross entropy between smallest and largest."""

    @dataclass(frozen=True)
    class Config(PairConfig):
        """How ratings are learnt."""

        loss: Annotated[Literal["mse", "bce"], doc("mse, or bce between the smallest and the largest rating")] = "mse"

    task = "regression"
    metrics = ("rmse", "mae")
    baseline_name = "mean"
    limits: Tensor  # [2] of a standardised rating

    def __init__(self, config: Config, schema: Schema) -> None:
        super().__init__(config, schema)
        self.register_buffer("limits", torch.tensor([-4.0, 4.0]), persistent=False)

    def bind(self, tables: Mapping[str, Tensor]) -> None:
        """See Family. Raises ValueError where the loss has nothing to tell apart."""
        super().bind(tables)
        if "rating.range" in tables:
            target = self.schema.target
            low, high = tables["rating.range"].tolist()
            if self.config.loss == "bce" and low == high:
                raise ValueError(f"model.loss: bce needs ratings that differ, and all of the training rows' are {low:g}; use mse")
            self.register_buffer("limits", (tables["rating.range"] - target.mean) / target.std, persistent=False)

    @classmethod
    def _misfit_target(cls, kind: str) -> str | None:
        return None if kind == "number" else "its target is a rating (of positives without one, use ranker)"

    def forward(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        """Standardised ratings: [B]; in training with the rows' penalty."""
        if self.training:
            users, items = self.train_vectors(batch)
            return {"score": self._bounded(self.scorer.pairs(users, items)), "penalty": self.penalty(users, items)}
        users, _ = self.user_vectors(batch)
        items, _ = self.item_vectors(batch)
        return self._bounded(self.scorer.pairs(users, items)).clamp(*self.limits.unbind())

    def all_scores(self, users: Tensor, source: Tensor) -> Tensor:
        """[U, N] standardised ratings of every item; for a user of whom nothing is known, those of nobody in particular."""
        return self._bounded(self.scorer.all(users, self.scorer.item(self.items.all())))

    def top_k(self, batch: Batch, k: int) -> dict[str, Any]:
        """See Pairs; the scores are ratings, and their order is that of what they were before they were bounded."""
        found = super().top_k(batch, k)
        ratings = found["scores"].clamp(*self.limits.unbind()) * self.schema.target.std + self.schema.target.mean
        return found | {"scores": ratings.masked_fill(found["items"] == 0, -math.inf)}

    def _bounded(self, scores: Tensor) -> Tensor:
        if self.config.loss == "mse":
            return scores
        low, high = self.limits.unbind()
        return low + (high - low) * (scores - torch.logit((-low / (high - low)).clamp(0.01, 0.99)).neg()).sigmoid()

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        score = outputs["score"] if isinstance(outputs, dict) else outputs
        rating = ((batch[self.target] - self.schema.target.mean) / self.schema.target.std).float()
        if self.config.loss == "mse":
            rows = (score - rating).square()
        else:
            low, high = self.limits.unbind()
            share, wanted = (((values - low) / (high - low)).clamp(1e-6, 1 - 1e-6) for values in (score, rating))
            rows = F.binary_cross_entropy(share, wanted, reduction="none")
        return rows + outputs["penalty"] if isinstance(outputs, dict) else rows

    def decode(self, outputs: Tensor, batch: Batch) -> dict[str, Any]:
        prediction = outputs.double() * self.schema.target.std + self.schema.target.mean
        return {"prediction": prediction, "answered_by": named(self.answered(batch))}

    def baseline(self, batch: Batch) -> Tensor:
        return torch.zeros(len(batch[self.user]), device=batch[self.user].device)


class Ranker(Pairs):
    """Rankings, learnt from positives: full softmax over the items, sampled softmax, or pairs of a positive and items not had.

    In evaluation the loss is that of the full softmax, whatever it learns by, so that losses can be compared.
    """

    @dataclass(frozen=True)
    class Config(PairConfig):
        """How a ranking is learnt."""

        loss: Annotated[
            Literal["softmax", "sampled_softmax", "bpr", "bce"],
            doc("what a positive is told apart from: all items, drawn ones, or pairs with one not had"),
        ] = "softmax"
        negatives: Annotated[int, Ge(0), doc("of a row (bpr, bce) or shared by a batch (sampled_softmax); 0: 1, 4 and 512")] = 0
        draw_power: Annotated[float, Ge(0), doc("of the items' rows, by which a sampled softmax draws; the loss corrects for it")] = 0.75

    task = "ranking"
    metrics = ranking.METRICS
    protocol = (
        "hr, ndcg, mrr, recall: held-out items among 99 that the user has never had; full_*, coverage: among all items not seen before"
    )
    baseline_name = "popularity"

    @classmethod
    def _misfit_target(cls, kind: str) -> str | None:
        return None if kind == "ranking" else "it ranks positives: set data.implicit: true if every rating counts as one"

    def _touches_rows(self) -> bool:
        return self.config.loss != "softmax"

    def __init__(self, config: Config, schema: Schema) -> None:
        super().__init__(config, schema)
        self.bind({})

    def bind(self, tables: Mapping[str, Tensor]) -> None:
        super().bind(tables)
        self.register_buffer("draw_until", self._draw_weights(slice(1, None)).cumsum(0), persistent=False)

    draw_until: Tensor  # [N] float64: summed up once, so that a step's cost doesn't grow with the items

    def _draw_weights(self, codes: Tensor | slice) -> Tensor:
        return self.items.rows[codes].double().pow(self.config.draw_power)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Training: what the loss takes. Evaluation: where held-out items land. A request: the pairs' scores."""
        if self.training:
            return self._softmax(batch) if self.config.loss == "softmax" else self._against_negatives(batch)
        if "held" not in batch:
            return {"score": self._pair_scores(batch)}
        return self._in_blocks(batch, self._user_scores)

    def _softmax(self, batch: Batch) -> dict[str, Tensor]:
        """Each user's scores are computed once in a batch, however many of its rows there are. Raises ValueError if they are too many."""
        distinct, place = torch.unique(batch[self.user], return_inverse=True)
        self._refuse_many(len(distinct))
        users = self.scorer.user(self.users(distinct, self.config.id_dropout))
        items = self.scorer.item(self.items.all())
        scores = self.scorer.all(users, items)
        if not self.items.all_trained:
            scores = scores.masked_fill(~self.items.trained[1:], -math.inf)
        own = place * scores.shape[1] + batch[self.item] - 1
        rows = F.embedding(place, scores.logsumexp(1, keepdim=True))[:, 0] - scores.flatten().index_select(0, own)
        if self.config.reg:
            rows = rows + self.penalty(F.embedding(place, users), F.embedding(batch[self.item] - 1, items))
        return {"loss": rows}

    def _refuse_many(self, users: int) -> None:
        items = self.items.rows.numel() - 1
        if users * items > MOST_LOGITS:
            size, most = (4e-9 * scores for scores in (users * items, MOST_LOGITS))
            raise ValueError(
                f"model.loss: softmax scores {users:,} users of a step with each of {items:,} items: {size:.0f} GB, and five times that "
                f"with gradients; the most is {most:.0f} GB: use sampled_softmax, or a smaller training.batch_size"
            )

    def _against_negatives(self, batch: Batch) -> dict[str, Tensor]:
        users, items = self.train_vectors(batch)
        positive = self.scorer.pairs(users, items)
        count = self.config.negatives or {"bpr": 1, "bce": 4, "sampled_softmax": 512}[self.config.loss]
        if self.config.loss == "sampled_softmax":
            total = self.draw_until
            place = torch.rand(count, device=total.device, dtype=torch.float64) * total[-1]
            drawn = torch.searchsorted(total, place).clamp_max(len(total) - 1)
            log_q = (self._draw_weights(drawn + 1) / total[-1]).log().float()
            others = self.scorer.all(users, self.scorer.item(self.items(drawn + 1, self.config.id_dropout)))
            rows = ranking.sampled_softmax(positive, others, log_q, self.seen.had(batch[self.user], drawn))
        else:
            drawn = self.seen.negatives(batch[self.user], count)
            vectors = self._once(self.items, drawn.flatten() + 1, self.scorer.item)
            others = self.scorer.pairs(users, vectors.view(*drawn.shape, self.scorer.width))
            pairwise = F.softplus(others - positive[:, None]).mean(1)
            rows = pairwise if self.config.loss == "bpr" else F.softplus(-positive) + F.softplus(others).sum(1)
        return {"loss": rows + self.penalty(users, items)}

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        rows: Tensor = outputs["loss"] if "loss" in outputs else outputs["total"] - outputs["score"]
        return rows

    def _pair_scores(self, batch: Batch) -> Tensor:
        users, of_user = self.user_vectors(batch)
        items, of_item = self.item_vectors(batch)
        popular = torch.maximum(of_user, of_item) == 3
        return torch.where(popular, self.popularity[batch[self.item]], self.scorer.pairs(users, items))

    def _user_scores(self, codes: Tensor) -> Tensor:
        return self.all_scores(*self.user_vectors({self.user: codes}))

    def _in_blocks(self, batch: Batch, scores_of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The outputs of an evaluation, some rows at a time, so that their scores of all items stay within MOST_SCORES."""
        size = max(1, MOST_SCORES // max(1, self.items.rows.numel()))
        starts = range(0, max(1, len(batch[self.user])), size)
        blocks = [self._placed({name: values[start : start + size] for name, values in batch.items()}, scores_of) for start in starts]
        return blocks[0] if len(blocks) == 1 else {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}

    def _placed(self, batch: Batch, scores_of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The outputs of an evaluation, [B, ...]; zeros in rows that hold no user's held-out items."""
        distinct, place = torch.unique(batch[self.user], return_inverse=True)
        scores = scores_of(distinct)
        found: dict[str, Tensor] = {"total": scores.logsumexp(1)[place]}
        unknown = self.popularity[0]  # the score of code 0
        row = torch.zeros(len(distinct), dtype=torch.int64, device=place.device)
        firsts = batch["held"].nonzero()[:, 0]
        row[place[firsts]] = firsts
        own = _taken(scores, batch[self.item][:, None], unknown, place)
        found["score"] = own[:, 0]
        codes, held, sizes = batch["candidates"][row], batch["held"][row], batch["candidates.sizes"][row]
        inside = torch.arange(int(held.max()) if len(held) else 0, device=place.device) < held[:, None]
        among = _taken(scores, codes, unknown).masked_fill(torch.arange(codes.shape[1], device=place.device) >= sizes, -math.inf)
        wanted = among[:, : inside.shape[1]]
        placed = {"sampled": ranking.placed(ranking.ranks(among, wanted, inside), inside)}
        self.seen.leave_out(scores, distinct, batch["part"][row])
        known = codes[:, : inside.shape[1]] > 0
        far = torch.where(known, ranking.ranks(scores, wanted, inside & known), scores.shape[1])
        placed["full"] = ranking.placed(far, inside)
        best = top(scores, min(ranking.COVERED, scores.shape[1]))
        found["full.top"] = _spread((best.indices + 1).masked_fill(best.values == -math.inf, 0), place, firsts)
        for protocol, (hits, first) in placed.items():
            found[f"{protocol}.hits"], found[f"{protocol}.first"] = _spread(hits, place, firsts), _spread(first, place, firsts)
        return found | {"held": batch["held"]}

    def decode(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        return {"prediction": outputs["score"], "answered_by": named(self.answered(batch))}

    def baseline(self, batch: Batch) -> dict[str, Tensor]:
        if "held" not in batch:
            return {"score": self.popularity[batch[self.item]], "total": self.popularity[1:].logsumexp(0).expand(len(batch[self.item]))}
        return self._in_blocks(batch, lambda codes: self.popularity[1:].repeat(len(codes), 1))


def _taken(scores: Tensor, codes: Tensor, unknown: Tensor, place: Tensor | None = None) -> Tensor:
    """Scores [U, N] of item codes [B, C], each row's user being `place` (default: its own row); `unknown` [] is that of code 0."""
    if place is None:
        return torch.where(codes > 0, scores.gather(1, (codes - 1).clamp_min(0)), unknown)
    found = scores.flatten()[place[:, None] * scores.shape[1] + (codes - 1).clamp_min(0)]
    return torch.where(codes > 0, found, unknown)


def _spread(values: Tensor, place: Tensor, firsts: Tensor) -> Tensor:
    """Users' values [U, ...] at their first rows; zeros elsewhere: [B, ...]."""
    spread = values.new_zeros(len(place), *values.shape[1:])
    spread[firsts] = values[place[firsts]]
    return spread
