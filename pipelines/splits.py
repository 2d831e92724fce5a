"""Train, validation and test: by seed, group, time, a given column, or the data's own official parts. The same answer every time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Ge, Gt, Lt, doc

from .encode.classes import label_codes
from .raw import Raw
from .schema import DataError

NAMES = ("train", "validation", "test")
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation", "eval": "validation", "training": "train", "testing": "test"}


@dataclass(frozen=True)
class SplitConfig:
    """`by: None` takes the official parts where the data has them, else random; class labels are stratified in random splits.

    `leave_one_out`: the last row of each user is test, the one before validation, by the data's time where it has one, else by seed.
    Where official parts lack a validation part, it is taken from train, as large as `validation` is beside `train`.
    """

    by: Annotated[
        Literal["random", "group", "time", "leave_one_out", "column"] | None,
        doc("how rows are parted; default: official parts where there are any, else random"),
    ] = None
    column: Annotated[str | None, doc("what group, time and column go by")] = None
    train: Annotated[float, Gt(0), Lt(1), doc("share of the rows")] = 0.8
    validation: Annotated[float, Gt(0), Lt(1), doc("share of the rows")] = 0.1
    test: Annotated[float, Gt(0), Lt(1), doc("share of the rows")] = 0.1
    seed: Annotated[int, Ge(0), doc("of a random split")] = 0

    def __post_init__(self) -> None:
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError(f"train, validation and test add up to {self.train + self.validation + self.test:g}; they must add up to 1")
        if self.by in ("group", "time", "column") and not self.column:
            raise ValueError(f"by: {self.by} needs a column")


def split(raw: Raw, config: SplitConfig) -> dict[str, np.ndarray]:
    """Row numbers (sorted, [n] int64) of each part: disjoint, and together every row. Raises DataError if a part would be empty."""
    rng = np.random.default_rng(config.seed)
    labels = _labels(raw)
    if config.by is None and raw.official is not None:
        parts = _official(raw.official, labels, config, rng)
    elif config.by == "column":
        parts = _official(_split_names(raw.table, config.column or ""), labels, config, rng)
    elif config.by == "group":
        parts = _by_group(_places(raw.table, config.column or ""), config, rng)
    elif config.by == "leave_one_out":
        parts = _leave_one_out(raw, config, rng)
    elif config.by == "time":
        order = np.argsort(_ordered(raw.table, config.column or ""), kind="stable")
        parts = _cut(order, (config.train, config.validation, config.test))
    else:
        parts = _stratified(np.arange(raw.table.num_rows), labels, (config.train, config.validation, config.test), rng)
    for name in NAMES:
        if len(parts[name]) == 0:
            raise DataError(f"the {name} part would be empty: {raw.table.num_rows} rows are too few for this split", "data.split")
    return {name: np.sort(parts[name]) for name in NAMES}


def _labels(raw: Raw) -> np.ndarray | None:
    """The place of each row's class among the sorted names ([N] int32), checked: none missing, no class with a single row.

    None if the target is no class.
    """
    if raw.target.kind != "class":
        return None
    column = raw.table[raw.target.name]
    distinct, codes = label_codes(column)
    missing = np.flatnonzero(np.array([name is None for name in distinct], bool)[codes])
    if len(missing):
        raise DataError(f"column '{raw.target.name}', row {missing[0]}: the label is missing ({len(missing)} rows); drop or fill them")
    found, places = np.unique(np.array(distinct, dtype=str), return_inverse=True)
    labels: np.ndarray = places.astype(np.int32)[codes]
    counts = np.bincount(labels)
    if len(found) < 2:
        raise DataError(f"column '{raw.target.name}': only one class, '{found[0] if len(found) else ''}'; a classifier needs two")
    if counts.min() < 2:
        raise DataError(
            f"column '{raw.target.name}': class '{found[counts.argmin()]}' has one row, so it can't be in train and in test; "
            "add rows or leave the class out"
        )
    return labels


def _cut(order: np.ndarray, shares: tuple[float, float, float]) -> dict[str, np.ndarray]:
    first, second = (round(len(order) * s) for s in (shares[0], shares[0] + shares[1]))
    return {"train": order[:first], "validation": order[first:second], "test": order[second:]}


def _stratified(
    rows: np.ndarray, labels: np.ndarray | None, shares: tuple[float, float, float], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Random parts with the classes' shares kept, and at least one row of each class in train.

    What rounding leaves of one class goes to the next ones, so that many small classes still fill every part.
    """
    order = rng.permutation(rows)
    if labels is None:
        return _cut(order, shares)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    rows_seen, given = 0, dict.fromkeys(NAMES, 0)
    for name in np.unique(labels[rows]):
        members = order[labels[order] == name]
        rows_seen += len(members)
        ideal = [len(chosen) for chosen in _cut(np.arange(rows_seen), shares).values()]
        first = min(max(ideal[0] - given["train"], 1), len(members))
        second = min(max(ideal[1] - given["validation"], 0) + first, len(members))
        for part, chosen in zip(NAMES, np.split(members, [first, second]), strict=True):
            parts[part].append(chosen)
            given[part] += len(chosen)
    joined = {name: np.concatenate(chosen) for name, chosen in parts.items()}
    return joined if all(len(joined[n]) for n, share in zip(NAMES, shares, strict=True) if share) else _cut(order, shares)


