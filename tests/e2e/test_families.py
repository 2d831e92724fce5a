"""Every shipped family through the command line: learned to near its optimum, searched, promoted, asked; with one worker and with two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import DATA, Here, Shell

pytestmark = pytest.mark.slow
OFFLINE = ("sequence-lstm", "ratings-recommender", "ranking-recommender", "shapes-unet")


def missing(name: str) -> Any:
    """Skips a test where a real data set isn't."""
    return pytest.mark.skipif(not (DATA / name).is_dir(), reason=f"no {name} in {DATA}; set ORCHESTRATOR_TEST_DATA to where {name}/ lies")


def train(shell: Shell, config: str, *overrides: str) -> Any:
    return shell.run("train", f"configs/{config}.yaml", *overrides, "--json", timeout_s=900).json


@pytest.mark.parametrize(
    ("config", "metric", "least", "most"),
    [
        ("sequence-lstm", "accuracy", 0.97, 1.015),  # of the Bayes rate; far above it something leaks
        ("ratings-recommender", "rmse", 0.98, 1.30),  # of the noise
        ("ranking-recommender", "hr_at_10", 0.92, 1.04),  # of the oracle
    ],
)
def test_a_generated_task_is_learned_to_near_its_known_optimum(config: str, metric: str, least: float, most: float, here: Here) -> None:
    optimum = here.run("data", "show", f"configs/{config}.yaml", "--json").json["optimum"][metric]
    trained = train(here, config)
    assert least <= trained["test"][f"test_{metric}"] / optimum <= most
    assert trained["margin"][0] > 0, "it beats its baseline by more than noise"
    board = here.run("runs", trained["experiment"]).out
    assert "optimum" in board
    assert "baseline" in board


def test_shapes_are_segmented(here: Here) -> None:
    trained = train(here, "shapes-unet")
    assert trained["test"]["test_iou"] >= 0.9
    names = {Path(item.path).name for item in here.client().list_artifacts(trained["run_id"], "test")}
    assert {"examples.png", "per_class.json"} <= names


@pytest.mark.parametrize("config", OFFLINE)
def test_the_four_commands_serve_every_family(config: str, here: Here) -> None:
    path = f"configs/{config}.yaml"
    short = ("sweep.trials=3", "training.epochs=2")
    assert here.run("plan", path, *short, "--json").json["trials"] == 3
    swept = here.run("sweep", path, *short, "--json", timeout_s=600).json
    assert [trial["state"] for trial in swept["trials"]] == ["finished"] * 3 or {t["state"] for t in swept["trials"]} <= {
        "finished",
        "stopped",
    }
    assert len(here.run("runs", config, "--json").json["runs"]) == 3
    assert here.run("promote", config, "registry.require={}", "--json").json["decision"] == "promoted"
    test = here.run("data", "prepare", path, "--json").json["splits"]["test"]
    said = here.run("predict", f"models:/{config}@champion", test["files"][0], "out.parquet", "--json").json
    assert (said["rows"], said["failed"]) == (test["rows"], 0)
    assert pq.read_table(here.folder / "out.parquet").column("prediction").null_count == 0


@pytest.mark.long
@pytest.mark.parametrize(("config", "metric"), [("sequence-lstm", "test_accuracy"), ("ranking-recommender", "test_hr_at_10")])
def test_two_workers_learn_as_well_as_one(config: str, metric: str, here: Here) -> None:
    one, two = (train(here, config, f"scaling.workers={workers}") for workers in (1, 2))
    assert (one["executor"], two["executor"]) == ("inline", "ddp")
    assert abs(one["test"][metric] - two["test"][metric]) < 0.03


ONE_SEED = pytest.param(1, 0.01, id="one seed")  # of the mean's bar, about three standard deviations of one seed's score
MEAN_OF_THREE = pytest.param(3, 0.0, id="mean of three seeds", marks=pytest.mark.long)


@missing("mr")
@pytest.mark.parametrize(("seeds", "slack"), [ONE_SEED, MEAN_OF_THREE])
def test_film_reviews_reach_their_published_accuracy(here: Here, seeds: int, slack: float) -> None:
    path = f"data.path={DATA / 'mr'}"
    scores = [train(here, "sentiment-lstm", path, f"training.seed={seed}")["test"]["test_accuracy"] for seed in range(seeds)]
    assert sum(scores) / seeds >= 0.77 - slack, scores


@missing("ml-100k")
@pytest.mark.parametrize(("seeds", "slack"), [ONE_SEED, MEAN_OF_THREE])
def test_film_ratings_reach_their_published_error(here: Here, seeds: int, slack: float) -> None:
    path = f"data.path={DATA / 'ml-100k'}"
    assert train(here, "movielens-rating", path)["test"]["test_rmse"] <= 0.92
    splits = [f"data.split={{train: 0.87, validation: 0.03, test: 0.1, seed: {seed}}}" for seed in range(seeds)]
    scores = [train(here, "movielens-rating", path, split)["test"]["test_rmse"] for split in splits]
    assert sum(scores) / seeds <= 0.905 + slack, scores


@missing("ml-100k")
def test_film_rankings_reach_their_published_scores_and_say_both_protocols(here: Here) -> None:
    test = train(here, "movielens-ranking", f"data.path={DATA / 'ml-100k'}")["test"]
    assert test["test_hr_at_10"] >= 0.65
    assert test["test_ndcg_at_10"] >= 0.38
    assert 0 < test["test_full_hr_at_10"] < test["test_hr_at_10"]


def test_numbers_are_learned_from_sequences_and_their_residuals_are_drawn(here: Here) -> None:
    """A table of sequences with a number each: the mean of what the sequence holds."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(int(n), 2)) for n in rng.integers(3, 9, 300)]
    table = pa.table({"sequence": [s.tolist() for s in sequences], "target": [100 + 10 * float(s[:, 0].sum()) for s in sequences]})
    pq.write_table(table, here.folder / "walks.parquet")
    (here.folder / "walks.yaml").write_text(
        "name: walks\ndata: {source: table, path: walks.parquet}\nmodel: {family: lstm-regression, hidden: 16}\n"
        "optimizer: {lr: 1e-2}\ntraining: {epochs: 15, batch_size: 32}\n"
    )
    trained = here.run("train", "walks.yaml", "--json").json
    assert trained["test"]["test_rmse"] < trained["baseline"]["test_rmse"] / 2
    folder = next((here.folder / ".orchestrator" / "figures").iterdir())
    assert json.loads((folder / "residuals.json").read_text())["r2"] > 0.7


@pytest.mark.long
@pytest.mark.parametrize(
    ("config", "short", "metric", "noise"),
    [
        ("shapes-unet", ("data.rows=300", "training.epochs=4"), "test_iou", 0.05),
        ("ratings-recommender", ("data.rows=8000", "training.epochs=8"), "test_rmse", 0.03),
    ],
)
def test_two_workers_come_where_one_does_after_a_few_epochs(
    config: str, short: tuple[str, ...], metric: str, noise: float, here: Here
) -> None:
    one, two = (train(here, config, *short, f"scaling.workers={workers}") for workers in (1, 2))
    assert (one["executor"], two["executor"]) == ("inline", "ddp")
    assert abs(one["test"][metric] - two["test"][metric]) < noise
    better = 1 if metric == "test_iou" else -1
    assert all(better * run["test"][metric] > better * run["baseline"][metric] for run in (one, two)), "both learned something"
