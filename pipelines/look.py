"""A look at prepared data before anything is trained: what is missing, odd, copied or out of balance, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .copies import find_copies
from .row_hash import distinct, is_known
from .schema import Column, Schema
from .seen import RowNames, Seen, read_seen

FORMAT = 1
IDS = ("id",)  # kinds of columns by which rows name the same person or thing again and again
OPTIONAL = ("words", "measure")  # kinds that may be missing
FAR = 8.0  # robust deviations from the median, beyond which a number is an outlier: at 5, the tails of sound data are
FEW = 0.01  # share of the rows: where more lie far out, the numbers are skewed, which is no fault of single rows
LONG = 20  # times as long as 95 % of the rows
UNBALANCED = 10  # times as many rows in the largest class as in the smallest
UNKNOWN = 0.05  # share of the test rows whose id train doesn't know, from which on it is said
SHOWN = 10  # row numbers of outliers, class names


def look_at(files: Mapping[str, Path], schema: Schema, counts: Mapping[str, Mapping[str, int]], origin: RowNames) -> dict[str, Any]:
    """As JSON-ready data: `columns` (by name), `duplicates`, `problems` (sentences), and `leak`, the one between train and test, or None.

    `files`: part -> Parquet file, read some rows at a time; `counts`: part -> class -> rows.
    """
    columns = (*schema.inputs, schema.target)
    parts = {part: read_seen(file, columns) for part, file in files.items()}
    seen = {c: {part: of[c.name] for part, of in parts.items() if c.name in of} for c in columns}
    ids = [c.name for c in schema.inputs if c.kind in IDS]
    copies = find_copies(parts, ids or [c.name for c in schema.inputs], schema.target.name)
    problems = [*copies.leaks(origin), *_class_problems(counts)]
    for column, of in seen.items():
        problems += [] if column.kind in OPTIONAL else _missing_problems(column, of, origin)
        problems += [*_outlier_problems(column, of, origin)]
        problems += [] if column == schema.target else [*_constant_problems(column, of), *_id_problems(column, of, origin)]
    return {
        "format": FORMAT,
        "columns": {column.name: _summary(column, of, origin) for column, of in seen.items()},
        "duplicates": copies.plain(),
        "leak": copies.leak("test", "train", origin),
        "problems": [*problems, *([] if ids else copies.repeats(origin))],  # a user may meet an item again
    }


def _summary(column: Column, seen: Mapping[str, Seen], origin: RowNames) -> dict[str, Any]:
    """What `data show` says of a column, by part."""
    said: dict[str, Any] = {
        "missing": {part: int(of["missing"].sum()) for part, of in seen.items()},
        "distinct": {part: len(distinct(of["hashes"])) for part, of in seen.items()},
    }
    if all("lengths" in of for of in seen.values()):
        said["lengths"] = {"unit": _unit(column), **{part: _quantiles(of["lengths"]) for part, of in seen.items()}}
    if all("numbers" in of for of in seen.values()):
        said["numbers"] = {
            "unit": "brightness" if column.kind == "image" else "values",
            **{part: _extent(of["numbers"]) for part, of in seen.items()},
        }
    far = _far(column, seen)
    if column.kind in ("number", "measure", "image"):
        rows = sorted(int(origin.rows[part][place]) for part, places in far.items() for place in places)
        said["outliers"] = {"count": len(rows), "rows": rows[:SHOWN]}
    if column.kind in IDS:
        said["unknown"] = {part: _unknown(seen, part) for part in seen if part != "train"}
    return said


def _unit(column: Column) -> str:
    return "words" if column.kind == "text" else "steps"


def _quantiles(lengths: np.ndarray) -> dict[str, int]:
    low, median, most, high = np.quantile(lengths, [0, 0.5, 0.95, 1], method="nearest")
    return {"min": int(low), "median": int(median), "p95": int(most), "max": int(high)}


def _extent(numbers: np.ndarray) -> dict[str, float] | None:
    there = numbers[np.isfinite(numbers)]
    return {"min": float(there.min()), "mean": float(there.mean()), "max": float(there.max())} if len(there) else None


def _far(column: Column, seen: Mapping[str, Seen]) -> dict[str, np.ndarray]:
    """Part -> places of its outliers: numbers far from train's median, images of one value."""
    if column.kind == "image":
        places = {part: np.flatnonzero(of["flat"]) for part, of in seen.items() if "flat" in of}
        return {part: found for part, found in places.items() if len(found)}
    if column.kind not in ("number", "measure") or any("numbers" not in of for of in seen.values()):
        return {}
    train = seen["train"]["numbers"][~seen["train"]["missing"]]
    middle = float(np.median(train)) if len(train) else 0.0
    spread = 1.4826 * float(np.median(np.abs(train - middle))) if len(train) else 0.0  # a normal distribution's deviation
    if spread == 0:
        return {}
    places = {part: np.flatnonzero(np.abs(of["numbers"] - middle) > FAR * spread) for part, of in seen.items()}
    return {part: found for part, found in places.items() if len(found)}


