"""Who had what: a table of users and items, with a rating or without, and tables of what is known of users and of items.

`path` is one table, a folder with a table for each part, or a folder with RecBole's atomic files (tab-separated, header `name:type`):
https://recbole.io/docs/user_guide/data/atomic_files.html
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from annotated_types import doc

from ..encode.arrow import is_text
from ..raw import Raw, existing
from ..schema import Column, DataError
from ..splits import part_name
from .files import is_parquet, parts_of
from .side_tables import USUAL_IDS, files_of, ids_of, read_table, sides_of

USUAL = {  # what columns are called where the options don't say
    **USUAL_IDS,
    "rating": ("rating", "ratings", "score", "stars"),
    "time": ("time", "timestamp", "date", "datetime"),
}
EARLIEST = {"train": 0, "validation": -1, "test": -2}  # a part's rank among the rows of a pair


@dataclass(frozen=True)
class Config:
    """`user`, `item`, `rating`, `time`: columns (default: found by their usual names). `implicit`: every row is a positive, whatever its
    rating; so it is too where there is no rating column. Then a pair counts once, at its latest time, and a ranking is learnt; where files
    or a column tell parts, it counts in the earliest one, so that nothing held out was seen before. A split may go by any column.

    `user_features`, `item_features`: tables with a column of ids, named as in the interactions (relative names: beside them; RecBole's
    `.user` and `.item` are found). Their columns are categories, lists or `a|b` (several words), and numbers; `drop` leaves some out.
    """

    path: Annotated[str, doc("a table, a folder with a table for each split, or RecBole's .inter, .user, .item")] = ""
    user: Annotated[str | None, doc("column; default: found by its usual names")] = None
    item: Annotated[str | None, doc("column; default: found by its usual names")] = None
    rating: Annotated[str | None, doc("column; default: found by its usual names")] = None
    time: Annotated[str | None, doc("column; default: found by its usual names")] = None
    implicit: Annotated[bool, doc("every row is a positive, whatever its rating: a ranking is learnt")] = False
    user_features: Annotated[str | None, doc("table of what is known of users")] = None
    item_features: Annotated[str | None, doc("table of what is known of items")] = None
    drop: Annotated[tuple[str, ...], doc("features to leave out")] = ()

    def files(self) -> list[tuple[str, Path]]:
        """The tables."""
        path = existing(self.path)
        tables = _tables(path)
        return [*((part + file.suffix.lower(), file) for part, file in tables.items()), *sorted(self.sides(path, tables).items())]

    def sides(self, path: Path, tables: Mapping[str, Path]) -> dict[str, Path]:
        """{'user', 'item': file} of the feature tables that there are."""
        asked = {"user": self.user_features, "item": self.item_features}
        return files_of(asked, path if path.is_dir() else path.parent, next(iter(tables.values())))


def load(config: Config) -> Raw:
    """Rows of user, item, rating or 1, time and whatever else there is, and the features of both sides. Raises DataError."""
    path = existing(config.path)
    parts = _tables(path)
    tables = {part: read_table(file, lambda name, _: _may_be_ids(config, name))[0] for part, file in parts.items()}
    names = _choose(config, next(iter(tables.values())).column_names)
    kept = [name for name in names.values() if name is not None]
    user, item, rating = names["user"] or "", names["item"] or "", names["rating"]
    table = _joined(_ids_alike(tables, parts, (user, item)), parts, kept)
    official = None if "" in parts else np.repeat(list(parts), [table.num_rows for table in tables.values()])
    for part, name in (("user", user), ("item", item)):
        table = table.set_column(table.column_names.index(name), name, ids_of(table[name], name, f"data.{part}"))
    if names["time"] is not None:
        table = table.set_column(table.column_names.index(names["time"]), names["time"], _times(table[names["time"]], names["time"]))
    if rating is None:
        table, official = _positives(table, user, item, names["time"], official)
        target = Column("target", "ranking", dtype="int8")
    else:
        table = table.set_column(table.column_names.index(rating), rating, _ratings(table[rating], rating))
        target = Column(rating, "number")
    sides = sides_of(config.sides(path, parts), {"user": user, "item": item}, {*kept, target.name}, config.drop)
    return Raw(table, (Column(user, "id"), Column(item, "id")), target, official, sides=sides, time=names["time"])


def _tables(path: Path) -> dict[str, Path]:
    """{part: file} of the interactions."""
    atomic = sorted(path.glob("*.inter")) if path.is_dir() else [path] if path.suffix == ".inter" else []
    if len(atomic) > 1:
        raise DataError(f"'{path}' holds {', '.join(file.name for file in atomic)}: name the one to use", "data.path")
    return {"": atomic[0]} if atomic else parts_of(path)


def _may_be_ids(config: Config, name: str) -> bool:
    """Of a column's name, before all of them are known."""
    return name in (config.user, config.item) or name.lower() in (*USUAL["user"], *USUAL["item"])


