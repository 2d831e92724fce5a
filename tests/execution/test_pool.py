"""Warm actors, one slot each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.resources import Found
from orchestrator.events import Event, RunEnded, RunStarted
from orchestrator.execution.executor import SlotEvent
from orchestrator.execution.inline import Inline
from orchestrator.execution.pool import Pool
from orchestrator.execution.sweep import Rules, drive
from orchestrator.training import checkpoint
from orchestrator.training.trial import Job
from tests.contracts.executor_contract import ExecutorContract, MakeJob, finish, same


@pytest.fixture(scope="module")
def pool(ray_session: Found) -> Iterator[Pool]:
    made = Pool(2, 0.5, 0)
    yield made
    made.close()


@pytest.mark.slow
class TestPool(ExecutorContract):
    @pytest.fixture
    def executor(self, pool: Pool) -> Pool:
        return pool

    def test_a_run_in_an_actor_ends_with_the_weights_that_it_has_in_this_process(self, executor: Pool, job: MakeJob) -> None:
        here, there = job(1), job(2)
        finish(Inline(), here)
        finish(executor, there)
        assert same(checkpoint.load(here.checkpoints)["weights"], checkpoint.load(there.checkpoints)["weights"])

    def test_workers_import_neither_mlflow_nor_what_is_not_theirs(self, executor: Pool, job: MakeJob) -> None:
        finish(executor, job(1))
        import ray

        loaded = executor.workers[-1].__ray_call__.remote(
            lambda self: sorted({"mlflow", "optuna", "torch"} & set(__import__("sys").modules))
        )
        assert ray.get(loaded) == ["torch"]

    def test_workers_have_our_packages_whatever_their_working_folder_holds(self, executor: Pool) -> None:
        import ray

        import models

        where = executor.workers[0].__ray_call__.remote(lambda self: __import__("models").__file__)
        assert ray.get(where) == models.__file__

    def test_no_slot_is_idle_while_there_are_trials_to_come_and_both_actors_work_at_the_same_time(
        self, executor: Pool, job: MakeJob
    ) -> None:
        trials, events = _Trials(8), list[Event]()
        watched = _Watched(executor, trials)

        def make(trial: int, values: dict[str, Any]) -> tuple[Job, RunStarted]:
            return job(trial), RunStarted(trial, 0, values, {})

        drive(watched, trials, make, events.extend, Rules("val_accuracy", "max"))
        assert len(watched.busy) > 3
        assert set(watched.busy) == {2}, "a slot was idle although there were trials to come"
        first, second = (_intervals(events, watched, slot) for slot in (0, 1))
        assert len(first) + len(second) == 8
        assert any(a < d and c < b for a, b in first for c, d in second), "the actors never worked at the same time"


class _Trials:
    """So many trials; none is stopped."""

    def __init__(self, trials: int) -> None:
        self.left = list(range(trials))

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        return (self.left.pop(0), {}) if self.left else None

    def tell(self, trial: int, epoch: int, score: float) -> bool:
        return False

    def end(self, trial: int, failed: bool) -> None:
        """Nothing to learn."""


class _Watched:
    """An executor that notes how many slots are busy at each wait, as long as there are trials to come."""

    def __init__(self, inner: Pool, trials: _Trials) -> None:
        self.inner, self.slots, self.trials = inner, inner.slots, trials
        self.running: set[int] = set()
        self.busy: list[int] = []
        self.slot_of: dict[int | None, int] = {}

    def start(self, slot: int, job: Job) -> None:
        self.running.add(slot)
        self.slot_of[job.trial] = slot
        self.inner.start(slot, job)

    def wait(self) -> list[SlotEvent]:
        if self.trials.left:
            self.busy.append(len(self.running))
        found = self.inner.wait()
        self.running -= {slot for slot, event in found if isinstance(event, RunEnded)}
        return found

    def verdict(self, slot: int, go_on: bool) -> None:
        self.inner.verdict(slot, go_on)

    def close(self) -> None:
        """The pool serves other tests."""


def _intervals(events: list[Event], watched: _Watched, slot: int) -> list[tuple[float, float]]:
    """When a slot was busy, by its workers' own clocks, in seconds."""
    ends = [e for e in events if isinstance(e, RunEnded) and watched.slot_of[e.trial] == slot]
    return [(e.at_ms / 1000 - e.wall_s, e.at_ms / 1000) for e in ends]
