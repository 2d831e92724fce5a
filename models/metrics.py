"""Metrics as global sums: what each batch adds up, and the value that the totals give.

Sums of batches and of ranks may be added in any order, so a metric is exact however the rows were batched or sharded; a mean of
batch means is not. The sums stay on the device until the epoch ends.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor

from .family import Batch, Schema


class Metric(Protocol):
    """`sums` of a batch ([K] float64) add up to totals; `value` is the metric of the totals."""

    mode: Literal["max", "min"]

    def sums(self, outputs: Tensor, batch: Batch, schema: Schema) -> Tensor: ...

    def value(self, totals: Tensor) -> float: ...


class Accuracy:
    """The share of rows whose largest logit is the label's. outputs: [B, C], label: [B] int64."""

    mode: Literal["max", "min"] = "max"

    def sums(self, outputs: Tensor, batch: Batch, schema: Schema) -> Tensor:
        label = batch[schema.target.name]
        right = (outputs.argmax(1) == label).sum()
        return torch.stack([right, torch.full_like(right, len(label))]).double()

    def value(self, totals: Tensor) -> float:
        right, rows = totals.tolist()
        return float(right / rows) if rows else math.nan


class TopFive:
    """The share of rows whose label is among the five largest logits. outputs: [B, C], label: [B] int64."""

    mode: Literal["max", "min"] = "max"

    def sums(self, outputs: Tensor, batch: Batch, schema: Schema) -> Tensor:
        label = batch[schema.target.name]
        top = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
        right = (top == label[:, None]).sum()
        return torch.stack([right, torch.full_like(right, len(label))]).double()

    value = Accuracy.value


METRICS = {"accuracy": "models.metrics:Accuracy", "top5": "models.metrics:TopFive"}
