"""Image columns of tables: pictures decoded, lists of numbers checked and made dense."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .. import spill
from ..encode.arrow import is_bytes, is_list, is_text
from ..encode.images import image_array
from ..encode.moments import some_rows
from ..encode.pictures import image_text, is_picture
from ..raw import image_column
from ..schema import Column, DataError
from .pictures import Size, decode
from .table_rows import Rows


def image(name: str, rows: Rows, size: Size | None, grey: bool) -> tuple[Column, pa.Array]:
    """An image column as it is prepared: pictures decoded, numbers checked and made dense."""
    raw = rows.table[name]
    if pa.types.is_struct(raw.type) and raw.type.get_field_index("bytes") >= 0:
        raw = pc.struct_field(raw, "bytes")
    if not (is_bytes(raw.type) or is_text(raw.type) or is_list(raw.type)):
        raise DataError(f"column '{name}' holds {raw.type}, which can't be an image; it takes pictures or lists", "data.kinds")
    rows.refuse(name, {int(row): "it is missing" for row in np.flatnonzero(raw.is_null().to_numpy())})
    first = raw[0].as_py()
    if is_list(raw.type) or (is_text(raw.type) and first.lstrip().startswith("[")) or (is_bytes(raw.type) and not _encoded(first, size)):
        return _numbers(name, raw, rows, size, grey)
    pictures = [(rows.where(name, row), partial(_bytes, raw, row, rows.folder)) for row in range(len(raw))]
    column, images = decode(name, pictures, size, grey)
    return column, image_column(images)


def _encoded(data: bytes, size: Size | None) -> bool:
    pixels = math.prod(size or (0,))
    return is_picture(data, pixels, 3 * pixels)


def _bytes(raw: pa.ChunkedArray, row: int, folder: Path) -> bytes:
    value = raw[row].as_py()
    value = image_text(value, folder) if isinstance(value, str) else value
    if not isinstance(value, bytes):
        raise DataError("a list of numbers among pictures")
    return value


def _numbers(name: str, raw: pa.ChunkedArray, rows: Rows, size: Size | None, grey: bool) -> tuple[Column, pa.Array]:
    """Images that come as numbers: stored as bytes where these are whole and lie within 0 and 255, else as float32."""
    height, width, channels = _shape(raw[0].as_py(), rows.where(name, 0), size, grey)
    column = Column(name, "image", (channels, height, width), "uint8" if is_bytes(raw.type) else "float32")
    images = _some_at_a_time(name, raw, rows, column, np.uint8 if is_bytes(raw.type) else np.float32)
    if not is_bytes(raw.type) and _whole(raw) and images.min() >= 0 and images.max() <= 255:
        images = _some_at_a_time(name, raw, rows, column, np.uint8)
    if images.dtype == np.uint8:
        return replace(column, dtype="uint8"), image_column(images)
    return column, pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), height * width * channels)


def _some_at_a_time(name: str, raw: pa.ChunkedArray, rows: Rows, column: Column, dtype: type[np.generic]) -> np.ndarray:
    """[N, H, W, C]; raises DataError for a row that doesn't fit."""
    channels, height, width = column.shape
    images, start = spill.empty((len(raw), height, width, channels), dtype), 0
    for some in some_rows(raw):
        found, errors = image_array(some, column)
        rows.refuse(name, {start + row: says for row, says in errors.items()})
        images[start : start + len(some)] = found
        start += len(some)
    return images


def _whole(raw: pa.ChunkedArray) -> bool:
    """Whether lists are written as integers."""
    if is_text(raw.type):
        return not pc.any(pc.match_substring_regex(raw, "[.eE]")).as_py()
    kind = raw.type
    while is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind))


def _shape(first: Any, where: str, size: Size | None, grey: bool) -> tuple[int, int, int]:
    """[H, W, C] of the first image: by data.size, by its own nesting, or a flat square."""
    try:
        value = json.loads(first) if isinstance(first, str) else first
        shape = (len(value),) if isinstance(value, bytes) else np.shape(value)
    except ValueError as error:
        raise DataError(f"{where}: no lists of one shape ({error}); mend it", "data.path") from None
    found = _square(shape[0], size) if len(shape) == 1 else (*shape, 1)[:3]
    if len(shape) > 3 or found is None or 0 in found:
        raise DataError(
            f"{where}: values of shape {list(shape)} are no square image, grey or RGB; set data.size: [H, W] to what they are", "data.size"
        )
    if size and found[:2] != tuple(size):
        raise DataError(f"{where}: values of shape {list(shape)}, data.size is {list(size)}; only pictures are resized", "data.size")
    if found[2] not in (1, 3) and found[0] in (1, 3):
        raise DataError(f"{where}: lists of shape {list(shape)}; put the channels last, [H, W, C]", "data.path")
    if grey and found[2] != 1:
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
