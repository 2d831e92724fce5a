"""What a source gives: one table of all rows, what its columns are, and official splits and a known optimum where there are any."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .schema import Column, DataError


@dataclass(frozen=True)
class Side:
    """What is known of users or of items: a table with a row for each id, in a column named as the input is, and its feature columns."""

    table: pa.Table
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Raw:
    """`table`: the inputs, the target and what a split goes by; `official`: 'train', 'validation' or 'test' for each row ([N] str).

    `optimum`: the best value that any model can reach, by metric, where the generator knows it. `sides`: features of an input's ids,
    by the input's name. `time`: the column of `table` by which rows are ordered, where there is one.
    """

    table: pa.Table
    inputs: tuple[Column, ...]
    target: Column
    official: np.ndarray | None = None
    optimum: Mapping[str, float] = field(default_factory=dict)
    sides: Mapping[str, Side] = field(default_factory=dict)
    time: str | None = None


Load = Callable[[Any], Raw]


@dataclass(frozen=True)
class NoOptions:
    """The Config of a source that takes none."""


def config_class(load: Load) -> type:
    """The Config of a source: the annotation of its load function's parameter (a dataclass), or NoOptions."""
    hints = {k: v for k, v in typing.get_type_hints(load).items() if k != "return"}
    return next(iter(hints.values()), NoOptions)


def existing(path: str, what: str = "file or folder") -> Path:
    """The path, expanded; raises DataError if it is empty or nothing is there."""
    if not path:
        raise DataError(f"it is missing: where is the data? (a {what})", "data.path")
    found = Path(path).expanduser()
    if not found.exists():
        near = sorted(p.name for p in found.parent.iterdir())[:8] if found.parent.is_dir() else []
        beside = f"; in '{found.parent}' there is: {', '.join(near)}" if near else f"; there is no '{found.parent}' either: set data.path"
        raise DataError(f"no {what} '{path}'{beside}", "data.path")
    return found


def image_column(pixels: np.ndarray) -> pa.Array:
    """uint8 images [N, ...] as a column of raw bytes."""
    size = int(np.prod(pixels.shape[1:]))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(pixels), [None, pa.py_buffer(np.ascontiguousarray(pixels))])
