"""Pictures and masks of the same size, a class for each pixel: two folders of files, or two columns of a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Le, doc

from .. import spill
from ..encode.masks import UNKNOWN, MaskColumn
from ..encode.pictures import decode_mask, picture_shape
from ..raw import Raw, existing, image_column
from ..schema import Column, DataError
from .files import CHUNK_BYTES, parts_of
from .mask_files import Pair, file_names, in_folders, in_table, is_table
from .pictures import Size, decode
from .table_rows import read_parts

MOST_VALUES = 64  # of masks whose classes nobody has named
BLOCK = 1 << 18  # pixels that are counted at once
IGNORED = ("ignore", "ignored", "void", "unlabeled", "unlabelled")  # what a list of classes calls the value that isn't counted
T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class Config:
    """`path`: a folder with `images/` and `masks/`, or with `X/` and `X_masks/` for each split X; or a table of pictures.

    `image`, `mask`: the table's columns that hold them, as bytes or file names. A split may go by the others.

    `classes`: the names, in the order of the masks' values, or a file with one a line (default: the values); `ignore`: a value that
    isn't counted, and that `classes` leaves out or calls `ignore` (`void`, `unlabeled`); `size`: [H, W] that images and masks are
    brought to, else each keeps its own.
    """

    path: Annotated[str, doc("folder of images/ and masks/, or X/ and X_masks/ for each split; or a table")] = ""
    classes: Annotated[tuple[str, ...] | str | None, doc("names in the order of the masks' values, or a file with one a line")] = None
    ignore: Annotated[Annotated[int, Ge(0), Le(255)] | None, doc("a value that isn't counted")] = None
    size: Annotated[Size | None, doc("[H, W] that images and masks are brought to; default: each keeps its own")] = None
    image: Annotated[str, doc("column of a table with the images")] = "image"
    mask: Annotated[str, doc("column of a table with the masks")] = "mask"

    def files(self) -> list[tuple[str, Path]]:
        path = existing(self.path)
        named = [("classes", _names_file(self, path))] if isinstance(self.classes, str) else []
        if not is_table(path):
            pairs = [file for pair in in_folders(path) for file in (pair.image_file, pair.mask_file)]
            return named + [(file.relative_to(path).as_posix(), file) for file in pairs]
        tables = [(part + file.suffix.lower(), file) for part, file in parts_of(path).items()]
        named += [(value, file.parent / value) for _, file in tables for value in file_names(file, (self.image, self.mask))]
        return tables + sorted(set(named))


@dataclass(frozen=True)
class _Seen:
    """What is known of a pair, once looked at: its size, the image's channels, the values that the mask holds."""

    size: tuple[int, int]
    channels: int
    values: frozenset[int]


def load(config: Config) -> Raw:
    """`image` and `mask`: raw values where all have one size, else the files' own bytes; a table's other columns as they are.

    No decoded picture is held, but for the result, which lies in a file where it is large. Raises DataError naming the file or row.
    """
    path = existing(config.path)
    rows = read_parts(parts_of(path)) if is_table(path) else None
    image, mask = ("image", "mask") if rows is None else (config.image, config.mask)
    pairs = in_folders(path) if rows is None else list(in_table(rows, image, mask))
    seen = _each(pairs, _look)
    values, names = _classes(config, path, pairs, seen)
    size = config.size or (seen[0].size if len({each.size for each in seen}) == 1 else None)
    if size is None:
        column = Column(image, "image", (1 if all(each.channels == 1 for each in seen) else 3, 0, 0), "uint8")
        images, masks = _encoded([pair.image for pair in pairs]), _encoded([pair.mask for pair in pairs])
    else:
        column, pixels = decode(image, [(pair.image_name, pair.image) for pair in pairs], config.size, grey=False)
        images, masks = image_column(pixels), image_column(_decoded(pairs, size, config.size is not None))
    resize, shape = config.size is not None, size or (0, 0)
    target = MaskColumn(mask, "mask", shape, "uint8", resize, values=values, names=names, ignore=config.ignore)
    official = np.array([pair.part for pair in pairs]) if all(pair.part for pair in pairs) else None
    others = {} if rows is None else {name: rows.table[name] for name in rows.table.column_names}
    return Raw(pa.table(others | {image: images, mask: masks}), (column,), target, official)


def _each(items: Iterable[S], work: Callable[[S], T]) -> list[T]:
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:  # reading and decoding leave the interpreter free
        return list(pool.map(work, items))


def _read(name: str, data: Callable[[], bytes], work: Callable[[bytes], T]) -> T:
    try:
        return work(data())
    except (DataError, OSError) as error:
        raise DataError(f"{name}: {error}; replace it or take it out", "data.path") from None


