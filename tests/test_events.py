"""Events: frozen, versioned, plain data; and what a run's events add up to."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from orchestrator.events import KINDS, Best, EpochEnded, Event, RunEnded, RunResumed, RunStarted, better, from_plain, summarise, to_plain

STARTED = RunStarted(3, 1000, {"optimizer.lr": 0.1}, {"optimizer.lr": 0.1, "optimizer.name": "adam"}, {"executor": "inline"})
EVERY = [
    STARTED,
    RunResumed(3, 1500, {"executor": "pool"}),
    EpochEnded(3, 1, {"val_accuracy": 0.1 + 0.2, "val_loss": 1e-17}, 2000, False, "continue"),
    RunEnded(3, "stopped", 3000, "asha", "a line", "/a/trace", 1.5, ("one", "two"), best={"epoch": 1, "metrics": {"val_loss": 1e-17}}),
]


def epochs(*scores: float) -> list[Event]:
    return [STARTED, *(EpochEnded(3, epoch, {"score": score}, epoch) for epoch, score in enumerate(scores, start=1))]


@pytest.mark.parametrize("event", EVERY, ids=lambda event: type(event).__name__)
def test_an_event_survives_json_to_the_last_bit(event: Event) -> None:
    kind, data = to_plain(event)
    assert from_plain(kind, json.loads(json.dumps(data))) == event


@pytest.mark.parametrize("event", EVERY, ids=lambda event: type(event).__name__)
def test_an_event_carries_its_format_and_cannot_be_changed(event: Event) -> None:
    assert to_plain(event)[1]["format"] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.trial = 4  # type: ignore[misc]


def test_fields_of_a_later_version_are_left_out() -> None:
    kind, data = to_plain(EVERY[2])
    assert from_plain(kind, {**data, "colour": "blue"}) == EVERY[2]


def test_fields_that_an_earlier_version_lacked_have_their_defaults() -> None:
    assert from_plain("epoch", {"trial": None, "epoch": 1, "metrics": {}, "at_ms": 5}) == EpochEnded(None, 1, {}, 5, False, None, 1)


def test_each_kind_has_a_name_of_its_own() -> None:
    assert [to_plain(event)[0] for event in EVERY] == list(KINDS)


@pytest.mark.parametrize(
    ("value", "than", "mode", "answer"), [(2, 1, "max", True), (1, 1, "max", False), (1, 2, "min", True), (2, 2, "min", False)]
)
def test_better_is_strictly_better(value: float, than: float, mode: str, answer: bool) -> None:
    assert better(value, than, mode) is answer


def test_the_weights_that_are_kept_have_the_score_that_they_earned_not_that_of_an_epoch_that_was_lost() -> None:
    """Epoch 2 was recorded, lost with its worker, and trained again on a GPU: to another score."""
    kept = {"epoch": 3, "metrics": {"score": 0.6}}
    result = summarise([*epochs(0.5, 0.9, 0.6), RunEnded(3, "finished", 9, best=kept)], "score", "max")
    assert (result.best, result.epochs) == (Best(3, {"score": 0.6}), 3)


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 4)])
def test_the_best_epoch_is_the_earliest_of_the_best(mode: str, best: int) -> None:
    result = summarise(epochs(0.5, 0.9, 0.9, 0.2, 0.2), "score", mode)
    assert result.best == Best(best, {"score": 0.9 if mode == "max" else 0.2})
    assert result.epochs == 5


def test_a_run_s_result_is_what_its_events_say() -> None:
    result = summarise([*epochs(0.5), RunEnded(3, "failed", 9, None, "ValueError: no", "/trace", 1.23456)], "score", "max")
    assert (result.trial, result.state, result.error, result.wall_s) == (3, "failed", "ValueError: no", 1.235)
    assert result.params == {"optimizer.lr": 0.1}


def test_a_run_without_an_end_is_running_and_without_an_epoch_has_no_best() -> None:
    result = summarise([STARTED], "score", "max")
    assert (result.state, result.best, result.epochs, result.run_id) == ("running", None, 0, None)


@pytest.mark.parametrize("wrong", [{}, {"trial": 1}])
def test_an_event_without_what_it_must_have_is_no_event(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="missing"):
        from_plain("epoch", wrong)


def test_a_run_that_was_resumed_is_running_again_and_its_times_add_up() -> None:
    cut = [*epochs(0.5), RunEnded(3, "interrupted", 2000, wall_s=1.0), RunResumed(3, 9000)]
    assert (summarise(cut, "score", "max").state, summarise(cut, "score", "max").wall_s) == ("running", 1.0)
    done = summarise([*cut, EpochEnded(3, 2, {"score": 0.7}, 9500), RunEnded(3, "finished", 9900, wall_s=0.5)], "score", "max")
    assert (done.state, done.wall_s, done.epochs, done.best and done.best.epoch) == ("finished", 1.5, 2, 2)