def _official(names: np.ndarray, labels: np.ndarray | None, config: SplitConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    parts = {name: np.flatnonzero(names == name) for name in NAMES}
    if len(parts["test"]) == 0 and len(parts["train"]):
        raise DataError("the given parts have no test rows; add them, or set data.split.by: random", "data.split")
    if len(parts["validation"]) == 0 and len(parts["train"]) > 1:
        share = config.validation / (config.train + config.validation)
        taken = _stratified(parts["train"], labels, (1 - share, share, 0.0), rng)
        parts |= {"train": taken["train"], "validation": np.concatenate([taken["validation"], taken["test"]])}
    return parts


def _by_group(member: np.ndarray, config: SplitConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """No group in two parts: whole groups, shuffled, are dealt to the part that lacks most of its share."""
    shares = np.array([config.train, config.validation, config.test])
    counts = np.bincount(member)
    filled, part_of = np.zeros(3), np.zeros(len(counts), int)
    for group in rng.permutation(len(counts)):
        part_of[group] = np.argmax(shares * len(member) - filled)
        filled[part_of[group]] += counts[group]
    return {name: np.flatnonzero(part_of[member] == place) for place, name in enumerate(NAMES)}


def _leave_one_out(raw: Raw, config: SplitConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The last row of each user (the first input, or `column`), and the one before; users with fewer than three rows stay in train.

    Rows of one time keep the table's order.
    """
    if config.column is None and raw.inputs[0].kind != "id":
        raise DataError("leave_one_out goes by users, but the data has no column of ids; name one in data.split.column", "data.split.by")
    users = _places(raw.table, config.column or raw.inputs[0].name)
    times = rng.permutation(len(users)) if raw.time is None else _ordered(raw.table, raw.time)
    order = np.lexsort((times, users))
    counts = np.bincount(users)
    from_last = (counts.cumsum()[users[order]] - 1) - np.arange(len(order))  # 0 is the last row of its user
    enough = counts[users[order]] >= 3
    part = np.where(enough & (from_last == 0), 2, np.where(enough & (from_last == 1), 1, 0))
    return {name: order[part == place] for place, name in enumerate(NAMES)}


def _ordered(table: pa.Table, column: str) -> np.ndarray:
    """What is ordered as a column's values are ([N]): numbers and points in time themselves, else their places."""
    values = _values(table, column)
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_timestamp(values.type):
        return np.asarray(values.to_numpy())
    return _places(table, column)


def _places(table: pa.Table, column: str) -> np.ndarray:
    """The place of each row's value among the distinct ones of its column, in their order ([N] int); texts by their code points.

    Each distinct text is held once, however long it is.
    """
    values = _values(table, column)
    if pa.types.is_floating(values.type):  # for numpy 0.0 and -0.0 are one value
        return np.asarray(np.unique(values.to_numpy(), return_inverse=True)[1])
    distinct, codes = _distinct(values, column)
    ranks: np.ndarray = np.empty(len(distinct), np.int32)
    ranks[pc.array_sort_indices(distinct).to_numpy()] = np.arange(len(distinct))
    return np.asarray(ranks[codes])


def _distinct(values: pa.ChunkedArray, column: str) -> tuple[pa.Array, np.ndarray]:
    """(a column's distinct values, the place of each row's among them)."""
    try:
        found = values.dictionary_encode().combine_chunks()
    except pa.ArrowNotImplementedError:
        raise DataError(f"column '{column}' holds {values.type}, by which rows can't be split", "data.split.column") from None
    return found.dictionary, found.indices.to_numpy()


def _values(table: pa.Table, column: str) -> pa.ChunkedArray:
    """A column without missing values. Raises DataError."""
    if column not in table.column_names:
        raise DataError(f"no column '{column}'; the data has: {', '.join(table.column_names)}", "data.split.column")
    if table[column].null_count:
        raise DataError(f"column '{column}' has {table[column].null_count} missing values", "data.split.column")
    return table[column].cast(table[column].type.value_type) if pa.types.is_dictionary(table[column].type) else table[column]


def part_name(name: str) -> str | None:
    """train, validation or test, also by its other usual names; None for any other word."""
    name = name.lower()
    return ALIASES.get(name, name if name in NAMES else None)


def _split_names(table: pa.Table, column: str) -> np.ndarray:
    distinct, codes = _distinct(_values(table, column), column)
    said = [str(value) for value in distinct.to_pylist()]
    wrong = sorted(word for word in said if part_name(word) is None)
    if wrong:
        raise DataError(f"column '{column}' says '{wrong[0]}'; it must say train, validation or test", "data.split.column")
    names: np.ndarray = np.array([part_name(word) for word in said], object)[codes]
    return names
