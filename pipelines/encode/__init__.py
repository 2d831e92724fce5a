"""Raw columns -> tensors: fitted on the training rows only, and the same code in training and in serving.

Encoding has two steps. `array` turns a raw column into a compact array that stays in memory (uint8 for images); `tensor` turns a
batch of it into what a network takes (float32, normalised), on the device. A kind of column is one class and one line in KINDS.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from ..ragged import Ragged, sizes_of
from ..schema import Column, DataError, Schema
from .column import Array, ColumnEncoder, Errors, refuse

FORMAT = 2

KINDS = {
    "image": ".images:ImageEncoder",
    "mask": ".masks:MaskEncoder",
    "number": ".numbers:NumberEncoder",
    "class": ".classes:ClassEncoder",
    "sequence": ".sequences:SequenceEncoder",
    "symbols": ".symbols:SymbolsEncoder",
    "text": ".text:TextEncoder",
    "audio": ".audio:AudioEncoder",
    "id": ".ids:IdEncoder",
    "ranking": ".ids:RankingEncoder",
    "words": ".features:WordsEncoder",
    "measure": ".features:MeasureEncoder",
}
CHECKED_ROWS, CHECKED_BYTES = 8192, 4 << 20  # at once, while data are checked
HISTORY = "history"  # a request's list of items that a user likes


def encoder_class(kind: str) -> type[ColumnEncoder]:
    """The encoder of a kind of column; what it needs is imported now."""
    module, _, name = KINDS[kind].partition(":")
    found: type[ColumnEncoder] = getattr(importlib.import_module(module, __name__), name)
    return found


@dataclass
class Encoder:
    """All columns of a schema, encoded by their kinds."""

    schema: Schema
    columns: dict[str, Any]  # name -> ColumnEncoder; the target's is a TargetEncoder

    @classmethod
    def fit(cls, inputs: tuple[Column, ...], target: Column, train: pa.Table) -> Encoder:
        """Fitted on the training rows; the schema is what was found in them."""
        columns = {column.name: encoder_class(column.kind).fit(column, train[column.name]) for column in (*inputs, target)}
        found = columns[target.name]
        classes, counts = tuple(getattr(found, "classes", ())), tuple(getattr(found, "counts", ()))
        return cls(Schema(tuple(columns[column.name].column for column in inputs), found.column, classes, counts), columns)

    def arrays(self, table: pa.Table, names: list[str], folder: Path | None = None) -> tuple[dict[str, Array], Errors]:
        """The named columns as compact arrays, and what doesn't fit, by row; raises DataError if a column is missing.

        `folder`: of the table's file, where a column may name picture files; without it no file is ever read.
        """
        arrays, errors = {}, {}
        for name in names:
            if name not in table.column_names:
                raise DataError(f"no column '{name}'; the input has: {', '.join(table.column_names)}", "input")
            if name == HISTORY and name not in self.columns:
                arrays[name] = self.columns[self.input_names[1]].lists(table[name])
                continue
            arrays[name], bad = self.columns[name].array(table[name], folder)
            errors.update({row: f"{name}: {says}" for row, says in bad.items() if row not in errors})
        return arrays, errors

    def check(self, table: pa.Table, part: str, rows: np.ndarray) -> np.ndarray | None:
        """Raise DataError for the first row of a part that doesn't fit. `rows`: their numbers in the raw data, for the message.

        The cells of each row in the column that has most ([N] int32), where there are columns of rows that differ in size.
        """
        step = min(CHECKED_ROWS, max(1, CHECKED_BYTES * table.num_rows // max(1, table.nbytes)))
        ragged: list[np.ndarray] = []
        for name in self.names:
            cells = []
            for start in range(0, table.num_rows, step):
                array, errors = self.columns[name].array(table[name].slice(start, step))
                refuse({int(rows[start + row]): says for row, says in errors.items()}, name, f"the data ({part} part)")
                if isinstance(array, Ragged):
                    cells.append(array.cells.numpy().astype(np.int32))
            if cells:
                ragged.append(np.concatenate(cells))
        return max(ragged, key=lambda found: int(found.sum(dtype=np.int64)), default=None)

    def for_network(self, net: Any) -> Encoder:
        """As a network takes its input: one that says `any_size` takes images of other sizes too, unless they are brought to one."""
        if not getattr(net, "any_size", False):
            return self
        other = {c.name: replace(self.columns[c.name], other_sizes=True) for c in self.schema.inputs if c.kind == "image" and not c.resize}
        return replace(self, columns=self.columns | other)

    @property
    def input_names(self) -> list[str]:
        return [column.name for column in self.schema.inputs]

    def optional(self, table: pa.Table) -> list[str]:
        """Columns that a network of users and items takes where a request has them: their features, and a user's `history`."""
        features = [column.name for columns in self.schema.features.values() for column in columns]
        pairs = [column.kind for column in self.schema.inputs] == ["id", "id"]
        return [name for name in (*features, *([HISTORY] if pairs else [])) if name in table.column_names]

    @property
    def requires(self) -> set[str]:
        """The distributions that the columns' encoders need, beside numpy, pyarrow and torch."""
        return {name for encoder in self.columns.values() for name in getattr(encoder, "requires", ())}

    @property
    def names(self) -> list[str]:
        """The inputs, then the target."""
        return [*self.input_names, self.schema.target.name]

    def tensors(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch of compact arrays -> what a network takes; sizes of ragged rows are passed on."""
        tensors = {}
        for name, values in batch.items():
            encoder = self.columns.get(name)
            tensors[name] = values if encoder is None else encoder.tensor(values, batch.get(sizes_of(name)))
        return tensors

    def to_plain(self) -> dict[str, Any]:
        """As JSON-ready data, without the schema."""
        return {"format": FORMAT, "columns": {name: {"kind": e.kind, **e.to_plain()} for name, e in self.columns.items()}}

    @classmethod
    def from_plain(cls, schema: Schema, data: Mapping[str, Any]) -> Encoder:
        """From what `to_plain` gave; unknown fields are ignored."""
        stored = data["columns"]
        features = [column for columns in schema.features.values() for column in columns]
        columns = {c.name: encoder_class(c.kind).from_plain(c, stored.get(c.name, {})) for c in (*schema.inputs, schema.target, *features)}
        if schema.classes:
            columns[schema.target.name] = replace(columns[schema.target.name], classes=schema.classes, counts=schema.counts)  # type: ignore[type-var]
        return cls(schema, columns)
