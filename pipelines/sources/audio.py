"""Recordings: WAV files in folders, or in a table; the class is a folder's name, a piece of the file's name, or a column."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Ge, doc

from ..encode.arrow import is_bytes, is_list
from ..encode.audio import RATES, SUFFIX, check_bands, holds_audio, log_mels, wav_bytes
from ..encode.classes import label_codes
from ..raw import Raw, existing
from ..schema import Column, DataError
from ..splits import part_name
from .audio_files import Found, recordings
from .files import SUFFIXES as TABLES
from .files import parts_of, read
from .table_rows import Rows, read_parts

TARGETS = ("label", "target")  # what a table's target is called where the options don't say
MOST_CLASSES = 1000  # of a target of whole floats; with more it is a number


@dataclass(frozen=True)
class Config:
    """`path`: a folder of WAV files, also in train/, validation/ and test/; or a table (or train.csv, test.csv ...) with a column of them.

    In a folder the class is the name of the `folder` that a file lies in, or a piece of its `name`: the group called `label`, else the
    first group, of the regular expression `pattern`, by default what comes before the first `_` or `-` (yes_0012.wav: yes). Other named
    groups, as in `(?P<speaker>\\w+)_nohash`, become columns that a split can go by: data.split: {by: group, column: speaker}.
    In a table, `file` (default: the column of WAV files' names or bytes) and `target` (default: label or target) name the columns.
    `rate`: samples a second that every recording is brought to; `mels`: bands of its features.
    """

    path: Annotated[str, doc("folder of WAV files, or a table with a column of them")] = ""
    target: Annotated[str | None, doc("column of a table to predict; default: label or target")] = None
    file: Annotated[str | None, doc("column of a table with the files' names or bytes; default: the one that has them")] = None
    label: Annotated[
        Literal["folder", "name"], doc("what names the class in a folder: the folder that a file lies in, or its own name")
    ] = "folder"
    pattern: Annotated[str | None, doc("regular expression that finds the class in a name")] = None
    rate: Annotated[int, Ge(RATES[0]), doc("samples a second that every recording is brought to")] = 16_000
    mels: Annotated[int, Ge(3), doc("bands of the features")] = 40

    def files(self) -> list[tuple[str, Path]]:
        """The recordings, or the table's files and the recordings that it names."""
        path = existing(self.path)
        if not _is_table(path):
            return [(found.name, found.path) for found in self.recordings()]
        parts = parts_of(path)
        tables = [(part + file.suffix.lower(), file) for part, file in parts.items()]
        named = {(name, file.parent / name) for file in parts.values() for name in _names(read(file), self)}
        return tables + sorted((name, wav) for name, wav in named if wav.is_file())

    def recordings(self) -> list[Found]:
        """The WAV files of a folder. Raises DataError."""
        pattern = self.pattern or (r"^(?P<label>[^_\-]+)" if self.label == "name" else None)
        try:
            return recordings(existing(self.path, "folder"), self.label, re.compile(pattern) if pattern else None)
        except re.error as error:
            raise DataError(f"'{self.pattern}' is no regular expression ({error})", "data.pattern") from None


def load(config: Config) -> Raw:
    """`audio` (features [T, mels] float32, as lists) and `label`; of a table, its own columns. Raises DataError naming file or row."""
    check_bands(config.rate, config.mels)
    return _from_table(config) if _is_table(existing(config.path)) else _from_folder(config)


def _is_table(path: Path) -> bool:
    """A file, or a folder of tables for the parts."""
    if path.is_file():
        if path.suffix.lower() == SUFFIX:
            raise DataError(f"'{path}' is one recording; give the folder that holds all of them, or a table that names them", "data.path")
        return True
    return any(entry.suffix.lower() in TABLES and part_name(entry.stem) == "train" for entry in path.iterdir())


def _from_folder(config: Config) -> Raw:
    found = config.recordings()
    column, features = _features("audio", [(f"'{each.name}'", each.path.read_bytes) for each in found], config)
    groups = {name: pa.array([each.groups[name] for each in found], pa.string()) for name in found[0].groups}
    table = pa.table({**groups, "audio": features, "label": pa.array([each.label for each in found], pa.string())})
    parts = np.array([each.part for each in found])
    return Raw(table, (column,), Column("label", "class", dtype="str"), parts if (parts != "").all() else None)


def _from_table(config: Config) -> Raw:
    rows = read_parts(parts_of(existing(config.path)))
    name, target = _file_column(rows.table, config), _target(rows, config)
    values = rows.table[name]
    if pa.types.is_struct(values.type):
        values = pc.struct_field(values, "bytes")
    read_row: Callable[[int], bytes] = lambda row: wav_bytes(values[row].as_py(), rows.folder)  # noqa: E731
    column, features = _features(name, [(rows.where(name, row), partial(read_row, row)) for row in range(len(values))], config)
    table = rows.table.set_column(rows.table.column_names.index(name), name, features)
    return Raw(table, (column,), target, None if "" in rows.files else np.repeat(list(rows.files), rows.counts))


def _features(name: str, wavs: Sequence[tuple[str, Callable[[], bytes]]], config: Config) -> tuple[Column, pa.Array]:
    """The column and its features, lists of steps of `mels` numbers. `wavs`: what to call each in an error, and how to read it."""

    def of(wav: tuple[str, Callable[[], bytes]]) -> np.ndarray:
        try:
            return log_mels(wav[1](), config.rate, config.mels)
        except (DataError, OSError) as error:
            raise DataError(f"{wav[0]}: {error}; replace it or take it out", "data.path") from None

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        found = list(pool.map(of, wavs))
    offsets = np.concatenate([[0], np.cumsum([len(steps) for steps in found])]).astype(np.int32)
    steps = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(found).reshape(-1)), config.mels)
    return Column(name, "audio", (config.mels,), rate=config.rate), pa.ListArray.from_arrays(pa.array(offsets), steps)


