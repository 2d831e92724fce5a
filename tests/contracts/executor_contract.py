"""What every executor keeps, ours and a user's: subclass ExecutorContract and give the fixture `executor`."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.catalog import catalog
from orchestrator.events import EpochEnded, RunEnded
from orchestrator.execution.executor import Executor
from orchestrator.experiment.read import read
from orchestrator.training import checkpoint
from orchestrator.training.job import Job
from pipelines import SOURCES
from pipelines.prepare import prepare
from pipelines.sources import digits
from pipelines.splits import SplitConfig

DEADLINE_S = 300
TIMED = ("epoch_s", "samples_per_s")
TINY = """
name: tiny
data: {source: digits}
model: {family: cnn, channels: [4], pool_after: [1], dropout: 0.2}
optimizer: {name: sgd, lr: 0.1, schedule: cosine}
training: {epochs: 3, batch_size: 256, precision: fp32}
"""
BROKEN = """
from models.cnn import CNN


class Net(CNN):
    def forward(self, batch):
        raise ValueError("no way\\nthrough")  # line 7
"""

MakeJob = Callable[..., Job]


class Jobs:
    """Jobs on the digits, and an end to tests that wait for ever."""

    @pytest.fixture(autouse=True)
    def deadline(self) -> Iterator[None]:
        """An executor that waits for ever fails its test."""

        def over(signum: int, frame: Any) -> None:
            raise TimeoutError(f"no event for {DEADLINE_S} s")

        before = signal.signal(signal.SIGALRM, over)
        signal.alarm(DEADLINE_S)
        yield
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

    @pytest.fixture
    def job(self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
        """A function from a trial's number and overrides to a job on the digits, with a folder of its own for checkpoints."""
        file = tmp_path / "tiny.yaml"
        file.write_text(TINY)
        (tmp_path / "broken.py").write_text(BROKEN)
        data = prepare("digits", _load(), digits.Config(), SplitConfig(), tmp_path_factory.getbasetemp() / "digits").folder

        def make(trial: int, *overrides: str) -> Job:
            experiment = read(file, overrides, catalog(tmp_path))
            where = str(tmp_path / "checkpoints" / str(trial))
            return Job(trial, experiment, str(data), where, str(tmp_path), "fp32", 1, experiment.training.epochs)

        return make


