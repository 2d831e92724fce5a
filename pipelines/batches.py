"""Parquet -> tensors for one rank: in memory, one permutation an epoch, one `index_select` a batch. Without memory: see stream.

The order of an epoch is a function of (seed, epoch) alone, and every rank takes its own piece of every global batch: so the ranks'
rows don't overlap, each row comes once an epoch, and a run of two ranks sees the same batches as a run of one. Rows of different
sizes are batched with their like, so that little is padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import pyarrow.parquet as pq
import torch
from torch import Tensor

from . import candidates
from .encode import Encoder
from .prepare import Prepared
from .ragged import MOST_CELLS, Columns, Ragged, by_size, cells_of, in_memory, rows_at_once, take

Batch = Mapping[str, Tensor]  # compact: what `Encoder.tensors` takes
GATHERED_BYTES = 1 << 18  # at most at once, of several batches: they stay in the cache
POOL = 50  # batches that are sorted by size together: enough for little padding, few enough for a good shuffle


class Part(Protocol):
    """The rows of a part of the data, for evaluation: in memory or streamed."""

    def __len__(self) -> int: ...

    def in_order(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Batches of one rank's share of the rows, at most `size` rows each; sums over them don't depend on their order."""
        ...


class Shuffled(Protocol):
    """The training rows of one rank, in a new order each epoch."""

    rows: int  # over all ranks

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        ...

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Step]:
        """The steps of an epoch (from 1), without the first `skip`."""
        ...


