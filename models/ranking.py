"""Ranking: who has seen what, negatives that are no positives, where held-out items land, and the metrics of that.

A batch of an evaluation holds, for each user's first row, its held-out items and the fixed negatives (`candidates`, `held`, `part`).
Its outputs say for both protocols, `sampled` (against those negatives) and `full` (against all items but those of earlier parts), which
of the first places hold a held-out item (`*.hits` [B, 20]) and the place of the first one (`*.first` [B]); metrics follow from these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from .family import Batch, Outputs, Schema
from .metrics import Mean, Metric

PLACES = 20  # the largest k
COVERED = 10  # the places that count for coverage
NOWHERE = torch.iinfo(torch.int64).max  # the rank of what has no place: absent, or of no score
SORTED = 64  # more held-out items than this are placed by sorting


class Seen(nn.Module):
    """The items of each user: all parts' (to leave out of a ranking) and the training part's (for negatives). Items count from 0 here."""

    starts: Tensor
    items: Tensor
    parts: Tensor
    train_starts: Tensor
    pairs: Tensor  # user * N + item of the training rows, ascending
    keys: Tensor  # user * N + (item - how many of the user's items come before it)

    def __init__(self, users: int, n_items: int) -> None:
        super().__init__()
        self.n_items = n_items
        none = torch.zeros(users + 1, dtype=torch.int64)
        self.bind({"starts": none, "items": none[:0], "parts": none[:0]})

    def bind(self, tables: Mapping[str, Tensor]) -> None:
        """Compressed rows: `starts` [V + 1], `items` (codes from 1) ascending inside a user, `parts` 0 train, 1 validation, 2 test."""
        starts, parts = tables["starts"], tables["parts"]
        items = tables["items"].long() - 1
        user = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
        train = parts == 0
        counts = torch.bincount(user[train], minlength=len(starts) - 1)
        train_starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        pairs = user[train] * self.n_items + items[train]
        place = torch.arange(len(pairs)) - train_starts[user[train]]
        made = {"starts": starts, "items": items, "parts": parts, "train_starts": train_starts, "pairs": pairs, "keys": pairs - place}
        for name, values in made.items():
            self.register_buffer(name, values, persistent=False)

    def negatives(self, users: Tensor, count: int) -> Tensor:
        """[B, count] items, each uniform over those that its user hasn't had in training: one search, no rejection.

        A user's items p_0 < p_1 < ... leave p_j - j others before p_j, so the r-th other is r + (how many j have p_j - j <= r).
        Of a user who has had all items there is no negative: any item is drawn.
        """
        first, last = self.train_starts[users], self.train_starts[users + 1]
        free = (self.n_items - (last - first)).clamp_min(1)
        place = (torch.rand(len(users), count, device=users.device, dtype=torch.float64) * free[:, None]).long()
        place = torch.minimum(place, free[:, None] - 1)
        found = torch.searchsorted(self.keys, users[:, None] * self.n_items + place, right=True) - first[:, None]
        return (place + found).clamp_max(self.n_items - 1)

    def had(self, users: Tensor, items: Tensor) -> Tensor:
        """[U, S]: whether each of the users [U] has had each of the items [S] in training."""
        wanted = users[:, None] * self.n_items + items
        place = torch.searchsorted(self.pairs, wanted).clamp_max(max(len(self.pairs) - 1, 0))
        return self.pairs[place] == wanted if len(self.pairs) else torch.zeros_like(wanted, dtype=torch.bool)

    def leave_out(self, scores: Tensor, users: Tensor, before: Tensor) -> Tensor:
        """Scores [U, N], in place -inf where a user has had the item in a part earlier than `before` [U]."""
        first, sizes = self.starts[users], self.starts[users + 1] - self.starts[users]
        row = torch.repeat_interleave(torch.arange(len(users), device=users.device), sizes)
        places = torch.arange(len(row), device=users.device) + (first - (sizes.cumsum(0) - sizes))[row]
        out = self.parts[places] < before[row]
        return scores.index_put_((row[out], self.items[places[out]]), scores.new_tensor(-math.inf))


def ranks(scores: Tensor, wanted: Tensor, held: Tensor | None = None) -> Tensor:
    """The place, from 0, of the scores `wanted` [B, P] of held-out items among `scores` [B, N], themselves not counted: [B, P] int64.

    Ties count half: the held-out items of one score lie evenly among all of that score, each at a place of its own, as they would by
    chance. `held` [B, P]: which are there at all (default: all). NaN is no score: it comes after all that are, at NOWHERE.
    """
    if wanted.shape[1] == 0:
        return wanted.long()
    held = torch.ones_like(wanted, dtype=torch.bool) if held is None else held
    above, equal = _counts(scores, wanted)
    own, before = _tied(wanted, held)
    equal = torch.maximum(equal, own)  # of items that are left out of `scores`
    places = above + ((before + 1) * (equal + 1) + own).div(own + 1, rounding_mode="floor") - 1
    return places.masked_fill(wanted.isnan(), NOWHERE)


def _counts(scores: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """How many scores are above each of `wanted`, and how many are equal to it: [B, P] int64."""
    if wanted.shape[1] > SORTED:
        ordered = scores.masked_fill(scores.isnan(), -math.inf).sort(1).values.contiguous()
        until = torch.searchsorted(ordered, wanted.contiguous(), right=True)
        return scores.shape[1] - until, until - torch.searchsorted(ordered, wanted.contiguous())
    told = torch.empty_like(scores)  # zeros and ones as numbers: adding up booleans takes seven times as long
    above = torch.stack([torch.gt(scores, one[:, None], out=told).sum(1) for one in wanted.unbind(1)], 1)
    equal = torch.stack([torch.eq(scores, one[:, None], out=told).sum(1) for one in wanted.unbind(1)], 1)
    return above.long(), equal.long()


def _tied(wanted: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """How many held-out items have the score of each ([B, P] int64, itself counted), and how many of these come before it."""
    own = wanted.masked_fill(~held | wanted.isnan(), math.inf)
    ordered, order = own.sort(stable=True, dim=1)
    first, until = (torch.searchsorted(ordered, own, right=right) for right in (False, True))
    place = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return until - first, place - first


def placed(rank: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """(`hits` [B, PLACES] bool, `first` [B] int64) of the ranks [B, P] of held-out items; `inside`: which of them there are."""
    far = torch.where(inside, rank, NOWHERE)
    hits = torch.zeros(len(rank), PLACES + 1, dtype=torch.bool, device=rank.device)
    hits.scatter_(1, far.clamp_max(PLACES), True)
    first = far.amin(1) if rank.shape[1] else far.new_zeros(len(rank))
    return hits[:, :PLACES], first


def sampled_softmax(positive: Tensor, scores: Tensor, log_q: Tensor, had: Tensor) -> Tensor:
    """Softmax loss of a positive [B] against S shared draws from q: [B]. `scores` [B, S], `log_q` [S] of the draws, `had` [B, S] positives.

    A draw stands for 1 / (S q) items, which is what its score is corrected by (https://arxiv.org/abs/1412.2007, section 3); draws that
    are the user's positives don't count.
    """
    corrected = (scores - log_q - math.log(scores.shape[1])).masked_fill(had, -math.inf)
    return torch.logsumexp(torch.cat([positive[:, None], corrected], 1), 1) - positive


class PerUser(Mean):
    """A mean over users; rows that hold no user's held-out items don't count. `protocol`: sampled or full; `k`: the places that count."""

    mode = "max"
    protocol: ClassVar[str] = "sampled"
    k: ClassVar[int] = 10

    def rows(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        counts = (outputs["held"] > 0).double()
        return torch.stack([self.of(outputs, batch, schema).double() * counts, counts], 1)

    def hits(self, outputs: Outputs) -> Tensor:
        """[B, k] bool."""
        hits: Tensor = outputs[f"{self.protocol}.hits"]
        return hits[:, : self.k]


class HitRate(PerUser):
    """Whether a held-out item is among the first k."""

    def of(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        return self.hits(outputs).any(1)


class Recall(PerUser):
    """The share of the held-out items that is among the first k."""

    def of(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        return self.hits(outputs).sum(1) / outputs["held"].clamp_min(1)


class NDCG(PerUser):
    """Discounted gain of the first k over that of the best order (https://doi.org/10.1145/582415.582418)."""

    def of(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        hits = self.hits(outputs).double()
        discount = 1 / torch.arange(2, self.k + 2, device=hits.device, dtype=torch.float64).log2()
        ideal = torch.cat([discount.new_zeros(1), discount.cumsum(0)])[outputs["held"].clamp_max(self.k)]
        return (hits @ discount) / ideal.clamp_min(1e-12)


class MRR(PerUser):
    """One over the place of the first held-out item."""

    def of(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        return 1 / (1 + outputs[f"{self.protocol}.first"].double())


class Coverage(Metric):
    """The share of all items that are among any user's first ten of the full ranking."""

    mode = "max"
    row_wise = False

    def sums(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        top = outputs["full.top"]  # [B, 10] codes, 0 for none
        counts = torch.bincount(top.flatten(), minlength=schema.inputs[1].vocabulary)
        return counts[1:].double()

    def value(self, totals: Tensor) -> float:
        return float((totals > 0).double().mean())


class HitRate5(HitRate):
    k = 5


class HitRate20(HitRate):
    k = 20


class NDCG5(NDCG):
    k = 5


class NDCG20(NDCG):
    k = 20


class FullHitRate(HitRate):
    protocol = "full"


class FullRecall(Recall):
    protocol = "full"


class FullNDCG(NDCG):
    protocol = "full"


class FullMRR(MRR):
    protocol = "full"


METRICS = (
    "ndcg_at_10", "hr_at_10", "hr_at_5", "hr_at_20", "ndcg_at_5", "ndcg_at_20", "mrr", "recall_at_10",
    "full_hr_at_10", "full_ndcg_at_10", "full_mrr", "full_recall_at_10", "coverage_at_10",
)  # fmt: skip
