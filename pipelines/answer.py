"""A table in, answers out: the one way from raw columns through a network to names, in our commands and in a bundle on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from .encode import Encoder
from .encode.column import Errors
from .ragged import MOST_CELLS, by_size, in_memory, take

BATCH = 250


def answer(net: Any, encoder: Encoder, table: pa.Table, every_class: bool = False, folder: Path | None = None) -> tuple[pa.Table, Errors]:
    """The answers to a table's rows, in order (`prediction`, `probability` ...), and what doesn't fit, by row.

    Rows that don't fit have null answers. `net`: a module from batches of tensors to outputs, with `decode`. `folder`: below which
    file names in an image column are looked for; without it no file is read. Raises DataError if a column is missing.
    """
    encoder = encoder.for_network(net)
    arrays, errors = encoder.arrays(table, [*encoder.input_names, *encoder.optional(table)], folder)
    columns = in_memory(arrays)
    was_training = net.training
    net.eval()
    places, parts = [], []
    with torch.inference_mode():
        for rows in by_size(columns, torch.arange(table.num_rows), BATCH, MOST_CELLS):
            batch = encoder.tensors(take(columns, rows))
            parts.append(_named(net.decode(net(batch), batch), encoder, every_class))
            places.append(rows.numpy())
    net.train(was_training)
    if not parts:
        return pa.table({}), errors
    where = np.empty(table.num_rows, np.int64)
    where[np.concatenate(places)] = np.arange(table.num_rows)
    where = pa.array(where, mask=np.isin(np.arange(table.num_rows), list(errors)))  # a null place gives a null answer
    return pa.concat_tables(parts).take(where), errors


def _named(decoded: dict[str, Any], encoder: Encoder, every_class: bool) -> pa.Table:
    """Predictions as the target calls them; probabilities of every class become a column each, if asked."""
    columns: dict[str, pa.Array] = {}
    for name, values in decoded.items():
        if name == "prediction":
            columns[name] = encoder.columns[encoder.schema.target.name].answers(values)
        elif not isinstance(values, Tensor):
            columns[name] = pa.array(values)
        elif values.ndim == 1:
            columns[name] = pa.array(values.numpy())
        elif every_class and encoder.schema.classes:
            columns |= {f"probability_{c}": pa.array(values[:, place].numpy()) for place, c in enumerate(encoder.schema.classes)}
    return pa.table(columns)
