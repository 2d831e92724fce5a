"""Batch prediction: Parquet or CSV in, Parquet or CSV out, a chunk of rows at a time; every row comes out, in order."""

from __future__ import annotations

import contextlib
import difflib
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from orchestrator.deployment.bundle import Bundle
from orchestrator.errors import Failed, Refused
from pipelines.answer import answer
from pipelines.encode import HISTORY, Encoder
from pipelines.encode.arrow import is_bytes, is_text
from pipelines.encode.ids import WHOLE
from pipelines.schema import DataError
from pipelines.sources import files

CHUNK = 8192
FORMATS = (".parquet", ".csv", ".tsv")
INFERRED = rf"{WHOLE}|^(true|false)$"  # words that numbers and booleans of a CSV become


def predict(bundle: Bundle, source: Path, target: Path, every_class: bool = False) -> tuple[int, int]:
    """(rows, rows that didn't fit). Written whole or not at all. Raises Refused if a column is missing or no row fits."""
    if every_class and bundle.encoder.schema.target.kind != "class":
        raise Refused("this model answers no classes: it has no probabilities", key="--probabilities")
    return write_whole(source, target, partial(_fill, bundle, source, every_class))


def write_whole(source: Path, target: Path, fill: Callable[[Writer], tuple[int, int, str | None]]) -> tuple[int, int]:
    """(rows, rows that didn't fit) of what `fill` writes, whole or not at all; it also says which row is the first that didn't fit.

    Raises Refused if the files can't be these, or no row fits; Failed if the target can't be written.
    """
    if target.suffix.lower() not in FORMATS:
        raise Refused(f"output '{target}': its name must end in {', '.join(FORMATS)}")
    if source.resolve() == target.resolve():
        raise Refused(f"output '{target}' is the input: give it another name, the columns that the model takes don't come out again")
    if not target.parent.is_dir():
        raise Refused(f"output '{target}': there is no folder '{target.parent}'")
    beside = _beside(target)
    try:
        with Writer(beside, target) as writer:
            rows, failed, first = fill(writer)
            if rows == 0:
                raise Refused(f"input '{source}' has no rows")
            if failed == rows:
                raise Refused(f"input '{source}': no row fits; {first}")
        beside.chmod(0o644)
        beside.replace(target)
    except OSError as error:
        raise _unwritable(target, error) from None
    finally:
        beside.unlink(missing_ok=True)
    return rows, failed


def _beside(target: Path) -> Path:
    """An empty file in the target's folder, which takes the target's place when it is whole. Raises Failed."""
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{target.name}-", dir=target.parent, delete=False) as made:
            return Path(made.name)
    except OSError as error:
        raise _unwritable(target, error) from None


def _unwritable(target: Path, error: Exception) -> Failed:
    says = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return Failed(f"can't write '{target}': {says}")


def _fill(bundle: Bundle, source: Path, every_class: bool, writer: Writer) -> tuple[int, int, str | None]:
    """Write the answers; (rows, rows that didn't fit, what is wrong with the first of these)."""
    rows = failed = 0
    first: str | None = None
    for chunk in read(source, text_columns(bundle.encoder)):
        answers, errors = _answer(bundle, chunk, source, every_class)
        if errors and first is None:
            first = f"row {rows + min(errors)}: {errors[min(errors)]}"
        replaced = {*consumed(bundle, chunk), *answers.column_names, "error"}
        columns = {n: chunk[n] for n in chunk.column_names if n not in replaced} | {n: answers[n] for n in answers.column_names}
        writer.write(pa.table(columns | {"error": errors_of(errors, chunk.num_rows)}))
        rows, failed = rows + chunk.num_rows, failed + len(errors)
    return rows, failed, first


def consumed(bundle: Bundle, table: pa.Table) -> list[str]:
    """The columns of a table that the model takes, but for ids: an answer without them would be about nobody."""
    taken = [column.name for column in bundle.encoder.schema.inputs if column.kind != "id"]
    return [*taken, *bundle.encoder.optional(table)]


def errors_of(errors: Mapping[int, str], rows: int) -> pa.Array:
    """The column `error`: a sentence where a row doesn't fit."""
    return pa.array([errors.get(row) for row in range(rows)], pa.string())


def text_columns(encoder: Encoder) -> set[str]:
    """The columns that a model takes as text, which a CSV of numbers, booleans or dates alone wouldn't show: '007' isn't 7.

    Ids and words that were numbers or booleans in training are none of these: they are what training has read.
    """
    found = {name for name, column in encoder.columns.items() if _is_text(column)}
    return {*found, HISTORY} if found & {column.name for column in encoder.schema.inputs[1:2] if column.kind == "id"} else found


def _is_text(column: Any) -> bool:
    if column.kind == "id":
        return is_text(column.ids.type)
    return column.kind == "text" or (column.kind == "words" and not all(re.match(INFERRED, word) for word in column.words))


def read(source: Path, as_text: Collection[str]) -> Iterator[pa.Table]:
    """The rows of a Parquet, CSV or TSV file, a chunk at a time. `as_text`: columns that a CSV has as text. Raises Refused."""
    if source.is_dir():
        raise Refused(f"input '{source}' is a folder: give a Parquet, CSV or TSV file")
    if not source.is_file():
        near = difflib.get_close_matches(source.name, [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else [], n=1)
        raise Refused(f"input '{source}': no such file" + (f"; did you mean '{near[0]}'?" if near else ""))
    try:
        yield from files.chunks(source, CHUNK, as_text.__contains__)
    except DataError as error:
        raise Refused(f"input {error}") from None
    except (pa.ArrowException, OSError) as error:
        raise Refused(f"input '{source}' can't be read: {' '.join(str(error).split())[:200]}") from None


def _answer(bundle: Bundle, chunk: pa.Table, source: Path, every_class: bool) -> tuple[pa.Table, dict[int, str]]:
    try:
        return answer(bundle.family, bundle.encoder, chunk, every_class, source.parent)
    except DataError as error:
        raise Refused(f"input '{source}': {error}") from None


class Writer(contextlib.AbstractContextManager["Writer"]):
    """Writes chunks to a Parquet, CSV or TSV file; the first chunk's schema is the file's."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path, self.target, self.suffix = path, target, target.suffix.lower()
        self._out: Any = None
        self._schema: pa.Schema | None = None

    def write(self, table: pa.Table) -> None:
        """Append a chunk. Raises Refused if the form can't hold a column, Failed if it can't be written."""
        try:
            if self._out is None:
                self._open(table.schema)
            self._out.write_table(table.cast(self._schema))
        except (pa.ArrowException, OSError) as error:
            raise _unwritable(self.target, error) from None

    def _open(self, schema: pa.Schema) -> None:
        self._schema = pa.schema([f.with_type(pa.string()) if pa.types.is_null(f.type) else f for f in schema])
        if self.suffix == ".parquet":
            self._out = pq.ParquetWriter(self.path, self._schema)
            return
        unfit = [field for field in self._schema if pa.types.is_nested(field.type) or is_bytes(field.type)]
        if unfit:
            raise Refused(
                f"output '{self.target}': column '{unfit[0].name}' is a {unfit[0].type}, which {self.suffix} can't hold: write .parquet"
            )
        options = pa.csv.WriteOptions(delimiter="\t" if self.suffix == ".tsv" else ",")
        self._out = pa.csv.CSVWriter(self.path, self._schema, write_options=options)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._out is None:
            return
        try:
            self._out.close()
        except (pa.ArrowException, OSError) as problem:
            if kind is None:  # else what went wrong first is what to say
                raise _unwritable(self.target, problem) from None
