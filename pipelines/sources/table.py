"""Tables: one Parquet, CSV or TSV file, or a file for each part. What a column is, is inferred, or said in `kinds`."""

from __future__ import annotations

import difflib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..encode.arrow import is_bytes, is_list, is_text
from ..encode.classes import label_codes
from ..encode.column import Errors
from ..encode.images import image_array
from ..encode.pictures import SUFFIXES, image_text, is_picture
from ..raw import Raw, existing, image_column
from ..schema import Column, DataError
from .files import parts_of, read
from .pictures import Size, decode

Kind = Literal["image", "sequence", "text", "number", "category", "class"]
TARGETS = ("label", "target")  # what the target is called where the options don't say
IMAGES = ("image", "img", "picture", "pixels")  # names of columns whose lists are images
ENCODED = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "data:image/")  # how pictures begin in base64
MOST_CLASSES = 1000  # of a target of whole floats


@dataclass(frozen=True)
class Config:
    """`target` (default: label or target); `inputs` (default: the rest); `kinds`: column -> kind, where the inferred one is wrong.

    `size`: [H, W] of images: pictures are brought to it, flat lists are cut into rows by it. `grey`: pictures get one channel.
    """

    path: str = ""
    target: str | None = None
    inputs: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    kinds: Mapping[str, Kind] | None = None
    size: Size | None = None
    grey: bool = False

    def files(self) -> list[tuple[str, Path]]:
        """The table's files, and the pictures that its columns name."""
        path = existing(self.path)
        parts = parts_of(path)
        tables = [(part + file.suffix.lower(), file) for part, file in parts.items()]
        return tables + sorted({found for file in parts.values() for found in _named_files(read(file, text_only=True), self, file.parent)})


@dataclass(frozen=True)
class _Rows:
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


def load(config: Config) -> Raw:
    """All columns of the file, image columns as raw uint8 bytes or float32 lists. Raises DataError."""
    rows = _read_parts(parts_of(existing(config.path)))
    target, inputs = _choose(config, rows.table.column_names)
    columns, table = [], rows.table
    for name in inputs:
        kind = (config.kinds or {}).get(name) or _kind(name, table[name], config, rows.folder)
        if kind == "image":
            column, values = _image(name, rows, config)
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            column = Column(name, kind, dtype="float32" if kind in ("number", "sequence") else "str")
        columns.append(column)
    official = None if "" in rows.files else np.repeat(list(rows.files), rows.counts)
    return Raw(table, tuple(columns), _target(target, rows, config), official)


def _read_parts(files: Mapping[str, Path]) -> _Rows:
    """The parts' tables, one below the other, with the columns of the first (train)."""
    tables = {part: read(file) for part, file in files.items()}
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
    return _Rows(joined, files, tuple(table.num_rows for table in tables.values()))


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
        return "image" if config.size or name.lower() in IMAGES else "sequence"
    if is_text(column.type):
        if first is not None and (first.startswith(ENCODED) or _names_pictures(column, folder)):
            return "image"
        distinct = len(column.unique())
        return "category" if distinct <= MOST_CLASSES and 2 * distinct <= len(column) else "text"
    return "time" if pa.types.is_temporal(column.type) else "number"


def _target(name: str, rows: _Rows, config: Config) -> Column:
    """A class for text, booleans, integers and few whole floats, else a number; every row must have one."""
    column = rows.table[name]
    names, codes = label_codes(column) if not (is_list(column.type) or is_bytes(column.type)) else ([], np.zeros(0, int))
    if not names:
        raise DataError(f"target '{name}' holds {column.type}; it must be text, numbers or booleans", "data.target")
    missing = np.flatnonzero(np.array([found is None for found in names])[codes])
    rows.refuse(name, {int(row): "the label is missing" for row in missing})
    kind = (config.kinds or {}).get(name)
    whole = pa.types.is_floating(column.type) and len(names) <= MOST_CLASSES and bool(pc.all(pc.equal(pc.floor(column), column)).as_py())
    number = kind == "number" or (kind is None and pa.types.is_floating(column.type) and not whole)
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


