"""Rows of different sizes in one tensor: texts, sequences, images of any size. A batch of them is padded as far as it must be.

In a batch a column of such rows is two entries: `NAME`, padded to the largest row ([B, T, ...]; [B, H, W, ...]), and `NAME.sizes`
([B, 1]: lengths; [B, 2]: heights and widths; int64), by which a network knows what is padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MOST_CELLS = 1 << 22  # numbers in a column of one evaluation batch, padded: bounds the memory that large rows take


@dataclass(frozen=True)
class Ragged:
    """`values`: [cells of all rows, ...]; `sizes`: [N, d] int64, d = 1 or 2; `starts`: [N], a row's first cell; `fill`: of padding."""

    values: Tensor
    sizes: Tensor
    starts: Tensor
    fill: float = 0

    @classmethod
    def of(cls, values: np.ndarray | Tensor, sizes: np.ndarray | Tensor, fill: float = 0) -> Ragged:
        """From cells that lie end to end, and the rows' sizes ([N] or [N, d])."""
        cells, extents = torch.as_tensor(values), torch.as_tensor(sizes).long()
        extents = extents[:, None] if extents.ndim == 1 else extents
        counts = extents.prod(1)
        return cls(cells, extents, counts.cumsum(0) - counts, fill)

    @classmethod
    def from_rows(cls, rows: Sequence[np.ndarray], dims: int, like: np.ndarray, fill: float = 0) -> Ragged:
        """From arrays [*size, ...] whose first `dims` axes differ; `like`: an empty array [0, ...] of the cells' dtype and shape."""
        cells = [row.reshape(-1, *like.shape[1:]) for row in rows]
        sizes = np.array([row.shape[:dims] for row in rows], np.int64).reshape(-1, dims)
        return cls.of(np.concatenate([like, *cells]).astype(like.dtype, copy=False), sizes, fill)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def cells(self) -> Tensor:
        """Cells of each row: [N] int64."""
        return self.sizes.prod(1)

    @property
    def numbers(self) -> Tensor:
        """Numbers of each row, by which its memory goes: cells times what a cell holds (a step of 40 bands holds 40): [N] int64."""
        return self.cells * self.values.shape[1:].numel()

    @property
    def size_bytes(self) -> int:
        return self.values.numel() * self.values.element_size()

    def to(self, device: torch.device | str) -> Ragged:
        return Ragged(self.values.to(device), self.sizes.to(device), self.starts.to(device), self.fill)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(padded [B, largest size ..., ...], sizes [B, d]) of some rows."""
        sizes, starts = self.sizes.index_select(0, rows), self.starts.index_select(0, rows)
        if len(rows) == 0:
            return self.values.new_zeros((0, *[1] * sizes.shape[1], *self.values.shape[1:])), sizes
        largest = [max(1, side) for side in sizes.amax(0).tolist()]
        if len(largest) == 1:
            places = torch.arange(largest[0], device=self.device)
            inside = places < sizes
            cells = (starts[:, None] + places).masked_fill_(~inside, 0)
            if len(self.values) == 0:
                return self.values.new_full((len(rows), largest[0], *self.values.shape[1:]), self.fill), sizes
            padded = self.values.index_select(0, cells.flatten()).view(*cells.shape, *self.values.shape[1:])
            outside = (~inside).view(*inside.shape, *[1] * (padded.ndim - 2))
            return padded.masked_fill_(outside, self.fill), sizes
        padded = self.values.new_full((len(rows), *largest, *self.values.shape[1:]), self.fill)
        for place, (start, (height, width)) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
            padded[place, :height, :width] = self.values[start : start + height * width].view(height, width, *self.values.shape[1:])
        return padded, sizes


Column = Tensor | Ragged
Columns = Mapping[str, Column]


def in_memory(arrays: Mapping[str, np.ndarray | Ragged]) -> Columns:
    """Encoded arrays as columns of tensors; what Arrow owns is copied."""
    return {
        name: values if isinstance(values, Ragged) else torch.from_numpy(values if values.flags.writeable else values.copy())
        for name, values in arrays.items()
    }


def sizes_of(name: str) -> str:
    """The batch entry that holds the sizes of a column's rows."""
    return f"{name}.sizes"


def take(columns: Columns, rows: Tensor) -> dict[str, Tensor]:
    """Some rows as a batch of compact tensors, padded where they differ."""
    batch: dict[str, Tensor] = {}
    for name, values in columns.items():
        if isinstance(values, Ragged):
            batch[name], batch[sizes_of(name)] = values.take(rows)
        else:
            batch[name] = values.index_select(0, rows)
    return batch


def cells_of(columns: Columns) -> Tensor | None:
    """Cells of each row in the column whose rows differ most in size ([N] int64); None where all rows have one size."""
    ragged = [values for values in columns.values() if isinstance(values, Ragged)]
    return max(ragged, key=lambda column: len(column.values)).cells if ragged else None


def rows_at_once(columns: Columns, most_rows: int, most_cells: int) -> int:
    """Rows of one size that make a batch: at most so many, and so many numbers each column (but at least one row)."""
    largest = max((values[:1].numel() for values in columns.values() if isinstance(values, Tensor)), default=1)
    return min(most_rows, max(1, most_cells // max(1, largest)))


def by_size(columns: Columns, rows: Tensor, most_rows: int, most_cells: int) -> Iterator[Tensor]:
    """Cut rows into batches, like sizes together: at most so many rows and, padded, so many numbers each column (but at least one row)."""
    ragged = [values for values in columns.values() if isinstance(values, Ragged)]
    most_rows = rows_at_once(columns, most_rows, most_cells)
    if not ragged:
        yield from rows.split(most_rows)
        return
    numbers = torch.stack([column.numbers for column in ragged]).amax(0)
    rows = rows[numbers[rows].argsort(stable=True)]
    sizes = numbers[rows].tolist()
    first = 0
    for last in range(1, len(sizes) + 1):
        if last == len(sizes) or last - first == most_rows or (last + 1 - first) * sizes[last] > most_cells:
            yield rows[first:last]
            first = last
