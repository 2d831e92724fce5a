"""Recommending from the command line: the best items for each user of a file, and scores of pairs."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import Shell, open_shell

pytestmark = pytest.mark.slow

CONFIG = "configs/ranking-recommender.yaml"
MODEL = "models:/ranking-recommender@champion"
DATA = "data.rows=4000"  # of 100 users
UNKNOWN = 10**9


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, dict[int, set[int]]]:
    """A folder with a champion, and what each user has had in any part of the data."""
    shell = open_shell(tmp_path_factory.mktemp("recommend"))
    shell.run("train", CONFIG, DATA, "training.epochs=3", "training.batch_size=256")
    shell.run("promote", "ranking-recommender", "registry.require={}")
    splits = shell.run("data", "prepare", CONFIG, DATA, "--json").json["splits"]
    seen: dict[int, set[int]] = {}
    for part in splits.values():
        for file in part["files"]:
            table = pq.read_table(shell.folder / file)
            for user, item in zip(table["user"].to_pylist(), table["item"].to_pylist(), strict=True):
                seen.setdefault(user, set()).add(item)
    return shell, seen


def write(shell: Shell, name: str, columns: dict[str, Any]) -> str:
    pq.write_table(pa.table(columns), shell.folder / name)
    return name


def test_each_user_gets_k_items_best_first_without_those_they_have_had(trained: tuple[Shell, dict[int, set[int]]]) -> None:
    shell, seen = trained
    users = [*sorted(seen)[20:40], UNKNOWN]
    said = shell.run("predict", MODEL, write(shell, "users.parquet", {"user": users}), "top.parquet", "--top-k", "5", "--json").json
    assert (said["rows"], said["failed"]) == (21, 0)
    rows = pq.read_table(shell.folder / "top.parquet").to_pylist()
    assert [row["user"] for row in rows] == users
    assert all(len(row["items"]) == len(set(row["items"])) == len(row["scores"]) == 5 for row in rows)
    assert all(not set(row["items"]) & seen.get(row["user"], set()) for row in rows)
    assert all(row["scores"] == sorted(row["scores"], reverse=True) for row in rows)
    assert [row["answered_by"] for row in rows] == ["model"] * 20 + ["popularity"]


def test_pairs_come_back_with_user_item_and_a_score_that_orders_them_as_the_best_items_are_ordered(
    trained: tuple[Shell, dict[int, set[int]]],
) -> None:
    shell, seen = trained
    user = min(seen)
    shell.run("predict", MODEL, write(shell, "user.parquet", {"user": [user]}), "best.parquet", "--top-k", "7")
    best = pq.read_table(shell.folder / "best.parquet").to_pylist()[0]
    pairs = write(shell, "pairs.parquet", {"user": [user] * 7, "item": best["items"], "place": range(7)})
    shell.run("predict", MODEL, pairs, "scores.parquet")
    rows = pq.read_table(shell.folder / "scores.parquet").to_pylist()
    assert [(row["user"], row["item"], row["place"]) for row in rows] == [(user, item, place) for place, item in enumerate(best["items"])]
    assert [row["prediction"] for row in rows] == pytest.approx(best["scores"], abs=1e-5)


def test_a_request_that_can_not_be_answered_is_one_line(trained: tuple[Shell, dict[int, set[int]]]) -> None:
    shell, seen = trained
    users = write(shell, "some.parquet", {"user": sorted(seen)[:3]})
    assert shell.run("predict", MODEL, users, "no.csv", "--top-k", "5", code=2).errors == [
        "error: output 'no.csv': lists of items and scores don't fit in a .csv file: write .parquet"
    ]
    assert not (shell.folder / "no.csv").exists()
