"""A number for each row's content, by which copies are found: the same content gives the same number, however it is chunked."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from .encode.arrow import is_bytes, is_list, is_text

MISSING = np.uint64(0x9E3779B97F4A7C15)
FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def hash_rows(columns: list[np.ndarray]) -> np.ndarray:
    """One number a row ([n] uint64) of the numbers of its columns."""
    joined = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        joined = _mix(joined * np.uint64(31) + column)
    return joined


def hash_column(values: pa.Array) -> np.ndarray:
    """[n] uint64: xxh3 of bytes, text and lists; numbers are mixed, as splitmix64 does. NaN and null are alike missing."""
    kind = values.type
    if is_text(kind):
        coded = values.dictionary_encode()
        return _mark(values, _of_bytes(coded.dictionary)[coded.indices.fill_null(0).to_numpy()] if len(coded.dictionary) else None)
    if is_bytes(kind):
        return _mark(values, _of_bytes(values))
    if is_list(kind):
        return _mark(values, _of_lists(values))
    if pa.types.is_temporal(kind):
        return hash_column(values.cast(pa.int32() if kind.bit_width == 32 else pa.int64()))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return _of_numbers(values)
    return _mark(values, np.array([xxhash.xxh3_64_intdigest(repr(value).encode()) for value in values.to_pylist()], np.uint64))


def distinct(hashes: np.ndarray) -> np.ndarray:
    """The different ones, sorted: by sorting, which is many times as fast as `np.unique`'s table where most differ."""
    found = np.sort(hashes)
    return found[np.concatenate([[True], found[1:] != found[:-1]])] if len(found) else found


def is_known(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each one is among some that are sorted: [n] bool."""
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[places] == hashes if len(known) else np.zeros(len(hashes), bool)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: https://prng.di.unimi.it/splitmix64.c"""
    mixed: np.ndarray = (values ^ (values >> np.uint64(30))) * FACTORS[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * FACTORS[1]
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _mark(values: pa.Array, hashed: np.ndarray | None) -> np.ndarray:
    if hashed is None:
        return np.full(len(values), MISSING)
    return np.where(values.is_null().to_numpy(zero_copy_only=False), MISSING, hashed) if values.null_count else hashed


def _of_numbers(values: pa.Array) -> np.ndarray:
    if pa.types.is_floating(values.type):
        floats = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return np.where(np.isnan(floats), MISSING, _mix((floats + 0.0).view(np.uint64)))  # + 0.0: -0 is 0
    whole = values.cast(pa.uint64() if values.type == pa.uint64() else pa.int64()).fill_null(0)
    return _mark(values, _mix(whole.to_numpy(zero_copy_only=False).view(np.uint64)))


def _of_bytes(values: pa.Array) -> np.ndarray:
    """xxh3 of each value's bytes, read where Arrow holds them."""
    kind = values.type
    if pa.types.is_fixed_size_binary(kind):
        bounds = (np.arange(len(values) + 1) + values.offset) * kind.byte_width
        return _pieces(values.buffers()[1], bounds)
    width = np.int64 if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind) else np.int32
    _, offsets, data = values.buffers()
    return _pieces(data, np.frombuffer(offsets, width)[values.offset : values.offset + len(values) + 1])


def _pieces(data: Any, bounds: np.ndarray) -> np.ndarray:
    """xxh3 of data[bounds[i] : bounds[i + 1]], in bytes. `data`: a buffer, or None where all is empty."""
    view = memoryview(b"" if data is None else data).cast("B")
    ends = bounds.tolist()
    return np.array([xxhash.xxh3_64_intdigest(view[a:b]) for a, b in itertools.pairwise(ends)], np.uint64)


def _of_lists(values: pa.Array) -> np.ndarray:
    """xxh3 of the numbers that each list holds at any depth, mixed with its length."""
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False).astype(np.uint64)
    bounds = np.arange(len(values) + 1)
    while is_list(values.type):
        if pa.types.is_fixed_size_list(values.type):
            bounds = (bounds + values.offset) * values.type.list_size
        else:
            bounds = values.offsets.to_numpy()[bounds]
        values = values.values
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)) or values.null_count:
        first, last = int(bounds[0]), int(bounds[-1])
        values, bounds = pa.array(hash_column(values.slice(first, last - first))), bounds - first
    leaves = np.ascontiguousarray(values.to_numpy(zero_copy_only=False))
    return _mix(_pieces(leaves.view(np.uint8), bounds * leaves.itemsize) + lengths)
