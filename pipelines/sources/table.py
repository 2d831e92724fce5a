"""Tables: one Parquet, CSV or TSV file, or a file for each part. What a column is, is inferred, or said in `kinds`."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Gt, doc

from ..encode.arrow import is_bytes, is_list, is_text
from ..encode.classes import label_codes
from ..encode.pictures import SUFFIXES, is_picture
from ..raw import Raw, existing
from ..schema import Column, DataError
from .files import parts_of, read
from .pictures import Size
from .table_images import image
from .table_rows import Rows, read_parts

Kind = Literal["image", "sequence", "symbols", "text", "number", "category", "class"]
TARGETS = ("label", "target")  # what the target is called where the options don't say
IMAGES = ("image", "img", "picture", "pixels")  # names of columns whose lists are images
ENCODED = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "data:image/")  # how pictures begin in base64
MOST_CLASSES = 1000  # of a target of whole numbers; with more it is a number


@dataclass(frozen=True)
class Config:
    """`target` (default: label or target); `inputs` (default: the rest); `kinds`: column -> kind, where the inferred one is wrong.

    `size`: [H, W] of images: pictures are brought to it, flat lists are cut into rows by it. `grey`: pictures get one channel.
    `vocabulary`: the most words of texts (default: 30,000).
    """

    path: Annotated[str, doc("Parquet, CSV or TSV file, or a folder with train.*, validation.*, test.*")] = ""
    target: Annotated[str | None, doc("column to predict; default: label or target")] = None
    inputs: Annotated[tuple[str, ...] | None, doc("columns to predict from; default: the rest")] = None
    drop: Annotated[tuple[str, ...], doc("columns to leave out")] = ()
    kinds: Annotated[Mapping[str, Kind] | None, doc("column -> kind, where the inferred one is wrong")] = None
    size: Annotated[Size | None, doc("[H, W] of images")] = None
    grey: Annotated[bool, doc("one channel for pictures instead of three")] = False
    vocabulary: Annotated[Annotated[int, Gt(2)] | None, doc("the most words of texts; default: 30,000")] = None

    def files(self) -> list[tuple[str, Path]]:
        """The table's files, and the pictures that its columns name."""
        path = existing(self.path)
        parts = parts_of(path)
        tables = [(part + file.suffix.lower(), file) for part, file in parts.items()]
        return tables + sorted({found for file in parts.values() for found in _named_files(read(file, text_only=True), self, file.parent)})


def load(config: Config) -> Raw:
    """All columns of the file, image columns as raw uint8 bytes or float32 lists. Raises DataError."""
    rows = read_parts(parts_of(existing(config.path)), lambda name: (config.kinds or {}).get(name) == "text")
    target, inputs = _choose(config, rows.table.column_names)
    kinds = {name: (config.kinds or {}).get(name) or _kind(name, rows.table[name], config, rows.folder) for name in inputs}
    if list(kinds.values()) == ["category"] and inputs[0] not in (config.kinds or {}):
        kinds = {inputs[0]: "text"}  # few distinct ones, but what else is there to learn from?
    columns, table = [], rows.table
    for name, kind in kinds.items():
        if kind == "image":
            column, values = image(name, rows, config.size, config.grey)
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            column = Column(name, kind, dtype="float32" if kind in ("number", "sequence") else "str")
        columns.append(replace(column, vocabulary=config.vocabulary or 0) if kind == "text" else column)
    official = None if "" in rows.files else np.repeat(list(rows.files), rows.counts)
    return Raw(table, tuple(columns), _target(target, rows, config), official)


def _choose(config: Config, names: list[str]) -> tuple[str, list[str]]:
    """The target and the inputs, in the table's order."""
    for key, asked in (("target", [config.target]), ("inputs", config.inputs), ("drop", config.drop), ("kinds", config.kinds)):
        _known([name for name in asked or () if name is not None], names, f"data.{key}")
    usual = [name for name in TARGETS if name in names and name not in config.drop]
    if config.target is None and len(usual) != 1:
        why = f"both '{usual[0]}' and '{usual[1]}' may be the target" if usual else "the target is missing"
        raise DataError(f"{why}: name the column to predict; the columns are: {', '.join(names)}", "data.target")
    target = config.target or usual[0]
    if target in (config.inputs or ()) or target in config.drop:
        key = "inputs" if target in (config.inputs or ()) else "drop"
        raise DataError(f"'{target}' is the target; take it out of data.{key}", f"data.{key}")
    if both := [name for name in config.inputs or () if name in config.drop]:
        raise DataError(f"'{both[0]}' is in data.inputs and in data.drop; take it out of one", "data.drop")
    wanted = names if config.inputs is None else config.inputs
    inputs = [name for name in names if name in wanted and name not in config.drop and name != target]
    if not inputs:
        raise DataError(f"no column is left as an input; the columns are: {', '.join(names)}", "data.inputs")
    return target, inputs


