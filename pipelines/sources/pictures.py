"""Many encoded pictures -> one array: of the size that is asked for, or of the one that all of them have."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, TypeVar

import numpy as np
from annotated_types import Gt

from .. import spill
from ..encode.pictures import decode_picture, picture_shape
from ..schema import Column, DataError

Side = Annotated[int, Gt(0)]
Size = tuple[Side, Side]
T = TypeVar("T")
Picture = tuple[str, Callable[[], bytes]]  # what to call it in an error, and how to read it


def decode(name: str, pictures: Sequence[Picture], size: Size | None, grey: bool) -> tuple[Column, np.ndarray]:
    """The column and [N, H, W, C] uint8: C is 1 if asked or if all are grey, else 3. Raises DataError naming the picture.

    Only the result is held in memory, never the files; where it is large, it lies in a file, too (see spill).
    """
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:  # reading and decoding leave the interpreter free
        if size is None or not grey:
            shapes = list(pool.map(lambda picture: _named(picture, picture_shape), pictures))
            grey = grey or all(shape[2] == 1 for shape in shapes)
        height, width = size or _one_size(pictures, shapes)
        channels = 1 if grey else 3
        images = spill.empty((len(pictures), height, width, channels), np.uint8)

        def fill(row: int) -> None:
            images[row] = _named(pictures[row], lambda data: decode_picture(data, channels, size, (height, width)))

        list(pool.map(fill, range(len(pictures))))
    return Column(name, "image", (channels, height, width), "uint8", resize=size is not None), images


def _named(picture: Picture, work: Callable[[bytes], T]) -> T:
    name, read = picture
    try:
        return work(read())
    except (DataError, OSError) as error:
        raise DataError(f"{name}: {error}; replace it or take it out", "data.path") from None


def _one_size(pictures: Sequence[Picture], shapes: list[tuple[int, int, int]]) -> tuple[int, int]:
    first = shapes[0][:2]
    for (name, _), shape in zip(pictures, shapes, strict=True):
        if shape[:2] != first:
            raise DataError(
                f"the images have different sizes, HxW: {pictures[0][0]} is {first[0]}x{first[1]}, {name} is {shape[0]}x{shape[1]}; "
                "set data.size: [H, W] to bring them to one",
                "data.size",
            )
    return first