def _ids_alike(tables: Mapping[str, pa.Table], files: Mapping[str, Path], names: tuple[str, str]) -> dict[str, pa.Table]:
    """Where one part's ids are text, a CSV's that all look like numbers are text again."""
    alike = dict(tables)
    for name in names:
        columns = {part: table[name] for part, table in tables.items() if name in table.column_names}
        if any(is_text(column.type) for column in columns.values()):
            for part, column in columns.items():
                if pa.types.is_integer(column.type) and not is_parquet(files[part]):
                    place = tables[part].column_names.index(name)
                    alike[part] = alike[part].set_column(place, name, column.cast(pa.string()))
    return alike


def _choose(config: Config, columns: list[str]) -> dict[str, str | None]:
    """The columns that play each part; None for a rating or time that isn't there."""
    chosen: dict[str, str | None] = {}
    for part, usual in USUAL.items():
        asked = getattr(config, part)
        if asked is not None and asked not in columns:
            near = difflib.get_close_matches(asked, columns, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise DataError(f"no column '{asked}'{hint}; the columns are: {', '.join(columns)}", f"data.{part}")
        found = [name for usual_name in usual for name in columns if name.lower() == usual_name]
        chosen[part] = asked or next(iter(found), None)
        if chosen[part] is None and part in ("user", "item"):
            raise DataError(f"which column holds the {part}s? the columns are: {', '.join(columns)}", f"data.{part}")
    if chosen["user"] == chosen["item"]:
        raise DataError(f"'{chosen['user']}' can't be both user and item", "data.item")
    return chosen if not config.implicit else {**chosen, "rating": None}


def _joined(tables: Mapping[str, pa.Table], files: Mapping[str, Path], kept: list[str]) -> pa.Table:
    """All rows, with the kept columns and those others that every part has alike."""
    for part, table in tables.items():
        lacking = [name for name in kept if name not in table.column_names]
        if lacking:
            raise DataError(f"'{files[part].name}' has no column '{lacking[0]}'; add it, or take the file away", "data.path")
    fields = [{field.name: field.type for field in table.schema} for table in tables.values()]
    others = [name for name, kind in fields[0].items() if name not in kept and all(of_part.get(name) == kind for of_part in fields)]
    chosen = [table.select([*kept, *others]).replace_schema_metadata(None) for table in tables.values()]
    try:
        return pa.concat_tables(chosen, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"the parts' columns have different types: {str(error).splitlines()[0]}; write one type in all", "data.path"
        ) from None


def _ratings(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    try:
        values = column.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(
            f"column '{name}' holds {column.type}, which is no rating; name another one, or set data.implicit: true", "data.rating"
        ) from None
    bad = np.flatnonzero(~np.isfinite(values.to_numpy()))
    if len(bad):
        raise DataError(f"column '{name}', row {bad[0]}: the rating is missing ({len(bad)} rows); drop or fill them", "data.rating")
    return values


def _times(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Times as numbers: seconds or whatever they are counted in; text as ISO dates."""
    if column.null_count == len(column):
        raise DataError(f"column '{name}' holds no time at all ({column.type}): fill it, or take it out of the table", "data.time")
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column
    try:
        if pa.types.is_decimal(kind):
            return column.cast(pa.float64())
        return column.cast(pa.timestamp("us"), safe=is_text(kind)).cast(pa.int64())
    except pa.ArrowException as error:
        says = str(error).splitlines()[0]
        raise DataError(f"column '{name}' is no time but {kind}: {says}; write ISO dates or numbers", "data.time") from None


def _positives(table: pa.Table, user: str, item: str, time: str | None, official: np.ndarray | None) -> tuple[pa.Table, np.ndarray | None]:
    """Each pair once: its latest row, of those in the earliest part where parts are given, so that nothing held out was seen before."""
    if "target" in (user, item, time):
        raise DataError("a column 'target' is what a ranking learns: rename the one of the table", "data.path")
    table = table.drop_columns([name for name in table.column_names if name == "target"])
    codes = [column.combine_chunks().dictionary_encode() for column in (table[user], table[item])]
    pair = codes[0].indices.to_numpy().astype(np.int64) * len(codes[1].dictionary) + codes[1].indices.to_numpy()
    times = np.arange(table.num_rows) if time is None else np.argsort(np.argsort(table[time].to_numpy(), kind="stable"), kind="stable")
    parts = _named_parts(table) if official is None else official
    part = 0 * times if parts is None else np.array([EARLIEST[name] for name in parts.tolist()])
    order = np.lexsort((times, part, pair))
    last = np.append(pair[order][1:] != pair[order][:-1], True)
    rows = np.sort(order[last])
    kept = table.take(pa.array(rows)).append_column("target", pa.array(np.ones(len(rows), np.int8)))
    return kept, None if official is None else official[rows]


def _named_parts(table: pa.Table) -> np.ndarray | None:
    """The parts that a column tells by their names ([N] str), in case that the split goes by it; None where there is no such column."""
    for column in table.columns:
        if is_text(column.type):
            named = {name: part_name(name or "") for name in column.unique().to_pylist()}
            if None not in named.values() and {"train", "test"} <= set(named.values()):
                return np.array([named[name] for name in column.to_pylist()])
    return None