def _known(asked: Iterable[str], names: list[str], key: str) -> None:
    for name in asked:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise DataError(f"no column '{name}'{hint}; the columns are: {', '.join(names)}", key)


def _kind(name: str, column: pa.ChunkedArray, config: Config, folder: Path) -> str:
    """What an input column is, by its type, its name and its first values."""
    first = next((value.as_py() for value in column if value.is_valid), None)
    if is_bytes(column.type) or pa.types.is_struct(column.type):
        data = first.get("bytes") if isinstance(first, dict) else first
        if not isinstance(data, bytes) or not (is_picture(data) or config.size or name.lower() in IMAGES):
            raise DataError(
                f"column '{name}' holds {column.type}, but no pictures; set data.size: [H, W] if they are images' raw values, "
                f"or leave it out with data.drop: [{name}]",
                "data.size",
            )
        return "image"
    if is_list(column.type) or (is_text(column.type) and first is not None and first.lstrip().startswith("[")):
        if config.size or name.lower() in IMAGES:
            return "image"
        if (listed := _listed(first)) is not None:
            return "symbols" if listed and isinstance(listed[0], str) else "sequence"
    if is_text(column.type):
        if first is not None and (first.startswith(ENCODED) or _names_pictures(column, folder)):
            return "image"
        distinct = _distinct(column)
        return "category" if distinct <= MOST_CLASSES and 2 * distinct <= len(column) else "text"
    return "time" if pa.types.is_temporal(column.type) else "number"


def _distinct(column: pa.ChunkedArray) -> int:
    """How many distinct values a column has, or that they are more than MOST_CLASSES, from its first rows where these tell."""
    seen = column.slice(0, 0).unique()
    for chunk in column.chunks:
        seen = pa.chunked_array([seen, chunk.unique()]).unique()
        if len(seen) > MOST_CLASSES:
            break
    return len(seen)


def _listed(value: object) -> list[object] | None:
    """A list, also where it is written as JSON; None for a text that only begins like one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else []


def _target(name: str, rows: Rows, config: Config) -> Column:
    """A class for text, booleans and whole numbers that aren't many, else a number; every row must have one."""
    column = rows.table[name]
    names, codes = label_codes(column) if not (is_list(column.type) or is_bytes(column.type)) else ([], np.zeros(0, int))
    if not names:
        raise DataError(f"target '{name}' holds {column.type}; it must be text, numbers or booleans", "data.target")
    missing = np.flatnonzero(np.array([found is None for found in names])[codes])
    rows.refuse(name, {int(row): "the label is missing" for row in missing})
    kind = (config.kinds or {}).get(name)
    whole = pa.types.is_floating(column.type) and len(names) <= MOST_CLASSES and bool(pc.all(pc.equal(pc.floor(column), column)).as_py())
    many = pa.types.is_integer(column.type) and len(names) > MOST_CLASSES
    number = kind == "number" or (kind is None and ((pa.types.is_floating(column.type) and not whole) or many))
    if number:
        return Column(name, "number", dtype="float32")
    return Column(name, "class", dtype="int64" if pa.types.is_integer(column.type) else "str")


def _named_files(table: pa.Table, config: Config, folder: Path) -> set[tuple[str, Path]]:
    """The existing pictures that a table's text columns name, as (name, file); not those of columns that are no inputs."""
    wanted = set(table.column_names if config.inputs is None else config.inputs) - set(config.drop)
    text = [table[name] for name in table.column_names if name in wanted and is_text(table[name].type)]
    columns = [column for column in text if _names_pictures(column, folder)]
    names = set(itertools.chain.from_iterable(column.unique().drop_null().to_pylist() for column in columns))
    return {(name, folder / name) for name in names if (folder / name).is_file()}


def _names_pictures(column: pa.ChunkedArray, folder: Path) -> bool:
    """Whether a text column names picture files: by its first values, one of which must exist."""
    values = column.slice(0, 100).drop_null().to_pylist()
    return all(value.lower().endswith(SUFFIXES) for value in values) and any((folder / value).is_file() for value in values)