def _unknown(seen: Mapping[str, Seen], part: str) -> dict[str, Any]:
    """The ids of a part that train doesn't know, and how many and what share of its rows have one of them."""
    new = ~is_known(seen[part]["hashes"], distinct(seen["train"]["hashes"]))
    return {"ids": len(distinct(seen[part]["hashes"][new])), "rows": int(new.sum()), "share": float(new.mean())}


def _class_problems(counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    for part, rows in counts.items():
        absent = [name for name, count in rows.items() if count == 0]
        for name in absent[:SHOWN]:
            yield f"class '{name}' has no row in {part}; add some, or leave the class out: nothing is known of it there"
        if len(absent) > SHOWN:
            yield f"{len(absent) - SHOWN} more classes have no row in {part}"
    train = {name: count for name, count in counts.get("train", {}).items() if count}
    if train and max(train.values()) >= UNBALANCED * min(train.values()):
        most, least = max(train, key=lambda name: train[name]), min(train, key=lambda name: train[name])
        yield (
            f"train: class '{most}' has {train[most]} rows, class '{least}' {train[least]}: a model that always says '{most}' is right on "
            f"{train[most] / sum(train.values()):.0%}; look at more than accuracy, and weigh them"
        )


def _missing_problems(column: Column, seen: Mapping[str, Seen], origin: RowNames) -> Iterator[str]:
    for part, of in seen.items():
        places = np.flatnonzero(of["missing"])
        if len(places):
            what = "empty or missing" if "lengths" in of else "missing"
            yield (
                f"{part}: column '{column.name}' is {what} in {_rows(len(places))} of {len(of['missing'])}, first in "
                f"{origin.name(part, places[0])}; fill them or take them out"
            )


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _outlier_problems(column: Column, seen: Mapping[str, Seen], origin: RowNames) -> Iterator[str]:
    far = _far(column, seen)
    few = sum(len(places) for places in far.values()) <= FEW * sum(len(of["missing"]) for of in seen.values())
    for part, places in far.items():
        where = f"{_rows(len(places))}, first in {origin.name(part, places[0])}"
        if column.kind == "image":
            yield f"{part}: column '{column.name}' is an image of one value in {where}; take them out if they should show something"
        elif few:
            yield (
                f"{part}: column '{column.name}' is more than {FAR:g} robust deviations from the median in {where} "
                f"({seen[part]['numbers'][places[0]]:g}); correct them if they are mistakes"
            )
    for part, of in seen.items():
        usual = _quantiles(of["lengths"])["p95"] if "lengths" in of else 0
        long = np.flatnonzero(of.get("lengths", np.zeros(0)) > LONG * max(usual, 1))
        if len(long):
            yield (
                f"{part}: column '{column.name}' has {of['lengths'][long[0]]} {_unit(column)} in {origin.name(part, long[0])} "
                f"({_rows(len(long))} over {LONG} times the {usual} that 95 % stay below); look whether it is several in one, or cut it"
            )


def _constant_problems(column: Column, seen: Mapping[str, Seen]) -> Iterator[str]:
    hashes = seen["train"]["hashes"]
    if len(hashes) > 1 and bool((hashes == hashes[0]).all()):
        says = f"train: column '{column.name}' is the same in all {len(hashes)} rows and tells nothing"
        yield f"{says}; leave it out: data.drop: [{column.name}]"


def _id_problems(column: Column, seen: Mapping[str, Seen], origin: RowNames) -> Iterator[str]:
    new = _unknown(seen, "test") if column.kind in IDS else None
    if new is not None and new["share"] >= UNKNOWN:
        place = int(np.argmin(is_known(seen["test"]["hashes"], distinct(seen["train"]["hashes"]))))
        yield (
            f"test: column '{column.name}' is not known from train in {_rows(new['rows'])} ({new['share']:.0%}; {new['ids']} ids), "
            f"first in {origin.name('test', place)}; they are answered from features or popularity"
        )
