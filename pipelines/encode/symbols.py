"""Sequences of symbols (integers or words of a fixed set) -> codes: what a network embeds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from ..ragged import Ragged
from ..schema import Column
from .arrow import is_list, is_text
from .classes import label_codes, sort_classes
from .column import MISSING, Errors
from .sequences import EMPTY

PADDING, UNKNOWN, FIRST = 0, 1, 2  # codes: of nothing, of a symbol that training hasn't seen, of the first symbol


@dataclass
class SymbolsEncoder:
    """Lists of integers or words, or JSON's lists of them in text -> codes [T] int32; padding is 0, an unseen symbol 1."""

    column: Column
    symbols: tuple[str, ...] = ()

    kind: ClassVar[str] = "symbols"

    @classmethod
    def fit(cls, column: Column, raw: pa.ChunkedArray) -> SymbolsEncoder:
        """From the training rows' symbols; the column's `vocabulary` counts them, the padding and the unseen."""
        names = {
            name for chunk in raw.chunks for name in label_codes(pa.chunked_array([_lists(chunk)[0].flatten()]))[0] if name is not None
        }
        return cls(replace(column, vocabulary=FIRST + len(names)), sort_classes(names))

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[Ragged, Errors]:
        """Codes of each row; rows that don't fit (missing, empty, a symbol missing) have none."""
        index = {name: FIRST + place for place, name in enumerate(self.symbols)}
        values, lengths, errors, start = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], Errors(), 0
        for chunk in raw.chunks if isinstance(raw, pa.ChunkedArray) else [raw]:
            lists, found = _lists(chunk)
            names, places = label_codes(pa.chunked_array([lists.flatten()]))
            codes = np.array([-1 if name is None else index.get(name, UNKNOWN) for name in names], np.int32)[places]
            counts = pc.fill_null(pc.cast(pc.list_value_length(lists), pa.int64()), -1).to_numpy(zero_copy_only=False)
            row_of = np.repeat(np.arange(len(lists)), np.maximum(counts, 0))
            found = dict.fromkeys(np.flatnonzero(counts < 0).tolist(), MISSING) | found
            found |= dict.fromkeys(np.flatnonzero(counts == 0).tolist(), EMPTY)
            found |= dict.fromkeys(row_of[codes < 0].tolist(), "a symbol in it is missing")
            fits = np.ones(len(lists), bool)
            fits[list(found)] = False
            values.append(codes[fits[row_of]])
            lengths.append(np.where(fits, counts, 0))
            errors.update({start + row: says for row, says in found.items()})
            start += len(chunk)
        return Ragged.of(np.concatenate(values), np.concatenate(lengths), PADDING), errors

    def tensor(self, batch: Tensor, sizes: Tensor | None = None) -> Tensor:
        """[B, T] int64."""
        return batch.long()

    def example(self, raw: pa.ChunkedArray) -> pa.Array:
        return raw.combine_chunks()

    def to_plain(self) -> dict[str, Any]:
        return {"symbols": list(self.symbols)}

    @classmethod
    def from_plain(cls, column: Column, data: Mapping[str, Any]) -> SymbolsEncoder:
        return cls(column, tuple(data["symbols"]))


def _lists(chunk: pa.Array) -> tuple[pa.Array, Errors]:
    """Lists of symbols, from JSON where they are text; null, with the reason, for a row that is neither."""
    if is_list(chunk.type) and not is_list(chunk.type.value_type):
        return chunk, {}
    if not is_text(chunk.type):
        errors = dict.fromkeys(range(len(chunk)), f"{chunk.type} is no list of symbols")
        return pa.nulls(len(chunk), pa.list_(pa.string())), errors
    rows: list[list[str] | None] = []
    errors = Errors()
    for row, text in enumerate(chunk.to_pylist()):
        found = None
        with contextlib.suppress(ValueError):
            found = json.loads(text) if text else None
        if isinstance(found, list) and all(isinstance(symbol, str | int) for symbol in found):
            rows.append([str(symbol) for symbol in found])
            continue
        rows.append(None)
        if text:
            errors[row] = "no list of symbols"
    return pa.array(rows, pa.list_(pa.string())), errors
