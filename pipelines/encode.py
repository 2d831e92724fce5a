"""Raw columns -> tensors: fitted on the training rows only, and the same code in training and in serving.

Encoding has two steps. `array` turns a raw column into a compact array that stays in memory (uint8 for images); `tensor` turns a
batch of it into what a network takes (float32, normalised), on the device. A kind of column is one class and one line in KINDS.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from .schema import Column, DataError, Schema

FORMAT = 1
PICTURES = (b"\x89PNG", b"\xff\xd8\xff")  # how PNG and JPEG begin
Errors = dict[int, str]  # row -> what doesn't fit


class ColumnEncoder(Protocol):
    """Encodes one kind of column. `array` leaves anything (zeros) in rows that don't fit and says why in Errors."""

    column: Column

    @classmethod
    def fit(cls, column: Column, values: np.ndarray) -> ColumnEncoder: ...

    def array(self, raw: pa.ChunkedArray) -> tuple[np.ndarray, Errors]: ...

    def tensor(self, batch: Tensor) -> Tensor: ...

    def to_plain(self) -> dict[str, Any]: ...


@dataclass
class ImageEncoder:
    """Images [C, H, W]: raw bytes, PNG/JPEG bytes, or lists of numbers; normalised to mean 0 and deviation 1 per channel."""

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

    def array(self, raw: pa.ChunkedArray) -> tuple[np.ndarray, Errors]:
        """[N, H, W, C] in the column's dtype, or float32 where the input is lists."""
        return image_array(raw, self.column)

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

    def array(self, raw: pa.ChunkedArray) -> tuple[np.ndarray, Errors]:
        """Indices of the names; a label that isn't one of the classes is an error of its row."""
        index = {name: place for place, name in enumerate(self.classes)}
        found = [index.get(class_name(value), -1) for value in raw.to_pylist()]
        errors = {row: f"'{raw[row].as_py()}' is none of the classes" for row, place in enumerate(found) if place < 0}
        return np.array(found, np.int64), errors

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
    def fit(cls, schema: Schema, train: pa.Table) -> Encoder:
        """Fitted on the training rows; raises DataError if a row doesn't fit."""
        columns: dict[str, Any] = {}
        for column in schema.inputs:
            values, errors = image_array(train[column.name], column)
            refuse(errors, column.name, "train")
            columns[column.name] = KINDS[column.kind].fit(column, values)
        columns[schema.target.name] = ClassEncoder(schema.target, schema.classes)
        return cls(schema, columns)

    def arrays(self, table: pa.Table, names: list[str]) -> tuple[dict[str, np.ndarray], Errors]:
        """The named columns as compact arrays, and what doesn't fit, by row; raises DataError if a column is missing."""
        arrays, errors = {}, {}
        for name in names:
            if name not in table.column_names:
                raise DataError(f"no column '{name}'; the input has: {', '.join(table.column_names)}", "input")
            arrays[name], bad = self.columns[name].array(table[name])
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
    """Mean and standard deviation; 1 for the deviation of a constant. Exact for uint8, by counting."""
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel(), minlength=256)
        levels = np.arange(256)
        mean = float(counts @ levels / counts.sum())
        variance = float(counts @ (levels - mean) ** 2 / counts.sum())
    else:
        mean, variance = float(values.mean(dtype=np.float64)), float(values.var(dtype=np.float64))
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


def sort_classes(names: set[str]) -> tuple[str, ...]:
    """In the order of their numbers where all are numbers, else of their letters."""
    try:
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(names))


def image_array(raw: pa.ChunkedArray, column: Column) -> tuple[np.ndarray, Errors]:
    """Raw bytes, PNG/JPEG bytes or lists -> [N, H, W, C]; rows that don't fit are zeros, and Errors says why."""
    channels, height, width = column.shape
    size = height * width * channels
    one = raw.combine_chunks() if isinstance(raw, pa.ChunkedArray) else raw
    if isinstance(one, pa.ChunkedArray):  # no rows at all
        one = pa.concat_arrays(one.chunks) if one.num_chunks else pa.array([], one.type)
    if pa.types.is_fixed_size_binary(one.type) and one.null_count == 0 and one.type.byte_width == size and column.dtype == "uint8":
        flat = np.frombuffer(one.buffers()[1], np.uint8)[one.offset * size : (one.offset + len(one)) * size]
        return flat.reshape(-1, height, width, channels), {}
    if pa.types.is_fixed_size_list(one.type) and one.null_count == 0 and one.type.list_size == size and one.values.null_count == 0:
        values = one.values.slice(one.offset * size, len(one) * size).to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        if np.isfinite(values).all():
            return values.reshape(-1, height, width, channels), {}
    dtype = np.uint8 if column.dtype == "uint8" and _is_binary(one.type) else np.float32
    array, errors = np.zeros((len(one), height, width, channels), dtype), {}
    for row, value in enumerate(one):
        try:
            array[row] = image_row(value.as_py(), column)
        except DataError as error:
            errors[row] = str(error)
    return array, errors


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def image_row(value: Any, column: Column) -> np.ndarray:
    """One image as [H, W, C]; raises DataError where it doesn't fit."""
    channels, height, width = column.shape
    if value is None:
        raise DataError("it is missing")
    if isinstance(value, bytes):
        if value.startswith(PICTURES):
            return decode_picture(value, channels, (height, width) if column.resize else None, expect=(height, width))
        if column.dtype == "uint8" and len(value) == height * width * channels:
            return np.frombuffer(value, np.uint8).reshape(height, width, channels)
        raise DataError(f"{len(value)} bytes, neither PNG nor JPEG nor {height}x{width}x{channels} = {height * width * channels} raw values")
    try:
        array = np.asarray(value, np.float32)
    except (ValueError, TypeError):
        raise DataError("neither an image nor a list of numbers of one shape") from None
    if array.size != height * width * channels or array.shape not in {(array.size,), (height, width), (height, width, channels)}:
        raise DataError(f"a list of shape {list(array.shape)}; the image is {height}x{width}x{channels} = {height * width * channels} values")
    if not np.isfinite(array).all():
        raise DataError("it holds NaN or infinity")
    if column.dtype == "uint8" and (array.min() < 0 or array.max() > 255):
        raise DataError(f"values from {array.min():g} to {array.max():g}; they must lie between 0 and 255")
    return array.reshape(height, width, channels)


def decode_picture(data: bytes, channels: int, resize: tuple[int, int] | None, expect: tuple[int, int] | None = None) -> np.ndarray:
    """PNG or JPEG bytes -> [H, W, channels] uint8, grey or RGB, turned upright, resized bilinearly to (H, W) if asked."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
            if resize is not None and picture.size != (resize[1], resize[0]):
                picture = picture.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"no readable image ({error})") from None
    if resize is None and expect is not None and picture.size != (expect[1], expect[0]):
        raise DataError(f"an image of {picture.size[1]}x{picture.size[0]}; it must be {expect[0]}x{expect[1]} (or set data.size: [H, W])")
    return np.asarray(picture, np.uint8).reshape(picture.size[1], picture.size[0], channels)