def _look(pair: Pair) -> _Seen:
    """Raises DataError if image and mask can't be read, or differ in size."""
    mask = _read(pair.mask_name, pair.mask, lambda data: decode_mask(data, None))
    (height, width), shape = mask.shape, _read(pair.image_name, pair.image, picture_shape)
    if shape[:2] != mask.shape:
        raise DataError(
            f"{pair.image_name} is {shape[0]}x{shape[1]}, {pair.mask_name} is {height}x{width}; "
            "a mask has a value for each pixel: mend one, or take both out",
            "data.path",
        )
    flat, counts = mask.reshape(-1), np.zeros(256, np.int64)
    for start in range(0, len(flat), BLOCK):
        counts += np.bincount(flat[start : start + BLOCK], minlength=256)
    return _Seen((height, width), shape[2], frozenset(np.flatnonzero(counts).tolist()))


def _decoded(pairs: Sequence[Pair], size: tuple[int, int], resize: bool) -> np.ndarray:
    """The masks [N, H, W] uint8, of one size, or brought to it."""
    masks = spill.empty((len(pairs), *size), np.uint8)

    def fill(row: int) -> None:
        masks[row] = _read(pairs[row].mask_name, pairs[row].mask, lambda data: decode_mask(data, size, resize))

    _each(range(len(pairs)), fill)
    return masks


def _encoded(pictures: Sequence[Callable[[], bytes]]) -> pa.ChunkedArray:
    """The files' own bytes, some at a time."""
    found, held, size = spill.Spill(), [], 0
    for row, read in enumerate(pictures, 1):
        held.append(read())
        size += len(held[-1])
        if size >= CHUNK_BYTES or row == len(pictures):
            found.add(pa.table({"bytes": pa.array(held, pa.large_binary())}))
            held, size = [], 0
    return found.table()["bytes"]


def _classes(config: Config, path: Path, pairs: Sequence[Pair], seen: Sequence[_Seen]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The masks' values in the order of the classes, and the classes' names."""
    held = [each.values - {config.ignore} for each in seen]
    found = sorted(frozenset[int]().union(*held))
    names = _names(config, path)
    if names is None:
        if len(found) > MOST_VALUES:
            raise DataError(
                f"the masks hold {len(found)} values ({found[0]} to {found[-1]}), more than {MOST_VALUES}: no classes' indices, it seems; "
                "name the classes with data.classes if they are",
                "data.classes",
            )
        if len(found) < 2:
            raise DataError(
                f"the masks hold one value only ({', '.join(map(str, found)) or 'and that is ignored'}); there is nothing to learn"
            )
        return tuple(found), tuple(map(str, found))
    ignored, names = config.ignore, _counted(config.ignore, names, found)
    values = tuple(value for value in range(len(names) + 1) if value != ignored)[: len(names)]
    if not set(found) <= set(values):
        if len(names) == 2 and set(found) <= {0, 255} and ignored not in (0, 255):
            values = (0, 255)
        elif len(found) == len(names):
            values = tuple(found)
    for pair, own in zip(pairs, held, strict=True):
        if strange := sorted(own - set(values)):
            raise DataError(
                f"{pair.mask_name} holds {strange[0]}, but data.classes names {len(names)} classes, {values[0]} to {values[-1]}; "
                "name it too, or set data.ignore to it if it isn't to be counted",
                "data.classes",
            )
    return values, names


def _counted(ignored: int | None, names: tuple[str, ...], found: Sequence[int]) -> tuple[str, ...]:
    """The names without the ignored value's, where it has one. Raises DataError where nothing tells whether it has."""
    if ignored is None or ignored >= len(names):
        return names
    if names[ignored].lower() in IGNORED:
        if len(names) < 3:
            raise DataError(f"'{names[1 - ignored]}' is the only class beside the one that data.ignore leaves out; name 2", "data.classes")
        return names[:ignored] + names[ignored + 1 :]
    if max(found, default=0) >= len(names):  # more values than names, if the ignored one had one of them
        return names
    raise DataError(
        f"is '{names[ignored]}' the name of {ignored}, which data.ignore leaves out, or of {ignored + 1}? "
        f"Write 'ignore' as the name of {ignored}: in its place, or before it",
        "data.classes",
    )


def _names(config: Config, path: Path) -> tuple[str, ...] | None:
    """The classes' names: a list, or the lines of a file."""
    if config.classes is None:
        return None
    names = config.classes
    if isinstance(names, str):
        try:
            names = tuple(line.strip() for line in _names_file(config, path).read_text("utf-8").rstrip().splitlines())
        except (OSError, ValueError) as error:
            raise DataError(
                f"'{config.classes}' can't be read ({error}); it holds a class's name a line, in UTF-8", "data.classes"
            ) from None
    if len(names) < 2 or len(names) > UNKNOWN or not all(names):
        raise DataError(f"{len(names)} names, or an empty one; there must be 2 to {UNKNOWN}, one a line", "data.classes")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"class '{twice[0]}' is named twice; give each its own name", "data.classes")
    return names


def _names_file(config: Config, path: Path) -> Path:
    """The file of the names: in the data's folder, or as it is given."""
    assert isinstance(config.classes, str)
    folder = path if path.is_dir() else path.parent
    for place in (folder / config.classes, Path(config.classes).expanduser()):
        if place.is_file():
            return place
    raise DataError(f"no file '{config.classes}', in '{folder}' or here; it holds a class's name a line", "data.classes")
