"""What a recommender knows beside its rows: features of users and items, who has seen what, and how often each id came in training.

All of it is tensors by code, which a network binds and a bundle carries. `users` and `items` are the first and second input, whatever
their columns are called. With V codes:

    users.rows         [V] int64       training rows of each code
    users.codes        [nnz] int64     feature values, row after row: a column's first value + the value's own code
    users.weights      [nnz] float32   1 / words of the row's column, or the standardised number
    users.starts       [V + 1] int64   where a code's feature values begin
    seen.starts        [V + 1] int64   where a user's items begin
    seen.items         [nnz] int32     item codes, ascending inside a user
    seen.parts         [nnz] uint8     0 train, 1 validation, 2 test
    rating.range       [2] float32     the smallest and largest rating in training
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from .encode import HISTORY, Encoder, encoder_class
from .ragged import Ragged, sizes_of
from .raw import Raw, Side
from .schema import Column, DataError

SIDES = ("users", "items")
PARTS = ("train", "validation", "test")
RESERVED = (HISTORY, "candidates", "held", "part")  # what a batch holds beside the columns


def has_sides(raw: Raw) -> bool:
    """Whether the rows are of users and items."""
    return [column.kind for column in raw.inputs] == ["id", "id"]


def fit(encoder: Encoder, raw: Raw) -> Encoder:
    """The encoder with the features' too: their words and means are those of the ids in training, their ids all get a code.

    Raises DataError if two columns are called the same, or one as what a batch holds beside them.
    """
    if has_sides(raw):
        _refuse_names(raw)
    columns, features = dict(encoder.columns), {}
    for name, side in raw.sides.items():
        known = columns[name].codes(side.table[name]) > 0
        if not known.any():
            some = ", ".join(map(str, side.table[name].slice(0, 3).to_pylist()))
            raise DataError(f"none of the ids in the features of '{name}' ({some} ...) is in the training rows: are they written alike?")
        trained = pa.array(known)
        columns[name] = columns[name].also(side.table[name])
        for column in side.columns:
            columns[column.name] = encoder_class(column.kind).fit(column, side.table[column.name].filter(trained))
        features[name] = tuple(columns[column.name].column for column in side.columns)
    inputs = tuple(columns[column.name].column for column in raw.inputs)
    return Encoder(replace(encoder.schema, inputs=inputs, features=features), columns)


def _refuse_names(raw: Raw) -> None:
    """A batch holds all columns by name."""
    columns = [*((column.name, "the table") for column in raw.inputs), (raw.target.name, "the table")]
    columns += [(column.name, f"the table of features of '{name}'") for name, side in raw.sides.items() for column in side.columns]
    owners: dict[str, str] = {}
    for name, owner in columns:
        if name.removesuffix(".sizes") in RESERVED:
            raise DataError(
                f"column '{name}' of {owner}: a batch has something else of that name; rename it ({', '.join(RESERVED)} are taken)"
            )
        entries = {name, sizes_of(name)}
        clash = [owners[entry] for entry in entries if entry in owners]
        if clash:
            raise DataError(
                f"column '{name}' of {owner}: {clash[0]} has one of that name (a feature that users and items both have gets "
                "'user_' or 'item_' before it); rename it, or leave one out: data.drop"
            )
        owners |= dict.fromkeys(entries, owner)


def tables(encoder: Encoder, raw: Raw, parts: Mapping[str, pa.Table]) -> dict[str, Tensor]:
    """The tensors above."""
    user, item = raw.inputs
    codes = {part: [encoder.columns[c.name].codes(parts[part][c.name]) for c in (user, item)] for part in PARTS}
    made: dict[str, np.ndarray] = {}
    for place, (prefix, column) in enumerate(zip(SIDES, encoder.schema.inputs, strict=True)):
        made[f"{prefix}.rows"] = np.bincount(codes["train"][place], minlength=column.vocabulary).astype(np.int64)
        if column.name in raw.sides:
            features = _features(encoder, raw.sides[column.name], column, encoder.schema.features[column.name])
            made |= {f"{prefix}.{name}": values for name, values in features.items()}
    made |= _seen(codes, encoder.schema.inputs[0].vocabulary)
    if raw.target.kind == "number":
        ratings, _ = encoder.columns[raw.target.name].array(parts["train"][raw.target.name])
        made["rating.range"] = np.array([ratings.min(), ratings.max()], np.float32)
    return _tensors(made)


def seen_by(encoder: Encoder, parts: Mapping[str, pa.Table]) -> dict[str, Tensor]:
    """`seen.*` of these rows in the codes of another encoder, for a model of other data that is to be evaluated on them."""
    user, item = encoder.schema.inputs
    codes = {part: [encoder.columns[c.name].codes(table[c.name]) for c in (user, item)] for part, table in parts.items()}
    return _tensors(_seen(codes, user.vocabulary))


def _tensors(made: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in made.items()}


def _features(encoder: Encoder, side: Side, column: Column, features: tuple[Column, ...]) -> dict[str, np.ndarray]:
    """Feature values of each code, as a sparse matrix by rows."""
    ids, first = encoder.columns[column.name].codes(side.table[column.name]), 0
    rows, codes, weights = [], [], []
    for feature in features:
        values, _ = encoder.columns[feature.name].array(side.table[feature.name])
        if isinstance(values, Ragged):
            sizes = values.sizes[:, 0].numpy()
            rows.append(np.repeat(ids, sizes))
            codes.append(values.values.numpy() + first)
            weights.append(np.repeat(1 / np.maximum(sizes, 1), sizes))
        else:
            there = np.isfinite(values)
            rows.append(ids[there])
            codes.append(np.full(there.sum(), first))
            weights.append(values[there])
        first += feature.vocabulary
    row = np.concatenate(rows)
    order = np.argsort(row, kind="stable")
    starts = np.concatenate([[0], np.bincount(row, minlength=column.vocabulary).cumsum()])
    return {
        "codes": np.concatenate(codes)[order].astype(np.int64),
        "weights": np.concatenate(weights)[order].astype(np.float32),
        "starts": starts.astype(np.int64),
    }


def _seen(codes: Mapping[str, list[np.ndarray]], users: int) -> dict[str, np.ndarray]:
    """The items of each user over all parts, once each, with the earliest part; unknown ids are left out."""
    user, item = (np.concatenate([codes[part][place] for part in PARTS]) for place in (0, 1))
    part = np.repeat(np.arange(len(PARTS)), [len(codes[name][0]) for name in PARTS])
    known = (user > 0) & (item > 0)
    user, item, part = user[known], item[known], part[known]
    order = np.lexsort((part, item, user))
    user, item, part = user[order], item[order], part[order]
    new = np.ones(len(user), bool)
    new[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    starts = np.concatenate([[0], np.bincount(user[new], minlength=users).cumsum()])
    made: dict[str, np.ndarray] = {
        "starts": starts.astype(np.int64),
        "items": item[new].astype(np.int32),
        "parts": part[new].astype(np.uint8),
    }
    return {f"seen.{name}": values for name, values in made.items()}
