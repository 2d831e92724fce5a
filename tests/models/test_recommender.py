"""Recommenders keep the contract in every form, and answer unknown ids as they say."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch

from models.family import Family
from models.pairs import top
from models.recommender import Ranker, Recommender
from pipelines.schema import Column, Schema
from tests.contracts.family_contract import Batch
from tests.contracts.pair_contract import ITEMS, USERS, PairContract, ranker, schema_of, tables


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


def test_a_full_softmax_that_no_memory_holds_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    net, user = ranker().train(), torch.tensor([1, 4, 1, 9, 3])
    batch = {"user": user, "item": user + 6, "target": torch.ones(5)}
    monkeypatch.setattr("models.recommender.MOST_LOGITS", 4 * ITEMS)
    assert net(batch)["loss"].shape == (5,)
    monkeypatch.setattr("models.recommender.MOST_LOGITS", 4 * ITEMS - 1)
    with pytest.raises(ValueError, match=r"softmax scores 4 users of a step with each of 40 items: .* use sampled_softmax, or a smaller"):
        net(batch)
    assert ranker(loss="sampled_softmax").train()(batch)["loss"].shape == (5,)
    assert net.eval()(batch)["score"].shape == (5,)


def test_a_million_items_and_a_batch_of_4096_are_told_to_be_16_gb() -> None:
    inputs = (Column("user", "id", vocabulary=5000), Column("item", "id", vocabulary=1_000_001))
    net = Ranker(Ranker.Config(dim=1), Schema(inputs, Column("target", "ranking"))).train()
    user = torch.arange(1, 4097)
    with pytest.raises(ValueError, match=r"4,096 users of a step with each of 1,000,000 items: 16 GB, .* the most is 9 GB: use sampled_"):
        net({"user": user, "item": user})


def test_large_tables_have_sparse_gradients_where_the_loss_touches_single_rows() -> None:
    inputs = (Column("user", "id", vocabulary=100_002), Column("item", "id", vocabulary=100_002))
    for loss, sparse in (("bpr", True), ("sampled_softmax", True), ("softmax", False)):
        net = Ranker(Ranker.Config(dim=1, loss=loss), Schema(inputs, Column("target", "ranking")))  # type: ignore[arg-type]
        assert (net.users.ids.sparse, net.items.ids.sparse) == (True, sparse)
    small = (Column("user", "id", vocabulary=100_002), Column("item", "id", vocabulary=5))
    net = Ranker(Ranker.Config(dim=1, loss="bpr"), Schema(small, Column("target", "ranking")))
    assert (net.users.ids.sparse, net.items.ids.sparse) == (True, False)
