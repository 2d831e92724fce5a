"""Ids of users and items -> codes: 0 for one that training hasn't seen, else from 1 in the ids' order.

Ids may be millions. They are kept as one compressed Parquet column, as text in the encoder's JSON, and looked up by a hash index that is
made once.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..ragged import Ragged
from ..schema import Column, DataError
from .arrow import is_list, is_text
from .column import MISSING, Errors
from .features import SEPARATOR

WHOLE = r"^(0|-?[1-9][0-9]{0,17})$"  # text that is an integer's own spelling: '07' is not 7
LARGEST = 2**63 - 1  # of int64
NOTHING = pa.array(pa.csv.ConvertOptions().null_values)  # how a missing number is spelt in a CSV


@dataclass
class IdEncoder:
    """Ids -> codes [N] int64. `ids`: the known ones, distinct and sorted, int64 or text. An unknown id is an answer's matter, no error."""

    column: Column
    ids: pa.Array
    _index: Any = None

    kind: ClassVar[str] = "id"
    requires: ClassVar[tuple[str, ...]] = ("pandas",)

    @classmethod
    def fit(cls, column: Column, raw: pa.ChunkedArray) -> IdEncoder:
        """From the training rows' ids."""
        ids = _sorted(as_ids(raw, column.name))
        return cls(replace(column, vocabulary=len(ids) + 1), ids)

    def also(self, raw: pa.ChunkedArray) -> IdEncoder:
        """With the ids of a table of features too: they have no training rows, but something is known of them."""
        more = as_ids(raw, self.column.name)
        kind = self.ids.type if more.type == self.ids.type else pa.string()
        return type(self).fit(self.column, pa.chunked_array([self.ids.cast(kind), more.cast(kind).combine_chunks()]))

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[np.ndarray, Errors]:
        """Codes of the ids; only a missing id doesn't fit."""
        ids = as_ids(raw, self.column.name)
        missing = np.flatnonzero(ids.is_null().to_numpy())
        return self.codes(ids), {int(row): MISSING for row in missing}

    def codes(self, raw: pa.ChunkedArray, name: str | None = None) -> np.ndarray:
        """[N] int64: 0 where an id is unknown or missing. `name`: of the column, if it isn't the encoder's. Raises DataError."""
        import pandas as pd

        if self._index is None:
            self._index = pd.Index(self.ids.to_numpy(zero_copy_only=False))
        ids = _alike(as_ids(raw, name or self.column.name), self.ids.type)
        missing = ids.is_null().to_numpy()
        values = ids.fill_null("" if is_text(ids.type) else 0).to_numpy()
        return np.asarray(np.where(missing, 0, self._index.get_indexer(values) + 1), np.int64)

    def lists(self, raw: pa.ChunkedArray, name: str = "history") -> Ragged:
        """Codes of lists of ids, of text with `|` between them, or of single ids, one row's after the other's; a missing one is empty.

        `name`: of the column. Raises DataError if it holds something else.
        """
        if is_text(raw.type):
            lists = pc.split_pattern(pc.if_else(pc.equal(raw, ""), pa.scalar(None, raw.type), raw), SEPARATOR)
        elif is_list(raw.type):
            lists = raw
        else:
            there = as_ids(raw, name).is_valid()
            return Ragged.of(self.codes(raw.filter(there), name), there.to_numpy().astype(np.int64))
        sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
        return Ragged.of(self.codes(pa.chunked_array([lists.combine_chunks().flatten()]), name), sizes)

    def names(self, codes: np.ndarray) -> pa.Array:
        """The ids of codes; null for 0."""
        places = np.asarray(codes, np.int64) - 1
        return self.ids.take(pa.array(np.maximum(places, 0), mask=places < 0))

    def tensor(self, batch: Tensor, sizes: Tensor | None = None) -> Tensor:
        return batch

    def example(self, raw: pa.ChunkedArray) -> pa.Array:
        return raw.combine_chunks()

    def to_plain(self) -> dict[str, Any]:
        sink = pa.BufferOutputStream()
        options: dict[str, Any] = {"use_dictionary": False, "write_statistics": False, "compression": "zstd"}
        encoding = "DELTA_BYTE_ARRAY" if is_text(self.ids.type) else "DELTA_BINARY_PACKED"
        pq.write_table(pa.table({"id": self.ids}), sink, column_encoding=encoding, **options)
        return {"ids": base64.b64encode(sink.getvalue()).decode()}

    @classmethod
    def from_plain(cls, column: Column, data: Mapping[str, Any]) -> IdEncoder:
        ids = pq.read_table(pa.BufferReader(base64.b64decode(data["ids"])))["id"]
        return cls(column, ids.combine_chunks())


