"""Pictures and masks of the same size, a class for each pixel: two folders of files, or two columns of a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Le

from ..encode.masks import UNKNOWN, MaskColumn
from ..encode.pictures import SUFFIXES, decode_mask, image_text, picture_shape
from ..raw import Raw, existing, image_column
from ..schema import Column, DataError
from ..splits import part_name
from .files import parts_of, read
from .pictures import Size, decode

ENDINGS = (
    "_mask",
    "-mask",
    "_masks",
    "_label",
    "_labels",
    "_labelIds",
    "_seg",
    "_segmentation",
    "_gt",
    "_L",
)  # of a mask's name, after its image's
MOST_VALUES = 64  # of masks whose classes nobody has named


@dataclass(frozen=True)
class Config:
    """`path`: a folder with `images/` and `masks/`, or with `X/` and `X_masks/` for each split X; or a table of pictures.

    `image`, `mask`: the table's columns that hold them, as bytes or file names.

    `classes`: the names, in the order of the masks' values, or a file with one a line (default: the values); `ignore`: a value that
    isn't counted; `size`: [H, W] that images and masks are brought to, else each keeps its own.
    """

    path: str = ""
    classes: tuple[str, ...] | str | None = None
    ignore: Annotated[int, Ge(0), Le(255)] | None = None
    size: Size | None = None
    image: str = "image"
    mask: str = "mask"

    def files(self) -> list[tuple[str, Path]]:
        path = existing(self.path)
        named = [("classes", _names_file(self, path))] if isinstance(self.classes, str) else []
        if not _is_table(path):
            pairs = [file for pair in _in_folders(path) for file in (pair.image_file, pair.mask_file)]
            return named + [(file.relative_to(path).as_posix(), file) for file in pairs]
        tables = [(part + file.suffix.lower(), file) for part, file in parts_of(path).items()]
        named += [(value, file.parent / value) for _, file in tables for value in _file_names(file, (self.image, self.mask))]
        return tables + sorted(set(named))


@dataclass(frozen=True)
class _Pair:
    """An image and its mask: what they are called in an error, and how they are read. `part`: '' where the data has none."""

    part: str
    image_name: str
    mask_name: str
    image: Callable[[], bytes]
    mask: Callable[[], bytes]
    image_file: Path = Path()
    mask_file: Path = Path()


def load(config: Config) -> Raw:
    """`image` and `mask`: raw values where all have one size, else the files' own bytes. Raises DataError naming the file or row."""
    path = existing(config.path)
    table = _is_table(path)
    pairs = list(_in_tables(path, config) if table else _in_folders(path))
    masks = _each(pairs, lambda pair: _read(pair.mask_name, pair.mask, decode_mask))
    shapes = _each(pairs, lambda pair: _read(pair.image_name, pair.image, picture_shape))
    for pair, shape, mask in zip(pairs, shapes, masks, strict=True):
        if shape[:2] != mask.shape:
            raise DataError(
                f"{pair.image_name} is {shape[0]}x{shape[1]}, {pair.mask_name} is {mask.shape[0]}x{mask.shape[1]}; "
                "a mask has a value for each pixel: mend one, or take both out",
                "data.path",
            )
    values, names = _classes(config, path, pairs, masks)
    one_size = config.size or (masks[0].shape if len({mask.shape for mask in masks}) == 1 else None)
    image_name, mask_name = (config.image, config.mask) if table else ("image", "mask")
    if one_size is None:
        channels = 1 if all(shape[2] == 1 for shape in shapes) else 3
        column = Column(image_name, "image", (channels, 0, 0), "uint8")
        images = pa.array([pair.image() for pair in pairs], pa.large_binary())
        stored = pa.array([pair.mask() for pair in pairs], pa.large_binary())
    else:
        column, pixels = decode(image_name, [(pair.image_name, pair.image) for pair in pairs], config.size, grey=False)
        images, stored = image_column(pixels), image_column(_resized(pairs, masks, config.size))
    resize, shape = config.size is not None, one_size or (0, 0)
    target = MaskColumn(mask_name, "mask", shape, "uint8", resize, values=values, names=names, ignore=config.ignore)
    official = np.array([pair.part for pair in pairs]) if all(pair.part for pair in pairs) else None
    return Raw(pa.table({image_name: images, mask_name: stored}), (column,), target, official)


def _each(pairs: Sequence[_Pair], work: Callable[[_Pair], Any]) -> list[Any]:
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:  # reading and decoding leave the interpreter free
        return list(pool.map(work, pairs))


def _read(name: str, data: Callable[[], bytes], work: Callable[..., Any], *more: Any) -> Any:
    try:
        return work(data(), *more) if work is picture_shape else work(data(), None, *more)
    except (DataError, OSError) as error:
        raise DataError(f"{name}: {error}; replace it or take it out", "data.path") from None


def _resized(pairs: Sequence[_Pair], masks: Sequence[np.ndarray], size: Size | None) -> np.ndarray:
    if size is None:
        return np.stack(masks)
    return np.stack(_each(pairs, lambda pair: decode_mask(pair.mask(), size, resize=True)))


