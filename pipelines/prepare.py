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
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import candidates, sides
from .encode import KINDS, Encoder
from .fingerprint import hash_files, hash_raw
from .look import look_at
from .ragged import Ragged
from .raw import Load, Raw
from .schema import FORMAT, DataError, Schema
from .seen import RowNames
from .spill import SPILL_BYTES, Spill, spilling
from .splits import NAMES, SplitConfig, split

ROW_GROUP = 8192  # rows of a row group, at most
GROUP_BYTES = 2 << 20  # of a row group, in the file or encoded: what streaming holds is a few of them


@dataclass(frozen=True)
class Prepared:
    """A prepared data set: `folder` holds train.parquet, validation.parquet, test.parquet, data.json and look.json."""

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

    def cells(self, part: str) -> np.ndarray | None:
        """Cells of each training row where rows differ in size ([N] int32, left in its file), by which they are batched; else None."""
        path = self.folder / f"{part}.cells.npy"
        return np.load(path, mmap_mode="r") if path.exists() else None

    def tables(self) -> dict[str, Tensor]:
        """What the data knows beside its rows; none for most sources."""
        path = self.folder / "tables.safetensors"
        return load_file(path) if path.exists() else {}

    def seen_by(self, encoder: Encoder) -> dict[str, Tensor]:
        """Of rows of users and items, who has seen what, in the codes of another encoder; nothing of other rows. Raises DataError."""
        if not (self.folder / "tables.safetensors").exists():
            return {}
        names = encoder.input_names[:2]
        lacking = [name for name in names if name not in self.encoder.input_names]
        if lacking:
            raise DataError(f"no column '{lacking[0]}'; the data has: {', '.join(self.encoder.input_names)}")
        return sides.seen_by(encoder, {part: pq.read_table(self.file(part), columns=names) for part in NAMES})

    def look(self) -> dict[str, Any]:
        """What `look_at` found: `columns`, `duplicates`, `leak`, `problems`; nothing in data that were prepared before there was one."""
        path = self.folder / "look.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

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
    with spilling(cache):
        return _prepare(source, load, config, split_config, cache)


def _prepare(source: str, load: Load, config: Any, split_config: SplitConfig, cache: Path) -> Prepared:
    raw: Raw | None = None
    if hasattr(config, "files"):
        content = hash_files(config.files())
    else:
        raw = load(config)
        content = hash_raw(raw)
    options = {k: v for k, v in dataclasses.asdict(config).items() if k != "path"}
    identity = json.dumps([FORMAT, source, options, dataclasses.asdict(split_config), content], sort_keys=True, default=str)
    fingerprint = xxhash.xxh3_128_hexdigest(identity.encode())
    folder = cache / fingerprint
    if not _is_whole(folder):
        raw = load(config) if raw is None else raw
        _write(_without_split_column(raw, config, split_config), split_config, fingerprint, folder)
    return Prepared.open(folder)


def _is_whole(folder: Path) -> bool:
    return (folder / "data.json").exists() and (folder / "look.json").exists()


def _without_split_column(raw: Raw, config: Any, split_config: SplitConfig) -> Raw:
    """What a split goes by (a speaker, a day) is no input, unless `inputs` names it or it is a user or an item. Raises DataError."""
    if split_config.by is None or split_config.column in (getattr(config, "inputs", None) or ()):
        return raw
    inputs = tuple(column for column in raw.inputs if column.name != split_config.column or column.kind == "id")
    if not inputs:
        raise DataError(
            f"'{split_config.column}' is the only input, and what a split goes by is none; name another column", "data.split.column"
        )
    return dataclasses.replace(raw, inputs=inputs)


