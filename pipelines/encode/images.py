"""Images in any of their forms -> arrays, of one shape or of sizes that differ, and from there to normalised tensors."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ..ragged import Ragged
from ..schema import Column, DataError
from .arrow import dense, is_bytes
from .column import MISSING, Errors
from .moments import Standardised, moments, some_rows
from .pictures import decode_picture, encode_png, image_text, is_picture

OTHER_SCALE = "a picture, but the training data were lists of numbers of another scale; give such lists"


@dataclass
class ImageEncoder(Standardised):
    """Images [C, H, W]: raw bytes, pictures, or lists of numbers, also as text; normalised to mean 0 and deviation 1 per channel.

    A column of shape (C, 0, 0) takes pictures and nested lists of any size; so does one of a shape if `other_sizes` says so.
    """

    other_sizes: bool = False

    kind: ClassVar[str] = "image"
    requires: ClassVar[tuple[str, ...]] = ("pillow",)

    @classmethod
    def fit(cls, column: Column, raw: pa.ChunkedArray) -> ImageEncoder:
        """From the training rows."""
        sized = any_size(column)
        mean, std = moments(
            lambda: (sized_array(rows, column)[0].values.numpy() if sized else image_array(rows, column)[0] for rows in some_rows(raw))
        )
        return cls(column, tuple(mean.tolist()), tuple(std.tolist()))

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[np.ndarray | Ragged, Errors]:
        """[N, H, W, C] in the column's dtype, or float32 where the input is lists or text; ragged where sizes differ."""
        if any_size(self.column):
            return sized_array(raw, self.column, folder)
        array, errors = image_array(raw, self.column, folder)
        return _with_other_sizes(array, errors, raw, self.column, folder) if self.other_sizes and errors else (array, errors)

    def tensor(self, batch: Tensor, sizes: Tensor | None = None) -> Tensor:
        """[B, H, W, C] of any dtype -> [B, C, H, W] float32, normalised, in channels_last memory; zero beyond a row's size."""
        normal = self.standardised(batch)
        if sizes is not None:
            rows, columns = (torch.arange(side, device=batch.device) for side in batch.shape[1:3])
            inside = (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None, :]
            normal = normal * inside[..., None]
        return normal.permute(0, 3, 1, 2)

    def example(self, raw: pa.ChunkedArray) -> pa.Array:
        """As flat lists of numbers; as PNG in base64 where sizes differ, or may."""
        if any_size(self.column):
            return _in_base64(_rows_of(sized_array(raw, self.column)[0]))
        array, _ = image_array(raw, self.column)
        if self.other_sizes and self.column.dtype == "uint8":
            return _in_base64(list(array))
        return pa.array([row.reshape(-1).astype(float).tolist() for row in array])


def _in_base64(images: Sequence[np.ndarray]) -> pa.Array:
    """Images [H, W, C] of whole numbers as PNG, in base64."""
    pixels = [image.astype(np.uint8) for image in images]
    return pa.array([base64.b64encode(encode_png(each.squeeze(2) if each.shape[2] == 1 else each)).decode() for each in pixels])


def _rows_of(ragged: Ragged) -> list[np.ndarray]:
    """Each row at its own size."""
    return [ragged.take(torch.tensor([row]))[0][0].numpy() for row in range(len(ragged))]


def _with_other_sizes(
    array: np.ndarray, errors: Errors, raw: pa.ChunkedArray, column: Column, folder: Path | None
) -> tuple[np.ndarray | Ragged, Errors]:
    """Images of the column's size, and beside them those rows of `errors` that are images of another size: ragged, if there are any."""
    places = sorted(errors)
    found, bad = sized_array(raw.take(pa.array(places)), column, folder)
    still = {places[row]: says for row, says in bad.items()}
    if len(still) == len(errors):
        return array, still
    others = {place: row for place, row in zip(places, _rows_of(found), strict=True) if place not in still}
    dtype = np.uint8 if array.dtype == found.values.numpy().dtype == np.uint8 else np.float32
    rows = [others.get(place, image) for place, image in enumerate(array)]
    return Ragged.from_rows(rows, 2, np.zeros((0, column.shape[0]), dtype)), still


def any_size(column: Column) -> bool:
    """Whether the rows of an image column may differ in size."""
    return len(column.shape) == 3 and column.shape[1:] == (0, 0)


def sized_array(raw: pa.ChunkedArray, column: Column, folder: Path | None = None) -> tuple[Ragged, Errors]:
    """Pictures and nested lists, each of its own size, as rows [H, W, C]: uint8 where all are pictures, else float32.

    A row that doesn't fit is one black pixel, and Errors says why.
    """
    channels, errors = column.shape[0], Errors()
    if pa.types.is_struct(raw.type) and raw.type.get_field_index("bytes") >= 0:
        raw = pc.struct_field(raw, "bytes")

    def decoded(row: int) -> np.ndarray:
        try:
            return sized_row(raw[row].as_py(), column, folder)
        except DataError as error:
            errors[row] = str(error)
            return np.zeros((1, 1, channels), np.uint8)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding leaves the interpreter free
        rows = list(pool.map(decoded, range(len(raw))))
    dtype = np.uint8 if all(row.dtype == np.uint8 for row in rows) else np.float32
    return Ragged.from_rows(rows, 2, np.zeros((0, channels), dtype)), errors


