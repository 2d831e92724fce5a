"""What recommenders share: vectors of users and items, scores of all items for a user, and what an answer rests on.

An answer says what it rests on (`answered_by`): the model; the features of an id that training hasn't seen; the mean of the items that
the request lists for the user (`history`); or the items' popularity (of ratings: the means).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt, doc
from torch import Tensor

from . import ranking
from .family import Batch, Family, FamilyConfig, Schema
from .features import Entity
from .scorers import SCORERS

Positive = Annotated[int, Gt(0)]
Share = Annotated[float, Ge(0), Lt(1)]
ANSWERED_BY = ("model", "features", "items", "popularity")
LARGE = 100_000  # rows of a table from which its gradients are sparse: a dense step costs more


@dataclass(frozen=True)
class PairConfig(FamilyConfig):
    """What ratings and rankings have in common."""

    kind: Annotated[
        Literal["mf", "neumf", "two_tower"], doc("mf: product of factors; neumf: a network beside it; two_tower: a network for each side")
    ] = "mf"
    dim: Annotated[Positive, doc("factors of an id")] = 32
    hidden: Annotated[tuple[Positive, ...], doc("layers of neumf and two_tower; default: by dim")] = ()
    dropout: Annotated[Share, doc("of factors, or between layers")] = 0.0
    id_dropout: Annotated[Share, doc("share of ids that only their features speak for, in training")] = 0.0
    reg: Annotated[float, Ge(0), doc("weight of the squares of a row's vectors in the loss")] = 0.0
    sparse: Annotated[
        Literal["auto", "always", "never"],
        doc("whether a step touches only the rows that a batch has; auto: in tables of more than 100,000 rows"),
    ] = "auto"


class Pairs(Family):
    """What both families share: vectors of users and items, and whom a row can be answered by."""

    Config = PairConfig
    mixed_precision = False

    scorer: Any  # of models.scorers

    def __init__(self, config: Any, schema: Schema) -> None:
        super().__init__(config, schema)
        user, item = schema.inputs
        self.user, self.item, self.target = user.name, item.name, schema.target.name
        self.scorer = SCORERS[config.kind](config.dim, config.hidden, config.dropout)
        features, width = getattr(schema, "features", {}), self.scorer.width
        self.users, self.items = (
            Entity(column.vocabulary, width, features.get(column.name, ()), self._is_sparse(column.vocabulary, touches_rows))
            for column, touches_rows in ((user, True), (item, self._touches_rows()))
        )
        self.seen = ranking.Seen(user.vocabulary, item.vocabulary - 1)
        self._count()

    def _is_sparse(self, vocabulary: int, touches_rows: bool) -> bool:
        sparse: str = self.config.sparse
        return sparse == "always" or (sparse == "auto" and vocabulary > LARGE and touches_rows)

    def _touches_rows(self) -> bool:
        """Whether the loss of a batch needs some of the items' rows only; of the users' it never needs others than the batch has."""
        return True

    def bind(self, tables: Mapping[str, Tensor]) -> None:
        for name, entity in (("users", self.users), ("items", self.items)):
            of_entity = {key.removeprefix(f"{name}."): values for key, values in tables.items() if key.startswith(f"{name}.")}
            if of_entity:
                entity.bind(of_entity.pop("rows"), of_entity)
        seen = {key.removeprefix("seen."): values for key, values in tables.items() if key.startswith("seen.")}
        if seen:
            self.seen.bind(seen)
        self._count()

    popularity: Tensor  # [V] float32: the log of each item's share of the training rows, a code without any taken for half a row

    def _count(self) -> None:
        rows = self.items.rows.float().clamp_min(0.5)
        self.register_buffer("popularity", (rows / self.items.rows.sum().clamp_min(1)).log(), persistent=False)

    @classmethod
    def misfit(cls, schema: Schema) -> str | None:
        if [column.kind for column in schema.inputs] != ["id", "id"]:
            return "it takes two columns of ids, of users and of items"
        return cls._misfit_target(schema.target.kind)

    @classmethod
    @abstractmethod
    def _misfit_target(cls, kind: str) -> str | None: ...

    def train_vectors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Vectors of a batch's users and items: [B, w] each. Where features or towers cost more, each id is computed once."""
        users = self._once(self.users, batch[self.user], self.scorer.user)
        return users, self._once(self.items, batch[self.item], self.scorer.item)

    def _once(self, entity: Entity, codes: Tensor, tower: Any) -> Tensor:
        if entity.features is None and self.config.kind != "two_tower":
            vectors: Tensor = tower(entity(codes, self.config.id_dropout))
            return vectors
        distinct, place = torch.unique(codes, return_inverse=True)
        return F.embedding(place, tower(entity(distinct, self.config.id_dropout)))

    def penalty(self, users: Tensor, items: Tensor) -> Tensor:
        """[B]: what `reg` adds to a row's loss."""
        if not self.config.reg:
            return users.new_zeros(len(users))
        squares = users.square() + items.square()
        reg: Tensor = self.config.reg * (squares[:, :-1].sum(1) + squares[:, -1] / 4)  # biases are larger than factors are
        return reg

    def user_vectors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """([B, w], [B] place in ANSWERED_BY) of a request's users."""
        vectors, source = self._vectors(self.users, batch[self.user], batch)
        vectors = self.scorer.user(vectors)
        if "history" not in batch:
            return vectors, source
        codes = batch["history"]
        known = self.items.trained[codes] & (torch.arange(codes.shape[1], device=codes.device) < batch["history.sizes"])
        liked = self.scorer.item(self.items(codes.flatten())).view(*codes.shape, self.scorer.width) * known[..., None]
        mean = liked.sum(1) / known.sum(1, keepdim=True).clamp_min(1)
        mean = torch.cat([mean[:, :-1], torch.zeros_like(mean[:, -1:])], 1)
        fill = (source == 3) & known.any(1)
        return torch.where(fill[:, None], mean, vectors), torch.where(fill, 2, source)

    def item_vectors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """([B, w], [B] place in ANSWERED_BY) of a request's items."""
        vectors, source = self._vectors(self.items, batch[self.item], batch)
        return self.scorer.item(vectors), source

    def _vectors(self, entity: Entity, codes: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        vectors: Tensor = entity(codes)
        source = torch.where(entity.trained[codes], 0, torch.where(entity.has_features(codes), 1, 3))
        asked = entity.asked(batch)
        if asked is None:
            return vectors, source
        more, there = asked
        fill = (source == 3) & there
        return vectors + more * fill[:, None], torch.where(fill, 1, source)

    def answered(self, batch: Batch) -> Tensor:
        """[B] place in ANSWERED_BY: the weaker of what is known of the user and of the item."""
        return torch.maximum(self.user_vectors(batch)[1], self.item_vectors(batch)[1])

    def all_scores(self, users: Tensor, source: Tensor) -> Tensor:
        """[U, N] of every item, for users' vectors; popularity where nothing is known."""
        scores: Tensor = self.scorer.all(users, self.scorer.item(self.items.all()))
        unknown = ~(self.items.trained | (self.items.starts.diff() > 0))[1:]
        popular = self.popularity[1:]
        if unknown.any():
            scores = torch.where(unknown, popular, scores)
        return torch.where((source == 3)[:, None], popular, scores) if (source == 3).any() else scores

    def top_k(self, batch: Batch, k: int) -> dict[str, Any]:
        """The best items of users: `items` [B, k] codes (0: none left), `scores`, `answered_by`.

        What a user has had, and what the request lists, is left out.
        """
        vectors, source = self.user_vectors(batch)
        scores = self.all_scores(vectors, source)
        scores = self.seen.leave_out(scores, batch[self.user], torch.full_like(batch[self.user], 3))
        if "history" in batch:
            row, place = batch["history"].nonzero(as_tuple=True)  # 0 is an unknown item, or padding
            scores[row, batch["history"][row, place] - 1] = -math.inf
        best = top(scores, min(k, scores.shape[1]))
        values = F.pad(best.values, (0, k - best.values.shape[1]), value=-math.inf)
        items = F.pad(best.indices + 1, (0, k - best.indices.shape[1])).masked_fill(values == -math.inf, 0)
        return {"items": items, "scores": values, "answered_by": named(source)}


def top(scores: Tensor, k: int, block: int = 32) -> Any:
    """`scores.topk(k)` along the second axis, sooner: the k best lie in the k blocks whose maxima are largest."""
    users, n_items = scores.shape
    if n_items < 4 * k * block:
        return scores.topk(k, 1)
    whole = n_items - n_items % block
    blocks = scores[:, :whole].unflatten(1, (-1, block)).amax(2).topk(k, 1).indices
    inside, rest = (torch.arange(*ends, device=scores.device) for ends in ((block,), (whole, n_items)))
    places = torch.cat([(blocks[..., None] * block + inside).flatten(1), rest.expand(users, -1)], 1)  # the rest takes part always
    best = scores.gather(1, places).topk(k, 1)
    return torch.return_types.topk((best.values, places.gather(1, best.indices)))


def named(source: Tensor) -> list[str]:
    """Places in ANSWERED_BY as words."""
    return [ANSWERED_BY[place] for place in source.tolist()]