def _write(raw: Raw, config: SplitConfig, fingerprint: str, folder: Path) -> None:
    """Everything into a folder beside, then one rename: nothing half-written is ever found under the fingerprint."""
    _refuse_kinds(raw)
    parts = split(raw, config)
    keep = [*(c.name for c in raw.inputs), raw.target.name]
    tables = _parted(raw.table.select(keep), parts)
    encoder, cells = _fit(raw, tables, parts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        for name, table in tables.items():
            rows = _rows_of(max(_row_bytes(table), _encoded_bytes(encoder, table)))
            pq.write_table(table, beside / f"{name}.parquet", row_group_size=rows, compression="lz4")
        if cells is not None:
            np.save(beside / "train.cells.npy", cells)
        shortage = _write_sides(raw, tables, encoder, config, beside)
        described = _describe(raw, tables, encoder, fingerprint)
        (beside / "data.json").write_text(json.dumps(described, indent=1))
        files = {name: beside / f"{name}.parquet" for name in NAMES}
        found = look_at(files, encoder.schema, described["counts"], RowNames(parts, raw.official))
        found |= {"shortage": shortage, "problems": [*found["problems"], *([shortage] if shortage else [])]}
        (beside / "look.json").write_text(json.dumps(found, indent=1))
        beside.chmod(0o755)
        try:
            os.rename(beside, folder)
        except OSError:
            if not _is_whole(folder):  # else another process made it meanwhile
                shutil.rmtree(folder)  # something was deleted from it
                os.rename(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_sides(raw: Raw, tables: Mapping[str, pa.Table], encoder: Encoder, config: SplitConfig, folder: Path) -> str | None:
    """What is known beside the rows of users and items, and what their ranking is evaluated on; what is to be said of that, if anything."""
    if not sides.has_sides(raw):
        return None
    save_file(sides.tables(encoder, raw, tables), folder / "tables.safetensors")
    if raw.target.kind == "ranking":
        user, item = encoder.input_names
        made = candidates.make(tables, user, item, config.seed)
        for part, table in made.items():
            pq.write_table(table, candidates.file_of(folder, part), compression="zstd")
        return candidates.shortage(made)
    return None


def _refuse_kinds(raw: Raw) -> None:
    odd = [column for column in raw.inputs if column.kind not in KINDS]
    if odd:
        raise DataError(
            f"column '{odd[0].name}' is a {odd[0].kind}, which no family takes; name the columns to use in data.inputs, "
            f"or leave out with data.drop: [{', '.join(column.name for column in odd)}]",
            "data.inputs",
        )


def _parted(table: pa.Table, parts: Mapping[str, np.ndarray]) -> dict[str, pa.Table]:
    """The rows of each part; of a large table they go to files, some rows at a time."""
    if table.nbytes <= SPILL_BYTES:
        return {name: table.take(pa.array(rows)) for name, rows in parts.items()}
    spills = {name: Spill() for name in parts}
    step = _rows_of(_row_bytes(table))
    for start in range(0, table.num_rows, step):
        window = table.slice(start, step)
        for name, rows in parts.items():
            first, last = np.searchsorted(rows, [start, start + step])
            if last > first:
                spills[name].add(window.take(pa.array(rows[first:last] - start)).combine_chunks())
    return {name: spill.table() if len(parts[name]) else table.slice(0, 0) for name, spill in spills.items()}


def _row_bytes(table: pa.Table) -> float:
    return float(table.nbytes / max(1, table.num_rows))


def _rows_of(row_bytes: float) -> int:
    """Rows that are worked on at once."""
    return int(min(ROW_GROUP, max(1, GROUP_BYTES / max(1.0, row_bytes))))


def _fit(raw: Raw, tables: Mapping[str, pa.Table], parts: Mapping[str, np.ndarray]) -> tuple[Encoder, np.ndarray | None]:
    """The encoder of the training rows, checked on the rows of every part, and the cells of training rows that differ in size."""
    encoder = sides.fit(Encoder.fit(raw.inputs, raw.target, tables["train"]), raw)
    cells = {name: encoder.check(tables[name], name, parts[name]) for name in NAMES}
    return encoder, cells["train"]


def _describe(raw: Raw, tables: Mapping[str, pa.Table], encoder: Encoder, fingerprint: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "schema": encoder.schema.to_plain(),
        "encoder": encoder.to_plain(),
        "rows": {name: table.num_rows for name, table in tables.items()},
        "size_bytes": sum(_size_bytes(encoder, table) for table in tables.values()),
        "optimum": dict(raw.optimum),
        "counts": _counts(encoder, tables),
    }


def _counts(encoder: Encoder, tables: Mapping[str, pa.Table]) -> dict[str, dict[str, int]]:
    """Rows (pixels of masks) of each class in each part; nothing of a target without classes, or with very many."""
    target, classes = encoder.columns[encoder.schema.target.name], encoder.schema.classes
    if not 0 < len(classes) <= 1000:
        return {}
    return {name: dict(zip(classes, target.count(table[target.column.name]), strict=True)) for name, table in tables.items()}


def _size_bytes(encoder: Encoder, table: pa.Table) -> int:
    """Of all rows, encoded, in memory."""
    return int(_encoded_bytes(encoder, table) * table.num_rows + 0.5)


def _encoded_bytes(encoder: Encoder, table: pa.Table) -> float:
    """Of a row, in memory: from the first ones."""
    some = table.slice(0, _rows_of(_row_bytes(table)))
    arrays, _ = encoder.arrays(some, encoder.names)
    size = sum(int(a.size_bytes if isinstance(a, Ragged) else a.nbytes) for a in arrays.values())
    return size / max(1, int(some.num_rows))
