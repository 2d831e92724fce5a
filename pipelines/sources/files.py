"""Parquet, CSV and TSV files as Arrow tables, with errors that name the file, the row and what to do."""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from .. import spill
from ..encode.arrow import is_bytes, is_text
from ..schema import DataError
from ..splits import part_name

SUFFIXES = (".parquet", ".csv", ".tsv")
CHUNK_ROWS, CHUNK_BYTES = 65536, 8 << 20  # of a large file at once
QUOTED = re.compile(rb'"(?<![^\t\r\n]")([^"]*+(?:""[^"]*+)*+)("(?![^\t\r\n]))?"?')  # a TSV's value, and the quote that ends it

Chosen = Callable[[str], bool]  # whether a column of that name is one of them


def parts_of(path: Path) -> dict[str, Path]:
    """{part: file}: train, validation and test of a folder; {'': path} for a file."""
    if path.is_file():
        return {"": path}
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    found: dict[str, Path] = {}
    for file in files:
        part = part_name(file.stem)
        if part in found:
            raise DataError(f"'{path}' holds two files of one part, {found[part].name} and {file.name}; keep one", "data.path")
        if part:
            found[part] = file
    if "train" not in found:
        there = ", ".join(file.name for file in files[:8]) or "no Parquet, CSV or TSV file"
        raise DataError(
            f"'{path}' holds no train.parquet, train.csv or train.tsv; there is: {there}. Add it, or give one file", "data.path"
        )
    return found if len(found) > 1 else {"": found["train"]}


def read(path: Path, text_only: bool = False, as_text: Chosen | None = None) -> pa.Table:
    """The table, or at least its text columns; dictionaries are decoded, and empty text in a CSV is missing. Raises DataError.

    `as_text`: columns of a CSV or TSV that are text, whatever their values look like; what others are, their values tell.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"'{path.name}' is none of {', '.join(SUFFIXES)}; convert it to one of them", "data.path")
    if path.stat().st_size == 0:
        raise DataError(f"'{path}' is empty; get the file again", "data.path")
    _refuse_open_quotes(path)
    try:
        if spill.at_hand() and _is_large(path, text_only) and (is_parquet(path) or _streams(path, as_text)):
            table = spill.spilled(_some_at_a_time(path, CHUNK_ROWS, text_only, as_text))
        else:
            table = _read_parquet(path, text_only) if is_parquet(path) else _read_text(path, as_text)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None
    _refuse_twice(path, table.column_names)
    if table.num_rows == 0:
        raise DataError(f"'{path.name}' has no rows; its columns are: {', '.join(table.column_names)}", "data.path")
    return pa.table({name: _decoded(table[name]) for name in table.column_names})


def chunks(path: Path, rows: int, as_text: Chosen | None = None) -> Iterator[pa.Table]:
    """The rows of a file, some at a time, as `read` reads them all. Raises DataError, before the first chunk if it is a CSV."""
    _refuse_open_quotes(path)
    if path.suffix.lower() in SUFFIXES and path.stat().st_size and (is_parquet(path) or _streams(path, as_text)):
        yield from _some_at_a_time(path, rows, as_text=as_text)
    else:
        yield from (pa.Table.from_batches([batch]) for batch in read(path, as_text=as_text).to_batches(max_chunksize=rows))


def is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _some_at_a_time(path: Path, rows: int, text_only: bool = False, as_text: Chosen | None = None) -> Iterator[pa.Table]:
    """A Parquet file, at most so many rows (and bytes, about) at a time, or a text file that `_streams`."""
    tables: Iterator[pa.Table]
    if is_parquet(path):
        tables = _parquet_chunks(path, rows, text_only)
    else:
        parse = _parsing(path)
        batches = pa.csv.open_csv(path, parse_options=parse, convert_options=converting(path, parse, as_text))
        tables = (_empty_as_missing(pa.Table.from_batches([batch])) for batch in batches)
    for table in tables:
        _refuse_twice(path, table.column_names)
        yield pa.table({name: _decoded(table[name]) for name in table.column_names})


def _is_large(path: Path, text_only: bool) -> bool:
    """Whether the table, or its text columns, would take much memory."""
    if not is_parquet(path):
        return path.stat().st_size > spill.SPILL_BYTES
    with pq.ParquetFile(path) as file:
        text = any(_may_hold_text(field) for field in file.schema_arrow)
        return (text or not text_only) and _size_bytes(file) > spill.SPILL_BYTES


def _size_bytes(file: pq.ParquetFile) -> int:
    """Without compression."""
    return sum(int(file.metadata.row_group(group).total_byte_size) for group in range(file.metadata.num_row_groups))


def _may_hold_text(field: pa.Field) -> bool:
    return is_text(field.type) or bool(pa.types.is_dictionary(field.type))


def _streams(path: Path, as_text: Chosen | None) -> bool:
    """Whether the types of a text file's beginning hold to its end; else only a look at all of it tells them, or what is wrong."""
    parse = _parsing(path)
    try:
        with pa.csv.open_csv(path, parse_options=parse, convert_options=converting(path, parse, as_text)) as reader:
            if any(is_bytes(field.type) for field in reader.schema):
                return False
            for _ in reader:
                pass
    except (pa.ArrowException, OSError):
        return False
    return True


