"""Which mask belongs to which image: in folders by their names, in tables by their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..encode.arrow import is_text
from ..encode.pictures import SUFFIXES, image_text
from ..schema import DataError
from ..splits import part_name
from .files import read
from .table_rows import Rows

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


@dataclass(frozen=True)
class Pair:
    """An image and its mask: what they are called in an error, and how they are read. `part`: '' where the data has none."""

    part: str
    image_name: str
    mask_name: str
    image: Callable[[], bytes]
    mask: Callable[[], bytes]
    image_file: Path = Path()
    mask_file: Path = Path()


def is_table(path: Path) -> bool:
    """Whether a path is a table, or a folder of tables."""
    return path.is_file() or not any(entry.is_dir() for entry in path.iterdir())


def in_folders(folder: Path) -> list[Pair]:
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


def _matched(folder: Path, part: str, images: Path, masks: Path) -> Iterator[Pair]:
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
        yield Pair(part, *shown, image.read_bytes, mask.read_bytes, image, mask)
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


def in_table(rows: Rows, image: str, mask: str) -> Iterator[Pair]:
    """The rows of a table's two columns, or of a table for each part."""
    names, first = rows.table.column_names, rows.files.get("train", next(iter(rows.files.values())))
    for key, column in (("image", image), ("mask", mask)):
        if column not in names:
            raise DataError(f"'{first.name}' has no column '{column}'; its columns are: {', '.join(names)}", f"data.{key}")
    if image == mask:
        raise DataError(f"'{image}' is the column of the images, too; name the masks' own", "data.mask")
    images, masks = rows.table[image], rows.table[mask]
    for row, part in enumerate(np.repeat(list(rows.files), rows.counts).tolist()):
        read_image, read_mask = (partial(_cell, column, row, rows.folder) for column in (images, masks))
        yield Pair(part, rows.where(image, row), rows.where(mask, row), read_image, read_mask)


def _cell(column: pa.ChunkedArray, row: int, folder: Path) -> bytes:
    """A cell's picture: bytes, {bytes: ...}, base64, or a file's name."""
    value = column[row].as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
    value = image_text(value, folder) if isinstance(value, str) else value
    if not isinstance(value, bytes):
        raise DataError("it is missing" if value is None else "no picture; give PNG bytes or a file's name")
    return value


def file_names(file: Path, columns: Sequence[str]) -> Iterator[str]:
    """The existing files that a table's columns name."""
    table = read(file, text_only=True)
    for name in columns:
        if name in table.column_names and is_text(table[name].type):
            values = table[name].unique().drop_null().to_pylist()
            yield from (value for value in values if value.lower().endswith(SUFFIXES) and (file.parent / value).is_file())
