"""Class names -> indices."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from ..schema import Column
from .column import Errors


@dataclass
class ClassEncoder:
    """Class names -> indices: [N] int64. `counts`: training rows of each class."""

    column: Column
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()

    kind: ClassVar[str] = "class"

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[np.ndarray, Errors]:
        """Indices of the names, 0 for a label that isn't one of the classes, which is an error of its row."""
        index = {name: place for place, name in enumerate(self.classes)}
        names, codes = label_codes(raw)
        found = np.array([-1 if name is None else index.get(name, -1) for name in names], np.int64)[codes]
        errors = {int(row): f"'{raw[int(row)].as_py()}' is none of the classes" for row in np.flatnonzero(found < 0)}
        return np.maximum(found, 0), errors

    def count(self, raw: pa.ChunkedArray) -> list[int]:
        """Rows of each class."""
        return [int(n) for n in np.bincount(self.array(raw)[0], minlength=len(self.classes))]

    def tensor(self, batch: Tensor, sizes: Tensor | None = None) -> Tensor:
        return batch

    def answers(self, predictions: Tensor) -> pa.Array:
        return pa.array(np.array(self.classes, dtype=object)[predictions.cpu().numpy()], pa.string())

    def example(self, raw: pa.ChunkedArray) -> pa.Array:
        return raw.combine_chunks()

    def to_plain(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_plain(cls, column: Column, data: Mapping[str, Any]) -> ClassEncoder:
        return cls(column)

    @classmethod
    def fit(cls, column: Column, raw: pa.ChunkedArray) -> ClassEncoder:
        """From the training rows' names: sorted as numbers where all are numbers."""
        names, codes = label_codes(raw)
        classes = sort_classes({name for name in names if name is not None})
        counts = dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True))
        return cls(column, classes, tuple(counts[name] for name in classes))


def class_name(value: Any) -> str:
    """The name of a label: whole floats are written as integers."""
    return str(int(value)) if isinstance(value, float | np.floating) and float(value).is_integer() else str(value)


def label_codes(raw: pa.ChunkedArray) -> tuple[list[str | None], np.ndarray]:
    """The distinct class names of a column, None for a missing one (null, NaN), and the place of each row's name among them."""
    if pa.types.is_dictionary(raw.type):
        raw = raw.cast(raw.type.value_type)
    values = raw.unique()
    names = [None if value is None or value != value else class_name(value) for value in values.to_pylist()]
    return names, pc.index_in(raw, value_set=values).to_numpy().astype(np.int64)


def sort_classes(names: set[str]) -> tuple[str, ...]:
    """In the order of their numbers where all are numbers, else of their letters."""
    with contextlib.suppress(ValueError):
        if all(math.isfinite(float(name)) for name in names):
            return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))
