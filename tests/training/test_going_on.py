"""Going on in the middle of an epoch: as if nothing had been, to the last bit; and what a run says of how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.events import EpochEnded, RunEnded, from_plain, to_plain
from orchestrator.experiment.plan import DataFacts, Resources, make_plan
from orchestrator.training import checkpoint, trial
from orchestrator.training.job import Job
from orchestrator.training.pauses import never
from orchestrator.training.trial import run
from pipelines import prepare as preparing
from pipelines.prepare import prepare
from pipelines.splits import SplitConfig
from tests.conftest import CornersConfig, MakeJob, corners
from tests.training.test_generations import small_disk, spoil  # noqa: F401  a fixture

LONG = ("training.epochs=3", "training.batch_size=9", "model.dropout=0.3", "optimizer.schedule=onecycle")  # 10 steps an epoch
DEADLINE_S = 90


def finish(job: Job, stop: Callable[[], bool] = never) -> list[Any]:
    """Every event of a job."""
    steps = run(job, stop=stop)
    events: list[Any] = [next(steps)]
    while isinstance(events[-1], EpochEnded):
        events.append(steps.send(True))
    return events


def before_step(number: int) -> Callable[[], bool]:
    """A stop request that comes when so many steps are done; it is asked once a step."""
    asked = iter(range(10**9))
    return lambda: next(asked) >= number


def model(job: Job) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = checkpoint.load(job.checkpoints)["training"]["model"]  # type: ignore[index]
    return weights


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def scores(events: list[Any]) -> dict[int, dict[str, float]]:
    """Metrics without times, by epoch."""
    return {e.epoch: {k: v for k, v in e.metrics.items() if not k.endswith("_s")} for e in events if isinstance(e, EpochEnded)}


def resumed(job: Job) -> Job:
    return dataclasses.replace(job, resume=True)


# exact ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("optimizer.name=sgd", "training.clip_norm=0.1"),
        ("training.accumulate=4", "model.norm=batch"),
        ("training={augment: {shift: 0.2, flip: both}, epochs: 3, batch_size: 9}",),
        ("training.max_steps=24",),
    ],
    ids=["dropout", "clipped", "accumulated", "augmented", "max_steps"],
)
def test_a_run_that_is_stopped_in_an_epoch_and_resumed_ends_as_one_that_was_not(overrides: tuple[str, ...], make_job: MakeJob) -> None:
    whole, cut = (make_job(*LONG, *overrides, checkpoints=place) for place in ("whole", "cut"))
    undisturbed = finish(whole)
    first = finish(cut, before_step(14))
    assert (first[-1].state, first[-1].error) == ("interrupted", None)
    state = checkpoint.load(cut.checkpoints)["training"]  # type: ignore[index]
    assert (state["epoch"], state["step"]) == (1, 14)
    second = finish(resumed(cut))
    assert second[-1].state == "finished"
    assert scores(first) | scores(second) == scores(undisturbed)
    assert equal(model(cut), model(whole))


def test_a_run_may_be_stopped_before_every_step(make_job: MakeJob) -> None:
    whole, cut = (make_job(*LONG, "training.epochs=2", checkpoints=place) for place in ("whole", "cut"))
    undisturbed, events = finish(whole), []
    for _ in range(20):
        events += finish(resumed(cut), before_step(1))
    assert [e.state for e in events if isinstance(e, RunEnded)] == ["interrupted"] * 19 + ["finished"]
    assert scores(events) == scores(undisturbed)
    assert equal(model(cut), model(whole))


def test_a_streamed_run_goes_on_in_its_epoch_and_leaves_no_reader_behind(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "ROW_GROUP", 16)
    monkeypatch.setattr("pipelines.stream.BUFFER_ROWS", 32)
    data = prepare("corners", corners, CornersConfig(), SplitConfig(train=0.6, validation=0.2, test=0.2), tmp_path / "data")
    whole, cut = (
        dataclasses.replace(make_job(*LONG, checkpoints=place), data=str(data.folder), streamed=True) for place in ("whole", "cut")
    )
    undisturbed = finish(whole)
    first = finish(cut, before_step(17))
    assert first[-1].state == "interrupted"
    assert [thread for thread in threading.enumerate() if thread.name.startswith("reader")] == []
    assert scores(first) | scores(finish(resumed(cut))) == scores(undisturbed)
    assert equal(model(cut), model(whole))


PROCESS = """
import pickle, sys
import orchestrator
from orchestrator.training.trial import run
job = pickle.load(open(sys.argv[1], "rb"))
steps = run(job)
event = next(steps)
while True:
    event = steps.send(True)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_in_an_epoch_is_gone_on_with_by_another(make_job: MakeJob, tmp_path: Path) -> None:
    endless = ("training.epochs=2000", "training.batch_size=9", "model.dropout=0.3", "training.checkpoint_every={steps: 7}")
    killed = make_job(*endless, checkpoints="killed")
    (tmp_path / "job").write_bytes(pickle.dumps(killed))
    process = subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path / "job")], cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + DEADLINE_S
        while checkpoint.newest(killed.checkpoints).number < 2:
            assert time.monotonic() < deadline
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    state = checkpoint.load(killed.checkpoints)["training"]  # type: ignore[index]
    assert state["step"] % 7 == 0
    epochs = state["epoch"] + 2
    whole = dataclasses.replace(killed, checkpoints=str(tmp_path / "whole"))
    left = resumed(killed)
    expected, got = (_drive(job, epochs) for job in (whole, left))
    assert scores(got).items() <= scores(expected).items()
    assert max(scores(got)) == epochs
    assert equal(model(killed), model(whole))


