"""What data are known by: hashes of files, and of all that a source gives."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from .raw import Raw
from .schema import Column


def hash_files(files: list[tuple[str, Path]]) -> str:
    """xxh3 of names and contents; names are relative, so that a moved folder is the same data."""
    digest = xxhash.xxh3_128()
    for name, path in files:
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def hash_table(table: pa.Table) -> str:
    """xxh3 of a table's content, however it is chunked."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=65536)
    return xxhash.xxh3_128_hexdigest(sink.getvalue())


def hash_raw(raw: Raw) -> str:
    """xxh3 of all that a source gives: the table, what its columns are, the official parts, features of ids, and what is known of them."""
    known = {
        "table": hash_table(raw.table),
        "columns": [_plain(column) for column in (*raw.inputs, raw.target)],
        "official": None if raw.official is None else hash_table(pa.table({"part": raw.official})),
        "optimum": {name: f"{value:.9g}" for name, value in raw.optimum.items()},  # the last digits may differ between machines
        "sides": {name: [hash_table(side.table), *map(_plain, side.columns)] for name, side in raw.sides.items()},
        "time": raw.time,
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(known, sort_keys=True, default=str).encode())


def _plain(column: Column) -> list[Any]:
    """A column of any class, as JSON-ready data."""
    return [type(column).__name__, dataclasses.asdict(column)]
