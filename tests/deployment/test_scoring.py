"""What a network is worth beside its baseline, and the pictures of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from models import classify
from models.family import Batch, Family, FamilyConfig
from models.recommender import Ranker
from orchestrator.deployment import scoring
from orchestrator.deployment.bundle import Bundle
from pipelines.prepare import Prepared, prepare
from pipelines.raw import Raw
from pipelines.schema import Column
from pipelines.sources import synthetic
from pipelines.splits import SplitConfig


@dataclass(frozen=True)
class Config:
    rows: int = 400


def numbers(config: Config) -> Raw:
    """A number in, a class or a number out: what the input says."""
    x = np.random.default_rng(0).normal(size=config.rows)
    table = pa.table({"x": x, "label": np.where(x > 0.5, "high", "low"), "target": 10 + 3 * x})
    return Raw(table, (Column("x", "number"),), Column("label", "class", dtype="str"))


def regression(config: Config) -> Raw:
    raw = numbers(config)
    return Raw(raw.table, raw.inputs, Column("target", "number"))


class Sign(Family):
    """Says what `weight` tells it of x: 1 right, 0 nothing, -1 wrong."""

    @dataclass(frozen=True)
    class Config(FamilyConfig):
        pass

    task, metrics, baseline_name = "classification", ("accuracy",), classify.BASELINE

    def __init__(self, weight: float, schema: Any) -> None:
        super().__init__(self.Config(), schema)
        self.weight = nn.Parameter(torch.tensor(weight))

    @classmethod
    def misfit(cls, schema: Any) -> str | None:
        return None

    def forward(self, batch: Batch) -> Tensor:
        score = (batch["x"].float() - 0.5) * self.weight * 5
        return torch.stack([score, torch.zeros_like(score)], 1)  # classes: high, low

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return classify.loss(outputs, batch["label"], None, 0.0, self.training)

    def decode(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return classify.decode(outputs)

    def baseline(self, batch: Batch) -> Tensor:
        return classify.majority(self.schema, batch["x"])


class Line(Sign):
    task, metrics, baseline_name = "regression", ("rmse", "mae"), "mean"

    def forward(self, batch: Batch) -> Tensor:
        return batch["x"].float() * self.weight

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs - (batch["target"].float() - self.schema.target.mean) / self.schema.target.std).square()

    def decode(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"prediction": outputs * self.schema.target.std + self.schema.target.mean}

    def baseline(self, batch: Batch) -> Tensor:
        return torch.zeros(len(batch["x"]))


class Alone(Sign):
    baseline = Family.baseline  # type: ignore[assignment]


Score = Callable[..., scoring.Scored]


@pytest.fixture
def score(tmp_path: Path) -> Score:
    """score(family, weight): of that network on the test rows; figures in tmp_path/figures."""

    def scored(family: type[Sign], weight: float, metric: str = "val_accuracy", load: Any = numbers) -> scoring.Scored:
        prepared: Prepared = prepare("numbers", load, Config(), SplitConfig(), tmp_path / load.__name__)
        net = family(weight, prepared.schema)
        return scoring.score(Bundle(tmp_path, net, prepared.encoder, {}), prepared, metric, figures=tmp_path / "figures")

    return scored


def test_a_network_that_knows_beats_its_baseline_by_more_than_noise(score: Score) -> None:
    scored = score(Sign, 1.0)
    assert scored.scores["test_accuracy"] == 1.0
    assert 0.55 < scored.baseline["test_accuracy"] < 0.85  # the majority, "low"
    assert scored.margin is not None
    low, high = scored.margin
    assert 0 < low <= 1 - scored.baseline["test_accuracy"] <= high


def test_one_that_says_the_majority_has_no_margin(score: Score) -> None:
    class Majority(Sign):
        def forward(self, batch: Batch) -> Tensor:
            return self.baseline(batch) * self.weight

    assert score(Majority, 1.0).margin == (0.0, 0.0)


def test_one_that_is_worse_has_a_margin_below_zero(score: Score) -> None:
    scored = score(Sign, -1.0)
    assert scored.margin is not None
    assert scored.margin[1] < 0


def test_where_less_is_better_the_margin_is_positive_for_the_lower_score(score: Score) -> None:
    scored = score(Line, 1.0, "val_rmse", regression)
    assert scored.scores["test_rmse"] < scored.baseline["test_rmse"] / 2
    assert scored.baseline["test_rmse"] == pytest.approx(3, rel=0.4)  # the target's own deviation
    assert scored.margin is not None
    assert scored.margin[0] > 0


def test_the_interval_is_that_of_a_bootstrap_that_draws_rows(score: Score) -> None:
    right = torch.rand(40, generator=torch.Generator().manual_seed(1)) < 0.7
    net = Sign(1.0, type("Schema", (), {"target": Column("label", "class"), "counts": (1, 1), "classes": ("high", "low")}))
    paired = scoring._Paired(scoring.Totals(net).metrics["accuracy"], net)
    label = torch.zeros(40, dtype=torch.long)
    own, base = (torch.stack([each.float(), 0.5 * torch.ones(40)], 1) for each in (right, torch.zeros(40)))
    paired.add(own, base, {"label": label})
    draws = np.random.default_rng(0).choice(right.numpy().astype(float), (20_000, 40)).mean(1)
    assert paired.interval() == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.04)


def test_a_family_without_a_baseline_has_scores_only(score: Score) -> None:
    scored = score(Alone, 1.0)
    assert scored.scores["test_accuracy"] == 1.0
    assert (scored.baseline, scored.margin) == ({}, None)


def test_scoring_leaves_the_network_in_its_mode_and_repeats_itself(score: Score) -> None:
    assert score(Sign, 0.3) == score(Sign, 0.3)


def test_classes_get_a_confusion_matrix_curves_and_calibration_as_pictures_and_numbers(score: Score, tmp_path: Path) -> None:
    score(Sign, 1.0)
    there = {path.name for path in (tmp_path / "figures").iterdir()}
    for name in ("confusion_matrix", "calibration", "roc", "precision_recall"):
        assert {f"{name}.png", f"{name}.json"} <= there
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    confusion = read(tmp_path, "confusion_matrix")
    assert confusion["classes"] == ["high", "low"]
    assert confusion["counts"][0][1] == confusion["counts"][1][0] == 0
    assert read(tmp_path, "per_class")["classes"]["high"]["recall"] == 1.0
    assert read(tmp_path, "roc")["classes"]["high"]["area"] == pytest.approx(1.0)
    assert read(tmp_path, "precision_recall")["classes"]["low"]["area"] == pytest.approx(1.0, abs=0.05)


def test_precision_and_recall_of_each_class_are_scikit_learns(score: Score, tmp_path: Path) -> None:
    from sklearn.metrics import precision_recall_fscore_support

    score(Sign, -0.1)  # mostly wrong
    counts = np.array(read(tmp_path, "confusion_matrix")["counts"])
    true, said = (np.repeat([0, 0, 1, 1], counts.ravel()), np.repeat([0, 1, 0, 1], counts.ravel()))
    precision, recall, f1, rows = precision_recall_fscore_support(true, said, zero_division=0.0)
    found = list(read(tmp_path, "per_class")["classes"].values())
    assert [each["precision"] for each in found] == pytest.approx(precision)
    assert [each["recall"] for each in found] == pytest.approx(recall)
    assert [each["f1"] for each in found] == pytest.approx(f1)
    assert [each["rows"] for each in found] == list(rows)


def test_numbers_get_their_residuals(score: Score, tmp_path: Path) -> None:
    scored = score(Line, 1.0, "val_rmse", regression)
    said = read(tmp_path, "residuals")
    assert said["mse"] ** 0.5 == pytest.approx(scored.scores["test_rmse"], rel=1e-5)
    assert said["mae"] == pytest.approx(scored.scores["test_mae"], rel=1e-5)
    assert said["r2"] > 0.9
    assert (tmp_path / "figures" / "residuals.png").exists()


def test_no_number_in_the_files_is_nan(score: Score, tmp_path: Path) -> None:
    """JSON knows none, and other readers refuse it."""
    score(Sign, 1.0)
    for path in (tmp_path / "figures").glob("*.json"):
        assert "NaN" not in path.read_text()


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / "figures" / f"{name}.json").read_text())


def test_a_ranking_on_other_data_leaves_out_what_those_users_have_seen(tmp_path: Path) -> None:
    one, other = (
        prepare(
            "r", synthetic.ranking, synthetic.RankingConfig(rows=2000, seed=seed), SplitConfig(by="leave_one_out"), tmp_path / str(seed)
        )
        for seed in (0, 1)
    )
    net = Ranker(Ranker.Config(dim=4), one.schema)
    net.bind(one.tables())
    scored = scoring.score(Bundle(tmp_path, net, one.encoder, {"fingerprint": one.fingerprint}), other, "val_ndcg_at_10")
    assert 0 <= scored.scores["test_full_hr_at_10"] <= 1
    expected = other.seen_by(one.encoder)
    assert not torch.equal(expected["seen.starts"], one.tables()["seen.starts"])
    assert torch.equal(net.seen.starts, expected["seen.starts"])
    assert torch.equal(net.seen.items + 1, expected["seen.items"].long())