def _file_column(table: pa.Table, config: Config) -> str:
    if config.file is not None:
        if config.file not in table.column_names:
            raise DataError(f"no column '{config.file}'; the columns are: {', '.join(table.column_names)}", "data.file")
        return config.file
    found = [name for name in table.column_names if holds_audio(table[name])]
    if len(found) != 1:
        why = f"both '{found[0]}' and '{found[1]}' hold WAV files" if found else "no column holds WAV files' names or bytes"
        raise DataError(f"{why}; name it in data.file; the columns are: {', '.join(table.column_names)}", "data.file")
    return str(found[0])


def _names(table: pa.Table, config: Config) -> set[str]:
    """The names of WAV files in a table."""
    values = table[_file_column(table, config)]
    named = values.unique().drop_null().to_pylist() if not (is_bytes(values.type) or pa.types.is_struct(values.type)) else []
    return {name for name in named if isinstance(name, str) and name.lower().endswith(SUFFIX)}


def _target(rows: Rows, config: Config) -> Column:
    """A class for text, booleans, integers and few whole floats, else a number; every row must have one."""
    names = rows.table.column_names
    usual = [config.target] if config.target else [name for name in TARGETS if name in names]
    if len(usual) != 1 or usual[0] not in names:
        why = f"no column '{config.target}'" if config.target else "name the column to predict"
        raise DataError(f"{why}; the columns are: {', '.join(names)}", "data.target")
    values = rows.table[usual[0]]
    if is_list(values.type) or is_bytes(values.type):
        raise DataError(f"target '{usual[0]}' holds {values.type}; it must be text, numbers or booleans", "data.target")
    distinct, codes = label_codes(values)
    missing = np.flatnonzero(np.array([name is None for name in distinct])[codes])
    rows.refuse(usual[0], {int(row): "the label is missing" for row in missing})
    if not pa.types.is_floating(values.type):
        return Column(usual[0], "class", dtype="int64" if pa.types.is_integer(values.type) else "str")
    whole = len(distinct) <= MOST_CLASSES and bool(pc.all(pc.equal(pc.floor(values), values)).as_py())
    return Column(usual[0], "class", dtype="str") if whole else Column(usual[0], "number")