class ExecutorContract(Jobs):
    """`executor`: an executor with a free slot; the same one may serve every test, since each test ends what it starts."""

    @pytest.fixture
    def executor(self) -> Executor:
        raise NotImplementedError("give the fixture `executor`")

    def test_a_job_gives_an_event_an_epoch_and_then_its_end(self, executor: Executor, job: MakeJob) -> None:
        *epochs, ended = finish(executor, job(1))
        assert [(e.trial, e.epoch, e.last) for e in epochs if isinstance(e, EpochEnded)] == [(1, 1, False), (1, 2, False), (1, 3, True)]
        assert isinstance(ended, RunEnded)
        assert (ended.trial, ended.state, ended.error, ended.stopped_by) == (1, "finished", None, None)
        assert len(ended.nodes) >= 1

    def test_the_same_seed_gives_the_same_events_and_another_seed_others(self, executor: Executor, job: MakeJob) -> None:
        first, second = (scores(finish(executor, job(trial))) for trial in (1, 2))
        assert first == second
        assert scores(finish(executor, job(3, "training.seed=1"))) != first

    def test_a_stop_verdict_frees_the_slot_at_once_and_the_next_job_runs_in_it(self, executor: Executor, job: MakeJob) -> None:
        *epochs, ended = finish(executor, job(1), stop_after=1)
        assert (len(epochs), ended.state) == (1, "stopped")  # type: ignore[union-attr]
        *epochs, ended = finish(executor, job(2))
        assert (ended.trial, len(epochs), ended.state) == (2, 3, "finished")  # type: ignore[union-attr]

    def test_a_stopped_run_leaves_the_weights_of_its_best_epoch(self, executor: Executor, job: MakeJob) -> None:
        stopped = job(1)
        [epoch, _] = finish(executor, stopped, stop_after=1)
        state = checkpoint.load(stopped.checkpoints)
        assert state["best"] == {"epoch": 1, "metrics": epoch.metrics}  # type: ignore[union-attr]
        assert same(state["weights"], state["training"]["model"])

    def test_a_resumed_run_ends_as_one_that_was_never_stopped(self, executor: Executor, job: MakeJob) -> None:
        whole, parted = job(1), job(2)
        expected = scores(finish(executor, whole))
        before = finish(executor, parted, stop_after=2)
        after = finish(executor, replace(parted, resume=True))
        assert scores(before)[:2] + scores(after)[1:2] == expected[:3]
        assert after[0] == before[1]  # said once more: it may have been trained and not recorded
        one, two = checkpoint.load(whole.checkpoints), checkpoint.load(parted.checkpoints)
        assert same(one["training"]["model"], two["training"]["model"])
        assert same(one["weights"], two["weights"])
        assert [row["epoch"] for row in two["history"]] == [1, 2, 3]

    def test_a_trial_that_raises_is_reported_in_one_line_and_the_executor_goes_on(self, executor: Executor, job: MakeJob) -> None:
        [failed] = finish(executor, job(1, "model={class: broken:Net}"))
        assert isinstance(failed, RunEnded)
        assert (failed.state, failed.error) == ("failed", "ValueError: no way through (broken.py:7)")
        assert failed.trace is not None
        assert "Traceback" in Path(failed.trace).read_text()
        assert finish(executor, job(2))[-1].state == "finished"  # type: ignore[union-attr]

    def test_a_loss_that_is_no_number_fails_the_trial_only(self, executor: Executor, job: MakeJob) -> None:
        failed = finish(executor, job(1, "optimizer.lr=1e38", "model.norm=none"))[-1]
        assert isinstance(failed, RunEnded)
        assert failed.state == "failed"
        assert failed.error is not None
        assert failed.error.startswith("train_loss is nan at epoch 1: lower optimizer.lr")
        assert finish(executor, job(2))[-1].state == "finished"  # type: ignore[union-attr]

    def test_a_trial_after_another_one_ends_with_the_weights_that_it_has_alone(self, executor: Executor, job: MakeJob) -> None:
        alone, other, after = job(1), job(2, "training.seed=9", "optimizer={name: adam}", "model.channels=[6]"), job(3)
        for each in (alone, other, after):
            finish(executor, each)
        states = [checkpoint.load(each.checkpoints) for each in (alone, after)]
        assert same(states[0]["weights"], states[1]["weights"])
        assert not same(states[0]["weights"], checkpoint.load(other.checkpoints)["weights"])


def finish(executor: Executor, job: Job, stop_after: int | None = None) -> list[EpochEnded | RunEnded]:
    """Run a job in the last slot to its end; its events."""
    events: list[EpochEnded | RunEnded] = []
    slot = executor.slots - 1
    executor.start(slot, job)
    while not events or isinstance(events[-1], EpochEnded):
        for where, event in executor.wait():
            assert where == slot
            events.append(event)
            if isinstance(event, EpochEnded):
                executor.verdict(slot, event.epoch != stop_after)
    return events


def finish_all(
    executor: Executor, jobs: dict[int, Job], at: Callable[[int, EpochEnded, bool], None]
) -> dict[int, list[EpochEnded | RunEnded]]:
    """Run jobs to their ends; each slot's events. `at` is called before and after each verdict."""
    events: dict[int, list[EpochEnded | RunEnded]] = {slot: [] for slot in jobs}
    for slot, job in jobs.items():
        executor.start(slot, job)
    running = set(jobs)
    while running:
        for slot, event in executor.wait():
            events[slot].append(event)
            if isinstance(event, RunEnded):
                running.discard(slot)
                continue
            at(slot, event, True)
            executor.verdict(slot, True)
            at(slot, event, False)
    return events


def wait_until(there: Callable[[], bool], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not there():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def scores(events: list[EpochEnded | RunEnded]) -> list[Any]:
    """What of events doesn't depend on the clock and on the trial's number."""
    return [
        (e.epoch, e.last, {k: v for k, v in e.metrics.items() if k not in TIMED}) if isinstance(e, EpochEnded) else (e.state, e.error)
        for e in events
    ]


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Equal bit for bit."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def _load() -> Any:
    from orchestrator import names

    return names.load("digits", SOURCES, "source")
