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
VIEWS = 64  # batches cut at once
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
                batches = _cuts(columns, _sizes(rows, rows_at_once(columns, size, MOST_CELLS)))
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
            before = max(0, first - begin)  # rows of the first group that come before `first`: then none are waiting
            there = waiting + min(end, last) - begin - before
            whole = there if end >= last else there // size * size
            places = np.arange(-before, waiting + end - begin - before)
            places[before + whole :] = -1
            yield Refill(chosen, places, np.arange(before + whole, before + there), whole, whole)
            waiting = there - whole

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
            totals = _sizes(rows, self.batch_size)
            own = {total: pieces_of(total, self.rank, self.world_size, self.accumulate) for total in set(totals)}
            pieces = _cuts(columns, [count for total in totals for count in own[total]])
            for total in totals:
                yield Step([self.part.moved(next(pieces)) for _ in own[total]], sum(own[total]), total)

    def order(self, epoch: int) -> Iterator[Refill]:
        """The buffers of an epoch for all ranks together: whole batches, but for the last."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        starts, cells = self.part.groups.starts, self.part.cells
        groups = torch.randperm(len(starts) - 1, generator=generator).tolist()
        permutations = dict[int, torch.Tensor]()
        waiting = torch.zeros(0, dtype=torch.int64)  # rows that wait for the next buffer; where they have sizes, these
        for at in range(0, len(groups), self.at_once):
            chosen = groups[at : at + self.at_once]
            there = len(waiting) + sum(int(starts[group + 1] - starts[group]) for group in chosen)
            whole = there if at + self.at_once >= len(groups) else there - there % self.batch_size
            kept = torch.arange(whole, there)  # the last ones, so that the other groups are used whole
            places = torch.empty(there, dtype=torch.int64)
            places[whole:] = -1
            if cells is None:
                _turned(permutations, places[:whole], generator)
                waiting = kept
            else:
                sizes = torch.cat([waiting, *(torch.from_numpy(cells[starts[g] : starts[g + 1]].astype(np.int64)) for g in chosen)])
                order = torch.randperm(whole, generator=generator)
                places[alike(order, sizes[order], self.batch_size, generator)] = torch.arange(whole)
                waiting = sizes[kept]
            yield Refill(chosen, places.numpy(), kept.numpy(), whole, whole)

    def _from(self, skip: int, refills: Iterator[Refill]) -> Iterator[Refill]:
        """Without the first `skip` batches: of the buffers before, only the last one is read, for the rows that waited."""
        rows, before = skip * self.batch_size, None
        for refill in refills:
            if rows and rows >= refill.total:
                waited = 0 if before is None else len(before.kept)
                places = np.full(len(refill.places) - waited, -1)
                rows, before = rows - refill.total, replace(refill, places=places, kept=refill.kept - waited, rows=0, total=0)
                continue
            if before is not None and len(before.kept):
                yield before
            yield replace(refill, places=refill.places - rows, rows=refill.rows - rows, total=refill.total - rows) if rows else refill
            rows, before = 0, None

    def _own(self, refill: Refill) -> Refill:
        """This rank's share of each batch of a buffer."""
        if self.world_size == 1 or refill.total == 0:
            return refill
        shares = np.array([share_of(total, self.rank, self.world_size) for total in _sizes(refill.total, self.batch_size)]).reshape(-1, 2)
        (firsts, counts), places = shares.T, refill.places  # [batches]: the first of its own rows in each, how many
        batch = np.maximum(places, 0) // self.batch_size
        inside = places - batch * self.batch_size - firsts[batch]
        own = (inside >= 0) & (inside < counts[batch])
        place = (np.cumsum(counts) - counts)[batch] + inside
        return replace(refill, places=np.where(own, place, -1), rows=int(counts.sum()))


def _turned(permutations: dict[int, torch.Tensor], places: torch.Tensor, generator: torch.Generator) -> None:
    """Fill in places at random: by the epoch's permutation of so many, turned by another amount each time.

    For each buffer a uniform one, in a tenth of the time that drawing it anew takes; the groups, which come in a random order, differ.
    """
    rows = len(places)
    if rows not in permutations:
        permutations[rows] = torch.randperm(rows, generator=generator)
    turn = int(torch.randint(max(1, rows), (), generator=generator))
    places[: rows - turn], places[rows - turn :] = permutations[rows][turn:], permutations[rows][:turn]


def _sizes(rows: int, size: int) -> list[int]:
    """The sizes of batches of so many rows: as large as may be, the last one the rest."""
    return [min(size, rows - first) for first in range(0, rows, size)]


def _cuts(columns: Columns, sizes: list[int]) -> Iterator[Batch]:
    """Consecutive rows as batches of these sizes; views where all have one size, made some at once, which is 3 x as fast as one by one."""
    first, same = 0, {name: values for name, values in columns.items() if not isinstance(values, Ragged)}
    for some in (sizes[at : at + VIEWS] for at in range(0, len(sizes), VIEWS)):
        views = [values[first : first + sum(some)].split(some) for values in same.values()]
        for size, *batch in zip(some, *views, strict=True):
            ragged = cut(columns, first, first + size) if len(same) < len(columns) else {}
            yield ragged | dict(zip(same, batch, strict=True))
            first += size


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
