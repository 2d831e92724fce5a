"""Recommenders keep the contract in every form, answer unknown ids as they say, and features earn their place."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from models.family import Family
from models.pairs import top
from models.recommender import Ranker, Recommender
from orchestrator.training.evaluation import Evaluation, Totals
from orchestrator.training.loop import Settings, Training
from orchestrator.training.optim import Adam
from pipelines import batches
from pipelines.answer import answer
from pipelines.prepare import Prepared, prepare
from pipelines.raw import Raw
from pipelines.schema import Column, Schema
from pipelines.sources import synthetic
from pipelines.splits import SplitConfig
from tests.contracts.family_contract import Batch, FamilyContract, close

USERS, ITEMS = 9, 40
FEATURES = {
    "user": (Column("group", "words", vocabulary=4), Column("age", "measure", vocabulary=1)),
    "item": (Column("genres", "words", vocabulary=5),),
}


def schema_of(target: Column, features: bool = True) -> Schema:
    inputs = (Column("user", "id", vocabulary=USERS + 1), Column("item", "id", vocabulary=ITEMS + 1))
    return Schema(inputs, target, features=FEATURES if features else {})


def feature_tables() -> dict[str, Tensor]:
    """One or more feature values of every id but 0: of users a group and an age, of items two genres."""
    users, items = torch.arange(1, USERS + 1), torch.arange(1, ITEMS + 1)
    return {
        "users.codes": torch.stack([1 + users % 3, torch.full_like(users, 4)], 1).flatten(),
        "users.weights": torch.stack([torch.ones(USERS), torch.linspace(-1, 1, USERS)], 1).flatten(),
        "users.starts": torch.cat([torch.zeros(1).long(), 2 * torch.arange(USERS + 1)]),
        "items.codes": torch.stack([1 + items % 4, 1 + (items + 1) % 4], 1).flatten(),
        "items.weights": torch.full((2 * ITEMS,), 0.5),
        "items.starts": torch.cat([torch.zeros(1).long(), 2 * torch.arange(ITEMS + 1)]),
    }


def tables(features: bool = True) -> dict[str, Tensor]:
    """Each user has had three items in training, one in validation and one in test."""
    items = torch.stack([torch.arange(5) * 2 + user for user in range(1, USERS + 1)])
    rows = torch.bincount(items[:, :3].flatten(), minlength=ITEMS + 1).clamp_min(1)
    rows[0] = 0
    return {
        "users.rows": torch.tensor([0] + [3] * USERS),
        "items.rows": rows,
        "seen.starts": torch.cat([torch.zeros(1).long(), 5 * torch.arange(USERS + 1)]),
        "seen.items": items.flatten().int(),
        "seen.parts": torch.tensor([0, 0, 0, 1, 2] * USERS).byte(),
        "rating.range": torch.tensor([1.0, 5.0]),
    } | (feature_tables() if features else {})


class PairContract(FamilyContract):
    features = True
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def config(self) -> Any:
        return self.family.Config(dim=4, **self.options)

    @pytest.fixture
    def net(self, config: Any, schema: Schema) -> Family:
        torch.manual_seed(0)
        net = self.family(config, schema)
        net.bind(tables(self.features))
        return net

    def test_its_state_makes_another_one_the_same(self, net: Family, config: Any, schema: Schema, batch: Batch) -> None:
        """Tables are bound, not loaded: they are no weights."""
        other = self.family(config, schema)
        other.load_state_dict(net.state_dict())
        other.bind(tables(self.features))
        with torch.inference_mode():
            assert close(other.eval()(batch), net.eval()(batch))


class RatingContract(PairContract):
    family = Recommender

    @pytest.fixture
    def schema(self) -> Schema:
        return schema_of(Column("rating", "number", mean=3.0, std=1.2), self.features)

    @pytest.fixture
    def batch(self) -> Batch:
        user = torch.arange(8) % USERS + 1
        return {"user": user, "item": user * 3, "rating": torch.tensor([1, 2, 3, 4, 5, 1.5, 2.5, 4.5], dtype=torch.float64)}


class TestFactorsWithFeatures(RatingContract):
    pass


class TestFactorsOfIdsAlone(RatingContract):
    features = False
    options: ClassVar[dict[str, Any]] = {"reg": 0.01, "dropout": 0.1}


class TestRatingsByCrossEntropy(RatingContract):
    options: ClassVar[dict[str, Any]] = {"loss": "bce"}


class TestRatingsByTwoTowers(RatingContract):
    options: ClassVar[dict[str, Any]] = {"kind": "two_tower", "id_dropout": 0.1}


class TestRatingsByANetwork(RatingContract):
    options: ClassVar[dict[str, Any]] = {"kind": "neumf", "hidden": (16, 8)}


class RankContract(PairContract):
    family = Ranker

    @pytest.fixture
    def schema(self) -> Schema:
        return schema_of(Column("target", "ranking"), self.features)

    @pytest.fixture
    def batch(self) -> Batch:
        user = torch.arange(8) % USERS + 1
        item = user + 6
        others = torch.stack([(one + torch.arange(12) * 3) % ITEMS + 1 for one in item])
        held = torch.ones(8, dtype=torch.int64)
        sizes = torch.full((8, 1), 13)
        return {
            "user": user, "item": item, "target": torch.ones(8, dtype=torch.int8), "candidates": torch.cat([item[:, None], others], 1),
            "candidates.sizes": sizes, "held": held, "part": held,
        }  # fmt: skip

    def test_the_target_is_not_looked_at(self, net: Family, batch: Batch) -> None:
        """A request has no held-out items: it gets the pairs' scores, which are those of an evaluation."""
        net.eval()
        with torch.inference_mode():
            asked = net({name: batch[name] for name in ("user", "item")})
            assert torch.allclose(asked["score"], net(batch)["score"], atol=1e-5)

    def test_its_baseline_has_outputs_of_the_same_form_and_looks_at_no_input(self, net: Family, batch: Batch) -> None:
        """It looks at items, as their popularity is all that it knows, and at no user."""
        net.eval()
        with torch.inference_mode():
            guessed, found = net.baseline(batch), net(batch)
            assert {name: values.shape for name, values in guessed.items()} == {name: values.shape for name, values in found.items()}
            assert torch.isfinite(net.loss(guessed, batch)).all()
            other = net.baseline({**batch, "user": batch["user"].flip(0)})
            assert torch.equal(other["score"], guessed["score"])
        assert net.baseline_name == "popularity"


