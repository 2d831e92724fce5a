"""Generated: circles, squares and triangles on noisy backgrounds, and what each pixel shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
from annotated_types import Ge, doc

from ..encode.masks import MaskColumn
from ..encode.pictures import encode_png
from ..raw import Raw, image_column
from ..schema import Column

CLASSES = ("background", "circle", "square", "triangle")
SIDE = 32
SHAPES = 2  # at most, in an image: one in its left half, one in its right; they may touch
RADIUS = (5.5, 8.0)
TILT = 0.35  # at most, in radians
NOISE = 10.0  # standard deviation, of 255 levels
CONTRAST = 60.0  # at least, between a shape and what is below it, in some channel


@dataclass(frozen=True)
class Config:
    """How many images, and of which sizes: 32x32, or from 20 to 32 each way."""

    rows: Annotated[int, Ge(10), doc("images")] = 800
    seed: Annotated[int, Ge(0), doc("of the generator")] = 0
    any_size: Annotated[bool, doc("sizes that differ, instead of 32x32")] = False


def load(config: Config) -> Raw:
    """`image`, RGB, and `mask`: 0 background, 1 circle, 2 square, 3 triangle."""
    rng = np.random.default_rng(config.seed)
    images, masks = _draw(rng, config.rows)
    values = tuple(range(len(CLASSES)))
    if config.any_size:
        sizes = rng.integers(20, SIDE + 1, (config.rows, 2)).tolist()
        columns = [
            pa.array([encode_png(whole[:height, :width]) for whole, (height, width) in zip(all_, sizes, strict=True)], pa.binary())
            for all_ in (images, masks)
        ]
        shape = (0, 0)
    else:
        columns, shape = [image_column(images), image_column(masks)], (SIDE, SIDE)
    table = pa.table({"image": columns[0], "mask": columns[1]})
    return Raw(
        table, (Column("image", "image", (3, *shape), "uint8"),), MaskColumn("mask", "mask", shape, "uint8", values=values, names=CLASSES)
    )


def _draw(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, S, S, 3] and masks [N, S, S], uint8: a shade that runs over the image, up to SHAPES shapes, noise on all of it."""
    across = np.linspace(-1, 1, SIDE, dtype=np.float32)
    slope = rng.uniform(-40, 40, (2, rows, 1, 1, 3)).astype(np.float32)
    base = rng.uniform(60, 195, (rows, 1, 1, 3)).astype(np.float32)
    images = base + slope[0] * across[:, None, None] + slope[1] * across[None, :, None]
    masks = np.zeros((rows, SIDE, SIDE), np.uint8)
    absent = rng.integers(-1, SHAPES, rows)  # which place is empty, if one is
    for place in range(SHAPES):
        kind = rng.integers(1, len(CLASSES), rows).astype(np.uint8)
        inside = _inside(rng, kind, place) & (absent != place)[:, None, None]
        sign = np.where(base > 127, -1, 1)
        colour = base + sign * rng.uniform(CONTRAST, 2 * CONTRAST, (rows, 1, 1, 3))  # away from the background in every channel
        images = np.where(inside[..., None], colour.astype(np.float32), images)
        masks = np.where(inside, kind[:, None, None], masks)
    images += rng.normal(0, NOISE, images.shape).astype(np.float32)
    return np.clip(np.rint(images), 0, 255).astype(np.uint8), masks


def _inside(rng: np.random.Generator, kind: np.ndarray, place: int) -> np.ndarray:
    """Which pixels lie in each image's shape, of the kind given, in its part of the width, of a random size and tilt: [N, S, S]."""
    rows = len(kind)
    radius = rng.uniform(*RADIUS, (rows, 1, 1)).astype(np.float32)
    width = SIDE / SHAPES
    down, right = (rng.uniform(RADIUS[0], side - RADIUS[0], (rows, 1, 1)).astype(np.float32) for side in (SIDE, width))
    angle = rng.uniform(-TILT, TILT, (rows, 1, 1)).astype(np.float32)
    pixels = np.arange(SIDE, dtype=np.float32)
    y, x = pixels[:, None] - down, pixels[None, :] - right - np.float32(place * width)
    y, x = np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x
    circle = y**2 + x**2 <= radius**2
    square = np.maximum(abs(y), abs(x)) <= 0.85 * radius
    triangle = (y <= 0.6 * radius) & (0.866 * abs(x) - 0.5 * y <= 0.6 * radius)
    return np.choose(kind[:, None, None] - 1, [circle, square, triangle])
