"""Vectors of users and items: a row of a table for each id, and what their features add.

A feature value (a word of a column, or a column's number) has a row too; an id's vector is its own row plus the weighted sum of its
features' rows (https://arxiv.org/abs/1507.08439). An id without training rows has no vector of its own: its features speak for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .family import Batch, Column

INIT = 0.05  # standard deviation of a new table: scores begin near zero, and rows still differ


class Entity(nn.Module):
    """Codes [...] int64 -> vectors [..., width]. `bind` says which codes have training rows, and their features."""

    rows: Tensor  # [V] training rows of each code
    codes: Tensor  # feature values of all codes, row after row, see pipelines.sides
    weights: Tensor
    starts: Tensor

    def __init__(self, vocabulary: int, width: int, columns: Sequence[Column], sparse: bool = False) -> None:
        super().__init__()
        self.columns = tuple(columns)
        self.ids = nn.Embedding(vocabulary, width, sparse=sparse)
        nn.init.normal_(self.ids.weight, std=INIT)
        firsts = torch.tensor([0, *(column.vocabulary for column in columns)]).cumsum(0).tolist()
        self.first = dict(zip((column.name for column in columns), firsts, strict=False))
        self.features = nn.Embedding(firsts[-1], width) if columns else None
        if self.features is not None:
            nn.init.normal_(self.features.weight, std=INIT)
        self.bind(torch.ones(vocabulary, dtype=torch.int64), {})

    def bind(self, rows: Tensor, tables: Mapping[str, Tensor]) -> None:
        """`rows`: training rows of each code; `tables`: codes, weights, starts of the features, if any."""
        none = torch.zeros(len(rows) + 1, dtype=torch.int64)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("codes", tables.get("codes", none[:0]), persistent=False)
        self.register_buffer("weights", tables.get("weights", none[:0].float()), persistent=False)
        self.register_buffer("starts", tables.get("starts", none), persistent=False)
        trained = rows > 0
        trained[0] = False
        self.register_buffer("trained", trained, persistent=False)
        self.all_trained = bool(trained[1:].all())

    trained: Tensor  # [V] bool

    def forward(self, codes: Tensor, dropout: float = 0.0) -> Tensor:
        """[N] -> [N, width]. `dropout`: the share of ids that only their features speak for, in training."""
        own: Tensor = self.ids(codes)
        if not self.training:
            own = own * self.trained[codes][:, None]
        elif dropout and self.features is not None:
            own = own * (torch.rand(len(codes), 1, device=codes.device) >= dropout)
        return own if self.features is None else own + self._bag(codes)

    def all(self) -> Tensor:
        """Vectors of the codes 1 ... V - 1: [V - 1, width]."""
        vectors: Tensor = self(torch.arange(1, self.ids.num_embeddings, device=self.ids.weight.device))
        return vectors

    def has_features(self, codes: Tensor) -> Tensor:
        """[N] bool."""
        return self.starts[codes + 1] > self.starts[codes]

    def _bag(self, codes: Tensor) -> Tensor:
        assert self.features is not None
        first, sizes = self.starts[codes], self.starts[codes + 1] - self.starts[codes]
        begin = sizes.cumsum(0) - sizes
        places = torch.arange(int(sizes.sum()), device=codes.device) + (first - begin).repeat_interleave(sizes)
        weights = self.weights[places].to(self.features.weight.dtype)
        return F.embedding_bag(self.codes[places], self.features.weight, begin, mode="sum", per_sample_weights=weights)

    def asked(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """What the features in a request add: ([B, width], [B] whether a row has any); None where the request has no such column."""
        parts = [self._column(column, batch) for column in self.columns if column.name in batch]
        if not parts:
            return None
        return torch.stack([vector for vector, _ in parts]).sum(0), torch.stack([there for _, there in parts]).any(0)

    def _column(self, column: Column, batch: Batch) -> tuple[Tensor, Tensor]:
        assert self.features is not None
        values, first = batch[column.name], self.first[column.name]
        if column.kind == "measure":
            there = values.isfinite()
            return values.nan_to_num()[:, None] * self.features.weight[first], there
        sizes = batch[f"{column.name}.sizes"]
        inside = torch.arange(values.shape[1], device=values.device) < sizes
        rows = self.features((values + first) * inside) * inside[..., None]
        return rows.sum(1) / sizes.clamp_min(1), sizes[:, 0] > 0