def _drive(job: Job, epochs: int) -> list[Any]:
    """Events up to an epoch, after which the run is told to stop."""
    steps = run(job)
    events: list[Any] = [next(steps)]
    while isinstance(events[-1], EpochEnded):
        events.append(steps.send(events[-1].epoch < epochs))
    return events


def test_times_and_rates_of_an_epoch_in_two_parts_count_both(make_job: MakeJob) -> None:
    """Between the parts lies a pause, which is no training."""
    job = make_job(*LONG, "training.epochs=1")
    finish(job, before_step(9))
    state = checkpoint.load(job.checkpoints)
    state["training"]["seconds"] = 1000.0  # type: ignore[index]
    writer = checkpoint.Writer(job.checkpoints, 1)
    writer.save(state)
    writer.flush()
    metrics = finish(resumed(job))[0].metrics
    assert 1000 < metrics["epoch_s"] < 1000 + DEADLINE_S
    assert metrics["samples_per_s"] == pytest.approx(90 / 1000, rel=0.1)


# how it ended -----------------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_asked_to_stop_before_its_first_step_keeps_nothing(make_job: MakeJob) -> None:
    job = make_job(*LONG)
    [ended] = finish(job, lambda: True)
    assert (ended.state, ended.error) == ("interrupted", None)
    assert checkpoint.load(job.checkpoints) is None


def test_the_checkpoint_of_a_run_that_ended_no_epoch_has_no_best(make_job: MakeJob) -> None:
    job = make_job(*LONG)
    finish(job, before_step(5))
    assert checkpoint.load(job.checkpoints) is not None
    assert trial.best_weights(job.checkpoints) is None


def test_a_resumed_run_says_its_last_epoch_again_as_it_was(make_job: MakeJob) -> None:
    job = make_job(*LONG)
    first = finish(job, before_step(25))
    again = finish(resumed(job))
    assert [e.epoch for e in first[:-1]] == [1, 2]
    assert again[0] == first[1]
    assert [e.epoch for e in again[:-1]] == [2, 3]


@pytest.mark.parametrize(("known", "said"), [(0, [1, 2, 3]), (1, [2, 3]), (2, [2, 3])])
def test_a_resumed_run_says_again_all_that_is_not_recorded(known: int, said: list[int], make_job: MakeJob) -> None:
    job = make_job(*LONG)
    first = finish(job, before_step(25))
    again = finish(dataclasses.replace(resumed(job), known=known))
    assert [e.epoch for e in again[:-1]] == said
    assert again[: 3 - said[0]] == first[said[0] - 1 : 2]
    assert [e.last for e in again[:-1]] == [number == 3 for number in said]


def test_a_run_that_begins_leaves_nothing_of_one_that_no_ledger_knows_of(make_job: MakeJob) -> None:
    job = make_job(*LONG)
    finish(job, before_step(25))
    steps = run(job)
    assert next(steps).epoch == 1
    assert checkpoint.load(job.checkpoints) is None


def test_a_verdict_on_what_is_said_again_ends_the_run(make_job: MakeJob) -> None:
    job = make_job(*LONG)
    finish(job, before_step(25))
    steps = run(resumed(job))
    next(steps)
    ended = steps.send(False)
    assert isinstance(ended, RunEnded)
    assert ended.state == "stopped"
    assert checkpoint.load(job.checkpoints)["training"]["step"] == 25  # type: ignore[index]


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(make_job: MakeJob, capsys: pytest.CaptureFixture[str]) -> None:
    whole, cut = (make_job(*LONG, "training.checkpoint_every={steps: 4}", checkpoints=place) for place in ("whole", "cut"))
    finish(whole)
    finish(cut, before_step(26))
    spoil(Path(cut.checkpoints) / "checkpoint-7.safetensors", "flipped")
    events = finish(resumed(cut))
    assert [e.epoch for e in events[:-1]] == [2, 3]
    [says] = events[-1].notes
    assert "checkpoint-7.safetensors' is damaged: " in says
    assert says.endswith(": 'checkpoint-6.safetensors' is used")
    assert f"note: {says}\n" in capsys.readouterr().err
    assert equal(model(cut), model(whole))


