"""One trial: its events, its errors in one line, its best weights, and going on exactly where it was."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.events import EpochEnded, RunEnded
from orchestrator.training import checkpoint, failure, pauses, trial
from orchestrator.training.job import Job
from orchestrator.training.loop import Training
from orchestrator.training.trial import best_weights, one_line, run
from tests.conftest import MakeJob

RANDOM = ("training.epochs=4", "model.dropout=0.3", "optimizer.schedule=onecycle")
DEADLINE_S = 20


def finish(job: Job, go_on: Callable[[EpochEnded], bool] = lambda event: True) -> list[EpochEnded | RunEnded]:
    """Every event of a job."""
    steps = run(job)
    events = [next(steps)]
    while isinstance(events[-1], EpochEnded):
        events.append(steps.send(go_on(events[-1])))
    return events


def ended(events: list[Any]) -> RunEnded:
    assert isinstance(events[-1], RunEnded)
    return events[-1]


def weights(job: Job) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = checkpoint.load(job.checkpoints)["training"]["model"]
    return weights


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def scores(events: list[Any]) -> list[dict[str, float]]:
    """Metrics without times."""
    return [{k: v for k, v in e.metrics.items() if not k.endswith("_s")} for e in events if isinstance(e, EpochEnded)]


# events ---------------------------------------------------------------------------------------------------------------------


def test_a_run_is_an_event_an_epoch_and_one_at_the_end(make_job: MakeJob) -> None:
    events = finish(make_job("training.epochs=3", trial=7))
    assert [getattr(e, "epoch", None) for e in events] == [1, 2, 3, None]
    assert [e.last for e in events[:-1]] == [False, False, True]
    assert {e.trial for e in events} == {7}
    end = ended(events)
    assert (end.state, end.error, end.stopped_by, end.nodes) == ("finished", None, None, ("local",))
    assert end.wall_s > 0


def test_a_run_that_is_told_to_stop_stops_after_that_epoch_and_keeps_its_checkpoint(make_job: MakeJob) -> None:
    job = make_job("training.epochs=5")
    events = finish(job, lambda event: event.epoch < 2)
    assert [type(e) for e in events] == [EpochEnded, EpochEnded, RunEnded]
    assert ended(events).state == "stopped"
    assert checkpoint.load(job.checkpoints)["training"]["epoch"] == 2


def test_a_run_that_is_told_to_stop_after_its_last_epoch_has_finished(make_job: MakeJob) -> None:
    assert ended(finish(make_job("training.epochs=1"), lambda event: False)).state == "finished"


def test_max_steps_end_the_run_and_its_last_epoch_says_so(make_job: MakeJob) -> None:
    events = finish(make_job("training.max_steps=4", "training.epochs=9"))
    assert [e.last for e in events[:-1]] == [False, True]


# errors ---------------------------------------------------------------------------------------------------------------------

OWN = """
from models.cnn import CNN

class Breaks(CNN):
    def forward(self, batch):
        raise ValueError("a sentence\\nof two lines")

class Refuses(CNN):
    def __init__(self, config, schema):
        super().__init__(config, schema)
        assert len(schema.classes) == 99
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "nets.py").write_text(OWN)
    return folder


def test_a_user_s_error_is_one_line_with_the_place_in_their_file(make_job: MakeJob, own: Path) -> None:
    end = ended(finish(make_job("model={class: 'nets:Breaks', pool_after: []}", folder=own)))
    assert end.state == "failed"
    assert end.error == "ValueError: a sentence of two lines (nets.py:6)"


def test_an_error_without_a_message_says_so(make_job: MakeJob, own: Path) -> None:
    assert ended(finish(make_job("model={class: 'nets:Refuses', pool_after: []}", folder=own))).error == (
        "AssertionError: no message (nets.py:11)"
    )


def test_the_whole_trace_of_a_failed_run_lies_beside_its_checkpoint(make_job: MakeJob, own: Path) -> None:
    job = make_job("model={class: 'nets:Breaks', pool_after: []}", folder=own)
    trace = ended(finish(job)).trace
    assert trace == f"{job.checkpoints}/error.txt"
    text = Path(trace).read_text()
    assert "Traceback (most recent call last)" in text
    assert "a sentence\nof two lines" in text


def test_the_trace_in_a_bucket_is_named_before_the_options_of_its_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(failure, "write_file", lambda uri, name, content: written.append((uri, name)))
    uri = "s3://bucket/run?scheme=http"
    assert failure.keep_trace(uri, 0, ValueError("no")) == "s3://bucket/run/error.txt?scheme=http"
    assert written == [(uri, "error.txt")]


def test_a_loss_that_is_no_number_fails_the_run_with_a_sentence(make_job: MakeJob) -> None:
    end = ended(finish(make_job("model.norm=none", "optimizer={name: sgd, lr: 1e30}", "training.epochs=9")))
    assert end.state == "failed"
    assert end.error is not None
    assert end.error.endswith(": lower optimizer.lr or set training.clip_norm")
    assert "\n" not in end.error
    assert end.trace is not None


def test_an_error_of_ours_names_our_own_last_line() -> None:
    try:
        int("x")
    except ValueError as error:
        said = one_line(error, Path("/nowhere"))
    assert said.startswith("ValueError: invalid literal for int() with base 10: 'x' (test_trial.py:")