@dataclass(frozen=True)
class Held:
    """A part in memory: columns of compact tensors ([N, ...], e.g. uint8 images), or ragged ones."""

    columns: Columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> Tensor | Ragged:
        return self.columns[name]

    @property
    def device(self) -> torch.device:
        return next(iter(self.columns.values())).device

    def to(self, device: str | torch.device) -> Held:
        return Held({name: values.to(device) for name, values in self.columns.items()})

    def rows(self, chosen: slice) -> Batch:
        """Some rows as one batch."""
        return take(self.columns, torch.arange(len(self), device=self.device)[chosen])

    def in_order(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """See Part; where all rows have one size, in the file's order."""
        start, own = share_of(len(self), rank, world_size)
        if cells_of(self.columns) is None:
            size = rows_at_once(self.columns, size, MOST_CELLS)
            for first in range(start, start + own, size):
                yield cut(self.columns, first, min(first + size, start + own))
            return
        for rows in by_size(self.columns, torch.arange(start, start + own, device=self.device), size, MOST_CELLS):
            yield take(self.columns, rows)


def load(prepared: Prepared, part: str) -> Held:
    """All rows of a part in memory, in the file's order."""
    return load_with(prepared.encoder, prepared, part)


def load_with(encoder: Encoder, prepared: Prepared, part: str) -> Held:
    """All rows of a part, encoded by another encoder than the data's own, perhaps. Raises ValueError if a row doesn't fit."""
    arrays, errors = encoder.arrays(pq.read_table(prepared.file(part), columns=encoder.names), encoder.names)
    if errors:
        row, says = min(errors.items())
        raise ValueError(f"{len(errors)} rows of the {part} data don't fit it; row {row}: {says}")
    return Held(in_memory({**arrays, **candidates.arrays(encoder, prepared.folder, part)}))


@dataclass(frozen=True)
class Step:
    """What one rank gets for one optimizer step: pieces for accumulation, of `rows` of the global batch's `total`.

    Every rank has as many pieces, some of them empty where a batch is short: each takes part in every collective.
    """

    pieces: list[Batch]
    rows: int
    total: int


def shares(rows: int, parts: int) -> list[int]:
    """`rows` dealt to `parts` as evenly as can be, the first ones taking one more."""
    base, more = divmod(rows, parts)
    return [base + (part < more) for part in range(parts)]


class Batches:
    """Shuffled batches of one rank. `batch_size` is the global batch; `accumulate` splits a rank's piece of it further."""

    def __init__(self, held: Held, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1) -> None:
        self.held, self.batch_size, self.seed = held, batch_size, seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.rows, self.device = len(held), held.device
        self.cells = cells_of(held.columns)
        self.at_once = 1 if self.cells is not None or world_size * accumulate > 1 else batches_at_once(held.columns, batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-self.rows // self.batch_size)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Step]:
        """The steps of an epoch (from 1), without the first `skip`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = shuffled(self.rows, self.batch_size, self.cells, generator).to(self.device)
        together = self.at_once * self.batch_size
        for start in range(skip * self.batch_size, self.rows, together):
            rows = order[start : start + together]
            if self.at_once == 1:
                yield step_of(self.held.columns, rows, self.rank, self.world_size, self.accumulate)
            else:
                yield from whole_steps(take(self.held.columns, rows), self.batch_size)


def share_of(total: int, rank: int, world_size: int) -> tuple[int, int]:
    """A rank's share of so many rows: (the first of them, how many)."""
    own = shares(total, world_size)
    return sum(own[:rank]), own[rank]


def pieces_of(total: int, rank: int, world_size: int, accumulate: int) -> list[int]:
    """The sizes of the pieces of a rank's share of a global batch: as many on every rank, so some may be 0."""
    own = shares(total, world_size)
    return shares(own[rank], min(accumulate, own[0]))


def step_of(columns: Columns, order: Tensor, rank: int, world_size: int, accumulate: int) -> Step:
    """One rank's piece of a global batch, the rows of which are `order`."""
    first, count = share_of(len(order), rank, world_size)
    pieces = order[first : first + count].split(pieces_of(len(order), rank, world_size, accumulate))
    return Step([take(columns, piece) for piece in pieces], count, len(order))


def batches_at_once(columns: Columns, batch_size: int) -> int:
    """Batches that are gathered together, where steps are so short that gathering each would be felt."""
    row = sum(values[:1].nbytes for values in columns.values() if isinstance(values, Tensor))
    return max(1, GATHERED_BYTES // max(1, row * batch_size))


def whole_steps(gathered: Mapping[str, Tensor], batch_size: int) -> Iterator[Step]:
    """The steps of rows that were gathered together: one piece each, for one rank."""
    names, parts = list(gathered), (values.split(batch_size) for values in gathered.values())
    for pieces in zip(*parts, strict=True):
        rows = len(pieces[0])
        yield Step([dict(zip(names, pieces, strict=True))], rows, rows)


def cut(columns: Columns, first: int, last: int) -> dict[str, Tensor]:
    """Consecutive rows as a batch: views where all have one size."""
    batch: dict[str, Tensor] = {}
    for name, values in columns.items():
        if isinstance(values, Ragged):
            batch |= take({name: values}, torch.arange(first, min(last, len(values))))
        else:
            batch[name] = values[first:last]
    return batch


def shuffled(rows: int, batch_size: int, cells: Tensor | None, generator: torch.Generator) -> Tensor:
    """A permutation of the rows ([rows] int64, on the CPU). Where they have sizes, each batch of it holds rows of like size."""
    order = torch.randperm(rows, generator=generator)
    return alike(order, None if cells is None else cells.cpu()[order], batch_size, generator)


def alike(order: Tensor, sizes: Tensor | None, batch_size: int, generator: torch.Generator) -> Tensor:
    """Rows in a random order, of these sizes, so that each batch holds rows of like size; a last, short batch stays the last."""
    whole = len(order) - len(order) % batch_size
    if sizes is None or whole == 0:
        return order
    pools = zip(*(values[:whole].split(POOL * batch_size) for values in (order, sizes)), strict=True)
    batches = torch.cat([pool[cells.argsort(stable=True)] for pool, cells in pools]).view(-1, batch_size)
    return torch.cat([batches[torch.randperm(len(batches), generator=generator)].flatten(), order[whole:]])