def test_a_run_whose_checkpoints_are_all_damaged_starts_at_its_beginning_and_says_so(make_job: MakeJob) -> None:
    whole, cut = (make_job(*LONG, checkpoints=place) for place in ("whole", "cut"))
    finish(whole)
    finish(cut, before_step(26))
    spoil(Path(cut.checkpoints) / "checkpoint-1.safetensors", "cut")
    events = finish(resumed(cut))
    assert [e.epoch for e in events[:-1]] == [1, 2, 3]
    assert "the run starts at its beginning" in events[-1].notes[0]
    assert equal(model(cut), model(whole))


@pytest.mark.parametrize("known", [2, 0])
def test_a_run_of_recorded_epochs_without_any_checkpoint_says_that_it_begins_anew(make_job: MakeJob, known: int) -> None:
    job = dataclasses.replace(make_job("training.epochs=3", resume=True), known=known)
    events = finish(job)
    assert [e.epoch for e in events if isinstance(e, EpochEnded)] == [1, 2, 3]
    said = (f"there is no checkpoint in '{job.checkpoints}': the run starts at its beginning",)
    assert events[-1].notes == (said if known else ())


def test_notes_survive_the_ledger() -> None:
    event = RunEnded(1, "finished", 0, notes=("a", "b"))
    kind, data = to_plain(event)
    assert from_plain(kind, data | {"notes": list(data["notes"])}) == event


FEWER = "resumed with 1 workers instead of 2: from here not bit for bit"


@pytest.fixture
def of_two(make_job: MakeJob) -> Job:
    """A job with what two ranks saved in the middle of an epoch, for one; as a version before this one wrote it."""
    job = make_job(*LONG)
    finish(job, before_step(14))
    state: Any = checkpoint.load(job.checkpoints)
    [own] = state["ranks"]
    state["ranks"] = [own | {"loss": own["loss"] / 2, "rows": 20}, own | {"loss": own["loss"] / 2, "rows": 16}]
    del state["notes"]
    writer = checkpoint.Writer(job.checkpoints, 1)
    writer.save(state)
    writer.flush()
    return job


def test_with_another_number_of_workers_a_run_goes_on_inexactly_and_says_so(of_two: Job) -> None:
    events = finish(resumed(of_two))
    assert [e.epoch for e in events[:-1]] == [1, 2, 3]
    assert (events[-1].state, events[-1].notes) == ("finished", (FEWER,))


def test_what_is_to_be_known_of_a_run_is_said_at_its_end_whichever_start_it_is_of(of_two: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert finish(resumed(of_two), before_step(3))[-1].notes == (FEWER,)
    assert f"note: {FEWER}\n" in capsys.readouterr().err
    spoil(Path(of_two.checkpoints) / "checkpoint-3.safetensors", "flipped")  # the same start once more, from the state of before
    again = finish(resumed(of_two), before_step(3))[-1].notes
    assert (len(again), again[-1]) == (2, FEWER)
    capsys.readouterr()
    ended = finish(resumed(of_two))[-1]
    assert (ended.state, ended.notes) == ("finished", again)
    assert "note: " not in capsys.readouterr().err, "it is news no more"


def test_a_run_on_a_full_disk_is_interrupted_and_goes_on_once_there_is_room(make_job: MakeJob, small_disk: Path) -> None:  # noqa: F811
    whole = make_job(*LONG, "training.checkpoint_every={steps: 4}", checkpoints="whole")
    finish(whole)
    job = dataclasses.replace(whole, checkpoints=str(small_disk / "run"))
    steps = run(job)
    next(steps)
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join(DEADLINE_S)
    filler = fill(small_disk)
    ended = steps.send(True)
    assert isinstance(ended, RunEnded)
    assert (ended.state, ended.trace) == ("interrupted", None)
    assert ended.error is not None
    assert ended.error.endswith("No space left on device")
    assert checkpoint.load(job.checkpoints)["training"]["step"] >= 4  # type: ignore[index]
    filler.unlink()
    assert finish(resumed(job))[-1].state == "finished"
    assert equal(model(job), model(whole))


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as opened:
        while True:
            opened.write(bytes(4096))
    return filler


def test_the_plan_bounds_what_checkpoints_take(make_job: MakeJob) -> None:
    job = make_job(*LONG, "training.checkpoint_every={steps: 4}")
    finish(job)
    parameters = sum(tensor.numel() for tensor in model(job).values())
    plan = make_plan("train", job.experiment, Resources(4), DataFacts(150, 90, 10_000), False, parameters)
    size_bytes = sum(path.stat().st_size for path in Path(job.checkpoints).iterdir())
    assert size_bytes * 3 / 2 <= plan.disk_bytes < size_bytes * 6
