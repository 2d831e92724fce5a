"""What a look at the data keeps of every row: its content's number and a measure or two, read from Parquet some rows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .encode.arrow import dense, is_list, is_text
from .row_hash import hash_column
from .schema import Column

CHUNK_BYTES = 16 << 20  # of a file's rows at once

Seen = dict[str, np.ndarray]  # of a column's rows: `hashes` [n] uint64, `missing` [n] bool; of some kinds `lengths`, `numbers`, `flat`


@dataclass(frozen=True)
class RowNames:
    """Where prepared rows come from. `rows`: part -> their numbers in the raw data; `official`: the given part of each raw row."""

    rows: Mapping[str, np.ndarray]
    official: np.ndarray | None = None

    def name(self, part: str, place: int) -> str:
        """What a row is called in a sentence: by its number, from 0, in the data or in its official part."""
        row = int(self.rows[part][place])
        if self.official is None:
            return f"row {row}"
        own = str(self.official[row])
        return f"row {np.count_nonzero(self.official[:row] == own)} of {own}"


def read_seen(file: Path, columns: tuple[Column, ...]) -> dict[str, Seen]:
    """Of each of the columns that the file has: 9 to 26 bytes a row, and never more than a chunk of the rows themselves."""
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as opened:  # else `iter_batches` reads all of it ahead
        there = [c for c in columns if c.name in opened.schema_arrow.names]
        names = [c.name for c in there]
        size = sum(opened.metadata.row_group(group).total_byte_size for group in range(opened.num_row_groups))
        rows = min(max(CHUNK_BYTES * opened.metadata.num_rows // max(1, size), 64), 65536)
        chunks = [{c.name: measure(c, batch.column(c.name)) for c in there} for batch in opened.iter_batches(rows, columns=names)]
    return {name: _joined([chunk[name] for chunk in chunks]) for name in names}


def _joined(chunks: list[Seen]) -> Seen:
    """What all chunks have, end to end."""
    keys = [key for key in chunks[0] if all(key in chunk for chunk in chunks)]
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in keys}


def measure(column: Column, values: pa.Array) -> Seen:
    """What is kept of some rows of a column. Empty text, or text of spaces alone, and lists without values are missing."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    is_prose = column.kind == "text" and is_text(values.type)
    seen: Seen = {
        "hashes": hash_column(_plain_text(values) if is_prose else values),
        "missing": values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False),
    }
    if column.kind == "image":
        return seen | _brightness(column, values)
    if is_prose:
        lengths = pc.count_substring_regex(values, r"\S+")
    elif is_list(values.type):
        lengths = pc.list_value_length(values)
    else:
        number = column.kind in ("number", "measure") and not is_text(values.type)
        return seen | ({"numbers": pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)} if number else {})
    counted = np.asarray(pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False), np.int64)
    return seen | {"lengths": counted, "missing": counted == 0}


def _plain_text(texts: pa.Array) -> pa.Array:
    """In lower case, with single spaces: copies that differ in nothing else are copies."""
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(pc.utf8_lower(texts), r"\s+", " "))


def _brightness(column: Column, values: pa.Array) -> Seen:
    """Mean of each image, and whether all of it is one value; nothing where images are stored as pictures."""
    size = int(np.prod(column.shape)) if column.shape else 0
    pixels = dense(values)
    if size and values.type == pa.binary(size) and not values.null_count:
        pixels = np.frombuffer(values.buffers()[1], np.uint8)[values.offset * size : (values.offset + len(values)) * size]
    if pixels is None:
        return {}
    pixels = pixels.reshape(len(values), -1)
    return {"numbers": pixels.mean(1, dtype=np.float64), "flat": pixels.min(1) == pixels.max(1)}
