"""Recommenders learn: features earn their place, a ranking comes near its oracle, and the ranks' shares add up to the whole."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from models.recommender import Ranker, Recommender
from orchestrator.training.evaluation import Evaluation, Totals
from orchestrator.training.loop import Settings, Training
from orchestrator.training.optim import Adam
from pipelines import batches
from pipelines.answer import answer
from pipelines.prepare import Prepared, prepare
from pipelines.raw import Raw
from pipelines.sources import synthetic
from pipelines.splits import SplitConfig
from tests.contracts.pair_contract import ITEMS, ranker


def train(net: Any, prepared: Prepared, epochs: int, batch_size: int) -> dict[str, float]:
    """Test scores after some epochs."""
    rows = {part: batches.load(prepared, part) for part in ("train", "validation", "test")}
    shuffled = batches.Batches(rows["train"], batch_size, seed=0)
    optimizer = (Adam, Adam.Config(lr=1e-2, schedule="onecycle"))
    training = Training(net, prepared.encoder, shuffled, rows["validation"], optimizer, Settings(epochs, batch_size, seed=0))
    while not training.finished:
        training.run_epoch()
    return Evaluation(net, prepared.encoder)(rows["test"], "test")


def cold(shuffled: bool) -> Any:
    """A source whose test users have no training rows; `shuffled`: features are some other user's and item's."""

    def load(config: synthetic.RatingsConfig) -> Raw:
        raw = synthetic.ratings(config)
        user = raw.table["user"].to_numpy()
        part = np.where(user % 5 == 0, "test", np.where(user % 5 == 1, "validation", "train"))
        if not shuffled:
            return replace(raw, official=part)
        rng, sides = np.random.default_rng(0), {}
        for name, side in raw.sides.items():
            order = pa.array(rng.permutation(side.table.num_rows))
            mixed = {c: side.table[c] if c == name else side.table[c].take(order) for c in side.table.column_names}
            sides[name] = replace(side, table=pa.table(mixed))
        return replace(raw, official=part, sides=sides)

    return load


def test_features_lower_the_error_for_users_without_training_rows_and_shuffled_ones_do_not(tmp_path: Path) -> None:
    scores = {}
    for name, source in (("real", cold(False)), ("shuffled", cold(True))):
        prepared = prepare(name, source, synthetic.RatingsConfig(rows=8000), SplitConfig(), tmp_path)
        for used in ("features", "ids alone"):
            torch.manual_seed(0)
            schema = prepared.schema if used == "features" else replace(prepared.schema, features={})
            net = Recommender(Recommender.Config(dim=8, reg=0.05, id_dropout=0.2), schema)
            bound = prepared.tables()
            net.bind(bound if used == "features" else {k: v for k, v in bound.items() if k.split(".")[1] in ("rows", "range")})
            scores[name, used] = train(net, prepared, 15, 512)["test_rmse"]
    assert scores["real", "features"] < 0.9 * scores["real", "ids alone"], scores
    assert scores["shuffled", "features"] > 0.97 * scores["shuffled", "ids alone"], scores


def test_a_ranking_comes_near_its_oracle_and_both_protocols_are_told(tmp_path: Path) -> None:
    prepared = prepare("r", synthetic.ranking, synthetic.RankingConfig(rows=12_000), SplitConfig(by="leave_one_out"), tmp_path)
    torch.manual_seed(0)
    net = Ranker(Ranker.Config(dim=8, dropout=0.2), prepared.schema)
    net.bind(prepared.tables())
    scores = train(net, prepared, 20, 2048)
    guessed = Evaluation(net, prepared.encoder)(batches.load(prepared, "test"), "test", forward=net.baseline)
    assert 0.75 < scores["test_hr_at_10"] / prepared.optimum["hr_at_10"] < 1.15
    assert scores["test_hr_at_10"] > 1.5 * guessed["test_hr_at_10"]
    assert scores["test_full_hr_at_10"] < scores["test_hr_at_10"]
    assert 0 < scores["test_coverage_at_10"] <= 1


def test_ranks_of_a_rank_s_share_add_up_to_those_of_all(tmp_path: Path) -> None:
    prepared = prepare("r", synthetic.ranking, synthetic.RankingConfig(rows=2000), SplitConfig(), tmp_path)
    net = Ranker(Ranker.Config(dim=4), prepared.schema)
    net.bind(prepared.tables())
    net.eval()
    held = batches.load(prepared, "test")
    metrics = Totals(net).metrics
    totals: list[dict[str, Tensor]] = []
    with torch.inference_mode():
        for size, world_size in ((250, 1), (7, 3)):
            sums: dict[str, Tensor] = {}
            for rank in range(world_size):
                for piece in held.in_order(size, rank, world_size):
                    batch = prepared.encoder.tensors(piece)
                    outputs = net(batch)
                    for name, metric in metrics.items():
                        sums[name] = sums.get(name, torch.zeros(())) + metric.sums(outputs, batch, prepared.schema)
            totals.append(sums)
    for name in metrics:
        assert torch.allclose(totals[0][name], totals[1][name], atol=1e-9), name
    assert totals[0]["hr_at_10"][1] == len(set(held["user"].tolist())), "each user counts once"


def test_a_table_of_pairs_is_answered_with_the_user_s_and_the_item_s_own_ids(tmp_path: Path) -> None:
    prepared = prepare("r", synthetic.ratings, synthetic.RatingsConfig(rows=2000), SplitConfig(), tmp_path)
    net = Recommender(Recommender.Config(dim=4), prepared.schema)
    net.bind(prepared.tables())
    table = pa.table({"user": [1, 10**9, 10**9], "item": [3, 3, 10**9], "group": ["a", "b", None], "age": [30.0, None, None]})
    answers, errors = answer(net, prepared.encoder, table)
    assert errors == {}
    assert answers["answered_by"].to_pylist() == ["model", "features", "popularity"]
    assert all(math.isfinite(value) for value in answers["prediction"].to_pylist())


def test_rows_are_ranked_some_at_a_time_where_the_items_are_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepared = prepare("s", synthetic.ranking, synthetic.RankingConfig(rows=2000), SplitConfig(by="leave_one_out"), tmp_path)
    torch.manual_seed(0)
    net = Ranker(Ranker.Config(dim=4), prepared.schema)
    net.bind(prepared.tables())
    rows, evaluation = batches.load(prepared, "test"), Evaluation(net, prepared.encoder)
    whole, guessed = evaluation(rows, "test"), evaluation(rows, "test", forward=net.baseline)
    monkeypatch.setattr("models.recommender.MOST_SCORES", 7 * 500)
    for expected, forward in ((whole, None), (guessed, net.baseline)):
        found = evaluation(rows, "test", forward=forward)
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "softmax", "reg": 0.01},
        {"loss": "sampled_softmax", "kind": "two_tower", "sparse": "always"},
        {"loss": "bpr", "negatives": 3, "reg": 0.01},
        {"loss": "bce", "kind": "neumf", "sparse": "always"},
    ],
)
def test_gradients_of_uneven_pieces_of_a_batch_add_up_to_those_of_the_whole(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that ranks which share a batch learn what one process does, one of them having no row of a last batch."""
    monkeypatch.setattr("models.ranking.Seen.negatives", lambda _, users, count: (users[:, None] * 7 + torch.arange(count)) % ITEMS)
    net, user = ranker(**options).train(), torch.tensor([1, 4, 1, 9, 3])
    batch, gradients = {"user": user, "item": user + 6, "target": torch.ones(5)}, []
    for cuts in ((0, 5), (0, 3, 5, 5)):
        net.zero_grad()
        for start, end in pairwise(cuts):
            piece = {name: values[start:end] for name, values in batch.items()}
            torch.manual_seed(0)  # draws that a batch shares
            net.loss(net(piece), piece).sum().backward()
        gradients.append({name: p.grad.to_dense().clone() for name, p in net.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, whole in gradients[0].items():
        assert torch.allclose(whole, gradients[1][name], atol=1e-6), name
    assert all(gradients[0][f"{name}.ids.weight"].abs().sum() > 0 for name in ("users", "items"))
