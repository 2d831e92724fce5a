"""Interactions keep the source contract in every form that they come in, and say what is wrong with those that can't be used."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipelines import batches
from pipelines.prepare import Prepared, prepare
from pipelines.raw import Load
from pipelines.schema import DataError
from pipelines.sources.interactions import Config, load
from pipelines.splits import SplitConfig
from tests.contracts.source_contract import SourceContract

DATA = Path(os.environ.get("ORCHESTRATOR_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data").resolve() / "ml-100k"


def rows(count: int, seed: int = 0, **columns: Any) -> pa.Table:
    """Users 'u0' ..., items from 100, half stars, times; pairs come twice."""
    rng = np.random.default_rng(seed)
    users = np.array([f"u{user}" for user in rng.integers(0, 12, count)])
    table = {"user_id": users, "movieId": 100 + rng.integers(0, 15, count), "rating": rng.integers(1, 11, count) / 2}
    return pa.table({**table, "timestamp": rng.integers(0, 50, count), **columns})


def table(folder: Path) -> Path:
    pq.write_table(rows(120), folder / "ratings.parquet")
    return folder / "ratings.parquet"


def parts(folder: Path) -> Path:
    made = folder / "parts"
    made.mkdir()
    for seed, (name, count) in enumerate({"train": 90, "valid": 20, "test": 20}.items()):
        pa.csv.write_csv(rows(count, seed), made / f"{name}.csv")
    return made


def atomic(folder: Path) -> Path:
    made = folder / "ml"
    made.mkdir()
    table = rows(120)
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines += ["\t".join(str(value) for value in row.values()) for row in table.to_pylist()]
    (made / "ml.inter").write_text("\n".join(lines) + "\n")
    (made / "ml.item").write_text(
        "item_id:token\ttitle:token_seq\tclass:token_seq\tyear:float\n"
        + "".join(f'{100 + i}\tThe "{i}\t{"Action Drama" if i % 2 else "Drama"}\t{1990 + i}\n' for i in range(15))
    )
    (made / "ml.user").write_text("user_id:token\tage:token\n" + "".join(f"u{i}\t{20 + i % 3}\n" for i in range(10)))
    return made


class InteractionsContract(SourceContract):
    implicit = False

    @staticmethod
    def made(folder: Path) -> Path:
        raise NotImplementedError

    @pytest.fixture
    def load(self) -> Load:
        return load

    @pytest.fixture
    def config(self, tmp_path: Path) -> Config:
        (tmp_path / "raw").mkdir()
        return Config(path=str(self.made(tmp_path / "raw")), implicit=self.implicit)


class TestOneTable(InteractionsContract):
    made = staticmethod(table)


class TestOneTableOfPositives(InteractionsContract):
    made, implicit = staticmethod(table), True


class TestATableForEachPart(InteractionsContract):
    made = staticmethod(parts)


class TestATableOfPositivesForEachPart(InteractionsContract):
    made, implicit = staticmethod(parts), True


class TestAtomicFiles(InteractionsContract):
    made = staticmethod(atomic)

    def test_features_are_found_with_their_types(self, prepared: Prepared) -> None:
        kinds = {name: {c.name: c.kind for c in columns} for name, columns in prepared.schema.features.items()}
        assert kinds == {"user_id": {"age": "words"}, "item_id": {"title": "words", "class": "words", "year": "measure"}}
        assert prepared.encoder.columns["class"].words == ("Action", "Drama")


def test_without_ratings_every_row_is_a_positive(tmp_path: Path) -> None:
    pq.write_table(rows(60).drop(["rating", "timestamp"]), tmp_path / "clicks.parquet")
    raw = load(Config(path=str(tmp_path / "clicks.parquet")))
    assert (raw.target.name, raw.target.kind, raw.time) == ("target", "ranking", None)
    assert set(raw.table["target"].to_pylist()) == {1}


def test_a_pair_counts_once_as_a_positive_at_its_latest_time_but_twice_as_ratings(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("user,item,rating,time\n1,5,3,10\n1,6,4,30\n1,5,2.5,20\n")
    assert load(Config(path=str(path))).table["rating"].to_pylist() == [3.0, 4.0, 2.5]
    assert load(Config(path=str(path), implicit=True)).table["time"].to_pylist() == [30, 20]


def test_a_pair_of_two_parts_stays_in_the_earliest(tmp_path: Path) -> None:
    for part, text in {"train": "1,5\n1,6\n2,5\n", "valid": "1,7\n1,5\n", "test": "1,8\n1,7\n"}.items():
        (tmp_path / f"{part}.csv").write_text(f"user,item\n{text}")
    raw = load(Config(path=str(tmp_path)))
    assert raw.official is not None
    held = {(part, item) for part, item in zip(raw.official.tolist(), raw.table["item"].to_pylist(), strict=True) if part != "train"}
    assert held == {("validation", 7), ("test", 8)}


def folds(count: int = 120) -> pa.Table:
    """With a column that tells parts, one that doesn't, and pairs that come in several parts."""
    made = rows(count)
    place = np.arange(count) % 10
    fold = np.where(place < 8, "train", np.where(place == 8, "valid", "test"))
    return made.append_column("fold", pa.array(fold)).append_column("shop", pa.array(place))


