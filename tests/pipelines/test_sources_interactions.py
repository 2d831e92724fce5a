"""Interactions keep the source contract in every form that they come in, and say what is wrong with those that can't be used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
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
