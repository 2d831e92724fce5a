"""What classifiers share: the loss with its smoothing and class weights, the answer, and the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .family import Schema

ClassWeights = Literal["none", "balanced"]  # balanced: rows count by the inverse of their class's frequency in training
BASELINE = "majority class"


def weights(kind: ClassWeights, counts: Sequence[int]) -> Tensor | None:
    """[C] float32, with a mean of 1 over the training rows: rows / (classes * rows of the class), as scikit-learn's 'balanced'.

    A class without training rows weighs nothing, and isn't counted among the classes. None where no rows are known.
    """
    if kind == "none" or not sum(counts):
        return None
    rows = torch.tensor(counts, dtype=torch.float32)
    there = rows > 0
    return torch.where(there, rows.sum() / (there.sum() * rows.clamp_min(1)), 0.0)


def loss(outputs: Tensor, label: Tensor, weight: Tensor | None, smoothing: float, training: bool) -> Tensor:
    """Cross entropy of each row: [B]. Smoothing and weights count in training only. outputs: [B, C], label: [B] int64."""
    rows = F.cross_entropy(outputs.float(), label, label_smoothing=smoothing if training else 0.0, reduction="none")
    return rows if weight is None or not training else rows * weight[label]


def decode(outputs: Tensor) -> dict[str, Tensor]:
    """The best class, its probability, and all probabilities: [B], [B], [B, C]."""
    probabilities = outputs.float().softmax(1)
    best = probabilities.max(1)
    return {"prediction": best.indices, "probability": best.values, "probabilities": probabilities}


def majority(schema: Schema, inputs: Tensor) -> Tensor:
    """The log of the classes' shares in training, for each row: [B, C]; its best class is the majority's."""
    counts = torch.tensor(schema.counts or [1] * len(schema.classes), dtype=torch.float32, device=inputs.device)
    return (counts.clamp_min(0.5) / counts.sum()).log().expand(len(inputs), -1)
