"""What is used of a budget, and what ends when it is used up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.events import EpochEnded, Event, RunEnded, RunResumed, RunStarted
from orchestrator.execution.budget import Meter
from orchestrator.execution.executor import SlotEvent
from orchestrator.execution.search import OneRun
from orchestrator.execution.sweep import Judge, drive, replay, under_way
from orchestrator.experiment.config import BudgetConfig
from tests.execution.conftest import MakeExperiment
from tests.execution.memory import RULES, SPACE, Memory, good, make, searching, swept


class Clock:
    """Seconds that go on when they are told to."""

    def __init__(self) -> None:
        self.s = 1.0

    def __call__(self) -> float:
        return self.s


def test_a_budget_of_seconds_ends_runs_with_their_epoch_and_begins_none() -> None:
    clock = Clock()

    def score(trial: int, epoch: int) -> float:
        clock.s += 10
        return 0.5

    meter = Meter(BudgetConfig(wall_s=25), now=clock)
    events: list[Event] = []
    drive(Memory(1, score), Judge(OneRun(), RULES, meter), make, events.extend)
    assert [e.verdict for e in events if isinstance(e, EpochEnded)] == ["continue", "continue", "budget"]
    assert [(e.state, e.stopped_by) for e in events if isinstance(e, RunEnded)] == [("stopped", "budget")]
    assert meter.full() == "budget.wall_s: 30 of 25 are used"


class Slow(Memory):
    """An epoch takes 10 seconds. `answers`: which runs write a checkpoint when they are asked to end."""

    def __init__(self, slots: int, clock: Clock, answers: Callable[[int], bool]) -> None:
        super().__init__(slots, good)
        self.clock, self.answers = clock, answers

    def wait(self, within_s: float | None = None) -> list[SlotEvent]:
        if within_s is not None and within_s < 10:
            self.clock.s += within_s
            return []
        self.clock.s += 10
        return super().wait()

    def stop(self, grace_s: float) -> list[SlotEvent]:
        return [(slot, event) for slot, event in super().stop(grace_s) if self.answers(event.trial or 0)]


@pytest.mark.parametrize(("budget", "at_s"), [({"wall_s": 25}, 26), ({"cpu_hours": 100 / 3600}, 26), ({"gpu_hours": 30 / 3600}, 31)])
def test_a_budget_in_time_ends_the_runs_under_way_in_the_middle_of_an_epoch(
    experiment: MakeExperiment, budget: dict[str, float], at_s: float
) -> None:
    clock, asked = Clock(), experiment(SPACE, "sweep.scheduler=none")
    events: list[Event] = []
    env = {"world_size": 2, "cpus": 1.0, "gpus": 0.25}

    def held(trial: int, values: dict[str, Any], known: int | None) -> tuple[Any, RunStarted]:
        job, started = make(trial, values, known)
        return job, replace(started, env=env)

    drive(
        Slow(2, clock, lambda trial: True), Judge(searching(asked, 9), RULES, Meter(BudgetConfig(**budget), now=clock)), held, events.extend
    )
    assert clock.s == pytest.approx(at_s)
    assert [(e.trial, e.state, e.stopped_by) for e in events if isinstance(e, RunEnded)] == [
        (0, "stopped", "budget"),
        (1, "stopped", "budget"),
    ]
    assert {e.verdict for e in events if isinstance(e, EpochEnded)} == {"continue"}
    judge = Judge(searching(asked, 9), RULES)
    assert replay(judge, events) is None
    after: list[Event] = []
    drive(Memory(1, good), judge, make, after.extend, under_way(events))
    assert [e.trial for e in after if isinstance(e, RunStarted)] == list(range(2, 9))


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_without_a_checkpoint_when_the_budget_ends_goes_on_one_day_if_epochs_of_it_are_recorded(
    experiment: MakeExperiment, epochs: int
) -> None:
    clock, asked, events = Clock(), experiment(SPACE, "sweep.scheduler=none"), list[Event]()
    meter = Meter(BudgetConfig(wall_s=10 * epochs + 5), now=clock)
    drive(Slow(2, clock, lambda trial: trial == 1), Judge(searching(asked, 9), RULES, meter), make, events.extend)
    ends = {e.trial: (e.state, e.stopped_by, e.error) for e in events if isinstance(e, RunEnded)}
    assert ends[1] == ("stopped", "budget", None)
    if epochs:
        assert ends[0] == ("interrupted", None, "the budget is used up, and it wrote no checkpoint within 10 s")
    else:
        assert ends[0] == ("stopped", "budget", None)
    assert [e.trial for e in under_way(events)] == [0] * epochs


def test_a_run_that_is_resumed_with_a_used_up_budget_ends_with_its_epoch() -> None:
    clock = Clock()
    begun = RunStarted(0, 1000, {}, {})
    meter = Meter(BudgetConfig(wall_s=20), [begun], wall_s=21, now=clock)
    events: list[Event] = []
    drive(Slow(1, clock, lambda trial: True), Judge(OneRun(), RULES, meter), make, events.extend, [begun])
    assert [e.verdict for e in events if isinstance(e, EpochEnded)] == ["budget"]
    assert [(e.state, e.stopped_by) for e in events if isinstance(e, RunEnded)] == [("stopped", "budget")]


def test_a_budget_of_trials_counts_those_of_earlier_commands(experiment: MakeExperiment) -> None:
    asked = experiment(SPACE, "sweep.scheduler=none")
    before = swept(searching(asked, 3), Memory(1, good))
    judge = Judge(searching(asked, 9), RULES)
    assert replay(judge, before) is None
    judge.meter = Meter(BudgetConfig(trials=5), before)
    after: list[Event] = []
    drive(Memory(1, good), judge, make, after.extend)
    assert [e.trial for e in after if isinstance(e, RunStarted)] == [3, 4]


def test_hours_are_those_that_runs_held_cpus_and_gpus_in_all_their_attempts() -> None:
    env = {"world_size": 2, "cpus": 3.0, "gpus": 0.5}
    hour = 3_600_000
    first = [RunStarted(0, 0, {}, {}, env), EpochEnded(0, 1, {}, hour)]  # the driver was killed then
    second = [RunResumed(0, 5 * hour, env), EpochEnded(0, 2, {}, 6 * hour), RunEnded(0, "finished", 7 * hour)]
    meter = Meter(BudgetConfig(cpu_hours=17.9), [*first, *second], now=lambda: 0.0)
    assert (meter.cpu_s, meter.gpu_s) == (3 * 3600 * 6.0, 3 * 3600 * 1.0)
    assert meter.over() == "budget.cpu_hours: 18 of 17.9 are used"
    assert Meter(BudgetConfig(gpu_hours=3.1), [*first, *second], now=lambda: 0.0).over() is None
    running = Meter(BudgetConfig(gpu_hours=3.1), [*first, *second], now=lambda: 7.2 * 3600)
    running.see(RunStarted(1, 7 * hour, {}, {}, env))
    assert running.over() == "budget.gpu_hours: 3.2 of 3.1 are used"


def test_a_replay_accepts_verdicts_of_a_budget(experiment: MakeExperiment) -> None:
    asked = experiment(SPACE, "sweep.scheduler=none")
    clock = Clock()

    def score(trial: int, epoch: int) -> float:
        clock.s += 1
        return good(trial, epoch)

    events: list[Event] = []
    drive(Memory(1, score), Judge(searching(asked, 9), RULES, Meter(BudgetConfig(wall_s=12), now=clock)), make, events.extend)
    assert [e.stopped_by for e in events if isinstance(e, RunEnded)] == [None, "budget"]
    judge = Judge(searching(asked, 9), RULES)
    assert replay(judge, events) is None
    after: list[Event] = []
    drive(Memory(1, good), judge, make, after.extend, under_way(events))
    assert [e.trial for e in after if isinstance(e, RunStarted)] == list(range(2, 9))
