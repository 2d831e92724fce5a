"""Batch prediction: Parquet or CSV in, Parquet or CSV out, a chunk of rows at a time; every row comes out, in order."""

from __future__ import annotations

import contextlib
import difflib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from orchestrator.deployment.bundle import Bundle
from orchestrator.errors import Failed, Refused
from pipelines.answer import answer
from pipelines.schema import DataError

CHUNK = 8192
FORMATS = (".parquet", ".csv", ".tsv")


def predict(bundle: Bundle, source: Path, target: Path, every_class: bool = False) -> tuple[int, int]:
    """(rows, rows that didn't fit). Written whole or not at all. Raises Refused if a column is missing or no row fits."""
    if target.suffix.lower() not in FORMATS:
        raise Refused(f"output '{target}': its name must end in {', '.join(FORMATS)}")
    if source.resolve() == target.resolve():
        raise Refused(f"output '{target}' is the input: give it another name, the columns that the model takes don't come out again")
    if not target.parent.is_dir():
        raise Refused(f"output '{target}': there is no folder '{target.parent}'")
    rows = failed = 0
    first: str | None = None
    beside = Path(tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)[1]) if os.access(target.parent, os.W_OK) else None
    if beside is None:
        raise Refused(f"output '{target}': can't write in '{target.parent}'")
    try:
        with _Writer(beside, target.suffix.lower()) as writer:
            for chunk in read(source):
                answers, errors = _answer(bundle, chunk, source, every_class)
                if errors and first is None:
                    first = f"row {rows + min(errors)}: {errors[min(errors)]}"
                kept = [
                    n for n in chunk.column_names if n not in bundle.encoder.input_names and n not in answers.column_names and n != "error"
                ]
                out = pa.table({n: chunk[n] for n in kept} | {n: answers[n] for n in answers.column_names})
                writer.write(out.append_column("error", pa.array([errors.get(row) for row in range(chunk.num_rows)], pa.string())))
                rows, failed = rows + chunk.num_rows, failed + len(errors)
        if rows == 0:
            raise Refused(f"input '{source}' has no rows")
        if failed == rows:
            raise Refused(f"input '{source}': no row fits; {first}")
        beside.chmod(0o644)
        beside.replace(target)
    except OSError as error:
        raise Failed(f"can't write '{target}': {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)
    return rows, failed


def read(source: Path) -> Iterator[pa.Table]:
    """The rows of a Parquet, CSV or TSV file, a chunk at a time. Raises Refused if it can't be read."""
    if source.is_dir():
        raise Refused(f"input '{source}' is a folder: give a Parquet, CSV or TSV file")
    if not source.is_file():
        near = difflib.get_close_matches(source.name, [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else [], n=1)
        raise Refused(f"input '{source}': no such file" + (f"; did you mean '{near[0]}'?" if near else ""))
    try:
        if source.suffix.lower() in (".csv", ".tsv"):
            options = pa.csv.ParseOptions(delimiter="\t" if source.suffix.lower() == ".tsv" else ",", newlines_in_values=True)
            for batch in pa.csv.open_csv(source, parse_options=options):
                yield pa.Table.from_batches([batch])
        else:
            with pq.ParquetFile(source) as opened:
                for batch in opened.iter_batches(CHUNK):
                    yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise Refused(f"input '{source}' can't be read: {' '.join(str(error).split())[:200]}") from None


def _answer(bundle: Bundle, chunk: pa.Table, source: Path, every_class: bool) -> tuple[pa.Table, dict[int, str]]:
    try:
        return answer(bundle.family, bundle.encoder, chunk, every_class, source.parent)
    except DataError as error:
        raise Refused(f"input '{source}': {error}") from None


class _Writer(contextlib.AbstractContextManager["_Writer"]):
    """Writes chunks to a Parquet, CSV or TSV file; the first chunk's schema is the file's."""

    def __init__(self, path: Path, suffix: str) -> None:
        self.path, self.suffix = path, suffix
        self._out: Any = None
        self._schema: pa.Schema | None = None

    def write(self, table: pa.Table) -> None:
        """Append a chunk."""
        if self._out is None:
            self._schema = pa.schema([f.with_type(pa.string()) if pa.types.is_null(f.type) else f for f in table.schema])
            if self.suffix == ".parquet":
                self._out = pq.ParquetWriter(self.path, self._schema)
            else:
                options = pa.csv.WriteOptions(delimiter="\t" if self.suffix == ".tsv" else ",")
                self._out = pa.csv.CSVWriter(self.path, self._schema, write_options=options)
        self._out.write_table(table.cast(self._schema))

    def __exit__(self, *error: object) -> None:
        if self._out is not None:
            self._out.close()
