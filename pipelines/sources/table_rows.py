"""The rows of a table's parts, one below the other, and where each one is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ..encode.column import Errors
from ..schema import DataError
from .files import Chosen, read


@dataclass(frozen=True)
class Rows:
    """All rows of all parts, and where each one is from."""

    table: pa.Table
    files: Mapping[str, Path]  # part -> file
    counts: tuple[int, ...]

    @property
    def folder(self) -> Path:
        return next(iter(self.files.values())).parent

    def where(self, column: str, row: int) -> str:
        """'file', column, row: counted from 0 in its file."""
        for file, count in zip(self.files.values(), self.counts, strict=True):
            if row < count:
                return f"'{file.name}', column '{column}', row {row}"
            row -= count
        raise IndexError(row)

    def refuse(self, column: str, errors: Errors) -> None:
        """Raise DataError for the first of the rows that don't fit."""
        if errors:
            row, says = min(errors.items())
            more = f" (and {len(errors) - 1} rows more)" if len(errors) > 1 else ""
            raise DataError(f"{self.where(column, row)}: {says}{more}; mend the row or take it out", "data.path")


def read_parts(files: Mapping[str, Path], as_text: Chosen | None = None) -> Rows:
    """The parts' tables, one below the other, with the columns of the first (train). `as_text`: columns that a CSV has as text."""
    tables = {part: read(file, as_text=as_text) for part, file in files.items()}
    first = "train" if "train" in files else ""
    names = tables[first].column_names
    for part, table in tables.items():
        lacking = [name for name in names if name not in table.column_names]
        if lacking:
            raise DataError(
                f"'{files[part].name}' has no column '{lacking[0]}', which '{files[first].name}' has; add it, or take the file away",
                "data.path",
            )
    chosen = [table.select(names).replace_schema_metadata(None) for table in tables.values()]
    try:
        joined = pa.concat_tables(chosen, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        name = next(name for name in names if len({table.schema.field(name).type for table in chosen}) > 1)
        types = ", ".join(f"{table.schema.field(name).type} in '{file.name}'" for table, file in zip(chosen, files.values(), strict=True))
        raise DataError(f"column '{name}' has different types: {types}; write one type in all", "data.path") from None
    return Rows(joined, files, tuple(table.num_rows for table in tables.values()))
