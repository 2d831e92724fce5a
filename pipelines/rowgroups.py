"""The row groups of a prepared Parquet file: some of its rows at a time, encoded, in any order, without ever holding the rest."""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from .encode import Encoder
from .encode.column import Array
from .ragged import Column, Columns, Ragged
from .schema import DataError

OWN_BYTES = 1 << 20  # from here on a tensor has pages of its own


@dataclass(frozen=True)
class Refill:
    """What a buffer is filled with: the row groups to read, and which of their rows it will hold, in which order.

    Rows are counted from 0: those that the last buffer kept, then those of the groups, as they are read. `kept`: rows of the groups that
    belong to the next buffer, ascending. `total`: rows of this buffer over all ranks; 0: it only keeps some.
    """

    groups: Sequence[int]
    rows: np.ndarray
    kept: np.ndarray
    total: int


@dataclass(frozen=True)
class _Kept:
    """Rows that wait for the next buffer, as they are in the file, and their numbers there."""

    numbers: np.ndarray
    table: pa.Table | None = None

    @classmethod
    def of(cls, waiting: list[tuple[np.ndarray, pa.Table]]) -> _Kept:
        if not waiting:
            return cls(np.zeros(0, np.int64))
        return cls(np.concatenate([numbers for numbers, _ in waiting]), pa.concat_tables([table for _, table in waiting]))


class RowGroups:
    """A prepared file, open for reading by its row groups. Raises DataError if it is gone or cut, also while it is read."""

    def __init__(self, path: Path, encoder: Encoder) -> None:
        self.path, self.encoder = path, encoder
        try:
            self.metadata = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise self._broken(error) from None
        sizes = [self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)  # a group's first row

    @property
    def rows(self) -> int:
        return int(self.starts[-1])

    @property
    def largest(self) -> int:
        """Rows of the largest group."""
        return int(np.diff(self.starts).max(initial=1))

    def holding(self, first: int, last: int) -> range:
        """The groups that hold the rows from `first` to before `last`."""
        return range(int(np.searchsorted(self.starts, first, "right")) - 1, int(np.searchsorted(self.starts, last, "left")))

    def buffers(self, refills: Iterable[Refill], ended: threading.Event, pin: bool = False) -> Iterator[tuple[Columns, int]]:
        """(encoded rows, total) of each refill that isn't empty; nothing more once `ended` is set. `pin`: in memory pinned for a GPU."""
        kept = _Kept.of([])
        try:
            with pq.ParquetFile(self.path, metadata=self.metadata) as file:
                for refill in refills:
                    filling, waiting, first = _Filling(refill.rows, pin), list[tuple[np.ndarray, pa.Table]](), 0
                    for numbers, table in self._tables(file, refill.groups, kept):
                        if ended.is_set():
                            return
                        self._put(filling, first, numbers, table)
                        low, high = np.searchsorted(refill.kept, [first, first + len(numbers)])
                        if high > low:
                            stays = refill.kept[low:high] - first
                            waiting.append((numbers[stays], table.take(pa.array(stays))))
                        first += len(numbers)
                    kept = _Kept.of(waiting)
                    if refill.total:
                        yield filling.columns(), refill.total
        except (pa.ArrowException, OSError) as error:
            raise self._broken(error) from None

    def _tables(self, file: pq.ParquetFile, groups: Iterable[int], kept: _Kept) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """(row numbers in the file; the rows): what was kept, then group by group."""
        if kept.table is not None:
            yield kept.numbers, kept.table
        for group in groups:
            table = file.read_row_group(group, columns=self.encoder.names, use_threads=False)
            numbers = np.arange(self.starts[group], self.starts[group + 1])
            if table.num_rows != len(numbers):
                raise OSError(f"row group {group} has {table.num_rows} rows, not {len(numbers)}")
            yield numbers, table

    def _put(self, filling: _Filling, first: int, numbers: np.ndarray, table: pa.Table) -> None:
        """Encode the rows of a table that the buffer wants, and no others."""
        wanted, places = filling.find(first, len(numbers))
        if len(wanted) == 0 and filling.begun:
            return
        chosen = table if len(wanted) == table.num_rows else table.take(pa.array(wanted))
        arrays, errors = self.encoder.arrays(chosen, self.encoder.names)
        if errors:
            row, says = min(errors.items())
            raise ValueError(f"a row of the {self.path.stem} data doesn't fit it; row {numbers[wanted[row]]}: {says}")
        filling.put(places, arrays)

    def _broken(self, error: Exception) -> DataError:
        says = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        return DataError(
            f"'{self.path}' was deleted, cut or changed since it was prepared ({says}); delete the folder '{self.path.parent}' "
            "and it is made anew",
            "data",
        )