def _classes(config: Config, path: Path, pairs: Sequence[_Pair], masks: Sequence[np.ndarray]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The masks' values in the order of the classes, and the classes' names."""
    held = [frozenset(np.flatnonzero(np.bincount(mask.reshape(-1), minlength=256)).tolist()) - {config.ignore} for mask in masks]
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
    values = tuple(range(len(names)))
    if not set(found) <= set(values) and (len(found) == len(names) or (len(names) == 2 and set(found) <= {0, 255})):
        values = (0, 255) if len(names) == 2 and set(found) <= {0, 255} else tuple(found)
    for pair, own in zip(pairs, held, strict=True):
        if strange := sorted(own - set(values)):
            raise DataError(
                f"{pair.mask_name} holds {strange[0]}, but data.classes names {len(names)} classes, {values[0]} to {values[-1]}; "
                "name it too, or set data.ignore to it if it isn't to be counted",
                "data.classes",
            )
    return values, names


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


def _is_table(path: Path) -> bool:
    """Whether a path is a table, or a folder of tables."""
    return path.is_file() or not any(entry.is_dir() for entry in path.iterdir())


def _in_folders(folder: Path) -> list[_Pair]:
    """The pairs of a folder's image and mask folders, sorted."""
    pairs = [pair for part, images, masks in _folders(folder) for pair in _matched(folder, part, images, masks)]
    if not pairs:
        raise DataError(f"no image in '{folder}' ({', '.join(SUFFIXES)})", "data.path")
    return pairs


def _folders(folder: Path) -> list[tuple[str, Path, Path]]:
    """(part, images, masks): of the whole, or of each split; `images/train/` and `masks/train/` are understood, too."""
    below = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    if "images" in below and "masks" in below:
        inner = [path for path in sorted(below["images"].iterdir()) if path.is_dir() and part_name(path.name)]
        split = [(str(part_name(path.name)), path, below["masks"] / path.name) for path in inner]
        return split or [("", below["images"], below["masks"])]
    named = [(part_name(name), path) for name, path in below.items() if part_name(name)]
    found = [(str(part), path, below.get(f"{path.name.lower()}_masks", folder / f"{path.name}_masks")) for part, path in named]
    if "train" not in [part for part, _, _ in found]:
        there = ", ".join(f"{name}/" for name in below) or "no folder"
        raise DataError(
            f"'{folder}' has neither images/ and masks/ nor train/ and train_masks/; there is: {there}; name them so", "data.path"
        )
    return found


def _matched(folder: Path, part: str, images: Path, masks: Path) -> Iterator[_Pair]:
    """Each image with the mask that has its name, whatever the suffix."""
    if not masks.is_dir():
        raise DataError(f"'{images.name}/' has no '{masks.relative_to(folder).as_posix()}/' beside it; put the masks there", "data.path")
    of_images, of_masks = _by_name(images), _by_name(masks)
    for name, image in of_images.items():
        mask = next((of_masks.pop(name + ending) for ending in ("", *ENDINGS) if name + ending in of_masks), None)
        if mask is None:
            raise DataError(
                f"'{image.relative_to(folder)}' has no mask '{name}.png' in '{masks.relative_to(folder)}/'; add it", "data.path"
            )
        shown = (f"'{image.relative_to(folder)}'", f"'{mask.relative_to(folder)}'")
        yield _Pair(part, *shown, image.read_bytes, mask.read_bytes, image, mask)
    if of_masks:
        stray = next(iter(of_masks.values()))
        raise DataError(f"'{stray.relative_to(folder)}' has no image of its name in '{images.relative_to(folder)}/'; add it", "data.path")


def _by_name(folder: Path) -> dict[str, Path]:
    """Pictures at any depth by their path without its suffix, sorted."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not any(step.startswith((".", "__MACOSX")) for step in path.relative_to(folder).parts):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise DataError(f"'{found[name]}' and '{path}' have one name; keep one", "data.path")
            found[name] = path
    return found


def _in_tables(path: Path, config: Config) -> Iterator[_Pair]:
    """The rows of a table's two columns, or of a table for each part."""
    for part, file in parts_of(path).items():
        table = read(file)
        for key, column in (("image", config.image), ("mask", config.mask)):
            if column not in table.column_names:
                raise DataError(f"'{file.name}' has no column '{column}'; its columns are: {', '.join(table.column_names)}", f"data.{key}")
        for row in range(table.num_rows):
            pair = [
                (f"'{file.name}', column '{name}', row {row}", partial(_cell, table[name], row, file.parent))
                for name in (config.image, config.mask)
            ]
            yield _Pair(part, pair[0][0], pair[1][0], pair[0][1], pair[1][1])


def _cell(column: pa.ChunkedArray, row: int, folder: Path) -> bytes:
    """A cell's picture: bytes, {bytes: ...}, base64, or a file's name."""
    value = column[row].as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
    value = image_text(value, folder) if isinstance(value, str) else value
    if not isinstance(value, bytes):
        raise DataError("it is missing" if value is None else "no picture; give PNG bytes or a file's name")
    return value


def _file_names(file: Path, columns: Sequence[str]) -> Iterator[str]:
    """The existing files that a table's columns name."""
    table = read(file, text_only=True)
    for name in columns:
        if name in table.column_names and pa.types.is_string(table[name].type):
            values = table[name].unique().drop_null().to_pylist()
            yield from (value for value in values if value.lower().endswith(SUFFIXES) and (file.parent / value).is_file())
