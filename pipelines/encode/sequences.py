"""Sequences of feature vectors of any length -> normalised tensors: sensor windows, speech features, time series."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ..ragged import Ragged
from ..schema import Column, DataError
from .arrow import is_list, is_text
from .column import MISSING, Errors
from .moments import Standardised, moments, some_rows

EMPTY = "it is empty; a sequence has one step at least"
NOT_FINITE = "it holds a missing value, NaN or infinity"


@dataclass
class SequenceEncoder(Standardised):
    """Sequences [T, F]: lists of steps, each a list of F numbers, or flat lists of numbers (F = 1); JSON's lists in text, too.

    `mean`, `std`: of each of the F channels over all steps of the training rows. The column's shape is (F,).
    """

    kind: ClassVar[str] = "sequence"

    @classmethod
    def fit(cls, column: Column, raw: pa.ChunkedArray) -> SequenceEncoder:
        """From the training rows; without a width in the column's shape, the first sequence says it."""
        column = column if column.shape else replace(column, shape=(_width(raw),))
        mean, std = moments(lambda: (sequence_array(rows, column.shape[0])[0].values.numpy() for rows in some_rows(raw)))
        return cls(column, tuple(mean.tolist()), tuple(std.tolist()))

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[Ragged, Errors]:
        """Cells [T, F] float32 a row; rows that don't fit (missing, empty, another F, not finite) have no cells."""
        return sequence_array(raw, self.column.shape[0])

    def tensor(self, batch: Tensor, sizes: Tensor | None = None) -> Tensor:
        """[B, T, F] float32 -> the same, normalised; padding is zero."""
        normal = self.standardised(batch)
        return normal if sizes is None else normal.masked_fill_((torch.arange(batch.shape[1], device=batch.device) >= sizes)[..., None], 0)

    def example(self, raw: pa.ChunkedArray) -> pa.Array:
        """As lists of lists of numbers."""
        found, _ = self.array(raw)
        rows = torch.split(found.values, found.cells.tolist())
        return pa.array([row.double().tolist() for row in rows], pa.list_(pa.list_(pa.float64())))


def sequence_array(raw: pa.ChunkedArray, width: int) -> tuple[Ragged, Errors]:
    """Sequences in any of their forms -> [T, width] float32 a row; rows that don't fit have no cells, and Errors says why."""
    values, lengths, errors, start = [np.zeros((0, width), np.float32)], [np.zeros(0, np.int64)], Errors(), 0
    for chunk in raw.chunks if isinstance(raw, pa.ChunkedArray) else [raw]:
        cells, counts, found = _from_lists(chunk, width) if _is_regular(chunk.type) else _row_by_row(chunk, width)
        values.append(cells)
        lengths.append(counts)
        errors.update({start + row: says for row, says in found.items()})
        start += len(chunk)
    return Ragged.of(np.concatenate(values), np.concatenate(lengths)), errors


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind))


def _is_regular(kind: pa.DataType) -> bool:
    """Lists of numbers, or lists of lists of numbers: what is read at once, not row by row."""
    return is_list(kind) and (_is_number(kind.value_type) or (is_list(kind.value_type) and _is_number(kind.value_type.value_type)))


