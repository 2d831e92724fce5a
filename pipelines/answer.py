"""A table in, answers out: the one way from raw columns through a network to names, in our commands and in a bundle on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from .encode import Encoder, Errors

BATCH = 250


def answer(net: Any, encoder: Encoder, table: pa.Table, every_class: bool = False, folder: Path | None = None) -> tuple[pa.Table, Errors]:
    """The answers to a table's rows, in order (`prediction`, `probability` ...), and what doesn't fit, by row.

    Rows that don't fit have null answers. `net`: a module from batches of tensors to outputs, with `decode`. `folder`: below which
    file names in an image column are looked for; without it no file is read. Raises DataError if a column is missing.
    """
    arrays, errors = encoder.arrays(table, encoder.input_names, folder)
    tensors = {name: torch.from_numpy(values if values.flags.writeable else values.copy()) for name, values in arrays.items()}
    was_training = net.training
    net.eval()
    parts: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for start in range(0, table.num_rows, BATCH):
            batch = encoder.tensors({name: values[start : start + BATCH] for name, values in tensors.items()})
            for name, values in net.decode(net(batch)).items():
                parts.setdefault(name, []).append(values)
    net.train(was_training)
    decoded = {name: torch.cat(values).numpy() for name, values in parts.items()}
    fits = np.ones(table.num_rows, bool)
    fits[list(errors)] = False
    return pa.table(_named(decoded, encoder, fits, every_class)), errors


def _named(decoded: dict[str, np.ndarray], encoder: Encoder, fits: np.ndarray, every_class: bool) -> dict[str, pa.Array]:
    """Class indices become names; probabilities of every class become a column each, if asked."""
    columns: dict[str, pa.Array] = {}
    classes = encoder.schema.classes
    for name, values in decoded.items():
        if name == "prediction" and classes:
            named = np.array(classes, dtype=object)[values]
            columns[name] = pa.array([v if ok else None for v, ok in zip(named, fits, strict=True)], pa.string())
        elif values.ndim == 1:
            columns[name] = pa.array(values, mask=~fits)
        elif every_class and classes:
            columns |= {f"probability_{c}": pa.array(values[:, place], mask=~fits) for place, c in enumerate(classes)}
    return columns
