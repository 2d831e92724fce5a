"""Encoded pictures: PNG, JPEG, BMP, WebP, GIF, as bytes, in base64 or as files -> arrays, by Pillow."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..schema import DataError

PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")  # how pictures begin; PNG and JPEG first
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")  # no other decoder of Pillow's is ever run


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


def decode_mask(data: bytes, shape: tuple[int, int] | None, resize: bool = False) -> np.ndarray:
    """A mask [H, W] uint8 from a lossless picture: a palette's indices, or grey values (black and white are 0 and 255).

    `shape`: that it must have, or is brought to, pixel by nearest pixel. Raises DataError: a JPEG, colours, values above 255.
    """
    from PIL import Image

    with open_picture(data) as picture:
        if picture.format == "JPEG":
            raise DataError("a JPEG, which blurs the values of a mask; save masks as PNG")
        try:
            values = np.asarray(picture.convert("L") if picture.mode in ("1", "LA") else picture)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"no readable image ({_says(error)})") from None
    if values.ndim == 3:
        if (values[..., :3] != values[..., :1]).any():
            raise DataError("a mask of colours; it must hold one number for each pixel: a grey or palette PNG of the classes' indices")
        values = values[..., 0]
    if values.min() < 0 or values.max() > 255:
        raise DataError(f"the mask holds {values.max() if values.max() > 255 else values.min()}; values must lie between 0 and 255")
    values = values.astype(np.uint8, copy=False)
    if shape is None or values.shape == shape:
        return values
    if not resize:
        raise DataError(f"a mask of {values.shape[0]}x{values.shape[1]}; it must be {shape[0]}x{shape[1]} (or set data.size: [H, W])")
    resized = Image.fromarray(values).resize((shape[1], shape[0]), Image.Resampling.NEAREST)
    return np.asarray(resized, np.uint8)


def encode_png(pixels: np.ndarray) -> bytes:
    """[H, W] or [H, W, 3] uint8 -> a PNG."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def _says(error: BaseException) -> str:
    return "cannot identify image file" if "identify" in str(error) else str(error)  # without the address of a BytesIO
