"""What a ranking is evaluated on: each user's held-out items in a part, and 99 items that it has never had, fixed by the split's seed.

A file `PART.candidates.parquet` beside the part's own has as many rows. The first row of each user holds its list, held-out items first;
the user's further rows hold an empty one, so that every user counts once. Ids are kept as they are: another encoder can read them.

    candidates  [B, T] item codes, `candidates.sizes` [B, 1]       held  [B] how many of them are held-out, 0 in a user's further rows
    part        [B] 1 validation, 2 test: items of earlier parts are left out of the ranking over all items
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .encode import Encoder
from .encode.column import Array
from .encode.ids import as_ids

NEGATIVES = 99  # https://arxiv.org/abs/1708.05031
PARTS = ("train", "validation", "test")


def file_of(folder: Path, part: str) -> Path:
    return folder / f"{part}.candidates.parquet"


def make(tables: Mapping[str, pa.Table], user: str, item: str, seed: int) -> dict[str, pa.Table]:
    """The candidates of validation and test. A negative is no positive of its user in any part."""
    users, items = (pa.chunked_array([c for part in PARTS for c in as_ids(tables[part][name], name).chunks]) for name in (user, item))
    user_codes, _ = _codes(users)
    item_codes, names = _codes(items)
    positives = Positives(user_codes, item_codes, len(names))
    first, made = tables["train"].num_rows, {}
    for place, part in enumerate(PARTS[1:], start=1):
        rows = slice(first, first + tables[part].num_rows)
        rng = np.random.default_rng([seed, place])
        made[part] = _lists(user_codes[rows], item_codes[rows], positives, names, rng).append_column(
            "part", pa.array(np.full(tables[part].num_rows, place, np.int8))
        )
        first = rows.stop
    return made


def shortage(made: Mapping[str, pa.Table]) -> str | None:
    """What is to be said of users who have had so many items that fewer negatives are left; None if there are none."""
    counts = [pc.list_value_length(table["candidates"]).to_numpy() - table["held"].to_numpy() for table in made.values()]
    drawn = np.concatenate([count[table["held"].to_numpy() > 0] for count, table in zip(counts, made.values(), strict=True)])
    few = drawn[drawn < NEGATIVES]
    if not len(few):
        return None
    return (
        f"{len(few)} of {len(drawn)} users are ranked among fewer than {NEGATIVES} items that they have never had (the fewest: "
        f"{few.min()}), which is easier: look at the metrics over all items, full_*"
    )


def arrays(encoder: Encoder, folder: Path, part: str) -> dict[str, Array]:
    """A part's candidates, encoded; nothing where the part has none."""
    path = file_of(folder, part)
    if not path.exists():
        return {}
    table, item = pq.read_table(path), encoder.input_names[1]
    return {
        "candidates": encoder.columns[item].lists(table["candidates"]),
        "held": table["held"].to_numpy().astype(np.int64),
        "part": table["part"].to_numpy().astype(np.int64),
    }


class Positives:
    """The items of each user, and the way to those that it hasn't had: the r-th of them by one search, with no rejection.

    A user's items p_0 < p_1 < ... leave p_j - j items before p_j, so that the r-th other item is r + (how many j have p_j - j <= r).
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, n_items: int) -> None:
        self.n_items = n_items
        pairs = np.unique(users.astype(np.int64) * n_items + items)
        user, item = pairs // n_items, pairs % n_items
        self.counts = np.bincount(user, minlength=int(users.max(initial=-1)) + 1)
        self.starts = self.counts.cumsum() - self.counts
        self.keys = user * n_items + item - (np.arange(len(pairs)) - self.starts[user])

    def other(self, users: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The `places`-th item, from 0, that is none of its user's."""
        found = np.searchsorted(self.keys, users * self.n_items + places, side="right")
        return np.asarray(places + found - self.starts[users])

    def draw(self, users: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """([U, count] distinct items that a user hasn't had, [U, count] whether there were so many): Floyd's sampling, all users at once.

        https://doi.org/10.1145/30401.315746
        """
        free = self.n_items - self.counts[users]
        chosen = np.full((len(users), count), -1, np.int64)
        for step in range(count):
            last = free - count + step  # this step's draw is from 0 to last
            there = last >= 0
            drawn = rng.integers(0, np.maximum(last, 0) + 1)
            twice = (chosen[:, :step] == drawn[:, None]).any(1)
            chosen[:, step] = np.where(there, np.where(twice, last, drawn), -1)
        valid = chosen >= 0
        return self.other(np.repeat(users, count), np.maximum(chosen, 0).ravel()).reshape(chosen.shape), valid


def _codes(ids: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    found = ids.combine_chunks().dictionary_encode()
    found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    return found.indices.to_numpy().astype(np.int64), found.dictionary


def _lists(users: np.ndarray, items: np.ndarray, positives: Positives, names: pa.Array, rng: np.random.Generator) -> pa.Table:
    distinct, firsts = np.unique(users, return_index=True)
    row_of = np.zeros(int(users.max(initial=0)) + 1, np.int64)
    row_of[distinct] = firsts
    pairs = np.unique(users * positives.n_items + items)
    held_row, held_item = row_of[pairs // positives.n_items], pairs % positives.n_items
    negatives, valid = positives.draw(distinct, NEGATIVES, rng)
    rows = np.concatenate([held_row, np.repeat(firsts, NEGATIVES)[valid.ravel()]])
    order = np.argsort(rows, kind="stable")  # held-out items come first, as they do above
    values = np.concatenate([held_item, negatives[valid]])[order]
    offsets = np.concatenate([[0], np.bincount(rows, minlength=len(users)).cumsum()])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), names.take(pa.array(values)))
    return pa.table({"candidates": lists, "held": pa.array(np.bincount(held_row, minlength=len(users)).astype(np.int32))})