def _image(name: str, rows: _Rows, config: Config) -> tuple[Column, pa.Array]:
    """An image column as it is prepared: pictures decoded, numbers checked and made dense."""
    raw = rows.table[name]
    if pa.types.is_struct(raw.type) and raw.type.get_field_index("bytes") >= 0:
        raw = pc.struct_field(raw, "bytes")
    if not (is_bytes(raw.type) or is_text(raw.type) or is_list(raw.type)):
        raise DataError(f"column '{name}' holds {raw.type}, which can't be an image; it takes pictures or lists", "data.kinds")
    rows.refuse(name, {int(row): "it is missing" for row in np.flatnonzero(raw.is_null().to_numpy())})
    first = raw[0].as_py()
    if is_list(raw.type) or (is_text(raw.type) and first.lstrip().startswith("[")) or (is_bytes(raw.type) and not _encoded(first, config)):
        return _numbers(name, raw, rows, config)
    pictures = [(rows.where(name, row), partial(_bytes, raw, row, rows.folder)) for row in range(len(raw))]
    column, images = decode(name, pictures, config.size, config.grey)
    return column, image_column(images)


def _encoded(data: bytes, config: Config) -> bool:
    pixels = math.prod(config.size or (0,))
    return is_picture(data, pixels, 3 * pixels)


def _bytes(raw: pa.ChunkedArray, row: int, folder: Path) -> bytes:
    value = raw[row].as_py()
    value = image_text(value, folder) if isinstance(value, str) else value
    if not isinstance(value, bytes):
        raise DataError("a list of numbers among pictures")
    return value


def _numbers(name: str, raw: pa.ChunkedArray, rows: _Rows, config: Config) -> tuple[Column, pa.Array]:
    """Images that come as numbers: stored as bytes where these are whole and lie within 0 and 255, else as float32."""
    height, width, channels = _shape(raw[0].as_py(), rows.where(name, 0), config)
    column = Column(name, "image", (channels, height, width), "uint8" if is_bytes(raw.type) else "float32")
    images, errors = image_array(raw, column)
    rows.refuse(name, errors)
    if is_bytes(raw.type) or (_whole(raw) and images.min() >= 0 and images.max() <= 255):
        return replace(column, dtype="uint8"), image_column(images.astype(np.uint8, copy=False))
    return column, pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), height * width * channels)


def _whole(raw: pa.ChunkedArray) -> bool:
    """Whether lists are written as integers."""
    if is_text(raw.type):
        return not pc.any(pc.match_substring_regex(raw, "[.eE]")).as_py()
    kind = raw.type
    while is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind))


def _shape(first: Any, where: str, config: Config) -> tuple[int, int, int]:
    """[H, W, C] of the first image: by data.size, by its own nesting, or a flat square."""
    try:
        value = json.loads(first) if isinstance(first, str) else first
        shape = (len(value),) if isinstance(value, bytes) else np.shape(value)
    except ValueError as error:
        raise DataError(f"{where}: no lists of one shape ({error}); mend it", "data.path") from None
    found = _square(shape[0], config.size) if len(shape) == 1 else (*shape, 1)[:3]
    if len(shape) > 3 or found is None or 0 in found:
        raise DataError(
            f"{where}: values of shape {list(shape)} are no square image, grey or RGB; set data.size: [H, W] to what they are", "data.size"
        )
    if config.size and found[:2] != tuple(config.size):
        raise DataError(f"{where}: values of shape {list(shape)}, data.size is {list(config.size)}; only pictures are resized", "data.size")
    if found[2] not in (1, 3) and found[0] in (1, 3):
        raise DataError(f"{where}: lists of shape {list(shape)}; put the channels last, [H, W, C]", "data.path")
    if config.grey and found[2] != 1:
        raise DataError(f"{where}: lists of {found[2]} channels; only pictures are turned grey", "data.grey")
    return found


def _square(count: int, size: Size | None) -> tuple[int, int, int] | None:
    """[H, W, C] of a flat image of `count` values, with 1 or 3 channels."""
    for channels in (1, 3):
        side = math.isqrt(count // channels)
        height, width = size or (side, side)
        if height * width * channels == count:
            return height, width, channels
    return None