def _parquet_chunks(path: Path, rows: int, text_only: bool) -> Iterator[pa.Table]:
    """By pages, so that a file of a single large row group isn't held either."""
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            _refuse_twice(path, file.schema_arrow.names)
            columns = [field.name for field in file.schema_arrow if not text_only or _may_hold_text(field)]
            few = max(1, CHUNK_BYTES * file.metadata.num_rows // max(1, _size_bytes(file)))
            for batch in file.iter_batches(min(rows, few), columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    kind = "Parquet, or is cut off" if is_parquet(path) else "a table"
    says = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return DataError(f"'{path}' can't be read as {kind}: {says}; get the file again or mend it", "data.path")


def _refuse_twice(path: Path, columns: list[str]) -> None:
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise DataError(f"'{path.name}' has two columns '{twice[0]}'; rename one", "data.path")


def _read_parquet(path: Path, text_only: bool) -> pa.Table:
    with pq.ParquetFile(path) as file:
        fields = file.schema_arrow
        return file.read([field.name for field in fields if _may_hold_text(field)] if text_only else None)


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _read_text(path: Path, as_text: Chosen | None = None) -> pa.Table:
    """A CSV or TSV; a row of another length is named by its number, which Arrow only knows when it reads in one thread."""
    wrong: list[pa.csv.InvalidRow] = []

    def keep(row: pa.csv.InvalidRow) -> str:
        wrong.append(row)
        return "skip"

    parse = _parsing(path)
    convert = converting(path, parse, as_text)
    parse.invalid_row_handler = keep
    try:
        table = pa.csv.read_csv(path, parse_options=parse, convert_options=convert)
    except pa.ArrowInvalid:
        if convert.column_types:
            _read_text(path)  # names the column that is no UTF-8
        raise
    if wrong:
        wrong.clear()
        pa.csv.read_csv(path, parse_options=parse, read_options=pa.csv.ReadOptions(use_threads=False))
        row, more = wrong[0], f" (and {len(wrong) - 1} rows more)" if len(wrong) > 1 else ""
        raise DataError(
            f"'{path.name}', row {row.number - 2}: {row.actual_columns} values, the header has {row.expected_columns}{more}; "
            "mend it, or quote values that hold a separator",
            "data.path",
        )
    wild = [field.name for field in table.schema if is_bytes(field.type)]
    if wild:
        raise DataError(f"'{path.name}', column '{wild[0]}': it is not UTF-8 text; save the file as UTF-8", "data.path")
    return _empty_as_missing(table)


def _empty_as_missing(table: pa.Table) -> pa.Table:
    for place, name in enumerate(table.column_names):
        column = table.column(place)
        if is_text(column.type):
            table = table.set_column(place, name, pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column))
    return table


def _parsing(path: Path) -> pa.csv.ParseOptions:
    return pa.csv.ParseOptions(delimiter=_delimiter(path), newlines_in_values=True)


def converting(path: Path, parse: pa.csv.ParseOptions, as_text: Chosen | None) -> pa.csv.ConvertOptions:
    """How to read a text file so that some columns are text, whatever their values look like."""
    if as_text is None:
        return pa.csv.ConvertOptions()
    first = pa.csv.ParseOptions(delimiter=parse.delimiter, quote_char=parse.quote_char, newlines_in_values=parse.newlines_in_values)
    first.invalid_row_handler = lambda row: "skip"
    try:
        with pa.csv.open_csv(path, parse_options=first) as reader:
            return pa.csv.ConvertOptions(column_types={name: pa.string() for name in reader.schema.names if as_text(name)})
    except (pa.ArrowException, OSError):
        return pa.csv.ConvertOptions()  # reading all of it tells what is wrong


def _refuse_open_quotes(path: Path) -> None:
    """Refuse a TSV in which a value that only begins with a quote would take in lines below it: many such files quote nothing.

    So does one whose quote isn't closed, or not at a value's end, or that holds as many tabs as whole lines do.
    """
    if path.suffix.lower() != ".tsv" or not path.stat().st_size:
        return
    with path.open("rb") as opened:
        tabs = opened.readline().count(b"\t")
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    for found in QUOTED.finditer(data):
        value, closed = found.groups()
        lines = max(value.count(b"\n"), value.count(b"\r"))
        if lines and (not closed or (tabs and value.count(b"\t") == tabs * lines)):
            line = 1 + data[: found.start()].count(b"\n")
            raise DataError(
                f"'{path.name}', line {line}: the value that begins with '\"' takes in lines below it; "
                "take that '\"' out, or convert the file to Parquet",
                "data.path",
            )


def _delimiter(path: Path) -> str:
    """The separator that the header holds most of; a tab in a TSV."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open("rb") as opened:
        header = opened.readline(1 << 20)
    return max(",;\t", key=lambda mark: header.count(mark.encode()))
