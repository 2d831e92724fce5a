"""What Arrow columns hold: small questions and a fast way out of lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


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