def test_a_checkpoint_that_can_t_be_written_interrupts_the_run_and_says_why(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    job = make_job()
    monkeypatch.setattr(os, "fsync", full)
    end = ended(finish(job))
    assert (end.state, end.trace) == ("interrupted", None)
    assert end.error == f"can't write '{job.checkpoints}/checkpoint-1.safetensors': No space left on device"


# the best -------------------------------------------------------------------------------------------------------------------


def test_the_best_weights_are_those_of_the_best_epoch_and_not_of_the_last(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = iter([3.0, 1.0, 2.0, 1.0])
    after: list[dict[str, torch.Tensor]] = []

    def evaluate(self: Training, columns: Any, prefix: str) -> dict[str, float]:
        after.append({name: value.clone() for name, value in self.family.state_dict().items()})
        return {"val_loss": next(planned), "val_accuracy": 0.5}

    monkeypatch.setattr(Training, "evaluate", evaluate)
    job = make_job("training.epochs=4", "sweep.metric=val_loss")
    end = ended(finish(job))
    found = best_weights(job.checkpoints)
    assert found is not None
    record, kept = found
    assert (record["epoch"], record["metrics"]["val_loss"]) == (2, 1.0)
    assert end.best == record
    assert equal(kept, after[1])
    assert not equal(kept, after[3])
    assert equal(weights(job), after[3])


def test_where_nothing_was_written_there_are_no_best_weights(tmp_path: Path) -> None:
    assert best_weights(str(tmp_path)) is None


def test_a_checkpoint_holds_the_history_of_its_epochs(make_job: MakeJob) -> None:
    job = make_job("training.epochs=3")
    events = finish(job)
    history = checkpoint.load(job.checkpoints)["history"]
    assert history == [{"epoch": e.epoch, "metrics": e.metrics, "at_ms": e.at_ms} for e in events[:-1]]


# going on -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_a_run_cut_off_and_resumed_ends_with_the_weights_of_one_that_was_not(name: str, make_job: MakeJob) -> None:
    whole, cut = (make_job(*RANDOM, f"optimizer.name={name}", checkpoints=place) for place in ("whole", "cut"))
    undisturbed = finish(whole)
    steps = run(cut)
    next(steps)
    steps.send(True)
    steps.close()
    assert checkpoint.load(cut.checkpoints)["training"]["epoch"] == 2
    resumed = finish(dataclasses.replace(cut, resume=True))
    assert equal(weights(cut), weights(whole))
    assert [entry["epoch"] for entry in checkpoint.load(cut.checkpoints)["history"]] == [1, 2, 3, 4]
    assert scores(resumed) == scores(undisturbed)[1:]


def test_a_run_killed_between_epochs_goes_on_from_its_last_checkpoint(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "AT_EPOCHS_S", 0)
    whole, killed = (make_job(*RANDOM, checkpoints=place) for place in ("whole", "killed"))
    finish(whole)
    steps = run(killed)
    next(steps)
    steps.send(True)
    _wait_for(lambda: (state := checkpoint.load(killed.checkpoints)) is not None and state["training"]["epoch"] == 2)
    left = make_job(*RANDOM, checkpoints="left", resume=True)
    shutil.copytree(killed.checkpoints, left.checkpoints)  # what a killed process leaves: it writes nothing more
    steps.close()
    resumed = finish(left)
    assert [getattr(e, "epoch", None) for e in resumed] == [2, 3, 4, None]
    assert equal(weights(left), weights(whole))


def _wait_for(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not there():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_between_checkpoints_nothing_is_written_and_the_end_always_is(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(checkpoint.Writer, "save", lambda self, state: saved.append(state["training"]["epoch"]))
    finish(make_job("training.epochs=3"))
    assert saved == [3]


def test_a_run_resumed_after_its_last_epoch_trains_no_further_step(make_job: MakeJob) -> None:
    job = make_job()
    finish(job)
    before = weights(job)
    events = finish(dataclasses.replace(job, resume=True))
    assert [(e.epoch, e.last) for e in events[:-1]] == [(2, True)]
    assert ended(events).state == "finished"
    assert checkpoint.load(job.checkpoints)["training"]["epoch"] == 2
    assert equal(weights(job), before)


def test_a_run_resumed_without_a_checkpoint_starts_at_the_beginning(make_job: MakeJob) -> None:
    whole, resumed = make_job(*RANDOM, checkpoints="whole"), make_job(*RANDOM, checkpoints="resumed", resume=True)
    assert scores(finish(resumed)) == scores(finish(whole))


def test_the_best_of_the_epochs_before_is_kept_by_a_resumed_run(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = iter([0.9, 0.5])
    monkeypatch.setattr(Training, "evaluate", lambda self, columns, prefix: {"val_loss": 1.0, "val_accuracy": next(planned)})
    job = make_job()
    steps = run(job)
    next(steps)
    steps.close()
    finish(dataclasses.replace(job, resume=True))
    found = best_weights(job.checkpoints)
    assert found is not None
    assert found[0]["epoch"] == 1


def test_the_second_trial_of_a_process_is_as_it_would_be_alone(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, first, second = (make_job(*RANDOM, checkpoints=place) for place in ("alone", "first", "second"))
    trial._DATA.clear()
    finish(alone)
    trial._DATA.clear()
    finish(dataclasses.replace(first, experiment=make_job("training.seed=5", "optimizer.name=sgd").experiment))
    finish(second)
    assert equal(weights(second), weights(alone))


def test_the_data_of_the_last_trial_are_kept_for_the_next(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = trial.batches.load
    monkeypatch.setattr(trial.batches, "load", lambda prepared, part: (loads.append(part), load(prepared, part))[1])
    trial._DATA.clear()
    finish(make_job("training.epochs=1"))
    finish(make_job("training.epochs=1"))
    assert loads == ["train", "validation"]
