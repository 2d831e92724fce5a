"""A part of the data that isn't held in memory: streamed from Parquet, one buffer of row groups ahead of who uses it.

The row groups of an epoch come in an order that is a function of (seed, epoch). A few of them make a buffer, whose rows are shuffled and
cut into global batches; what is too little for a batch waits for the next buffer. A rank reads what all ranks read, but encodes only its
own share of every batch: so a run of two ranks sees the same batches as a run of one, each row comes once an epoch, and memory holds
the buffer in use and the next one, whatever the size of the data.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from . import candidates
from .batches import Batch, Step, alike, cut, pieces_of, share_of
from .encode import Encoder
from .prepare import Prepared
from .ragged import MOST_CELLS, Column, Columns, Ragged, by_size, cells_of, in_memory, rows_at_once, take
from .rowgroups import Refill, RowGroups

BUFFER_BYTES, BUFFER_ROWS = 32 << 20, 1 << 18  # a buffer's rows, encoded: enough groups of 2 MB (see prepare) for a good shuffle
ROW_BYTES = 40  # what is known of each row of a buffer: its number, its place
T = TypeVar("T")


@dataclass(frozen=True)
class Streamed:
    """A part of prepared data, read from its file each time. Raises DataError when that is gone or cut, ValueError if a row doesn't fit."""

    groups: RowGroups
    at_once: int  # row groups in a buffer
    cells: np.ndarray | None  # [N] int32, in the file: of rows that differ in size
    beside: Columns  # of all rows, in memory: what a ranking is evaluated on
    device: torch.device

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        part: str,
        encoder: Encoder | None = None,
        device: str | torch.device = "cpu",
        buffer_bytes: int = BUFFER_BYTES,
    ) -> Streamed:
        """A part of prepared data, encoded by the data's own encoder or another one."""
        groups = RowGroups(prepared.file(part), encoder or prepared.encoder)
        row_bytes = prepared.size_bytes / max(1, sum(prepared.rows.values())) + ROW_BYTES
        at_once = max(1, int(min(buffer_bytes / row_bytes, BUFFER_ROWS) / groups.largest))
        beside = in_memory(candidates.arrays(groups.encoder, prepared.folder, part))
        return cls(groups, at_once, prepared.cells(part), beside, torch.device(device))

    def __len__(self) -> int:
        return self.groups.rows

    def in_order(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """See Part; rows of one size in the file's order, in the batches that a part in memory gives."""
        first, count = share_of(len(self), rank, world_size)
        refills = self._consecutive(first, first + count, size)
        for columns, rows in self.buffers(refills):
            columns = {**columns, **{name: _slice(values, first, first + rows) for name, values in self.beside.items()}}
            first += rows
            if cells_of(columns) is None:
                step = rows_at_once(columns, size, MOST_CELLS)
                batches = (cut(columns, at, at + step) for at in range(0, rows, step))
            else:
                batches = (take(columns, some) for some in by_size(columns, torch.arange(rows), size, MOST_CELLS))
            for batch in batches:
                yield self.moved(batch)

    def _consecutive(self, first: int, last: int, size: int) -> Iterator[Refill]:
        """Buffers of the rows from `first` to before `last` in their order, a multiple of `size` in each."""
        groups, waiting = self.groups.holding(first, last), 0
        for at in range(groups.start, groups.stop, self.at_once):
            chosen = range(at, min(at + self.at_once, groups.stop))
            begin, end = int(self.groups.starts[chosen.start]), int(self.groups.starts[chosen.stop])
            rows = np.delete(np.arange(waiting + end - begin), slice(waiting, waiting + max(0, first - begin)))
            rows = rows[: len(rows) - max(0, end - last)]
            whole = len(rows) if end >= last else len(rows) // size * size
            yield Refill(chosen, rows[:whole], rows[whole:], whole)
            waiting = len(rows) - whole

    def buffers(self, refills: Iterator[Refill]) -> Iterator[tuple[Columns, int]]:
        """Buffers of encoded rows, read one ahead in a thread of their own."""
        pin = self.device.type == "cuda"
        return ahead(lambda ended: self.groups.buffers(refills, ended, pin))

    def moved(self, batch: Batch) -> Batch:
        """To the device; from pinned memory that doesn't wait for the copy."""
        return batch if self.device.type == "cpu" else {name: values.to(self.device, non_blocking=True) for name, values in batch.items()}


class StreamedBatches:
    """Shuffled batches of one rank from a streamed part; see Batches."""

    def __init__(self, part: Streamed, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1) -> None:
        self.part, self.batch_size, self.seed = part, batch_size, seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.rows = len(part)
        self.at_once = max(part.at_once, -(-2 * batch_size // part.groups.largest) + 1)  # so that what waits is of the last buffer

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-self.rows // self.batch_size)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Step]:
        """The steps of an epoch (from 1), without the first `skip`, of which nothing is encoded and at most a buffer is read."""
        for columns, rows in self.part.buffers(map(self._own, self._from(skip, self.order(epoch)))):
            at = 0
            for first in range(0, rows, self.batch_size):
                total = min(self.batch_size, rows - first)
                _, own = share_of(total, self.rank, self.world_size)
                yield Step(self._pieces(columns, at, total), own, total)
                at += own

    def _pieces(self, columns: Columns, at: int, total: int) -> list[Batch]:
        """A rank's share of a global batch, which lies in its buffer from `at` on."""
        pieces = []
        for count in pieces_of(total, self.rank, self.world_size, self.accumulate):
            pieces.append(self.part.moved(cut(columns, at, at + count)))
            at += count
        return pieces

    def order(self, epoch: int) -> Iterator[Refill]:
        """The buffers of an epoch for all ranks together: whole batches, but for the last."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        starts, cells = self.part.groups.starts, self.part.cells
        groups = torch.randperm(len(starts) - 1, generator=generator).tolist()
        waiting = torch.zeros(0, dtype=torch.int64)  # rows that wait for the next buffer; where they have sizes, these
        for at in range(0, len(groups), self.at_once):
            chosen = groups[at : at + self.at_once]
            read = sum(int(starts[group + 1] - starts[group]) for group in chosen)
            there = len(waiting) + read
            whole = there if at + self.at_once >= len(groups) else there - there % self.batch_size
            sizes = waiting
            if cells is not None:
                sizes = torch.cat([waiting, *(torch.from_numpy(cells[starts[g] : starts[g + 1]].astype(np.int64)) for g in chosen)])
            order, kept = torch.randperm(whole, generator=generator), torch.arange(whole, there)  # so that the other groups are used whole
            rows = alike(order, None if cells is None else sizes[order], self.batch_size, generator)
            yield Refill(chosen, rows.numpy(), kept.numpy(), whole)
            waiting = kept if cells is None else sizes[kept]

    def _from(self, skip: int, refills: Iterator[Refill]) -> Iterator[Refill]:
        """Without the first `skip` batches: of the buffers before, only the last one is read, for the rows that waited."""
        rows, before = skip * self.batch_size, None
        for refill in refills:
            if rows and rows >= refill.total:
                waited = 0 if before is None else len(before.kept)
                rows, before = rows - refill.total, replace(refill, rows=refill.rows[:0], kept=refill.kept - waited, total=0)
                continue
            if before is not None and len(before.kept):
                yield before
            yield replace(refill, rows=refill.rows[rows:], total=refill.total - rows)
            rows, before = 0, None

    def _own(self, refill: Refill) -> Refill:
        """This rank's share of each batch of a buffer."""
        if self.world_size == 1:
            return refill
        batches = [refill.rows[at : at + self.batch_size] for at in range(0, len(refill.rows), self.batch_size)]
        shares = [share_of(len(batch), self.rank, self.world_size) for batch in batches]
        own = [batch[first : first + count] for batch, (first, count) in zip(batches, shares, strict=True)]
        return replace(refill, rows=np.concatenate([refill.rows[:0], *own]))


def _slice(values: Column, first: int, last: int) -> Column:
    if isinstance(values, Ragged):
        return Ragged(values.values, values.sizes[first:last], values.starts[first:last], values.fill)
    return values[first:last]


def ahead(make: Callable[[threading.Event], Iterator[T]]) -> Iterator[T]:
    """The items of an iterator that runs in a thread, one ahead. The thread has ended when this has, also where it is closed early.

    `make` gets an event that is set when no more is wanted.
    """
    ended = threading.Event()
    items = make(ended)
    with ThreadPoolExecutor(1, "reader") as thread:
        try:
            coming = thread.submit(next, items, None)
            while (item := coming.result()) is not None:
                coming = thread.submit(next, items, None)
                yield item
                del item  # before the next but one is made
        finally:
            ended.set()
