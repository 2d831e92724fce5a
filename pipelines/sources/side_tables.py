"""What is known of users and of items: a table of each beside the interactions, by the ids that these have; RecBole's files too.

https://recbole.io/docs/user_guide/data/atomic_files.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ..encode.arrow import is_list, is_text
from ..encode.features import words_of
from ..encode.ids import as_ids, of_text
from ..raw import Side
from ..schema import Column, DataError
from ..sides import RESERVED
from .files import converting, is_parquet, read

Written = Callable[[str, str], bool]  # whether a column of that name and type (RecBole's, else '') is one of them
TOKENS = ("token", "token_seq")
BOOLEANS = pa.array(["True", "False", "TRUE", "FALSE", "true", "false"])

USUAL_IDS = {  # what columns of ids are called where the options don't say
    "user": ("user", "user_id", "userid", "user_idx", "uid", "customer", "customer_id", "reviewerid", "visitorid"),
    "item": ("item", "item_id", "itemid", "movie", "movie_id", "movieid", "product", "product_id", "book_id", "iid", "asin"),
}


def files_of(asked: Mapping[str, str | None], folder: Path, interactions: Path) -> dict[str, Path]:
    """{'user', 'item': file} of the feature tables that there are: `asked` for by name, or RecBole's beside its interactions."""
    found = {}
    for side, name in asked.items():
        atomic = interactions.with_suffix(f".{side}")
        if name is not None:
            file = folder / Path(name).expanduser()
            if not file.is_file():
                near = ", ".join(sorted(p.name for p in folder.iterdir())[:8])
                raise DataError(f"no file '{name}'; in '{folder}' there is: {near}", f"data.{side}_features")
            found[side] = file
        elif interactions.suffix == ".inter" and atomic.exists():
            found[side] = atomic
    return found


def read_table(file: Path, as_written: Written) -> tuple[pa.Table, Mapping[str, str]]:
    """A table, and RecBole's types of its columns by name (none for other tables). Raises DataError.

    `as_written`: by name and type, columns of a text file that keep each value's spelling, so that '07' isn't 7.
    """
    if file.suffix not in (".inter", ".user", ".item"):
        table = read(file, as_text=lambda name: as_written(name, ""))
        return (table if is_parquet(file) else _numbers_where_all_are(table, as_written)), {}
    options = pa.csv.ParseOptions(delimiter="\t", quote_char=False)
    try:
        convert = converting(file, options, lambda field: as_written(*field.rpartition(":")[::2]))
        table = pa.csv.read_csv(file, parse_options=options, convert_options=convert)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"'{file.name}' can't be read as a tab-separated table: {str(error).splitlines()[0]}", "data.path") from None
    fields = [name.rpartition(":") for name in table.column_names]
    wrong = next((name for name, (before, _, _) in zip(table.column_names, fields, strict=True) if not before), None)
    if wrong is not None:
        raise DataError(f"'{file.name}', header: '{wrong}' has no type; write name:type, such as user_id:token", "data.path")
    if table.num_rows == 0:
        raise DataError(f"'{file.name}' has no rows", "data.path")
    kinds = {before: kind for before, _, kind in fields}
    table = table.rename_columns([before for before, _, _ in fields])
    return _numbers_where_all_are(table, lambda name, _: as_written(name, kinds[name])), kinds


def _numbers_where_all_are(table: pa.Table, as_written: Written) -> pa.Table:
    for place, name in enumerate(table.column_names):
        if as_written(name, "") and is_text(table.column(place).type):
            table = table.set_column(place, name, of_text(table.column(place)))
    return table


def ids_of(column: pa.ChunkedArray, name: str, key: str) -> pa.ChunkedArray:
    """A column of ids, none of them missing; raises DataError, of the option `key` where they are of another kind."""
    try:
        ids = as_ids(column, name)
    except DataError as error:
        raise DataError(str(error), key) from None
    if ids.null_count:
        row = int(np.flatnonzero(ids.is_null().to_numpy())[0])
        raise DataError(f"column '{name}', row {row}: the id is missing ({ids.null_count} rows); drop or fill them", "data.path")
    return ids


def sides_of(files: Mapping[str, Path], ids: Mapping[str, str], own: set[str], drop: tuple[str, ...]) -> dict[str, Side]:
    """The features of both sides, by the columns of their `ids`; columns that both have, or the interactions (`own`), get the side's name
    before theirs. Raises DataError.
    """
    read_sides = {side: (file, *read_table(file, _as_written(side, ids[side], drop))) for side, file in files.items()}
    columns = [name for _, side_table, _ in read_sides.values() for name in side_table.column_names]
    taken = {name for name in columns if columns.count(name) > 1} | own | set(RESERVED)
    unknown = [name for name in drop if name not in columns]
    if unknown:
        raise DataError(f"no feature '{unknown[0]}'; the features are: {', '.join(columns)}", "data.drop")
    found = {
        ids[side]: _side(side, ids[side], file, side_table, kinds, taken, drop) for side, (file, side_table, kinds) in read_sides.items()
    }
    return {name: side for name, side in found.items() if side.columns}


def _as_written(side: str, key: str, drop: tuple[str, ...]) -> Written:
    """Ids, and what RecBole calls tokens: names and codes."""
    return lambda name, kind: _is_id(side, key, name) or (kind in TOKENS and name not in drop)


def _is_id(side: str, key: str, name: str) -> bool:
    return name == key or name.lower() in USUAL_IDS[side]


def _side(side: str, key: str, file: Path, table: pa.Table, kinds: Mapping[str, str], taken: set[str], drop: tuple[str, ...]) -> Side:
    found = [name for name in table.column_names if _is_id(side, key, name)]
    if not found:
        raise DataError(f"'{file.name}' has no column '{key}'; its columns are: {', '.join(table.column_names)}", f"data.{side}_features")
    own = key if key in found else found[0]
    ids = ids_of(table[own], own, f"data.{side}_features")
    if len(ids.unique()) < len(ids):
        twice = pc.value_counts(ids.combine_chunks()).to_pylist()
        worst = next(entry["values"] for entry in twice if entry["counts"] > 1)
        raise DataError(f"'{file.name}' has two rows of {side} '{worst}'; keep one", f"data.{side}_features")
    made, columns = {key: ids}, []
    for name in [name for name in table.column_names if name != own and name not in drop]:
        try:
            kind, values = _feature(name, table[name], kinds.get(name))
        except DataError as error:
            raise DataError(f"'{file.name}', {error}; leave it out: data.drop: [{name}]", "data.drop") from None
        column = Column(f"{side}_{name}" if name in taken else name, kind)
        columns.append(column)
        made[column.name] = values
    return Side(pa.table(made), tuple(columns))


def _feature(name: str, column: pa.ChunkedArray, kind: str | None) -> tuple[str, pa.ChunkedArray]:
    """(words or measure, its values)."""
    if kind in TOKENS or is_text(column.type) or is_list(column.type) or _is_word(column.type):
        words_of(column, name)  # raises DataError
        text = column if is_list(column.type) else column.cast(pa.string())
        if kind in TOKENS and bool(pc.all(pc.is_in(text.drop_null(), value_set=BOOLEANS)).as_py()):
            text = pc.utf8_lower(text)  # as those of a Parquet file that asks are
        return "words", pc.split_pattern(text, " ") if kind == "token_seq" else text
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        return "measure", column
    raise DataError(f"column '{name}' holds {column.type}, which is no feature")


def _is_word(kind: pa.DataType) -> bool:
    return bool(pa.types.is_boolean(kind) or pa.types.is_null(kind))
