"""Splits are fixed by their seed, cover every row once, and respect classes, groups, time and official parts."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.raw import Raw
from pipelines.schema import Column, DataError
from pipelines.splits import NAMES, SplitConfig, split


def raw(labels: list[object], official: list[str] | None = None, **columns: list[object]) -> Raw:
    table = pa.table({"x": list(range(len(labels))), "label": labels, **columns})
    return Raw(table, (Column("x", "number"),), Column("label", "class"), None if official is None else np.array(official))


def sizes(parts: dict[str, np.ndarray]) -> tuple[int, ...]:
    return tuple(len(parts[name]) for name in NAMES)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    data = raw(["a", "b"] * 50)
    first, again, other = (split(data, SplitConfig(seed=seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in NAMES)
    assert not np.array_equal(first["test"], other["test"])


def test_every_row_is_in_one_part_in_the_table_s_order() -> None:
    parts = split(raw(["a", "b", "c"] * 21), SplitConfig(train=0.6, validation=0.2, test=0.2))
    assert sorted(np.concatenate(list(parts.values()))) == list(range(63))
    assert all(np.all(np.diff(rows) > 0) for rows in parts.values())


def test_random_parts_keep_the_shares_of_the_classes() -> None:
    labels = np.array(["rare"] * 20 + ["common"] * 180)
    parts = split(raw(list(labels)), SplitConfig())
    assert sizes(parts) == (160, 20, 20)
    assert [int((labels[parts[name]] == "rare").sum()) for name in NAMES] == [16, 2, 2]


def test_many_small_classes_fill_every_part_and_each_is_in_train() -> None:
    labels = np.array([f"c{place}" for place in range(40) for _ in range(3)])
    parts = split(raw(list(labels)), SplitConfig())
    assert sizes(parts) == (96, 12, 12)
    assert set(labels[parts["train"]]) == set(labels)


def test_each_class_is_in_train_however_small_its_share() -> None:
    labels = np.array([f"c{place}" for place in range(10) for _ in range(4)])
    parts = split(raw(list(labels)), SplitConfig(train=0.1, validation=0.5, test=0.4))
    assert set(labels[parts["train"]]) == set(labels)


def test_official_parts_win_unless_another_way_is_asked_for() -> None:
    data = raw(["a", "b"] * 30, official=["train"] * 40 + ["validation"] * 8 + ["test"] * 12)
    assert sizes(split(data, SplitConfig())) == (40, 8, 12)
    assert sizes(split(data, SplitConfig(by="random"))) == (48, 6, 6)


def test_a_missing_official_validation_part_is_taken_from_train_by_class() -> None:
    labels = np.array(["a", "a", "a", "b"] * 25)
    parts = split(raw(list(labels), official=["train"] * 80 + ["test"] * 20), SplitConfig(train=0.6, validation=0.2, test=0.2))
    assert list(parts["test"]) == list(range(80, 100))
    assert sizes(parts) == (60, 20, 20)
    assert int((labels[parts["validation"]] == "b").sum()) == 5


def test_official_parts_without_test_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"no test rows; add them, or set data.split.by: random"):
        split(raw(["a", "b"] * 4, official=["train"] * 6 + ["validation"] * 2), SplitConfig())


def test_no_group_is_in_two_parts() -> None:
    speakers = np.array([f"s{row % 20}" for row in range(200)])
    parts = split(raw(["a", "b"] * 100, speaker=list(speakers)), SplitConfig(by="group", column="speaker"))
    groups = [set(speakers[parts[name]]) for name in NAMES]
    assert sizes(parts) == (160, 20, 20)
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


def test_by_time_the_newest_rows_are_test() -> None:
    times = list(range(100, 0, -1))
    parts = split(raw(["a", "b"] * 50, day=times), SplitConfig(by="time", column="day"))
    days = {name: np.array(times)[rows] for name, rows in parts.items()}
    assert days["train"].max() < days["validation"].min()
    assert days["validation"].max() < days["test"].min()
    assert sizes(parts) == (80, 10, 10)


def test_a_column_may_say_the_parts_by_their_other_names() -> None:
    data = raw(["a", "b"] * 5, part=["Train"] * 6 + ["val"] * 2 + ["testing"] * 2)
    assert sizes(split(data, SplitConfig(by="column", column="part"))) == (6, 2, 2)


def test_a_column_that_says_another_word_is_refused() -> None:
    with pytest.raises(DataError, match="column 'part' says 'holdout'; it must say train, validation or test"):
        split(raw(["a", "b"] * 2, part=["train", "train", "test", "holdout"]), SplitConfig(by="column", column="part"))


def test_a_split_column_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(DataError, match="no column 'speaker'; the data has: x, label") as caught:
        split(raw(["a", "b"] * 5), SplitConfig(by="group", column="speaker"))
    assert caught.value.key == "data.split.column"


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["a", None, "b", None], r"row 1: the label is missing \(2 rows\)"),
        ([1.0, 2.0, float("nan")], r"row 2: the label is missing \(1 rows\)"),
        (["a", "a"], "only one class, 'a'"),
        (["a", "a", "b"], "class 'b' has one row"),
    ],
)
def test_labels_that_no_split_can_serve_are_refused(labels: list[object], says: str) -> None:
    with pytest.raises(DataError, match=says):
        split(raw(labels), SplitConfig())


def test_a_part_that_would_be_empty_is_refused() -> None:
    with pytest.raises(DataError, match="the test part would be empty: 4 rows are too few"):
        split(raw(["a", "b"] * 2), SplitConfig())


@pytest.mark.parametrize(
    ("options", "says"), [({"train": 0.5}, "add up to 0.7; they must add up to 1"), ({"by": "group"}, "needs a column")]
)
def test_a_split_that_makes_no_sense_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SplitConfig(**options)  # type: ignore[arg-type]


def interactions(users: list[str], times: list[int] | None = None) -> Raw:
    table = pa.table({"user": users, "item": list(range(len(users))), "target": [1] * len(users), **({"at": times} if times else {})})
    inputs = (Column("user", "id"), Column("item", "id"))
    return Raw(table, inputs, Column("target", "ranking"), time="at" if times else None)


def test_leave_one_out_takes_each_user_s_last_row_by_time_and_the_one_before() -> None:
    parts = split(interactions(["a", "b", "a", "b", "a", "b"], [3, 1, 1, 2, 2, 3]), SplitConfig(by="leave_one_out"))
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [1, 2], "validation": [3, 4], "test": [0, 5]}


def test_leave_one_out_keeps_the_table_s_order_where_times_are_equal() -> None:
    parts = split(interactions(["a", "a", "a"], [5, 5, 5]), SplitConfig(by="leave_one_out"))
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [0], "validation": [1], "test": [2]}


def test_leave_one_out_leaves_users_with_few_rows_in_train() -> None:
    parts = split(interactions(["a", "b", "b", "c", "c", "c"], [1, 1, 2, 1, 2, 3]), SplitConfig(by="leave_one_out"))
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [0, 1, 2, 3], "validation": [4], "test": [5]}


def test_leave_one_out_without_a_time_goes_by_the_seed() -> None:
    data = interactions(["a"] * 20 + ["b"] * 20)
    first, again, other = (split(data, SplitConfig(by="leave_one_out", seed=seed)) for seed in (0, 0, 1))
    assert sizes(first) == (36, 2, 2)
    assert np.array_equal(first["test"], again["test"])
    assert not np.array_equal(first["test"], other["test"])


EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
VALUES: dict[str, list[object]] = {
    "texts": ["b", "B", "\u00e9", "z", "\U0001f600", "\ufb01", "", "aa", "a"],
    "whole numbers": [3, -1, 10, 2, 1, 9, 0, 8, 2**62],
    "numbers": [0.0, -0.0, 1.5, float("nan"), -2.0, 10.0, float("inf"), 3.0, 4.0],
    "booleans": [True, False],
    "days": [date(2020, 1, day) for day in (9, 2, 30, 4, 1, 7, 8)],
    "times": [EPOCH + timedelta(hours=hours) for hours in (9, 2, 30, 4, 1, 7, 8)],
    "decimals": [Decimal(text) for text in ("10.5", "9.5", "-1.0", "3.0", "4.0", "5.0", "0.5")],
    "bytes": [b"b", b"a", b"\xff", b"ab", b"c", b"d"],
}


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("kind", VALUES)
def test_rows_are_split_in_the_order_of_what_a_column_holds(kind: str, chunks: int) -> None:
    """As by the values' places, found by numpy."""
    values = [VALUES[kind][place] for place in np.random.default_rng(0).integers(0, len(VALUES[kind]), 90)]
    places = np.unique(np.asarray(values), return_inverse=True)[1]
    whole = pa.array(values)
    cut = pa.chunked_array([whole.slice(start, 90 // chunks) for start in range(0, 90, 90 // chunks)])
    table = pa.table({"x": range(90), "label": ["a", "b"] * 45, "value": cut, "place": places, "coded": cut.dictionary_encode()})
    data = Raw(table, (Column("x", "number"),), Column("label", "class"))
    for by in ("group", "time", "leave_one_out"):
        wanted = _split_or_error(data, by, "place")
        assert _split_or_error(data, by, "value") == wanted, by
        assert _split_or_error(data, by, "coded") == wanted, by
    timed = [Raw(table, (Column("x", "id"),), Column("label", "class"), time=name) for name in ("value", "place")]
    assert len({str(_split_or_error(one, "leave_one_out", "label")) for one in timed}) == 1


def _split_or_error(data: Raw, by: Any, column: str) -> object:
    try:
        return {name: rows.tolist() for name, rows in split(data, SplitConfig(by=by, column=column, seed=4)).items()}
    except DataError as error:
        return str(error)


def test_a_column_of_lists_says_that_no_split_goes_by_it() -> None:
    with pytest.raises(DataError, match="column 'odd' holds list<item: int64>, by which rows can't be split") as caught:
        split(raw(["a", "b"] * 5, odd=[[1], [2]] * 5), SplitConfig(by="group", column="odd"))
    assert caught.value.key == "data.split.column"


def test_one_long_id_does_not_make_all_of_them_long() -> None:
    """In an array of fixed width these would take 40 MB."""
    data = raw(["a", "b"] * 1000, who=["x" * 5000, *map(str, range(1999))])
    tracemalloc.start()
    parts = split(data, SplitConfig(by="group", column="who"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes(parts) == (1600, 200, 200)
    assert peak < 4 << 20
