"""Picture files in a folder for each class, below train/, validation/ and test/ where these exist."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from annotated_types import doc

from ..encode.pictures import SUFFIXES
from ..raw import Raw, existing, image_column
from ..schema import Column, DataError
from ..splits import part_name
from .pictures import Size, decode

FOREIGN = (".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".svg", ".psd", ".raw", ".dng")  # pictures, but none that we read


@dataclass(frozen=True)
class Config:
    """Where the images are, and what becomes of them."""

    path: Annotated[str, doc("folder with a folder for each class, also below train/, validation/, test/")] = ""
    size: Annotated[Size | None, doc("[H, W] that every image is brought to")] = None
    grey: Annotated[bool, doc("one channel instead of three")] = False

    def files(self) -> list[tuple[str, Path]]:
        folder = existing(self.path, "folder")
        return [(path.relative_to(folder).as_posix(), path) for _, _, path in _images(folder)]


def load(config: Config) -> Raw:
    """`image` and `label`, the folder's name; raises DataError naming the file or folder that is wrong."""
    folder = existing(config.path, "folder")
    found = _images(folder)
    column, images = decode("image", [(f"'{path.relative_to(folder)}'", path.read_bytes) for _, _, path in found], config.size, config.grey)
    table = pa.table({"image": image_column(images), "label": pa.array([label for _, label, _ in found], pa.string())})
    parts = [part for part, _, _ in found]
    return Raw(table, (column,), Column("label", "class", dtype="str"), np.array(parts) if all(parts) else None)


def _images(folder: Path) -> list[tuple[str, str, Path]]:
    """(part, class, file) of every image, sorted; the part is '' where the data has none."""
    if not folder.is_dir():
        raise DataError(f"'{folder}' is a file; give the folder that holds a folder for each class", "data.path")
    parts = _parts(folder)
    found = [(part, label, path) for part, below in parts.items() for label, path in _classes(below)]
    known = {label for part, label, _ in found if part in ("train", "")}
    for part, label, path in found:
        if label not in known:
            raise DataError(f"class '{label}' is in {part}/ ('{path}') but not in train/; add it there or take it out", "data.path")
    return found


def _parts(folder: Path) -> dict[str, Path]:
    """Folders of the official parts; {'': folder} where it holds the classes itself. A class may be called 'train', too."""
    below = _folders(folder)
    named = [(part, path) for path in below if (part := part_name(path.name))]
    train = [path for part, path in named if part == "train"]
    if not named or (len(named) < len(below) and not any(_folders(path) for path in train)):
        return {"": folder}
    if not train:
        raise DataError(f"'{folder}' has {', '.join(path.name + '/' for _, path in named)} but no train/; add it", "data.path")
    if len(dict(named)) < len(named):
        raise DataError(f"'{folder}' has two folders of one part among {', '.join(path.name + '/' for _, path in named)}", "data.path")
    for path in below:
        if part_name(path.name) is None and _pictures(path):
            raise DataError(f"'{path}' lies beside train/ and holds images; move it into a part, or out of '{folder}'", "data.path")
    return dict(named)


def _classes(folder: Path) -> list[tuple[str, Path]]:
    """(class, file) below the folders of the classes."""
    found, classes = [], _folders(folder)
    if not classes:
        lies = "; images lie directly in it; put them in a folder for each class" if _pictures(folder) else " and no images; fill it"
        raise DataError(f"'{folder}' holds no class folders{lies}", "data.path")
    for below in classes:
        pictures = _pictures(below)
        if not pictures:
            there = ", ".join(sorted(entry.name for entry in below.iterdir())[:4]) or "nothing"
            raise DataError(
                f"class folder '{below}' holds no image ({', '.join(SUFFIXES)}) but: {there}; fill it or take it out", "data.path"
            )
        found += [(below.name, path) for path in pictures]
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))


def _pictures(folder: Path) -> list[Path]:
    """Picture files at any depth, sorted, without hidden ones; raises DataError for a kind of picture that can't be read."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _hidden(name)]
        for name in names:
            if name.lower().endswith(FOREIGN) and not _hidden(name):
                raise DataError(f"'{Path(root) / name}' can't be read; convert it to PNG or JPEG, or take it out", "data.path")
            if name.lower().endswith(SUFFIXES) and not _hidden(name):
                found.append(Path(root) / name)
    return sorted(found)


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))
