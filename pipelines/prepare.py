"""Raw data -> Parquet, schema, encoder, splits and fingerprint: once, atomically, cached by the fingerprint."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from safetensors.torch import load_file
from torch import Tensor

from .encode import KINDS, Encoder
from .ragged import Ragged
from .raw import Load, Raw
from .schema import FORMAT, DataError, Schema
from .splits import NAMES, SplitConfig, split

ROW_GROUP = 8192


@dataclass(frozen=True)
class Prepared:
    """A prepared data set: `folder` holds train.parquet, validation.parquet, test.parquet and data.json."""

    folder: Path
    fingerprint: str
    schema: Schema
    encoder: Encoder
    rows: Mapping[str, int]
    size_bytes: int  # of all rows, encoded, in memory
    optimum: Mapping[str, float]
    counts: Mapping[str, Mapping[str, int]]  # split -> class -> rows

    def file(self, part: str) -> Path:
        return self.folder / f"{part}.parquet"

    def tables(self) -> dict[str, Tensor]:
        """What the data knows beside its rows; none for most sources."""
        path = self.folder / "tables.safetensors"
        return load_file(path) if path.exists() else {}

    @classmethod
    def open(cls, folder: Path) -> Prepared:
        """What `prepare` wrote; raises DataError if it isn't whole."""
        try:
            data = json.loads((folder / "data.json").read_text())
            schema = Schema.from_plain(data["schema"])
            encoder = Encoder.from_plain(schema, data["encoder"])
            for part in NAMES:
                (folder / f"{part}.parquet").stat()
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"'{folder}' holds no prepared data ({error}); delete it and it is made anew") from None
        return cls(folder, data["fingerprint"], schema, encoder, data["rows"], data["size_bytes"], data["optimum"], data["counts"])


def prepare(source: str, load: Load, config: Any, split_config: SplitConfig, cache: Path) -> Prepared:
    """The prepared form of a source, from the cache below `cache` if its fingerprint is there.

    The fingerprint covers the raw content, the source's options (not where it lies) and the split. Raises DataError.
    """
    raw: Raw | None = None
    if hasattr(config, "files"):
        content = hash_files(config.files())
    else:
        raw = load(config)
        content = hash_table(raw.table)
    options = {k: v for k, v in dataclasses.asdict(config).items() if k != "path"}
    identity = json.dumps([FORMAT, source, options, dataclasses.asdict(split_config), content], sort_keys=True, default=str)
    fingerprint = xxhash.xxh3_128_hexdigest(identity.encode())
    folder = cache / fingerprint
    if not (folder / "data.json").exists():
        raw = load(config) if raw is None else raw
        _write(_without_split_column(raw, config, split_config), split_config, fingerprint, folder)
    return Prepared.open(folder)


def _without_split_column(raw: Raw, config: Any, split_config: SplitConfig) -> Raw:
    """What a split goes by (a speaker, a day, 'test') is no input, unless `inputs` names it."""
    if split_config.by is None or split_config.column in (getattr(config, "inputs", None) or ()):
        return raw
    return dataclasses.replace(raw, inputs=tuple(column for column in raw.inputs if column.name != split_config.column))


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


def _write(raw: Raw, config: SplitConfig, fingerprint: str, folder: Path) -> None:
    """Everything into a folder beside, then one rename: nothing half-written is ever found under the fingerprint."""
    _refuse_kinds(raw)
    parts = split(raw, config)
    keep = [*(c.name for c in raw.inputs), raw.target.name]
    tables = {name: raw.table.select(keep).take(pa.array(rows)) for name, rows in parts.items()}
    encoder = _fit(raw, tables, parts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        for name, table in tables.items():
            pq.write_table(table, beside / f"{name}.parquet", row_group_size=ROW_GROUP, compression="lz4")
        (beside / "data.json").write_text(json.dumps(_describe(raw, tables, encoder, fingerprint), indent=1))
        beside.chmod(0o755)
        try:
            os.rename(beside, folder)
        except OSError:
            if not (folder / "data.json").exists():  # else another process made it meanwhile
                shutil.rmtree(folder)  # something was deleted from it
                os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _refuse_kinds(raw: Raw) -> None:
    odd = [column for column in raw.inputs if column.kind not in KINDS]
    if odd:
        raise DataError(
            f"column '{odd[0].name}' is a {odd[0].kind}, which no family takes; name the columns to use in data.inputs, "
            f"or leave out with data.drop: [{', '.join(column.name for column in odd)}]",
            "data.inputs",
        )


def _fit(raw: Raw, tables: Mapping[str, pa.Table], parts: Mapping[str, np.ndarray]) -> Encoder:
    """The encoder of the training rows, checked on the rows of every part."""
    encoder = Encoder.fit(raw.inputs, raw.target, tables["train"])
    for name in NAMES:
        encoder.check(tables[name], name, parts[name])
    return encoder


def _describe(raw: Raw, tables: Mapping[str, pa.Table], encoder: Encoder, fingerprint: str) -> dict[str, Any]:
    counts: dict[str, dict[str, int]] = {}
    if encoder.schema.target.kind == "class":
        for name, table in tables.items():
            codes, _ = encoder.columns[raw.target.name].array(table[raw.target.name])
            seen = np.bincount(codes, minlength=len(encoder.schema.classes))
            counts[name] = {c: int(n) for c, n in zip(encoder.schema.classes, seen, strict=True)} if len(seen) <= 1000 else {}
    return {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "schema": encoder.schema.to_plain(),
        "encoder": encoder.to_plain(),
        "rows": {name: table.num_rows for name, table in tables.items()},
        "size_bytes": sum(_size_bytes(encoder, table) for table in tables.values()),
        "optimum": dict(raw.optimum),
        "counts": counts,
    }


def _size_bytes(encoder: Encoder, table: pa.Table) -> int:
    """Of all rows, encoded, in memory: from the first ones."""
    some = table.slice(0, ROW_GROUP)
    arrays, _ = encoder.arrays(some, encoder.names)
    each = sum(a.size_bytes if isinstance(a, Ragged) else a.nbytes for a in arrays.values()) / max(1, some.num_rows)
    return round(each * table.num_rows)