@dataclass
class _Filling:
    """A buffer that is being filled, table by table: each row goes to its place at once, so that nothing is held twice."""

    rows: np.ndarray
    pin: bool
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ragged: dict[str, list[Ragged]] = field(default_factory=dict)
    places: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._place = np.full(int(self.rows.max(initial=-1)) + 1, -1, np.int32)  # of each row that is read
        self._place[self.rows] = np.arange(len(self.rows), dtype=np.int32)

    @property
    def begun(self) -> bool:
        return bool(self.tensors or self.ragged)

    def find(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(which of the next `count` rows, from `first` on, the buffer wants; the places that they have in it)."""
        places = self._place[first : first + count]
        wanted = np.flatnonzero(places >= 0)
        return wanted, places[wanted].astype(np.intp)  # numpy's own kind of index: with int32 it takes three times as long

    def put(self, places: np.ndarray, arrays: Mapping[str, Array]) -> None:
        self.places.append(places)
        for name, values in arrays.items():
            if isinstance(values, Ragged):
                self.ragged.setdefault(name, []).append(values)
                continue
            if name not in self.tensors:
                self.tensors[name] = _empty((len(self.rows), *values.shape[1:]), values.dtype, self.pin)
            if len(places):
                _put_rows(self.tensors[name].numpy(), places, values)

    def columns(self) -> Columns:
        """The buffer, its rows in the order asked for."""
        columns: dict[str, Column] = dict(self.tensors)
        places = torch.from_numpy(np.concatenate(self.places)).long() if self.places else torch.zeros(0, dtype=torch.int64)
        for name in list(self.ragged):
            columns[name] = _end_to_end(self.ragged.pop(name), places)
        return columns


def _put_rows(whole: np.ndarray, places: np.ndarray, values: np.ndarray) -> None:
    """Write rows [n, ...] to their places; as rows of one axis, which numpy copies in half the time of several."""
    if whole.ndim > 2:
        whole, values = whole.reshape(len(whole), -1), values.reshape(len(values), -1)
    consecutive = places[-1] - places[0] == len(places) - 1 and bool((np.diff(places) == 1).all())
    whole[slice(places[0], places[-1] + 1) if consecutive else places] = values


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any], pin: bool) -> Tensor:
    """A tensor to be filled. Its memory is the system's again once it is gone: an allocator would keep it, for each thread anew."""
    size = math.prod(shape) * dtype.itemsize
    if pin or size < OWN_BYTES:
        return torch.empty(shape, dtype=torch.from_numpy(np.zeros(0, dtype)).dtype, pin_memory=pin)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # rows that come in a random order: 2.6 x as fast as with pages of 4 kB
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.from_numpy(np.frombuffer(pages, dtype).reshape(shape))


def _end_to_end(pieces: list[Ragged], places: Tensor) -> Ragged:
    """Ragged rows of several pieces as one, row i at `places[i]`. The cells stay in the order in which they were read."""
    before = np.cumsum([0, *(len(piece.values) for piece in pieces)])
    starts = torch.cat([piece.starts + int(first) for piece, first in zip(pieces, before, strict=False)])
    sizes = torch.cat([piece.sizes for piece in pieces])
    values = torch.empty((int(before[-1]), *pieces[0].values.shape[1:]), dtype=pieces[0].values.dtype)
    for first in before[:-1].tolist():
        piece = pieces.pop(0)  # and it is free again
        fill = piece.fill
        values[first : first + len(piece.values)] = piece.values
    back = torch.empty_like(places)
    back[places] = torch.arange(len(places))
    return Ragged(values, sizes[back], starts[back], fill)
