"""MNIST and its kin: four IDX files, gzip or not, with the official train and test parts (http://yann.lecun.com/exdb/mnist/)."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from annotated_types import doc

from ..raw import Raw, existing, image_column
from ..schema import Column, DataError

PARTS = {"train": "train", "test": "t10k"}  # part -> how its files' names begin


@dataclass(frozen=True)
class Config:
    """Where the files are."""

    path: Annotated[str, doc("folder with the four IDX files, with .gz or without")] = ""

    def files(self) -> list[tuple[str, Path]]:
        folder = existing(self.path, "folder")
        if not folder.is_dir():
            raise DataError(f"'{self.path}' is a file; give the folder that holds the four IDX files", "data.path")
        return [(f"{begin}-{what}", _find(folder, begin, what)) for begin in PARTS.values() for what in ("images", "labels")]


def load(config: Config) -> Raw:
    """Images [N, H, W] or [N, H, W, C] uint8 and their classes; raises DataError naming the file that is wrong."""
    files = dict(config.files())
    images, labels = [], []
    for begin in PARTS.values():
        pictures, digits = files[f"{begin}-images"], files[f"{begin}-labels"]
        images.append(_images(pictures))
        labels.append(_read(digits, (1,)).astype(np.int64))
        if len(images[-1]) != len(labels[-1]):
            raise DataError(
                f"'{pictures.name}' holds {len(images[-1])} images, '{digits.name}' {len(labels[-1])} labels; they are of different sets",
                "data.path",
            )
        if images[-1].shape[1:] != images[0].shape[1:]:
            sizes = " and ".join("x".join(map(str, part.shape[1:])) for part in images)
            raise DataError(f"the train and t10k images have different sizes, {sizes}; they are of different sets", "data.path")
    height, width, channels = images[0].shape[1:]
    table = pa.table({"image": image_column(np.concatenate(images)), "label": pa.array(np.concatenate(labels))})
    official = np.repeat(list(PARTS), [len(part) for part in labels])
    return Raw(table, (Column("image", "image", (channels, height, width), "uint8"),), Column("label", "class", dtype="int64"), official)


def _find(folder: Path, begin: str, what: str) -> Path:
    """The file under any of its usual names; the unpacked one first."""
    dims = ("1",) if what == "labels" else ("3", "4")
    names = [f"{begin}-{what}{dot}idx{dim}-ubyte{zipped}" for zipped in ("", ".gz") for dot in ("-", ".") for dim in dims]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    there = sorted(entry.name for entry in folder.iterdir())[:8]
    raise DataError(f"no '{names[0]}' (or .gz) in '{folder}'; there is: {', '.join(there) or 'nothing'}", "data.path")


def _images(path: Path) -> np.ndarray:
    """[N, H, W, C]; 4-dimensional files may have the channels second or last."""
    images = _read(path, (3, 4))
    if images.ndim == 3:
        images = images[..., None]
    elif images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.shape[3] not in (1, 3):
        raise DataError(f"'{path}' holds images of {images.shape[3]} channels; they must have 1 or 3", "data.path")
    if images.size == 0:
        raise DataError(f"'{path}' holds no images; get the file again", "data.path")
    return images


def _read(path: Path, dims: tuple[int, ...]) -> np.ndarray:
    """The array of an IDX file: two zeros, the type (8: unsigned bytes), the number of dimensions, each as 4 bytes, the values."""
    data = _unzipped(path)
    if len(data) < 4 or data[:2] != b"\0\0" or not 1 <= data[3] <= 4:
        raise DataError(f"'{path}' is no IDX file (it begins with {data[:8]!r}); get the file again", "data.path")
    if data[2] != 8:
        raise DataError(f"'{path}' holds values of IDX type 0x{data[2]:02x}; only 0x08, unsigned bytes, can be read", "data.path")
    if data[3] not in dims:
        raise DataError(f"'{path}' has {data[3]} dimensions; it must have {' or '.join(map(str, dims))}", "data.path")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise DataError(f"'{path}' is cut off within its header; get the file again", "data.path")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", data[3], 4))
    if len(data) - start != (size := int(np.prod(shape, dtype=np.float64))):
        says = "cut off" if len(data) - start < size else "too long"
        raise DataError(
            f"'{path}' is {says}: {len(data) - start} bytes of values, its header says {'x'.join(map(str, shape))} = {size}; "
            "get the file again",
            "data.path",
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _unzipped(path: Path) -> bytes:
    """The content, whatever the name's ending says."""
    try:
        data = path.read_bytes()
        if not data:
            raise DataError(f"'{path}' is empty; get the file again", "data.path")
        return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except EOFError:
        raise DataError(f"'{path}' is cut off ({len(data)} bytes); get the file again", "data.path") from None
    except (OSError, zlib.error) as error:
        raise DataError(f"'{path}' can't be read ({error}); get the file again", "data.path") from None