@pytest.mark.parametrize("implicit", [False, True])
def test_a_split_may_go_by_any_column_of_the_table(tmp_path: Path, implicit: bool) -> None:
    pq.write_table(folds(), tmp_path / "r.parquet")
    config = Config(path=str(tmp_path / "r.parquet"), implicit=implicit)
    prepared = prepare("i", load, config, SplitConfig(by="column", column="fold"), tmp_path / "cache")
    parts = {part: pq.read_table(prepared.file(part)) for part in ("train", "validation", "test")}
    pairs = {part: set(zip(*(t[c].to_pylist() for c in ("user_id", "movieId")), strict=True)) for part, t in parts.items()}
    assert parts["train"].column_names == ["user_id", "movieId", "target" if implicit else "rating"], "no other column is learnt from"
    every = folds().filter(pa.compute.equal(folds()["fold"], "train"))
    assert pairs["train"] == set(zip(every["user_id"].to_pylist(), every["movieId"].to_pylist(), strict=True))
    if implicit:
        assert not pairs["train"] & pairs["test"], "nothing held out was seen before"
        assert parts["train"].num_rows == len(pairs["train"])
    assert prepare("i", load, config, SplitConfig(by="group", column="shop"), tmp_path / "cache").rows["test"] > 0


def test_a_column_of_parts_leaves_the_latest_row_of_its_earliest_part(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("user,item,time,fold\na,x,1,train\na,x,3,train\na,x,2,train\na,x,9,test\na,y,9,test\n")
    table = load(Config(path=str(tmp_path / "r.csv"))).table
    assert table.select(["item", "time", "fold"]).to_pylist() == [
        {"item": "x", "time": 3, "fold": "train"},
        {"item": "y", "time": 9, "fold": "test"},
    ]


@pytest.mark.parametrize(
    ("column", "values", "key", "says"),
    [
        ("user", pa.array([[1], [2]]), "data.user", "column 'user' holds list<"),
        ("item", pa.array([b"\xff", b"a"]), "data.item", "column 'item' holds binary"),
        ("user", pa.array([1.0, float("nan")]), "data.path", "column 'user', row 1: the id is missing (1 rows)"),
        ("time", pa.array([1, 2], pa.time64("us")), "data.time", "column 'time' is no time but time64[us]"),
        ("time", pa.array([[1], [2]]), "data.time", "column 'time' is no time but list<"),
        ("time", pa.nulls(2), "data.time", "column 'time' holds no time at all (null)"),
        ("target", pa.array([1, 2]), None, ""),
    ],
)
def test_columns_of_types_that_do_not_fit_are_refused(tmp_path: Path, column: str, values: pa.Array, key: str | None, says: str) -> None:
    pq.write_table(pa.table({"user": [1, 2], "item": [3, 4]} | {column: values}), tmp_path / "r.parquet")
    if key is None:
        assert load(Config(path=str(tmp_path / "r.parquet"))).table["target"].to_pylist() == [1, 1]
        return
    with pytest.raises(DataError) as caught:
        load(Config(path=str(tmp_path / "r.parquet")))
    assert says in str(caught.value)
    assert caught.value.key == key


def test_times_of_nanoseconds_and_decimals_are_numbers(tmp_path: Path) -> None:
    for values in (pa.array([2001, 1001], pa.timestamp("ns")), pa.array([2, 1]).cast(pa.decimal128(21, 1))):
        pq.write_table(pa.table({"user": [1, 2], "item": [3, 4], "time": values}), tmp_path / "r.parquet")
        assert load(Config(path=str(tmp_path / "r.parquet"))).table["time"].to_pylist() == [2, 1]


def test_ids_beyond_int64_and_floats_prepare(tmp_path: Path) -> None:
    users = np.array([2**63 + place % 7 for place in range(60)], np.uint64)
    items = np.arange(60) % 11 * 1e19
    pq.write_table(pa.table({"user": users, "item": items, "rating": np.arange(60) % 5}), tmp_path / "r.parquet")
    prepared = prepare("i", load, Config(path=str(tmp_path / "r.parquet")), SplitConfig(), tmp_path / "cache")
    assert [column.vocabulary for column in prepared.schema.inputs] == [8, 12]


def test_features_with_names_that_a_batch_has_get_the_side_s_name(tmp_path: Path) -> None:
    table(tmp_path)
    pq.write_table(pa.table({"user_id": ["u0", "u1"], "history": ["x", "y"], "held": [1, 2]}), tmp_path / "users.parquet")
    config = Config(path=str(tmp_path / "ratings.parquet"), user_features="users.parquet", implicit=True)
    prepared = prepare("i", load, config, SplitConfig(), tmp_path / "cache")
    assert [column.name for column in prepared.schema.features["user_id"]] == ["user_history", "user_held"]


def test_features_of_one_name_are_refused(tmp_path: Path) -> None:
    table(tmp_path)
    pq.write_table(pa.table({"user_id": ["u0"], "age": [1]}), tmp_path / "users.parquet")
    pq.write_table(pa.table({"movieId": [100], "age": [1], "user_age": [2]}), tmp_path / "items.parquet")
    config = Config(path=str(tmp_path / "ratings.parquet"), user_features="users.parquet", item_features="items.parquet")
    with pytest.raises(
        DataError, match=r"column 'user_age' of the table of features of 'movieId': the table of features of 'user_id' has one"
    ):
        prepare("i", load, config, SplitConfig(), tmp_path / "cache")
    prepare("i", load, dataclasses.replace(config, drop=("user_age",)), SplitConfig(), tmp_path / "cache")


@pytest.mark.parametrize("name", ["history", "part"])
def test_a_column_of_ids_called_as_what_a_batch_has_is_refused(tmp_path: Path, name: str) -> None:
    pq.write_table(rows(60).rename_columns(["user_id", name, "rating", "timestamp"]), tmp_path / "r.parquet")
    config = Config(path=str(tmp_path / "r.parquet"), item=name, implicit=True)
    with pytest.raises(DataError, match=rf"column '{name}' of the table: a batch has something else of that name; rename it"):
        prepare("i", load, config, SplitConfig(), tmp_path / "cache")


def test_a_table_of_features_without_any_is_as_none(tmp_path: Path) -> None:
    table(tmp_path)
    pq.write_table(pa.table({"user_id": ["u0"], "age": [1]}), tmp_path / "users.parquet")
    config = Config(path=str(tmp_path / "ratings.parquet"), user_features="users.parquet", drop=("age",))
    assert prepare("i", load, config, SplitConfig(), tmp_path / "cache").schema.features == {}


@pytest.mark.parametrize("values", [pa.array([[["a"]]]), pa.array([{"a": 1}]), pa.array([1], pa.date32())])
def test_features_of_types_that_do_not_fit_are_refused(tmp_path: Path, values: pa.Array) -> None:
    table(tmp_path)
    pq.write_table(pa.table({"movieId": [100], "odd": values}), tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"'items.parquet', column 'odd' holds .*; leave it out: data.drop: \[odd\]"):
        load(Config(path=str(tmp_path / "ratings.parquet"), item_features="items.parquet"))


def test_times_may_be_dates(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("user,item,rating,date\na,x,1,2020-01-03\na,y,1,2020-01-01\na,z,1,2020-01-02\n")
    raw = load(Config(path=str(tmp_path / "r.csv")))
    assert np.argsort(raw.table["date"].to_numpy()).tolist() == [1, 2, 0]


def test_features_may_lack_ids_and_values_and_have_the_columns_of_the_other_side(tmp_path: Path) -> None:
    table(tmp_path)
    users = pa.table({"user_id": ["u0", "u1", "new"], "name": ["x", None, "y"], "age": [20, 30, None]})
    items = pa.table({"movieId": [100, 101], "name": ["p", "q"], "genres": [["a", "b"], None], "price": ["x|y", "y"]})
    pq.write_table(users, tmp_path / "users.parquet")
    pq.write_table(items, tmp_path / "items.parquet")
    config = Config(path=str(tmp_path / "ratings.parquet"), user_features="users.parquet", item_features="items.parquet", drop=("price",))
    prepared = prepare("i", load, config, SplitConfig(), tmp_path / "cache")
    assert [c.name for columns in prepared.schema.features.values() for c in columns] == ["user_name", "age", "item_name", "genres"]
    users_of = prepared.encoder.columns["user_id"]
    assert users_of.codes(pa.chunked_array([["new"]])).tolist() != [0], "its features are known"
    rows_of = prepared.tables()["users.rows"]
    assert int(rows_of[users_of.codes(pa.chunked_array([["new"]]))[0]]) == 0


@pytest.mark.parametrize(
    ("text", "options", "key", "says"),
    [
        ("a,b,rating\n1,2,3\n", {}, "data.user", "which column holds the users? the columns are: a, b, rating"),
        ("user,b,rating\n1,2,3\n", {}, "data.item", "which column holds the items?"),
        ("user,item,rating\n1,2,3\n", {"rating": "ratng"}, "data.rating", "no column 'ratng' (did you mean 'rating'?)"),
        ("user,item,rating\n1,2,good\n", {}, "data.rating", "name another one, or set data.implicit: true"),
        ("user,item,rating\n1,2,\n1,3,4\n", {}, "data.rating", "column 'rating', row 0: the rating is missing (1 rows)"),
        ("user,item,rating\n,2,1\n1,3,4\n", {}, "data.path", "column 'user', row 0: the id is missing (1 rows)"),
        ("user,item,time\n1,2,soon\n", {}, "data.time", "column 'time' is no time"),
        ("user,item,rating\n1,2,3\n", {"item_features": "films.csv"}, "data.item_features", "no file 'films.csv'"),
        ("user,item,rating\n1,2,3\n", {"drop": ("x",)}, "data.drop", "no feature 'x'"),
        (
            "user,item,rating\n1,2,3\n",
            {"user_features": "twice.csv"},
            "data.user_features",
            "'twice.csv' has two rows of user '1'; keep one",
        ),
        ("user,item,rating\n1,2,3\n", {"user_features": "noid.csv"}, "data.user_features", "'noid.csv' has no column 'user'"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_key(tmp_path: Path, text: str, options: dict[str, Any], key: str, says: str) -> None:
    (tmp_path / "r.csv").write_text(text)
    (tmp_path / "twice.csv").write_text("user,age\n1,20\n1,30\n")
    (tmp_path / "noid.csv").write_text("who,age\n1,20\n")
    with pytest.raises(DataError) as caught:
        load(Config(path=str(tmp_path / "r.csv"), **options))
    assert says in str(caught.value)
    assert caught.value.key == key


def test_an_atomic_file_without_types_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text("user_id\titem_id\n1\t2\n")
    with pytest.raises(DataError, match=r"header: 'user_id' has no type; write name:type"):
        load(Config(path=str(tmp_path)))


@pytest.mark.skipif(not DATA.is_dir(), reason="no ml-100k: set ORCHESTRATOR_TEST_DATA to the folder that holds it")
def test_movielens_holds_what_its_readme_says(tmp_path: Path) -> None:
    config = Config(path=str(DATA), implicit=True, drop=("zip_code", "movie_title"))
    prepared = prepare("i", load, config, SplitConfig(by="leave_one_out"), tmp_path)
    assert dict(prepared.rows) == {"train": 98_114, "validation": 943, "test": 943}
    assert prepared.schema.inputs[0].vocabulary == 944
    assert len(prepared.encoder.columns["class"].words) == 19
    assert batches.load(prepared, "test").rows(slice(0, 9))["held"].tolist() == [1] * 9


def test_features_whose_ids_are_written_otherwise_are_refused(tmp_path: Path) -> None:
    """A wrong key would make every feature unknown, silently."""
    rows = [(f"u{n % 7}", f"i{n % 11}", float(n % 5)) for n in range(80)]
    pq.write_table(pa.table(dict(zip(("user", "item", "rating"), map(list, zip(*rows, strict=True)), strict=True))), tmp_path / "r.parquet")
    pq.write_table(pa.table({"item": [f"item-{n}" for n in range(11)], "genre": ["a", "b"] * 5 + ["a"]}), tmp_path / "items.parquet")
    config = Config(path=str(tmp_path / "r.parquet"), item_features="items.parquet")
    with pytest.raises(
        DataError, match=r"none of the ids in the features of 'item' \(item-0, item-1, item-2 \.\.\.\) is in the training rows"
    ):
        prepare("interactions", load, config, SplitConfig(), tmp_path / "cache")


def test_users_who_have_had_nearly_everything_are_told_of(tmp_path: Path) -> None:
    """30 items, of which each user has had 20: ten negatives, not 99."""
    rows = [(user, item) for user in range(12) for item in np.random.default_rng(user).permutation(30)[:20].tolist()]
    pq.write_table(pa.table({"user": [row[0] for row in rows], "item": [row[1] for row in rows]}), tmp_path / "few.parquet")
    prepared = prepare(
        "interactions", load, Config(path=str(tmp_path / "few.parquet")), SplitConfig(by="leave_one_out"), tmp_path / "cache"
    )
    said = prepared.look()["shortage"]
    assert said.startswith("24 of 24 users are ranked among fewer than 99 items that they have never had (the fewest: 10)")
    assert said in prepared.look()["problems"]


def test_a_model_of_other_data_leaves_out_what_these_users_have_seen(tmp_path: Path) -> None:
    """The same ids and one more, other rows: what was seen is told by the rows, in the model's own codes, of items that it knows."""
    made = {}
    for name, ids in (("here", "abcdefgh"), ("there", "hgfedcbaz")):
        rows = [
            (f"u{user}", item) for user in range(6) for item in np.random.default_rng(len(ids) + user).permutation(list(ids))[:5].tolist()
        ]
        pq.write_table(pa.table({"user": [row[0] for row in rows], "item": [row[1] for row in rows]}), tmp_path / f"{name}.parquet")
        config = Config(path=str(tmp_path / f"{name}.parquet"))
        made[name] = prepare("interactions", load, config, SplitConfig(by="leave_one_out"), tmp_path / "cache")
    encoder = made["there"].encoder
    found = made["here"].seen_by(encoder)
    users, items = (encoder.columns[name] for name in encoder.input_names)
    for user in (f"u{place}" for place in range(6)):
        code = int(users.codes(pa.chunked_array([[user]]))[0])
        first, last = found["seen.starts"][code : code + 2].tolist()
        told = set(items.names(found["seen.items"][first:last].numpy()).to_pylist())
        parts = [pq.read_table(made["here"].file(part)).to_pylist() for part in ("train", "validation", "test")]
        assert told == {row["item"] for part in parts for row in part if row["user"] == user} & set(items.ids.to_pylist())
        assert len(told) > 3
