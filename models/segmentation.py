"""What networks that answer a class for each pixel share: the loss, and metrics over the pixels of a whole set.

outputs: [B, classes, H, W] logits; mask: [B, H, W] int64, IGNORE where a pixel isn't counted (no label, or padding).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .family import Batch, Outputs, Schema
from .metrics import Mean, Metric

Loss = Literal["cross_entropy", "dice", "both"]
IGNORE = 255  # in a mask's tensor: as the masks' encoder writes it


def loss(outputs: Tensor, mask: Tensor, kind: Loss, weight: Tensor | None, training: bool) -> Tensor:
    """The loss of each row over its counted pixels: [B]; 0 where none is counted. Class weights ([classes]) count in training only."""
    logits, weight = outputs.float(), weight if training else None
    if kind == "cross_entropy":
        return _cross_entropy(logits, mask, weight)
    overlap = _dice(logits, mask, weight)
    return overlap if kind == "dice" else overlap + _cross_entropy(logits, mask, weight)


def _cross_entropy(logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
    pixels = F.cross_entropy(logits, mask, weight, ignore_index=IGNORE, reduction="none")
    counted = (mask != IGNORE).flatten(1).sum(1).clamp_min(1)
    return pixels.flatten(1).sum(1) / counted


def _dice(logits: Tensor, mask: Tensor, weight: Tensor | None) -> Tensor:
    """1 - the mean over classes of 2 |P and T| / (|P| + |T|), of probabilities (https://arxiv.org/abs/1606.04797).

    One is added above and below, so that a class that is nowhere, and isn't seen anywhere, costs nothing.
    """
    classes = logits.shape[1]
    probabilities = logits.softmax(1)
    counted = mask != IGNORE
    truth = mask.masked_fill(~counted, 0)
    right = probabilities.gather(1, truth[:, None])[:, 0].masked_fill(~counted, 0.0)  # what each pixel gives to its own class
    sums = torch.zeros(len(mask), classes, device=mask.device)
    both = sums.scatter_add(1, truth.flatten(1), right.flatten(1))
    true = sums.scatter_add(1, truth.flatten(1), counted.flatten(1).float())
    predicted = probabilities.masked_fill(~counted[:, None], 0.0).sum((2, 3))
    overlap = (2 * both + 1) / (predicted + true + 1)
    if weight is None:
        return 1 - overlap.mean(1)
    return 1 - (overlap * weight).sum(1) / weight.sum()


class _Overlap(Metric):
    """What each row adds, for each class: pixels that are right, pixels that are predicted, pixels that are true ([B, 3 * classes])."""

    mode = "max"

    def rows(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        mask, classes = batch[schema.target.name], outputs.shape[1]
        predicted, slots = outputs.argmax(1), classes + 1  # the last slot takes the pixels that don't count
        counted = mask != IGNORE
        own = torch.arange(len(mask), device=mask.device)[:, None, None] * slots
        found = []
        for labels, where in ((mask, counted & (predicted == mask)), (predicted, counted), (mask, counted)):
            cells = own + torch.where(where, labels, classes)
            found.append(torch.bincount(cells.flatten(), minlength=len(mask) * slots).view(len(mask), slots)[:, :classes])
        return torch.cat(found, 1).double()

    def value(self, totals: Tensor) -> float:
        right, predicted, true = totals.view(3, -1)
        there = predicted + true > 0  # a class that is neither in the set nor predicted has no score
        if not there.any():
            return math.nan
        return float(self.scores(right[there], predicted[there], true[there]).mean())

    @abstractmethod
    def scores(self, right: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        """Of each class, from its pixels."""


class MeanIoU(_Overlap):
    """The mean over classes of intersection over union, of all pixels of the set (not a mean of batches or of images)."""

    def scores(self, right: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        return right / (predicted + true - right)


class Dice(_Overlap):
    """The mean over classes of 2 |P and T| / (|P| + |T|), of all pixels of the set: each class's F1 score."""

    def scores(self, right: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        return 2 * right / (predicted + true)


class PixelAccuracy(Mean):
    """The share of the set's counted pixels whose class is right."""

    mode = "max"

    def of(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        right: Tensor = (outputs.argmax(1) == batch[schema.target.name]).flatten(1).sum(1)  # IGNORE is no class
        return right

    def rows(self, outputs: Outputs, batch: Batch, schema: Schema) -> Tensor:
        counted = (batch[schema.target.name] != IGNORE).flatten(1).sum(1)
        return torch.stack([self.of(outputs, batch, schema), counted], 1).double()