class TestFullSoftmax(RankContract):
    pass


class TestFullSoftmaxOfIdsAlone(RankContract):
    features = False
    options: ClassVar[dict[str, Any]] = {"reg": 0.01}


class TestSampledSoftmaxByTwoTowers(RankContract):
    options: ClassVar[dict[str, Any]] = {"kind": "two_tower", "loss": "sampled_softmax", "negatives": 64, "reg": 0.01}


class TestPairwise(RankContract):
    options: ClassVar[dict[str, Any]] = {"loss": "bpr", "negatives": 8}


class TestANetworkByCrossEntropy(RankContract):
    options: ClassVar[dict[str, Any]] = {"kind": "neumf", "loss": "bce", "hidden": (8,)}


# answers ------------------------------------------------------------------------------------------------------------------------


def ranker(**options: Any) -> Ranker:
    torch.manual_seed(0)
    net = Ranker(Ranker.Config(dim=4, **options), schema_of(Column("target", "ranking")))
    net.bind(tables())
    return net.eval()


@torch.inference_mode()
def test_unknown_ids_are_answered_by_features_else_by_the_listed_items_else_by_popularity() -> None:
    net = ranker()
    batch = {"user": torch.tensor([1, 0, 0, 0]), "item": torch.tensor([5, 5, 5, 5])}
    asked = {
        "group": torch.tensor([[1], [2], [0], [0]]), "group.sizes": torch.tensor([[1], [1], [0], [0]]),
        "history": torch.tensor([[7, 0], [7, 8], [7, 8], [0, 0]]), "history.sizes": torch.tensor([[1], [2], [2], [1]]),
    }  # fmt: skip
    request = batch | asked
    answers = net.decode(net(request), request)
    assert answers["answered_by"] == ["model", "features", "items", "popularity"]
    items = net.items(torch.tensor([5, 7, 8]))
    assert answers["prediction"][2] == pytest.approx(float((items[0, :4] * items[1:, :4].mean(0)).sum() + items[0, 4]), abs=1e-6)
    assert answers["prediction"][3] == pytest.approx(float(net.popularity[5]), abs=1e-6)


