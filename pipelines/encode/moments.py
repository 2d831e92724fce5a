"""Mean and standard deviation of more values than memory holds: a column's rows some at a time, twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

SOME_ROWS, SOME_BYTES = 8192, 4 << 20  # at once
BLOCK = 1 << 20  # values at once, where they are converted

Blocks = Callable[[], Iterator[np.ndarray]]  # of values [..., C]


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
