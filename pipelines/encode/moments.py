"""Channels with mean 0 and deviation 1: fitted on more values than memory holds, some rows at a time, and applied on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..schema import Column

SOME_ROWS, SOME_BYTES = 8192, 4 << 20  # at once
BLOCK = 1 << 20  # values at once, where they are converted

Blocks = Callable[[], Iterator[np.ndarray]]  # of values [..., C]


@dataclass
class Standardised:
    """A column of values [..., C]; `mean`, `std`: of each of the C channels over the training rows."""

    column: Column
    mean: tuple[float, ...]
    std: tuple[float, ...]
    _constants: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def standardised(self, batch: Tensor) -> Tensor:
        """[..., C] of any dtype -> the same in float32, each channel with mean 0 and deviation 1 in training."""
        if batch.device not in self._constants:
            std = torch.tensor(self.std, device=batch.device)
            self._constants[batch.device] = (1 / std, -torch.tensor(self.mean, device=batch.device) / std)
        scale, shift = self._constants[batch.device]
        return torch.addcmul(shift, batch.float(), scale)

    def to_plain(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_plain(cls, column: Column, data: Mapping[str, Any]) -> Self:
        return cls(column, tuple(data["mean"]), tuple(data["std"]))


def some_rows(raw: pa.ChunkedArray) -> Iterator[pa.ChunkedArray]:
    """The rows of a column, a few at a time; all of them at once where they are few."""
    step = int(min(SOME_ROWS, max(1, SOME_BYTES * len(raw) // max(1, raw.nbytes))))
    for start in range(0, max(1, len(raw)), step):
        yield raw.slice(start, step)


def moments(blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """(mean [C], standard deviation [C]), float64, over all but the last axis; of a constant, or of nothing, the deviation is 1.

    Exact for uint8, by counting.
    """
    first = next(blocks())
    if first.dtype == np.uint8:
        mean, variance = _counted(blocks, first.shape[-1])
    else:
        count = max(1, sum(block[..., 0].size for block in blocks()))
        mean = _sums(blocks, np.zeros(first.shape[-1]), 1) / count
        variance = _sums(blocks, mean, 2) / count
    std = variance**0.5
    return mean, np.where(std > 1e-12 * np.maximum(1, np.abs(mean)), std, 1.0)


def _counted(blocks: Blocks, channels: int) -> tuple[np.ndarray, np.ndarray]:
    counts = np.zeros((channels, 256), np.int64)
    for block in _small(blocks):
        counts += [np.bincount(block[..., channel].ravel(), minlength=256) for channel in range(channels)]
    levels, rows = np.arange(256), np.maximum(counts.sum(1), 1)
    mean = counts @ levels / rows
    return mean, (counts * (levels - mean[:, None]) ** 2).sum(1) / rows


def _sums(blocks: Blocks, middle: np.ndarray, power: int) -> np.ndarray:
    """[C] sums of the differences to `middle`, to a power."""
    total = np.zeros(len(middle))
    for block in _small(blocks):
        total += [((block[..., channel].astype(np.float64) - value) ** power).sum() for channel, value in enumerate(middle)]
    return total


def _small(blocks: Blocks) -> Iterator[np.ndarray]:
    for block in blocks():
        rows = max(1, BLOCK // max(1, block[:1].size))
        for start in range(0, len(block), rows):
            yield block[start : start + rows]
