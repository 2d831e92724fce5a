"""What is known of users and items: words (a category, genres) and numbers. Each may be missing, and an unknown word counts as missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from ..ragged import Ragged
from ..schema import Column, DataError
from .arrow import is_list, is_text
from .column import Errors

SEPARATOR = "|"  # of the words in a text: Action|Comedy


@dataclass
class WordsEncoder:
    """A category, a list of words, or text with `|` between them -> codes of the words, from 1: ragged int64."""

    column: Column
    words: tuple[str, ...] = ()

    kind: ClassVar[str] = "words"

    @classmethod
    def fit(cls, column: Column, raw: pa.ChunkedArray) -> WordsEncoder:
        values, _ = words_of(raw, column.name)
        words = tuple(sorted(set(values.drop_null().unique().to_pylist()) - {""}))
        return cls(replace(column, vocabulary=len(words) + 1), words)

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[Ragged, Errors]:
        """Codes of the known words of each row, [words of all rows] with the rows' sizes."""
        values, sizes = words_of(raw, self.column.name)
        known = pa.array(self.words, pa.string())
        codes = pc.fill_null(pc.index_in(values, value_set=known), -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
        rows = np.repeat(np.arange(len(sizes)), sizes)[codes > 0]
        return Ragged.of(codes[codes > 0], np.bincount(rows, minlength=len(sizes))), {}

    def tensor(self, batch: Tensor, sizes: Tensor | None = None) -> Tensor:
        return batch

    def example(self, raw: pa.ChunkedArray) -> pa.Array:
        return raw.combine_chunks()

    def to_plain(self) -> dict[str, Any]:
        return {"words": list(self.words)}

    @classmethod
    def from_plain(cls, column: Column, data: Mapping[str, Any]) -> WordsEncoder:
        return cls(column, tuple(data["words"]))


@dataclass
class MeasureEncoder:
    """A number of a user or an item -> standardised, NaN where it is missing: [N] float32."""

    column: Column

    kind: ClassVar[str] = "measure"

    @classmethod
    def fit(cls, column: Column, raw: pa.ChunkedArray) -> MeasureEncoder:
        values = _numbers(raw, column.name)
        known = values[np.isfinite(values)]
        mean, std = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
        return cls(replace(column, mean=mean, std=std if std > 1e-12 else 1.0, vocabulary=1))

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[np.ndarray, Errors]:
        values = (_numbers(raw, self.column.name) - self.column.mean) / self.column.std
        return np.where(np.isfinite(values), values, np.nan).astype(np.float32), {}

    def tensor(self, batch: Tensor, sizes: Tensor | None = None) -> Tensor:
        return batch

    def example(self, raw: pa.ChunkedArray) -> pa.Array:
        return raw.combine_chunks()

    def to_plain(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_plain(cls, column: Column, data: Mapping[str, Any]) -> MeasureEncoder:
        return cls(column)


def words_of(raw: pa.ChunkedArray, name: str) -> tuple[pa.Array, np.ndarray]:
    """(the words of all rows, one after the other, how many each row has [N] int64). `name`: of the column. Raises DataError."""
    column = raw.combine_chunks()
    try:
        lists = column if is_list(column.type) else pc.split_pattern(column.cast(pa.string()), SEPARATOR)
        words = pc.utf8_trim_whitespace(lists.flatten().cast(pa.string()))
    except pa.ArrowException as error:
        says = str(error).splitlines()[0]
        raise DataError(f"column '{name}' holds {raw.type}, which is no text and no list of words ({says})") from None
    return words, pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _numbers(raw: pa.ChunkedArray, name: str) -> np.ndarray:
    """[N] float64, NaN where a value is missing or no number. `name`: of the column. Raises DataError."""
    if is_text(raw.type):
        number = pc.match_substring_regex(raw, r"^\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*$")
        raw = pc.utf8_trim_whitespace(pc.if_else(number, raw, pa.scalar(None, raw.type)))
    try:
        return np.asarray(pc.cast(raw, pa.float64(), safe=False).to_numpy(), np.float64)
    except pa.ArrowException:
        raise DataError(f"column '{name}' holds {raw.type}, which is no number") from None
