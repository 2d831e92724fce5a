"""Negatives are no positives, held-out items land where they should, and metrics are those of independent libraries."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchmetrics.functional.retrieval as theirs
from sklearn.metrics import ndcg_score
from torch import Tensor

from models import ranking
from models.metrics import METRICS
from models.ranking import Seen, placed, ranks, sampled_softmax
from orchestrator import names
from pipelines.schema import Column, Schema

SCHEMA = Schema((Column("user", "id", vocabulary=5), Column("item", "id", vocabulary=7)), Column("target", "ranking"))


def seen(items: list[list[int]], n_items: int, parts: list[list[int]] | None = None) -> Seen:
    """Of users from 1, items from 1."""
    made = Seen(len(items) + 1, n_items)
    starts = torch.tensor([0, 0, *(len(row) for row in items)]).cumsum(0)
    flat = torch.tensor([item for row in items for item in row]).int()
    of = torch.tensor([part for row in parts for part in row]) if parts else torch.zeros(len(flat))
    made.bind({"starts": starts, "items": flat, "parts": of.byte()})
    return made


def test_negatives_are_never_positives_and_every_other_item_is_drawn_as_often() -> None:
    torch.manual_seed(0)
    had = [[1, 2, 6], [], [1, 3, 5], [2]]
    drawn = seen(had, 6).negatives(torch.tensor([1, 2, 3, 4]), 60_000)
    for user, items in enumerate(had):
        counts = torch.bincount(drawn[user], minlength=6)
        free = [item - 1 for item in range(1, 7) if item not in items]
        assert counts.nonzero()[:, 0].tolist() == free
        assert torch.allclose(counts[free] / 60_000, torch.tensor(1 / len(free)), atol=0.01)


def test_items_of_validation_and_test_may_be_negatives_in_training() -> None:
    """Who leaves them out has looked at the answers."""
    torch.manual_seed(0)
    drawn = seen([[1, 2, 3]], 4, [[0, 1, 2]]).negatives(torch.tensor([1]), 500)
    assert set(drawn[0].tolist()) == {1, 2, 3}


def test_a_user_who_has_had_everything_still_gets_a_negative() -> None:
    drawn = seen([[1, 2, 3]], 3).negatives(torch.tensor([1]), 10)
    assert set(drawn[0].tolist()) <= {0, 1, 2}


def test_what_a_user_has_had_in_training_is_found() -> None:
    had = seen([[1, 4], [2], []], 5, [[0, 0], [1], []]).had(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 3, 4]))
    assert had.tolist() == [[True, False, True, False], [False] * 4, [False] * 4]


def test_items_of_earlier_parts_are_left_out_of_a_ranking() -> None:
    made = seen([[1, 2, 3], [4]], 4, [[0, 1, 2], [0]])
    for before, left_out in ((1, [[0], [3]]), (2, [[0, 1], [3]]), (3, [[0, 1, 2], [3]])):
        scores = made.leave_out(torch.zeros(2, 4), torch.tensor([1, 2]), torch.tensor([before, before]))
        assert [(row == -math.inf).nonzero()[:, 0].tolist() for row in scores] == left_out


@pytest.mark.parametrize("many", [1, 80])
def test_ranks_are_places_in_the_order_of_scores(many: int) -> None:
    scores = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    order = scores.argsort(1, descending=True).argsort(1)
    assert torch.equal(ranks(scores, scores[:, :many]), order[:, :many])


def test_ties_count_half() -> None:
    """So that a network that gives everything one score is no good and no bad ranking."""
    assert ranks(torch.zeros(1, 101), torch.zeros(1, 1)).tolist() == [[50]]
    assert ranks(torch.zeros(1, 101), torch.zeros(1, 70)).double().mean() == pytest.approx(50, abs=0.5)


@pytest.mark.parametrize("many", [2, 5, 70])
def test_held_out_items_of_one_score_have_a_place_each(many: int) -> None:
    """As far apart as by chance, between what is above and what is below."""
    scores = torch.cat([torch.full((1, 10), 2.0), torch.ones(1, 100), torch.zeros(1, 10)], 1)
    found = ranks(scores, torch.ones(1, many))[0]
    expected = 10 + (torch.arange(many) + 1) * 101 / (many + 1) - 1  # the mean of order statistics
    assert len(found.unique()) == many
    assert (found - expected).abs().max() < 1
    assert ranks(torch.ones(1, many), torch.ones(1, many)).tolist() == [list(range(many))]


def test_what_is_not_held_out_takes_no_place_of_a_tie() -> None:
    scores, held = torch.zeros(2, 101), torch.tensor([[True, False, False], [True, True, False]])
    found = ranks(scores, torch.zeros(2, 3), held)
    assert found[0, 0] == 50
    assert found[1, :2].tolist() == [33, 67]


@pytest.mark.parametrize("many", [1, 70])
def test_a_score_that_is_no_number_is_nowhere_and_pushes_no_other_down(many: int) -> None:
    scores = torch.arange(100.0).flip(0)[None].clone()
    scores[0, 50] = math.nan
    wanted = torch.cat([scores[:, 50:51], scores[:, :many]], 1)
    found = ranks(scores, wanted)
    expected = [*range(50), ranking.NOWHERE, *range(50, 99)]
    assert found[0, 1:].tolist() == expected[:many]
    hits, first = placed(found[:, :1], torch.ones(1, 1, dtype=torch.bool))
    assert not hits.any()
    assert 1 / (1 + first.double()) < 1e-12


def outputs_of(scores: Tensor, relevant: Tensor) -> dict[str, Tensor]:
    """Of score matrices [B, N] and which items are held-out [B, N]."""
    held = relevant.sum(1)
    rows = [scores[row][relevant[row]] for row in range(len(scores))]
    wanted = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-math.inf)
    hits, first = placed(ranks(scores, wanted), torch.arange(wanted.shape[1]) < held[:, None])
    return {f"{protocol}.{name}": v for protocol in ("sampled", "full") for name, v in (("hits", hits), ("first", first))} | {"held": held}


def value(name: str, outputs: dict[str, Tensor]) -> float:
    metric: Any = names.load(METRICS[name], {}, "metric")()
    return float(metric.value(metric.sums(outputs, {}, SCHEMA)))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_torchmetrics_and_scikit_learn(share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(40, 150, generator=generator) + 0.01  # torchmetrics takes a score of 0 or less for not retrieved
    relevant = torch.rand(40, 150, generator=generator) < share
    relevant[torch.arange(40), torch.randint(150, (40,), generator=generator)] = True
    outputs = outputs_of(scores, relevant)

    def mean(function: Any, **options: Any) -> float:
        return float(torch.stack([function(s, r, **options) for s, r in zip(scores, relevant, strict=True)]).mean())

    for k in (5, 10, 20):
        assert value(f"hr_at_{k}", outputs) == pytest.approx(mean(theirs.retrieval_hit_rate, top_k=k), abs=1e-6)
        assert value(f"ndcg_at_{k}", outputs) == pytest.approx(ndcg_score(relevant.numpy(), scores.numpy(), k=k), abs=1e-6)
    assert value("mrr", outputs) == pytest.approx(mean(theirs.retrieval_reciprocal_rank), abs=1e-6)
    assert value("recall_at_10", outputs) == pytest.approx(mean(theirs.retrieval_recall, top_k=10), abs=1e-6)
    assert value("full_ndcg_at_10", outputs) == value("ndcg_at_10", outputs)


def test_tied_held_out_items_are_all_hits() -> None:
    """Three that share the best score, two that share the next, among 50: as if each had a score of its own."""
    scores = torch.zeros(1, 50)
    scores[0, [4, 8, 15]], scores[0, [16, 23]] = 3.0, 2.0
    relevant = scores > 0
    outputs = outputs_of(scores, relevant)
    assert outputs["full.hits"][0].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert value("recall_at_10", outputs) == 1.0
    assert value("ndcg_at_10", outputs) == pytest.approx(1.0)
    assert value("mrr", outputs) == 1.0


def test_scores_that_are_all_one_recall_what_chance_would() -> None:
    relevant = torch.zeros(1, 200, dtype=torch.bool)
    relevant[0, :40] = True
    outputs = outputs_of(torch.zeros(1, 200), relevant)
    assert value("recall_at_10", outputs) == pytest.approx(10 / 200, abs=1 / 40)
    assert value("ndcg_at_10", outputs) == pytest.approx(40 / 200, abs=0.1)


def test_rows_without_held_out_items_do_not_count() -> None:
    scores, relevant = torch.randn(4, 30), torch.zeros(4, 30, dtype=torch.bool)
    relevant[0, 3] = relevant[2, 5] = True
    some = outputs_of(scores[[0, 2]], relevant[[0, 2]])
    every = {name: torch.zeros(4, *v.shape[1:], dtype=v.dtype).index_copy(0, torch.tensor([0, 2]), v) for name, v in some.items()}
    for name in ("hr_at_10", "ndcg_at_10", "mrr", "recall_at_10"):
        assert value(name, every) == pytest.approx(value(name, some), abs=1e-12)


def test_coverage_is_the_share_of_items_that_anybody_is_shown() -> None:
    outputs = {"full.top": torch.tensor([[1, 2], [2, 0], [5, 1]])}
    assert value("coverage_at_10", outputs) == pytest.approx(3 / 6)


def test_a_corrected_sampled_softmax_is_the_full_one_in_the_mean() -> None:
    """Popular items are drawn more often; without the correction it would be another loss."""
    torch.manual_seed(0)
    scores, q = torch.randn(1, 50), torch.rand(50).pow(2).add(0.01)
    q = q / q.sum()
    full = float(scores[0].logsumexp(0) - scores[0, 7])
    had = torch.zeros(1, 50, dtype=torch.bool)
    had[0, 7] = True
    drawn = torch.multinomial(q, 200_000, replacement=True)
    assert float(sampled_softmax(scores[:, 7], scores[:, drawn], q[drawn].log(), had[:, drawn])) == pytest.approx(full, abs=0.02)
    wrong = float(sampled_softmax(scores[:, 7], scores[:, drawn], torch.full((200_000,), -math.log(50)), had[:, drawn]))
    assert abs(wrong - full) > 0.05


def test_every_ranking_metric_is_known() -> None:
    assert set(ranking.METRICS) <= set(METRICS)
