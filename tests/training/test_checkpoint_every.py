"""When checkpoints are written: at epochs' ends, after steps, after minutes, and at the end of a run."""

from __future__ import annotations

import pytest

from orchestrator.errors import ExperimentError
from orchestrator.training import checkpoint, pauses
from orchestrator.training.pauses import steps_ahead
from tests.conftest import MakeExperiment, MakeJob, drive

LONG = ("training.epochs=3", "training.batch_size=9", "model.dropout=0.3", "optimizer.schedule=onecycle")  # 10 steps an epoch


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which checkpoints are written."""
    steps: list[int] = []
    save = checkpoint.Writer.save
    monkeypatch.setattr(checkpoint.Writer, "save", lambda self, state: (steps.append(state["training"]["step"]), save(self, state)))
    return steps


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        ("{steps: 4}", [4, 8, 12, 16, 20, 24, 28, 30]),
        ("{steps: 10}", [10, 20, 30]),
        ("{epochs: 2}", [20, 30]),
        ("{epochs: 1}", [10, 20, 30]),
        ("{minutes: 1.0e-9}", list(range(1, 31))),
        ("{minutes: 1000}", [30]),
        ("{}", [30]),
    ],
)
def test_checkpoints_come_when_they_are_asked_for_and_at_the_end(every: str, steps: list[int], make_job: MakeJob, saves: list[int]) -> None:
    drive(make_job(*LONG, f"training.checkpoint_every={every}"))
    assert saves == steps


def test_without_a_word_they_come_at_epochs_ends_some_seconds_apart(
    make_job: MakeJob, saves: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "AT_EPOCHS_S", 0)
    drive(make_job(*LONG))
    assert saves == [10, 20, 30]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("{steps: 3, epochs: 1}", "give one of minutes, steps and epochs"),
        ("{steps: 0}", "greater than 0"),
        ("{minuets: 3}", "no key 'minuets'; did you mean 'minutes'? there is: epochs, minutes, steps"),
        ("10", "training.checkpoint_every"),
    ],
)
def test_another_word_is_refused(given: str, says: str, make_experiment: MakeExperiment) -> None:
    with pytest.raises(ExperimentError) as refused:
        make_experiment(f"training.checkpoint_every={given}")
    assert len(refused.value.problems) == 1
    assert says in str(refused.value)


def test_an_experiment_with_checkpoints_is_read_again_as_it_is(make_experiment: MakeExperiment) -> None:
    made = make_experiment("training.checkpoint_every={minutes: 2.5}")
    assert made.training.checkpoint_every.minutes == 2.5
    assert made.flat()["training.checkpoint_every.minutes"] == 2.5
    assert not any(key.startswith("training.checkpoint_every") for key in make_experiment().flat())


@pytest.mark.parametrize(
    ("steps", "seconds", "ahead"), [(1, 10.0, 1), (1, 0.001, 4), (64, 0.064, 256), (1000, 1.0, 1000), (1000, 2.0, 500), (1, 0.0, 4)]
)
def test_ranks_agree_about_once_a_second(steps: int, seconds: float, ahead: int) -> None:
    assert steps_ahead(steps, seconds) == ahead
