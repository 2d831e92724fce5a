"""Ids of users and items in text files, Parquet and atomic files: as they are written, and the same in every table."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipelines.prepare import prepare
from pipelines.schema import DataError
from pipelines.sources.interactions import Config, load
from pipelines.splits import SplitConfig


def test_ids_in_a_csv_keep_their_zeros(tmp_path: Path) -> None:
    """None is a number where one isn't; numbers in their own spelling are numbers as they are in Parquet."""
    (tmp_path / "r.csv").write_text("user,item,rating\n0012,7,3\n12,12,4\n7,9,5\n")
    made = load(Config(path=str(tmp_path / "r.csv"))).table
    assert (made["user"].to_pylist(), made["item"].to_pylist()) == (["0012", "12", "7"], [7, 12, 9])


def test_ids_of_a_csv_in_other_columns_than_the_usual_keep_their_zeros_too(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("ISBN,who,rating\n0195153448,012,3\n034545104X,9,4\n")
    made = load(Config(path=str(tmp_path / "r.csv"), user="who", item="ISBN")).table
    assert (made["who"].to_pylist(), made["ISBN"].to_pylist()) == (["012", "9"], ["0195153448", "034545104X"])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_csv_of_a_part_whose_ids_are_all_numbers_belongs_to_those_of_text(tmp_path: Path, suffix: str) -> None:
    train = pa.table({"user": [1, 2], "item": ["034545104X", "0195153448"]})
    (pa.csv.write_csv if suffix == "csv" else pq.write_table)(train, tmp_path / f"train.{suffix}")
    (tmp_path / "test.csv").write_text("user,item\n1,0002005018\n2,7\n")
    (tmp_path / "valid.csv").write_text("user,item\n1,7\n")
    made = load(Config(path=str(tmp_path))).table
    assert sorted(made.to_pylist(), key=lambda row: (row["user"], row["item"])) == [
        {"user": user, "item": item, "target": 1}
        for user, item in [(1, "0002005018"), (1, "034545104X"), (1, "7"), (2, "0195153448"), (2, "7")]
    ]


def test_numbers_in_parquet_beside_ids_of_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("user,item\n1,034545104X\n2,0195153448\n")
    pq.write_table(pa.table({"user": [1, 2], "item": [195153448, 7]}), tmp_path / "test.parquet")
    with pytest.raises(DataError, match=r"the parts' columns have different types: .*item.*; write one type in all"):
        load(Config(path=str(tmp_path)))


def test_a_csv_of_features_whose_ids_are_all_numbers_belongs_to_ids_of_text(tmp_path: Path) -> None:
    users = "".join(f"{user},{item}\n" for user in range(12) for item in ("034545104X", "0195153448", "0002005018"))
    (tmp_path / "r.csv").write_text("user,item\n" + users)
    (tmp_path / "books.csv").write_text("item,year\n0195153448,2002\n0002005018,2001\n")
    config = Config(path=str(tmp_path / "r.csv"), item_features="books.csv")
    prepared = prepare("interactions", load, config, SplitConfig(), tmp_path / "cache")
    assert prepared.encoder.columns["item"].ids.to_pylist() == ["0002005018", "0195153448", "034545104X"]
    assert prepared.tables()["items.starts"].tolist() == [0, 0, 1, 2, 2]


def test_tokens_of_atomic_files_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\trating:float\n0012\t7\t3\n12\t12\t4\n")
    (tmp_path / "x.user").write_bytes(
        b"user_id:token\tzip:token\tpaid:token\tname:token\n0012\t02139\tTrue\tJos\xe9\n12\t10001\tFalse\tAnn\n"
    )
    raw = load(Config(path=str(tmp_path), drop=("name",)))
    assert (raw.table["user_id"].to_pylist(), raw.table["item_id"].to_pylist()) == (["0012", "12"], [7, 12])
    features = {"zip": ["02139", "10001"], "paid": ["true", "false"]}
    assert raw.sides["user_id"].table.to_pydict() == {"user_id": ["0012", "12"], **features}


@pytest.mark.parametrize("missing", ["", "NA"])
def test_a_missing_id_among_numbers_of_a_csv_is_missing_as_ever(tmp_path: Path, missing: str) -> None:
    (tmp_path / "r.csv").write_text(f"user,item,rating\n7.0,1,3\n{missing},2,3\n")
    with pytest.raises(DataError, match=r"column 'user', row 1: the id is missing \(1 rows\)"):
        load(Config(path=str(tmp_path / "r.csv")))


def test_ids_of_a_csv_that_are_no_utf_8_are_named(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(b"user,item,rating\nJos\xe9,1,3\n")
    with pytest.raises(DataError, match=r"^'r.csv', column 'user': it is not UTF-8 text; save the file as UTF-8$"):
        load(Config(path=str(tmp_path / "r.csv")))
