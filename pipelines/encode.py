"""Raw columns -> tensors: fitted on the training rows only, and the same code in training and in serving.

Encoding has two steps. `array` turns a raw column into a compact array that stays in memory (uint8 for images); `tensor` turns a
batch of it into what a network takes (float32, normalised), on the device. A kind of column is one class and one line in KINDS.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from .schema import Column, DataError, Schema

FORMAT = 1
PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")  # how pictures begin; PNG and JPEG first
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")  # no other decoder of Pillow's is ever run
Errors = dict[int, str]  # row -> what doesn't fit


class ColumnEncoder(Protocol):
    """Encodes one kind of column. `array` leaves anything (zeros) in rows that don't fit and says why in Errors."""

    column: Column

    @classmethod
    def fit(cls, column: Column, values: np.ndarray) -> ColumnEncoder: ...

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[np.ndarray, Errors]: ...

    def tensor(self, batch: Tensor) -> Tensor: ...

    def to_plain(self) -> dict[str, Any]: ...


@dataclass
class ImageEncoder:
    """Images [C, H, W]: raw bytes, pictures, or lists of numbers, also as text; normalised to mean 0 and deviation 1 per channel."""

    column: Column
    mean: tuple[float, ...]
    std: tuple[float, ...]
    _constants: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    kind: ClassVar[str] = "image"

    @classmethod
    def fit(cls, column: Column, values: np.ndarray) -> ImageEncoder:
        """From the training rows: [N, H, W, C]."""
        moments = [_moments(values[..., channel]) for channel in range(values.shape[-1])]
        return cls(column, tuple(mean for mean, _ in moments), tuple(std for _, std in moments))

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[np.ndarray, Errors]:
        """[N, H, W, C] in the column's dtype, or float32 where the input is lists or text."""
        return image_array(raw, self.column, folder)

    def tensor(self, batch: Tensor) -> Tensor:
        """[B, H, W, C] of any dtype -> [B, C, H, W] float32, normalised, in channels_last memory."""
        if batch.device not in self._constants:
            std = torch.tensor(self.std, device=batch.device)
            self._constants[batch.device] = (1 / std, -torch.tensor(self.mean, device=batch.device) / std)
        scale, shift = self._constants[batch.device]
        return torch.addcmul(shift, batch.float(), scale).permute(0, 3, 1, 2)

    def to_plain(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_plain(cls, column: Column, data: Mapping[str, Any]) -> ImageEncoder:
        return cls(column, tuple(data["mean"]), tuple(data["std"]))


@dataclass
class ClassEncoder:
    """Class names -> indices: [N] int64."""

    column: Column
    classes: tuple[str, ...]

    kind: ClassVar[str] = "class"

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[np.ndarray, Errors]:
        """Indices of the names, 0 for a label that isn't one of the classes, which is an error of its row."""
        index = {name: place for place, name in enumerate(self.classes)}
        names, codes = label_codes(raw)
        found = np.array([-1 if name is None else index.get(name, -1) for name in names], np.int64)[codes]
        errors = {int(row): f"'{raw[int(row)].as_py()}' is none of the classes" for row in np.flatnonzero(found < 0)}
        return np.maximum(found, 0), errors

    def tensor(self, batch: Tensor) -> Tensor:
        return batch

    def to_plain(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_plain(cls, column: Column, data: Mapping[str, Any], classes: tuple[str, ...] = ()) -> ClassEncoder:
        return cls(column, classes)

    @classmethod
    def fit(cls, column: Column, values: np.ndarray) -> ClassEncoder:
        """From the training rows' names: sorted as numbers where all are numbers."""
        return cls(column, sort_classes({class_name(v) for v in values}))


KINDS: dict[str, type[ImageEncoder]] = {"image": ImageEncoder}


@dataclass
class Encoder:
    """All columns of a schema, encoded by their kinds."""

    schema: Schema
    columns: dict[str, Any]  # name -> ColumnEncoder

    @classmethod
    def fit(cls, schema: Schema, train: pa.Table, rows: np.ndarray | None = None) -> Encoder:
        """Fitted on the training rows; raises DataError if a row doesn't fit. `rows`: their numbers in the raw data, for the message."""
        columns: dict[str, Any] = {}
        for column in schema.inputs:
            values, errors = image_array(train[column.name], column)
            refuse({row if rows is None else int(rows[row]): says for row, says in errors.items()}, column.name, "the data (train part)")
            columns[column.name] = KINDS[column.kind].fit(column, values)
        columns[schema.target.name] = ClassEncoder(schema.target, schema.classes)
        return cls(schema, columns)

    def arrays(self, table: pa.Table, names: list[str], folder: Path | None = None) -> tuple[dict[str, np.ndarray], Errors]:
        """The named columns as compact arrays, and what doesn't fit, by row; raises DataError if a column is missing.

        `folder`: of the table's file, where a column may name picture files; without it no file is ever read.
        """
        arrays, errors = {}, {}
        for name in names:
            if name not in table.column_names:
                raise DataError(f"no column '{name}'; the input has: {', '.join(table.column_names)}", "input")
            arrays[name], bad = self.columns[name].array(table[name], folder)
            errors.update({row: f"{name}: {says}" for row, says in bad.items() if row not in errors})
        return arrays, errors

    @property
    def input_names(self) -> list[str]:
        return [column.name for column in self.schema.inputs]

    def tensors(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch of compact arrays -> what a network takes."""
        return {name: self.columns[name].tensor(values) for name, values in batch.items()}

    def to_plain(self) -> dict[str, Any]:
        """As JSON-ready data, without the schema."""
        return {"format": FORMAT, "columns": {name: {"kind": e.kind, **e.to_plain()} for name, e in self.columns.items()}}

    @classmethod
    def from_plain(cls, schema: Schema, data: Mapping[str, Any]) -> Encoder:
        """From what `to_plain` gave; unknown fields are ignored."""
        stored = data["columns"]
        columns: dict[str, Any] = {c.name: KINDS[c.kind].from_plain(c, stored[c.name]) for c in schema.inputs}
        columns[schema.target.name] = ClassEncoder(schema.target, schema.classes)
        return cls(schema, columns)


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation; 1 for the deviation of a constant. By blocks of about 8 MB; exact for uint8, by counting."""
    rows = max(1, (1 << 20) // max(1, values[:1].size))
    blocks = [values[start : start + rows] for start in range(0, len(values), rows)]
    if values.dtype == np.uint8:
        counts = np.sum([np.bincount(block.ravel(), minlength=256) for block in blocks], axis=0)
        levels = np.arange(256)
        mean = float(counts @ levels / counts.sum())
        variance = float(counts @ (levels - mean) ** 2 / counts.sum())
    else:
        mean = sum(float(block.sum(dtype=np.float64)) for block in blocks) / values.size
        variance = sum(float(((block.astype(np.float64) - mean) ** 2).sum()) for block in blocks) / values.size
    return mean, variance**0.5 if variance > 1e-12 else 1.0


def refuse(errors: Errors, column: str, where: str) -> None:
    """Raise DataError for the first of the rows that don't fit; rows are counted from 0."""
    if errors:
        row, says = min(errors.items())
        more = f" (and {len(errors) - 1} rows more)" if len(errors) > 1 else ""
        raise DataError(f"{where}, column '{column}', row {row}: {says}{more}")


def class_name(value: Any) -> str:
    """The name of a label: whole floats are written as integers."""
    return str(int(value)) if isinstance(value, float | np.floating) and float(value).is_integer() else str(value)


def label_codes(raw: pa.ChunkedArray) -> tuple[list[str | None], np.ndarray]:
    """The distinct class names of a column, None for a missing one (null, NaN), and the place of each row's name among them."""
    if pa.types.is_dictionary(raw.type):
        raw = raw.cast(raw.type.value_type)
    values = raw.unique()
    names = [None if value is None or value != value else class_name(value) for value in values.to_pylist()]
    return names, pc.index_in(raw, value_set=values).to_numpy().astype(np.int64)


def sort_classes(names: set[str]) -> tuple[str, ...]:
    """In the order of their numbers where all are numbers, else of their letters."""
    with contextlib.suppress(ValueError):
        if all(math.isfinite(float(name)) for name in names):
            return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


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


def is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def dense(lists: pa.Array) -> np.ndarray | None:
    """Lists of numbers, nested or not, of one shape and none missing -> [N, ...], without a copy; else None."""
    shape = [len(lists)]
    while is_list(lists.type):
        lengths = [lists.type.list_size] if pa.types.is_fixed_size_list(lists.type) else lists.value_lengths().unique().to_pylist()
        if lists.null_count or len(lengths) != 1:
            return None
        shape.append(lengths[0])
        lists = lists.flatten()
    if len(shape) == 1 or lists.null_count or not (pa.types.is_integer(lists.type) or pa.types.is_floating(lists.type)):
        return None
    return np.asarray(lists.to_numpy(zero_copy_only=False).reshape(shape))


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
        raise DataError("it is missing")
    if isinstance(value, str):
        value = image_text(value, folder)
    if isinstance(value, bytes):
        if not is_picture(value, size):
            if column.dtype == "uint8" and len(value) == size:
                return np.frombuffer(value, np.uint8).reshape(height, width, channels)
            raise DataError(f"{len(value)} bytes, neither PNG nor JPEG nor {height}x{width}x{channels} = {size} raw values")
        if column.dtype != "uint8":
            raise DataError("a picture, but the training data were lists of numbers of another scale; give such lists")
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


def is_picture(data: bytes, *raw_sizes: int) -> bool:
    """Whether bytes are an encoded picture, by how they begin; BMP, WebP and GIF only where they have not the size of raw values."""
    return data.startswith(PICTURES[:2]) or (data.startswith(PICTURES) and len(data) not in raw_sizes)


def image_text(text: str, folder: Path | None = None) -> Any:
    """An image written as text: a JSON list, a picture in base64 (also as a data: URL), or a picture file's name, relative to `folder`."""
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise DataError(f"no list of numbers ({error})") from None
    if text.lower().endswith(SUFFIXES):
        if folder is None:
            raise DataError(f"the name of a file, '{text}'; give the picture itself")
        try:
            return (folder / text).read_bytes()
        except OSError as error:
            raise DataError(f"no file '{text}' in '{folder}' ({error.strerror})") from None
    with contextlib.suppress(ValueError):
        data = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
        if data.startswith(PICTURES):
            return data
    raise DataError(f"text ('{text[:20]}') that is neither a list of numbers nor a picture in base64")


def open_picture(data: bytes) -> Any:
    """A lazily read PIL image (the header only); raises DataError where it is none."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"no readable image ({_says(error)})") from None


def picture_shape(data: bytes) -> tuple[int, int, int]:
    """[H, W, C] of a picture as it will be decoded, upright, from its header: C is 1 for a grey picture, else 3."""
    with open_picture(data) as picture:
        exif = {} if picture.format == "PNG" and "exif" not in picture.info else picture.getexif()  # a PNG would be decoded to look for it
        turned = exif.get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientation: lying on a side
        width, height = reversed(picture.size) if turned else picture.size
        return height, width, 1 if picture.mode in ("1", "L", "LA", "I", "I;16", "I;16B") else 3


def decode_picture(data: bytes, channels: int, resize: tuple[int, int] | None, expect: tuple[int, int] | None = None) -> np.ndarray:
    """PNG, JPEG, BMP, WebP or GIF -> [H, W, channels] uint8, grey or RGB, turned upright, resized bilinearly to (H, W) if asked."""
    from PIL import Image, ImageOps

    with open_picture(data) as opened:
        try:
            if resize is not None:
                opened.draft(None, (max(resize),) * 2)  # a JPEG decodes at 1/2, 1/4 or 1/8 where that is still large enough
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 255
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            if picture.mode == "P" and "transparency" in picture.info:
                picture = picture.convert("RGBA")
            picture = picture.convert("L" if channels == 1 else "RGB")
            if resize is not None and picture.size != (resize[1], resize[0]):
                picture = picture.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"no readable image ({_says(error)})") from None
    if resize is None and expect is not None and picture.size != (expect[1], expect[0]):
        raise DataError(f"an image of {picture.size[1]}x{picture.size[0]}; it must be {expect[0]}x{expect[1]} (or set data.size: [H, W])")
    return np.asarray(picture, np.uint8).reshape(picture.size[1], picture.size[0], channels)


def _says(error: BaseException) -> str:
    return "cannot identify image file" if "identify" in str(error) else str(error)  # without the address of a BytesIO
