"""Generated ratings and rankings keep the source contract and know their optimum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import batches
from pipelines.candidates import Positives
from pipelines.prepare import Prepared, prepare
from pipelines.ragged import Ragged
from pipelines.raw import Load
from pipelines.sources import synthetic
from pipelines.splits import NAMES, SplitConfig
from tests.contracts.source_contract import SourceContract


class TestRatings(SourceContract):
    @pytest.fixture
    def load(self) -> Load:
        return synthetic.ratings

    @pytest.fixture
    def config(self) -> Any:
        return synthetic.RatingsConfig(rows=400)

    def test_features_of_all_ids_lie_beside_the_rows(self, prepared: Prepared) -> None:
        tables = prepared.tables()
        assert {name: [c.name for c in columns] for name, columns in prepared.schema.features.items()} == {
            "user": ["group", "age"],
            "item": ["genres", "year"],
        }
        for side, column in zip(("users", "items"), prepared.schema.inputs, strict=True):
            assert len(tables[f"{side}.starts"]) == column.vocabulary + 1
            assert tables[f"{side}.starts"][1] == 0, "code 0 has none"
            assert int(tables[f"{side}.rows"].sum()) == prepared.rows["train"]


class TestRanking(SourceContract):
    @pytest.fixture
    def load(self) -> Load:
        return synthetic.ranking

    @pytest.fixture
    def config(self) -> Any:
        return synthetic.RankingConfig(rows=400)


@pytest.mark.parametrize(("by", "held"), [("leave_one_out", [1] * 10), ("random", None)])
def test_every_user_of_a_part_has_its_held_out_items_once_and_99_that_it_never_had(by: Any, held: Any, tmp_path: Path) -> None:
    prepared = prepare("r", synthetic.ranking, synthetic.RankingConfig(rows=400), SplitConfig(by=by), tmp_path)
    had: dict[int, set[int]] = {}
    for part in NAMES:
        rows = batches.load(prepared, part).rows(slice(None))
        for user, item in zip(rows["user"].tolist(), rows["item"].tolist(), strict=True):
            had.setdefault(user, set()).add(item)
    for part, code in (("validation", 1), ("test", 2)):
        rows = batches.load(prepared, part).rows(slice(None))
        assert set(rows["part"].tolist()) == {code}
        firsts = rows["held"].nonzero()[:, 0].tolist()
        assert len(firsts) == len(set(rows["user"].tolist()))
        assert held is None or rows["held"].tolist() == held
        for row in firsts:
            user, count = int(rows["user"][row]), int(rows["held"][row])
            assert int(rows["candidates.sizes"][row]) == count + 99
            assert sorted(rows["candidates"][row, :count].tolist()) == sorted(rows["item"][rows["user"] == user].tolist())
            assert not set(rows["candidates"][row, count : count + 99].tolist()) & (had[user] - {0})


def test_the_negatives_are_fixed_by_the_split_s_seed(tmp_path: Path) -> None:
    one, again, other = (
        batches.load(prepare("r", synthetic.ranking, synthetic.RankingConfig(rows=400), SplitConfig(seed=seed), tmp_path / name), "test")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    lists = [held["candidates"] for held in (one, again, other)]
    assert all(isinstance(ragged, Ragged) for ragged in lists)
    assert lists[0].values.equal(lists[1].values)
    assert not lists[0].values.equal(lists[2].values)


def test_the_noise_is_the_optimum_of_ratings() -> None:
    assert synthetic.ratings(synthetic.RatingsConfig(rows=400)).optimum["rmse"] == synthetic.NOISE


def test_the_oracle_s_scores_are_those_of_the_default_within_its_own_noise() -> None:
    first, second = (synthetic.ranking(synthetic.RankingConfig(rows=20_000, seed=seed)).optimum for seed in (0, 1))
    assert 0.5 < first["hr_at_10"] < 0.75
    assert first["hr_at_5"] < first["hr_at_10"] < first["hr_at_20"]
    assert abs(first["hr_at_10"] - second["hr_at_10"]) < 0.06


def test_each_user_has_forty_distinct_items() -> None:
    for raw in (synthetic.ratings(synthetic.RatingsConfig(rows=800)), synthetic.ranking(synthetic.RankingConfig(rows=800))):
        pairs = raw.table.select(["user", "item"]).group_by(["user", "item"]).aggregate([]).num_rows
        assert pairs == raw.table.num_rows == 800
        assert set(np.bincount(raw.table["user"].to_numpy())) == {40}


def test_drawn_items_are_distinct_never_a_positive_and_all_alike() -> None:
    users, items = np.array([0, 0, 0, 1]), np.array([1, 4, 5, 0])
    drawer, rng = Positives(users, items, 7), np.random.default_rng(0)
    counts = np.zeros((2, 7))
    for _ in range(3000):
        drawn, valid = drawer.draw(np.array([0, 1]), 2, rng)
        assert valid.all()
        assert (drawn[:, 0] != drawn[:, 1]).all()
        counts[[0, 0, 1, 1], drawn.ravel()] += 1
    assert (counts[0, [1, 4, 5]] == 0).all()
    assert counts[1, 0] == 0
    assert np.allclose(counts[0, [0, 2, 3, 6]] / 3000, 0.5, atol=0.05)
    assert np.allclose(counts[1, 1:] / 3000, 1 / 3, atol=0.05)


def test_where_there_are_too_few_other_items_all_of_them_are_drawn() -> None:
    drawn, valid = Positives(np.array([0, 0]), np.array([1, 2]), 5).draw(np.array([0]), 9, np.random.default_rng(0))
    assert sorted(drawn[valid]) == [0, 3, 4]