def _from_lists(lists: pa.Array, width: int) -> tuple[np.ndarray, np.ndarray, Errors]:
    """(cells of the rows that fit [steps, width], steps of each row [N], errors) of one chunk of lists."""
    lengths = _lengths(lists)
    steps, row_of = lists.flatten(), np.repeat(np.arange(len(lists)), np.maximum(lengths, 0))
    sizes = _lengths(steps) if is_list(steps.type) else np.ones(len(steps), np.int64)
    numbers = steps.flatten() if is_list(steps.type) else steps
    with np.errstate(over="ignore"):  # becomes infinity, which is refused
        flat = _floats(numbers)
    step_of = np.repeat(np.arange(len(sizes)), np.maximum(sizes, 0))
    wrong_width, wild = sizes != width, ~np.isfinite(flat)
    errors = dict.fromkeys(row_of[step_of[wild]].tolist(), NOT_FINITE)
    for step in np.flatnonzero(wrong_width)[::-1].tolist():  # the first one of a row is named
        place = step - int(np.searchsorted(row_of, row_of[step]))
        errors[int(row_of[step])] = _wrong_step(place, int(sizes[step]), width, is_list(steps.type))
    errors.update(dict.fromkeys(np.flatnonzero(lengths == 0).tolist(), EMPTY))
    errors.update(dict.fromkeys(np.flatnonzero(lengths < 0).tolist(), MISSING))
    if not errors:
        return flat.reshape(-1, width), lengths, {}
    fits = np.ones(len(lists), bool)
    fits[list(errors)] = False
    return flat[fits[row_of][step_of]].reshape(-1, width), np.where(fits, lengths, 0), errors


def _lengths(lists: pa.Array) -> np.ndarray:
    """[N] int64; -1 where a list is null."""
    return np.asarray(pc.fill_null(pc.cast(pc.list_value_length(lists), pa.int64()), -1).to_numpy(zero_copy_only=False))


def _floats(numbers: pa.Array) -> np.ndarray:
    """[N] float32; NaN where a number is null, infinity where it is beyond float32."""
    found = pc.cast(numbers, pa.float64(), safe=False).to_numpy(zero_copy_only=False) if numbers.type != pa.float32() else numbers
    return np.asarray(found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found).astype(np.float32, copy=False)


def _wrong_step(place: int, size: int, width: int, nested: bool) -> str:
    if not nested:
        return f"a flat list of numbers; each step must be a list of {width}"
    return f"step {place} is missing" if size < 0 else f"step {place} holds {size} values; it must hold {width}"


def _row_by_row(values: pa.Array, width: int) -> tuple[np.ndarray, np.ndarray, Errors]:
    """As `_from_lists`, of text that holds JSON, and of whatever else a column may hold."""
    cells, lengths, errors = [np.zeros((0, width), np.float32)], np.zeros(len(values), np.int64), Errors()
    for row, value in enumerate(values):
        try:
            found = _row(value.as_py(), width)
        except DataError as error:
            errors[row] = str(error)
            continue
        cells.append(found)
        lengths[row] = len(found)
    return np.concatenate(cells), lengths, errors


def _row(value: Any, width: int) -> np.ndarray:
    """[T, width] float32 of one value; raises DataError where it doesn't fit."""
    if value is None or value == "":
        raise DataError(MISSING)
    try:
        value = json.loads(value) if isinstance(value, str) else value
        with np.errstate(over="ignore"):
            found = np.asarray(value, np.float32)
    except (ValueError, TypeError):
        raise DataError("no list of numbers, or of lists of numbers of one length") from None
    if found.size == 0:
        raise DataError(EMPTY)
    if found.ndim not in (1, 2):
        raise DataError(f"lists of shape {list(found.shape)}; a sequence is a list of steps, each a list of {width} numbers")
    found = found[:, None] if found.ndim == 1 else found
    if found.shape[1] != width:
        raise DataError(_wrong_step(0, found.shape[1], width, np.ndim(value) > 1))
    if not np.isfinite(found).all():
        raise DataError(NOT_FINITE)
    return found


def _width(raw: pa.ChunkedArray) -> int:
    """Numbers in a step of the first sequence; 1 where there is none."""
    kind = raw.type
    for value in raw:
        steps = value.as_py() if value.is_valid and (is_list(kind) or is_text(kind)) else None
        try:
            shape = np.shape(json.loads(steps) if isinstance(steps, str) else (steps or ())[:1])
        except ValueError:
            continue
        if shape and shape[0]:
            return int(shape[1]) if len(shape) > 1 else 1
    return 1