def sized_row(value: Any, column: Column, folder: Path | None = None) -> np.ndarray:
    """One image as [H, W, C], whatever its size; raises DataError where it doesn't fit."""
    channels = column.shape[0]
    if value is None:
        raise DataError(MISSING)
    if isinstance(value, str):
        value = image_text(value, folder)
    if isinstance(value, bytes):
        if not is_picture(value):
            raise DataError(f"{len(value)} bytes, neither PNG nor JPEG; raw values don't tell an image's height and width")
        if column.dtype != "uint8":
            raise DataError(OTHER_SCALE)
        return decode_picture(value, channels, None)
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(value, np.float32)
    except (ValueError, TypeError):
        raise DataError("neither an image nor a list of numbers of one shape") from None
    if not any_size(column) and _has_shape(array.shape, [*column.shape[1:], channels]):
        array = array.reshape(*column.shape[1:], channels)
    array = array[..., None] if array.ndim == 2 and channels == 1 else array
    if array.ndim != 3 or array.shape[2] != channels or array.size == 0:
        raise DataError(f"a list of shape {list(array.shape)}; an image of any size is a list of rows of pixels: [H, W, {channels}]")
    if says := _misfit(array, column):
        raise DataError(says)
    return array


def image_array(raw: pa.ChunkedArray, column: Column, folder: Path | None = None) -> tuple[np.ndarray, Errors]:
    """Images in any of their forms -> [N, H, W, C]; rows that don't fit are zeros, and Errors says why.

    uint8 where a uint8 column comes as bytes, else float32. Names of picture files are read only where `folder` says from where.
    """
    channels, height, width = column.shape
    if pa.types.is_struct(raw.type) and raw.type.get_field_index("bytes") >= 0:  # as Hugging Face's datasets store images
        raw = pc.struct_field(raw, "bytes")
    dtype = np.uint8 if column.dtype == "uint8" and is_bytes(raw.type) else np.float32
    array, errors, start = np.zeros((len(raw), height, width, channels), dtype), Errors(), 0
    for chunk in raw.chunks if isinstance(raw, pa.ChunkedArray) else [raw]:
        if len(chunk) == 0:
            continue
        found = _fill(array[start : start + len(chunk)], chunk, column, folder)
        errors.update({start + row: says for row, says in found.items()})
        start += len(chunk)
    return array, errors


def _fill(array: np.ndarray, raw: pa.Array, column: Column, folder: Path | None) -> Errors:
    """Write the images of one chunk into zeros [n, H, W, C]: at once where all have the right form, else row by row."""
    _, *shape = array.shape
    size = math.prod(shape)
    if raw.type == pa.binary(size) and raw.null_count == 0 and array.dtype == np.uint8:
        array[:] = np.frombuffer(raw.buffers()[1], np.uint8)[raw.offset * size : (raw.offset + len(raw)) * size].reshape(array.shape)
        return {}
    errors: Errors = {}
    values = dense(raw)
    if values is not None and _has_shape(values.shape[1:], shape):
        with np.errstate(over="ignore"):  # becomes infinity, which is refused
            array[:] = values.reshape(array.shape)
        flat = array.reshape(len(array), -1)
        low, high = flat.min(1), flat.max(1)
        fits = np.isfinite(low) & np.isfinite(high) & ((column.dtype != "uint8") | ((low >= 0) & (high <= 255)))
        for bad in np.flatnonzero(~fits).tolist():
            errors[bad] = _misfit(array[bad], column)
            array[bad] = 0
        return errors
    for row, value in enumerate(raw):
        try:
            array[row] = image_row(value.as_py(), column, folder)
        except DataError as error:
            errors[row] = str(error)
    return errors


def _has_shape(shape: tuple[int, ...], image: list[int]) -> bool:
    """Whether lists of a shape are an image [H, W, C]: flat, by rows without channels, or whole."""
    height, width, channels = image
    return shape in {(height * width * channels,), (height, width, channels)} or (shape == (height, width) and channels == 1)


def _misfit(values: np.ndarray, column: Column) -> str:
    """What is wrong with an image's numbers; empty if nothing is."""
    if not np.isfinite(values).all():
        return "it holds a missing value, NaN or infinity"
    if column.dtype == "uint8" and (values.min() < 0 or values.max() > 255):
        return f"values from {values.min():g} to {values.max():g}; they must lie between 0 and 255"
    return ""


def image_row(value: Any, column: Column, folder: Path | None = None) -> np.ndarray:
    """One image as [H, W, C]; raises DataError where it doesn't fit."""
    channels, height, width = column.shape
    size = height * width * channels
    if value is None:
        raise DataError(MISSING)
    if isinstance(value, str):
        value = image_text(value, folder)
    if isinstance(value, bytes):
        if not is_picture(value, size):
            if column.dtype == "uint8" and len(value) == size:
                return np.frombuffer(value, np.uint8).reshape(height, width, channels)
            raise DataError(f"{len(value)} bytes, neither PNG nor JPEG nor {height}x{width}x{channels} = {size} raw values")
        if column.dtype != "uint8":
            raise DataError(OTHER_SCALE)
        return decode_picture(value, channels, (height, width) if column.resize else None, expect=(height, width))
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(value, np.float32)
    except (ValueError, TypeError):
        raise DataError("neither an image nor a list of numbers of one shape") from None
    if not _has_shape(array.shape, [height, width, channels]):
        raise DataError(f"a list of shape {list(array.shape)}; the image is {height}x{width}x{channels} = {size} values")
    if says := _misfit(array, column):
        raise DataError(says)
    return array.reshape(height, width, channels)