@torch.inference_mode()
def test_features_of_a_request_count_as_the_same_ones_of_a_known_id_do() -> None:
    net = ranker()
    known = net.users(torch.tensor([3])) - net.users.ids(torch.tensor([3]))
    asked = {"group": torch.tensor([[1]]), "group.sizes": torch.tensor([[1]]), "age": torch.linspace(-1, 1, USERS)[2:3]}
    vectors, there = net.users.asked(asked)
    assert torch.allclose(vectors, known, atol=1e-6)
    assert bool(there)


@torch.inference_mode()
def test_of_an_unknown_user_of_ratings_the_means_are_told() -> None:
    net = Recommender(Recommender.Config(dim=4), schema_of(Column("rating", "number", mean=3.0, std=1.2), features=False)).eval()
    net.bind(tables(features=False))
    request = {"user": torch.tensor([0]), "item": torch.tensor([5])}
    answers = net.decode(net(request), request)
    assert answers["answered_by"] == ["popularity"]
    assert answers["prediction"].item() == pytest.approx(3.0 + 1.2 * float(net.items.ids.weight[5, 4]), abs=1e-6)


@torch.inference_mode()
def test_the_best_items_of_a_user_leave_out_all_that_it_has_had() -> None:
    net = ranker()
    best = net.top_k({"user": torch.tensor([1, 4, 0])}, 38)
    for place, user in enumerate((1, 4)):
        had = {2 * step + user for step in range(5)}
        chosen = best["items"][place].tolist()
        assert set(chosen[:35]) == set(range(1, ITEMS + 1)) - had
        assert chosen[35:] == [0, 0, 0]
        assert best["scores"][place, 35:].tolist() == [-math.inf] * 3
    assert torch.equal(best["scores"], best["scores"].sort(1, descending=True).values)
    assert best["answered_by"] == ["model", "model", "popularity"]
    assert torch.equal(best["scores"][2][:3], net.popularity[1:].topk(3).values)


@pytest.mark.parametrize(("rows", "columns", "k"), [(3, 50, 10), (4, 5003, 10), (2, 4096, 3)])
def test_the_sooner_top_is_the_top(rows: int, columns: int, k: int) -> None:
    scores = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    mine, theirs = top(scores, k), scores.topk(k, 1)
    assert torch.equal(mine.values, theirs.values)
    assert torch.equal(mine.indices, theirs.indices)


def test_features_of_ids_lie_in_buffers_that_are_no_weights() -> None:
    names = {name for name, _ in ranker().state_dict().items()}
    assert names == {"users.ids.weight", "users.features.weight", "items.ids.weight", "items.features.weight"}


@pytest.mark.parametrize(
    ("family", "schema", "says"),
    [
        (Ranker, schema_of(Column("rating", "number")), "it ranks positives: set data.implicit: true"),
        (Recommender, schema_of(Column("target", "ranking")), "use ranker"),
        (Ranker, Schema((Column("x", "number"),), Column("target", "ranking")), "two columns of ids"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_the_way_out(family: type[Family], schema: Schema, says: str) -> None:
    assert says in (family.misfit(schema) or "")


def test_ratings_that_are_all_the_same_have_no_cross_entropy() -> None:
    same = tables() | {"rating.range": torch.tensor([3.0, 3.0])}
    schema = schema_of(Column("rating", "number", mean=3.0))
    Recommender(Recommender.Config(dim=4), schema).bind(same)
    with pytest.raises(ValueError, match=r"model\.loss: bce needs ratings that differ, and all of the training rows' are 3; use mse"):
        Recommender(Recommender.Config(dim=4, loss="bce"), schema).bind(same)


def test_large_tables_have_sparse_gradients_where_the_loss_touches_single_rows() -> None:
    inputs = (Column("user", "id", vocabulary=100_002), Column("item", "id", vocabulary=100_002))
    for loss, sparse in (("bpr", True), ("sampled_softmax", True), ("softmax", False)):
        net = Ranker(Ranker.Config(dim=1, loss=loss), Schema(inputs, Column("target", "ranking")))  # type: ignore[arg-type]
        assert (net.users.ids.sparse, net.items.ids.sparse) == (True, sparse)
    small = (Column("user", "id", vocabulary=100_002), Column("item", "id", vocabulary=5))
    net = Ranker(Ranker.Config(dim=1, loss="bpr"), Schema(small, Column("target", "ranking")))
    assert (net.users.ids.sparse, net.items.ids.sparse) == (True, False)


# learning -----------------------------------------------------------------------------------------------------------------------


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
