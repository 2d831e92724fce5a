"""What an encoder of a column is: raw values -> a compact array that stays in memory -> tensors that a network takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from torch import Tensor

from ..ragged import Ragged
from ..schema import Column, DataError

Errors = dict[int, str]  # row -> what doesn't fit
MISSING = "it is missing"  # of a row without a value
Array = np.ndarray | Ragged


class ColumnEncoder(Protocol):
    """Encodes one kind of column. `column`: with what fitting has found (the size of a vocabulary, a mean)."""

    column: Column
    kind: ClassVar[str]

    @classmethod
    def fit(cls, column: Column, raw: pa.ChunkedArray) -> ColumnEncoder:
        """From the training rows, which all fit."""
        ...

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[Array, Errors]:
        """A compact array of all rows; rows that don't fit hold anything (zeros, nothing), and Errors says why.

        `folder`: of the table's file, where a column may name files; without it no file is ever read.
        """
        ...

    def tensor(self, batch: Tensor, sizes: Tensor | None = None) -> Tensor:
        """What a network takes of a batch of that array, on the batch's device. `sizes`: of ragged rows; padding comes out as zero."""
        ...

    def example(self, raw: pa.ChunkedArray) -> pa.Array:
        """Some values in the form that JSON can carry too: for the input example of a model."""
        ...

    def to_plain(self) -> dict[str, Any]:
        """What fitting has found, as JSON-ready data."""
        ...

    @classmethod
    def from_plain(cls, column: Column, data: Mapping[str, Any]) -> ColumnEncoder: ...


class TargetEncoder(ColumnEncoder, Protocol):
    """Encodes a target, and knows the way back."""

    def answers(self, predictions: Any) -> pa.Array:
        """What a network's decoded predictions ([B, ...]) are called in an answer: class names, numbers, pictures."""
        ...


def refuse(errors: Errors, column: str, where: str) -> None:
    """Raise DataError for the first of the rows that don't fit; rows are counted from 0."""
    if errors:
        row, says = min(errors.items())
        more = f" (and {len(errors) - 1} rows more)" if len(errors) > 1 else ""
        raise DataError(f"{where}, column '{column}', row {row}: {says}{more}")
