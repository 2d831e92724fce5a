"""Parquet -> tensors for one rank: in memory, one permutation an epoch, one `index_select` a batch.

The order of an epoch is a function of (seed, epoch) alone, and every rank takes its own piece of every global batch: so the ranks'
rows don't overlap, each row comes once an epoch, and a run of two ranks sees the same batches as a run of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow.parquet as pq
import torch
from torch import Tensor

from .prepare import Prepared, keep_names

Columns = Mapping[str, Tensor]


def load(prepared: Prepared, part: str) -> dict[str, Tensor]:
    """All rows of a part as compact tensors ([N, ...], e.g. uint8 images), in the file's order."""
    names = keep_names(prepared.schema)
    arrays, _ = prepared.encoder.arrays(pq.read_table(prepared.file(part), columns=names), names)
    return {name: torch.from_numpy(values if values.flags.writeable else values.copy()) for name, values in arrays.items()}


@dataclass(frozen=True)
class Step:
    """What one rank gets for one optimizer step: pieces for accumulation, of `rows` of the global batch's `total`.

    Every rank has as many pieces, some of them empty where a batch is short: each takes part in every collective.
    """

    pieces: list[Columns]
    rows: int
    total: int


def shares(rows: int, parts: int) -> list[int]:
    """`rows` dealt to `parts` as evenly as can be, the first ones taking one more."""
    base, more = divmod(rows, parts)
    return [base + (part < more) for part in range(parts)]


class Batches:
    """Shuffled batches of one rank. `batch_size` is the global batch; `accumulate` splits a rank's piece of it further."""

    def __init__(self, columns: Columns, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1) -> None:
        self.columns, self.batch_size, self.seed = columns, batch_size, seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        first = next(iter(columns.values()))
        self.rows, self.device = len(first), first.device

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-self.rows // self.batch_size)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Step]:
        """The steps of an epoch (from 1), without the first `skip`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.rows, generator=generator).to(self.device)
        for start in range(skip * self.batch_size, self.rows, self.batch_size):
            total = min(self.batch_size, self.rows - start)
            sizes = shares(total, self.world_size)
            rows, first = sizes[self.rank], start + sum(sizes[: self.rank])
            pieces = order[first : first + rows].split(shares(rows, min(self.accumulate, sizes[0])))
            yield Step([self._take(piece) for piece in pieces], rows, total)

    def _take(self, rows: Tensor) -> Columns:
        return {name: values.index_select(0, rows) for name, values in self.columns.items()}


def in_order(columns: Columns, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Columns]:
    """Batches of one rank's contiguous share of the rows, in order: for evaluation."""
    sizes = shares(len(next(iter(columns.values()))), world_size)
    start = sum(sizes[:rank])
    for first in range(start, start + sizes[rank], size):
        last = min(first + size, start + sizes[rank])
        yield {name: values[first:last] for name, values in columns.items()}