@dataclass
class RankingEncoder:
    """The target of a ranking: every row is a positive, so that there is nothing to encode; answers are scores."""

    column: Column

    kind: ClassVar[str] = "ranking"

    @classmethod
    def fit(cls, column: Column, raw: pa.ChunkedArray) -> RankingEncoder:
        return cls(column)

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[np.ndarray, Errors]:
        """Ones: [N] int8."""
        return np.ones(len(raw), np.int8), {}

    def tensor(self, batch: Tensor, sizes: Tensor | None = None) -> Tensor:
        return batch

    def answers(self, predictions: Tensor) -> pa.Array:
        return pa.array(predictions.to(torch.float64).cpu().numpy())

    def example(self, raw: pa.ChunkedArray) -> pa.Array:
        return raw.combine_chunks()

    def to_plain(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_plain(cls, column: Column, data: Mapping[str, Any]) -> RankingEncoder:
        return cls(column)


def as_ids(raw: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Ids as int64 where they are whole numbers that fit, else as text; NaN is a missing id. Raises DataError if they can't be ids.

    `name`: of the column, for the message.
    """
    if pa.types.is_nested(raw.type):
        raise DataError(f"column '{name}' holds {raw.type}, which is no id: write one number or text a row")
    if pa.types.is_floating(raw.type):
        return _of_floats(raw.cast(pa.float64()))
    if pa.types.is_integer(raw.type):
        fits = raw.type != pa.uint64() or not bool(pc.any(pc.greater(raw, pa.scalar(LARGEST, pa.uint64()))).as_py())
        return raw.cast(pa.int64() if fits else pa.string())
    try:
        return raw.cast(pa.binary()).cast(pa.string()) if pa.types.is_fixed_size_binary(raw.type) else raw.cast(pa.string())
    except pa.ArrowException as error:
        says = str(error).splitlines()[0]
        raise DataError(f"column '{name}' holds {raw.type} that is no text ({says}): write ids as numbers or UTF-8 text") from None


def of_text(written: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids that were read as text from a CSV: int64 where each is a whole number's own spelling, else as they are written.

    Spaces around numbers don't count, nor does a float's '.0', which pandas writes where some are missing.
    """
    numbers = []
    for chunk in written.chunks:
        found = _whole(chunk)
        if found is None:
            bare = pc.utf8_trim_whitespace(chunk)
            there = pc.if_else(pc.is_in(bare, value_set=NOTHING), pa.scalar(None, bare.type), bare)
            found = _whole(pc.replace_substring_regex(there, r"\.0$", ""))
        if found is None:
            return written
        numbers.append(found)
    return pa.chunked_array(numbers, pa.int64())


def _whole(texts: pa.Array) -> pa.Array | None:
    """int64, if each text is one's own spelling: '07' is not 7."""
    try:
        found = texts.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    return found if found.cast(texts.type).equals(texts) else None


def _of_floats(raw: pa.ChunkedArray) -> pa.ChunkedArray:
    """The ids of float64: a whole number is spelt as an integer is, wherever it stands."""
    raw = pc.if_else(pc.is_nan(raw), pa.scalar(None, pa.float64()), raw)
    whole = pc.and_(pc.equal(pc.floor(raw), raw), pc.less(pc.abs(raw), 2.0**63))
    integers = pc.if_else(whole, raw, pa.scalar(None, pa.float64())).cast(pa.int64(), safe=False)
    return integers if integers.null_count == raw.null_count else pc.if_else(whole, integers.cast(pa.string()), raw.cast(pa.string()))


def _alike(ids: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Ids in the type of the known ones; null where they can't be."""
    if ids.type == kind or is_text(kind):
        return ids.cast(kind)
    whole = pc.match_substring_regex(ids, WHOLE)
    for sign in ("", "-"):  # the longest ones fit or don't: text of one length is in the order of its numbers
        long = pc.match_substring_regex(ids, rf"^{sign}[1-9][0-9]{{18}}$")
        whole = pc.or_(whole, pc.and_(long, pc.less_equal(ids, f"{sign}{LARGEST}")))
    return pc.if_else(whole, ids, pa.scalar(None, ids.type)).cast(kind)


def _sorted(ids: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_integer(ids.type):
        return pa.array(np.unique(ids.drop_null().to_numpy()))
    found = ids.unique().drop_null()
    return found.take(pc.sort_indices(found))
