"""Numbers: as they are, with the mean and deviation of the training rows beside, for networks that standardise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from ..schema import Column, DataError
from .column import MISSING, Errors
from .moments import moments, some_rows


@dataclass
class NumberEncoder:
    """Numbers [N] float64; the column's `mean` and `std` are the training rows'."""

    column: Column

    kind: ClassVar[str] = "number"

    @classmethod
    def fit(cls, column: Column, raw: pa.ChunkedArray) -> NumberEncoder:
        (mean,), (std,) = moments(lambda: (cls(column).array(rows)[0][:, None] for rows in some_rows(raw)))
        return cls(replace(column, mean=float(mean), std=float(std)))

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[np.ndarray, Errors]:
        """[N] float64; 0 where a value is missing or no finite number."""
        if pa.types.is_boolean(raw.type):
            raw = raw.cast(pa.int8())
        if pa.types.is_string(raw.type) or pa.types.is_large_string(raw.type):
            return self._from_text(raw)
        if not (pa.types.is_integer(raw.type) or pa.types.is_floating(raw.type) or pa.types.is_decimal(raw.type)):
            return np.zeros(len(raw)), dict.fromkeys(range(len(raw)), f"{raw.type} is no number")
        values = pc.cast(raw, pa.float64(), safe=False).to_numpy()
        bad = np.flatnonzero(~np.isfinite(values))
        missing = raw.is_null().to_numpy()
        errors = {int(row): MISSING if missing[row] else f"{values[row]} is no finite number" for row in bad}
        return np.where(np.isfinite(values), values, 0.0), errors

    def _from_text(self, raw: pa.ChunkedArray) -> tuple[np.ndarray, Errors]:
        values, errors = np.zeros(len(raw)), Errors()
        for row, text in enumerate(raw.to_pylist()):
            try:
                values[row] = _number(text)
            except DataError as error:
                errors[row] = str(error)
        return values, errors

    def tensor(self, batch: Tensor, sizes: Tensor | None = None) -> Tensor:
        return batch

    def answers(self, predictions: Tensor) -> pa.Array:
        return pa.array(predictions.double().cpu().numpy())

    def example(self, raw: pa.ChunkedArray) -> pa.Array:
        return raw.combine_chunks()

    def to_plain(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_plain(cls, column: Column, data: Mapping[str, Any]) -> NumberEncoder:
        return cls(column)


def _number(text: str | None) -> float:
    """A number as it is written; raises DataError that says what is wrong with it."""
    if text is None:
        raise DataError(MISSING)
    try:
        found = float(text if "_" not in text else "no number")  # Python takes 1_0 for 10
    except ValueError:
        raise DataError(f"'{text}' is no number") from None
    if not math.isfinite(found):
        raise DataError(f"'{text}' is no finite number")
    return found
