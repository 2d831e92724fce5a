"""Masks: a class for each pixel, from any lossless picture of one channel, and back to PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ..ragged import Ragged
from ..schema import Column, DataError
from .column import MISSING, Errors
from .moments import some_rows
from .pictures import decode_mask, encode_png, image_text, is_picture

IGNORE = 255  # in tensors: a pixel that isn't counted, or padding; networks know the same number
UNKNOWN = 254  # a value that is none of the classes
BLOCK = 1 << 22  # pixels that are counted at once


@dataclass(frozen=True)
class MaskColumn(Column):
    """A column of masks as its source knows it: shape (H, W), or (0, 0) where sizes differ.

    `values`: what stands for each class, by its index; `names`: of the classes; `ignore`: a value that isn't counted.
    """

    values: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    ignore: int | None = None

    def plain(self) -> Column:
        """As any column: the rest is the encoder's."""
        known = asdict(self)
        return Column(**{name: known[name] for name in Column.__dataclass_fields__} | {"shape": self.shape})


@dataclass
class MaskEncoder:
    """Masks -> class indices [N, H, W] uint8, or ragged ones; IGNORE where a pixel isn't counted.

    `counts`: training pixels of each class.
    """

    column: Column
    values: tuple[int, ...]
    ignore: int | None = None
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    _index: np.ndarray = field(init=False, repr=False, compare=False)  # of each value's class

    kind: ClassVar[str] = "mask"
    requires: ClassVar[tuple[str, ...]] = ("pillow",)

    def __post_init__(self) -> None:
        self._index = np.full(256, UNKNOWN, np.uint8)
        self._index[list(self.values)] = np.arange(len(self.values))
        if self.ignore is not None:
            self._index[self.ignore] = IGNORE

    @classmethod
    def fit(cls, column: Column, raw: pa.ChunkedArray) -> MaskEncoder:
        """From the training rows. A column that doesn't know its classes has those whose values are found in them."""
        if not isinstance(column, MaskColumn):
            everything = cls(column, tuple(range(UNKNOWN)))
            values = tuple(np.flatnonzero(everything.count(raw)).tolist())
            column = MaskColumn(**{**asdict(column), "shape": column.shape}, values=values, names=tuple(map(str, values)))
        made = cls(column.plain(), column.values, column.ignore, column.names)
        made.counts = tuple(made.count(raw))
        return made

    def count(self, raw: pa.ChunkedArray) -> list[int]:
        """Pixels of each class in the rows that fit."""
        total = np.zeros(256, np.int64)
        for rows in some_rows(raw):
            array, _ = self.array(rows)
            flat = array.values.numpy() if isinstance(array, Ragged) else array.reshape(-1)
            for start in range(0, len(flat), BLOCK):
                total += np.bincount(flat[start : start + BLOCK], minlength=256)
        return [int(n) for n in total[: len(self.values)]]

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[np.ndarray | Ragged, Errors]:
        """[N, H, W] uint8, or Ragged where sizes differ; a row that doesn't fit is all IGNORE."""
        if pa.types.is_struct(raw.type) and raw.type.get_field_index("bytes") >= 0:
            raw = pc.struct_field(raw, "bytes")
        raw = raw.combine_chunks() if isinstance(raw, pa.ChunkedArray) else raw
        if isinstance(raw, pa.ChunkedArray):  # too large for one
            raw = pa.concat_arrays([chunk.cast(pa.large_binary()) for chunk in raw.chunks])
        if any(self.column.shape) and raw.type == pa.binary(int(np.prod(self.column.shape))) and raw.null_count == 0:
            return self._raw(raw)
        rows, errors = [], Errors()
        for row, value in enumerate(raw):
            try:
                rows.append(self._indices(mask_row(value.as_py(), self.column, folder)))
            except DataError as error:
                errors[row] = str(error)
                rows.append(np.full(self.column.shape if any(self.column.shape) else (1, 1), IGNORE, np.uint8))
        if any(self.column.shape):
            return np.stack(rows) if rows else np.zeros((0, *self.column.shape), np.uint8), errors
        return Ragged.from_rows(rows, 2, np.zeros(0, np.uint8), IGNORE), errors

    def _raw(self, raw: pa.Array) -> tuple[np.ndarray, Errors]:
        """From raw values of one size, without a loop."""
        size = raw.type.byte_width
        values = np.frombuffer(raw.buffers()[1], np.uint8)[raw.offset * size : (raw.offset + len(raw)) * size].reshape(len(raw), size)
        array = self._index[values]
        bad = np.flatnonzero((array == UNKNOWN).any(1)).tolist()
        errors = {row: self._stranger(values[row]) for row in bad}
        array[bad] = IGNORE
        return array.reshape(len(raw), *self.column.shape), errors

    def _indices(self, values: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._index[values]
        if (found == UNKNOWN).any():
            raise DataError(self._stranger(values))
        return found

    def _stranger(self, values: np.ndarray) -> str:
        known = ", ".join(map(str, self.values[:20])) + (", ..." if len(self.values) > 20 else "")
        strange = values[self._index[values] == UNKNOWN].flat[0]
        return f"the mask holds {strange}, which is no class (the classes are {known}; data.ignore is {self.ignore})"

    def tensor(self, batch: Tensor, sizes: Tensor | None = None) -> Tensor:
        """[B, H, W] int64: class indices, IGNORE where a pixel isn't counted, and in padding."""
        return batch.long()

    def answers(self, predictions: Tensor | Sequence[Tensor]) -> pa.Array:
        """Class indices, [B, H, W] or a [h, w] for each row -> PNG masks, with the values that stand for the classes in the data."""
        values = np.array(self.values, np.uint8)
        return pa.array([encode_png(values[mask.cpu().numpy()]) for mask in predictions], pa.binary())

    def example(self, raw: pa.ChunkedArray) -> pa.Array:
        """As lists of rows of indices."""
        return pa.array([self.tensor(torch.from_numpy(mask)).tolist() for mask in np.asarray(self.array(raw)[0])])

    def to_plain(self) -> dict[str, Any]:
        return {"values": list(self.values), "ignore": self.ignore}

    @classmethod
    def from_plain(cls, column: Column, data: Mapping[str, Any]) -> MaskEncoder:
        return cls(column, tuple(data["values"]), data["ignore"])


def mask_row(value: Any, column: Column, folder: Path | None = None) -> np.ndarray:
    """One mask's values [H, W] uint8, of the column's shape if it has one; raises DataError where it doesn't fit."""
    if value is None:
        raise DataError(MISSING)
    if isinstance(value, str):
        value = image_text(value, folder)
    height, width = column.shape
    if isinstance(value, bytes):
        if not is_picture(value, height * width) and len(value) == height * width > 0:
            return np.frombuffer(value, np.uint8).reshape(height, width)
        return decode_mask(value, (height, width) if height else None, column.resize)
    try:
        found = np.asarray(value)
    except ValueError:
        raise DataError("neither a picture nor a list of numbers of one shape") from None
    if found.ndim == 1 and found.size == height * width:
        found = found.reshape(height, width)
    if found.ndim != 2 or found.dtype.kind not in "iub" or (height and found.shape != (height, width)):
        raise DataError(f"a list of shape {list(found.shape)}; a mask is a picture, or rows of whole numbers, one for each pixel")
    if found.min(initial=0) < 0 or found.max(initial=0) > 255:
        raise DataError(f"values from {found.min()} to {found.max()}; they must lie between 0 and 255")
    return found.astype(np.uint8)
