"""Metrics as global sums: what each row adds, and the value that the totals give.

Sums of batches and of ranks may be added in any order, so a metric is exact however the rows were batched or sharded; a mean of
batch means is not. The sums stay on the device until the epoch ends. What rows add is also what a bootstrap resamples. The values are
those of torchmetrics (a test compares them), which itself is not imported here: it takes longer than many an epoch to load.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .family import Batch, Outputs, Schema

Mode = Literal["max", "min"]


class Metric(ABC):
    """`rows`: what each row of a batch adds ([B, K] float64); `value`: the metric of the totals ([K])."""

    mode: ClassVar[Mode]
    row_wise: ClassVar[bool] = True  # whether `rows` says what each row adds; else only `sums` is defined

    def rows(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        """[B, K] float64."""
        raise NotImplementedError

    def sums(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        """[K] float64."""
        return self.rows(outputs, batch, schema).sum(0)

    @abstractmethod
    def value(self, totals: Tensor) -> float: ...


class Mean(Metric):
    """A mean over rows: of what `of` gives for each."""

    @abstractmethod
    def of(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        """[B]."""

    def rows(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        each = self.of(outputs, batch, schema).double()
        return torch.stack([each, torch.ones_like(each)], 1)

    def value(self, totals: Tensor) -> float:
        total, rows = totals.tolist()
        return float(total / rows) if rows else math.nan


class Accuracy(Mean):
    """The share of rows whose largest logit is the label's. outputs: [B, C], label: [B] int64."""

    mode = "max"

    def of(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        return torch.eq(outputs.argmax(1), batch[schema.target.name])


class TopFive(Mean):
    """The share of rows whose label is among the five largest logits. outputs: [B, C], label: [B] int64."""

    mode = "max"

    def of(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        top = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
        return (top == batch[schema.target.name][:, None]).any(1)


class MAE(Mean):
    """The mean absolute error, in the target's own units. outputs: [B], standardised; target: [B]."""

    mode = "min"

    def of(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        return (outputs.double() * schema.target.std + schema.target.mean - batch[schema.target.name].double()).abs()


class RMSE(MAE):
    """The root of the mean squared error, in the target's own units. outputs: [B], standardised; target: [B]."""

    def of(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        return super().of(outputs, batch, schema).square()

    def value(self, totals: Tensor) -> float:
        return math.sqrt(super().value(totals))


METRICS = {
    "accuracy": "models.metrics:Accuracy",
    "top5": "models.metrics:TopFive",
    "rmse": "models.metrics:RMSE",
    "mae": "models.metrics:MAE",
    "iou": "models.segmentation:MeanIoU",
    "dice": "models.segmentation:Dice",
    "pixel_accuracy": "models.segmentation:PixelAccuracy",
    "ndcg_at_10": "models.ranking:NDCG",
    "hr_at_10": "models.ranking:HitRate",
    "hr_at_5": "models.ranking:HitRate5",
    "hr_at_20": "models.ranking:HitRate20",
    "ndcg_at_5": "models.ranking:NDCG5",
    "ndcg_at_20": "models.ranking:NDCG20",
    "mrr": "models.ranking:MRR",
    "recall_at_10": "models.ranking:Recall",
    "full_hr_at_10": "models.ranking:FullHitRate",
    "full_ndcg_at_10": "models.ranking:FullNDCG",
    "full_mrr": "models.ranking:FullMRR",
    "full_recall_at_10": "models.ranking:FullRecall",
    "coverage_at_10": "models.ranking:Coverage",
}
