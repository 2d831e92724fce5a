"""Which run is best."""

from __future__ import annotations

from typing import Any

from orchestrator.events import Best, TrialResult, best_first


def run(trial: int | None, **metrics: float) -> TrialResult:
    best = Best(1, metrics) if metrics else None
    return TrialResult(trial, None, "finished", None, {}, 1, best, None, 1.0)


def order(runs: list[TrialResult], metric: str = "val_accuracy", mode: str = "max") -> list[Any]:
    return [result.trial for result in best_first(runs, metric, mode)]


def test_the_highest_comes_first_and_runs_without_a_score_last() -> None:
    assert order([run(0, val_accuracy=0.5), run(1), run(2, val_accuracy=0.9), run(3, val_loss=0.1)]) == [2, 0, 1, 3]


def test_the_lowest_comes_first_where_less_is_better() -> None:
    assert order([run(0, val_rmse=0.5), run(1, val_rmse=0.2), run(2)], "val_rmse", "min") == [1, 0, 2]


def test_of_equal_scores_the_lower_validation_loss_comes_first() -> None:
    assert order([run(0, val_accuracy=0.9, val_loss=0.4), run(1, val_accuracy=0.9, val_loss=0.3), run(2, val_accuracy=0.9)]) == [1, 0, 2]


def test_of_equal_scores_and_losses_the_lower_trial_number_comes_first_whatever_the_order_they_came_in() -> None:
    runs = [run(trial, val_accuracy=0.9, val_loss=0.3) for trial in (11, 2, 7)]
    assert order(runs) == order(runs[::-1]) == [2, 7, 11]


def test_a_run_of_its_own_comes_before_trials_that_are_as_good() -> None:
    assert order([run(0, val_accuracy=0.9, val_loss=0.3), run(None, val_accuracy=0.9, val_loss=0.3)]) == [None, 0]
