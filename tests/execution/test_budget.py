"""What is used of a budget, and what ends when it is used up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.errors import Lost
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
    """An epoch takes 10 seconds. `says`: what a run says when it is asked to end, if anything."""

    def __init__(self, slots: int, clock: Clock, says: Callable[[RunEnded], RunEnded | None] = lambda ended: ended) -> None:
        super().__init__(slots, good)
        self.clock, self.says = clock, says

    def wait(self, within_s: float | None = None) -> list[SlotEvent]:
        if within_s is not None and within_s < 10:
            self.clock.s += within_s
            return []
        self.clock.s += 10
        return super().wait()

    def stop(self, grace_s: float) -> list[SlotEvent]:
        said = [(slot, self.says(event)) for slot, event in super().stop(grace_s) if isinstance(event, RunEnded)]
        return [(slot, event) for slot, event in said if event is not None]


def ends(events: list[Event]) -> dict[int | None, tuple[str, str | None, str | None]]:
    return {e.trial: (e.state, e.stopped_by, e.error) for e in events if isinstance(e, RunEnded)}


BY_BUDGET = ("stopped", "budget", None)


@pytest.mark.parametrize(("budget", "at_s"), [({"wall_s": 25}, 26), ({"cpu_hours": 100 / 3600}, 26), ({"gpu_hours": 25 / 3600}, 26)])
def test_a_budget_in_time_ends_the_runs_under_way_in_the_middle_of_an_epoch_and_they_go_on_where_it_is_raised(
    experiment: MakeExperiment, budget: dict[str, float], at_s: float
) -> None:
    clock, asked = Clock(), experiment(SPACE, "sweep.scheduler=none")
    events: list[Event] = []
    env = {"world_size": 2, "cpus": 1.0, "gpus": 0.25}

    def held(trial: int, values: dict[str, Any], known: int | None) -> tuple[Any, RunStarted]:
        job, started = make(trial, values, known)
        return job, replace(started, env=env)

    judge = Judge(searching(asked, 9), RULES, Meter(BudgetConfig(**budget), now=clock))
    full = drive(Slow(2, clock), judge, held, events.extend)
    assert clock.s == pytest.approx(at_s, abs=0.1)
    assert (full or "").startswith(f"budget.{next(iter(budget))}: ")
    assert ends(events) == {0: BY_BUDGET, 1: BY_BUDGET}
    assert {e.verdict for e in events if isinstance(e, EpochEnded)} == {"continue"}
    assert resumed(searching(asked, 9), events) == ([0, 1], list(range(2, 9)))


def resumed(search: Any, events: list[Event]) -> tuple[list[int | None], list[int | None]]:
    """The runs that go on with an unlimited budget, and those that begin; each comes to its end."""
    judge = Judge(search, RULES)
    assert replay(judge, events) is None
    after: list[Event] = []
    drive(Memory(1, good), judge, make, after.extend, under_way(events))
    assert {state for state, _, _ in ends(after).values()} == {"finished"}
    return [e.trial for e in after if isinstance(e, RunResumed)], [e.trial for e in after if isinstance(e, RunStarted)]


@pytest.mark.parametrize(
    ("epochs", "best", "end"),
    [
        (0, None, BY_BUDGET),
        (1, {"epoch": 1, "metrics": {"val_accuracy": 0.9}}, BY_BUDGET),
        (1, None, ("interrupted", None, "the budget is used up, and no checkpoint holds its epochs")),
    ],
)
def test_a_run_that_says_nothing_when_the_budget_ends_has_the_best_epoch_of_its_checkpoint(
    experiment: MakeExperiment, epochs: int, best: dict[str, Any] | None, end: tuple[str, str | None, str | None]
) -> None:
    clock, asked, events = Clock(), experiment(SPACE, "sweep.scheduler=none"), list[Event]()
    judge = Judge(searching(asked, 9), RULES, Meter(BudgetConfig(wall_s=10 * epochs + 5), now=clock))
    memory = Slow(2, clock, lambda ended: ended if ended.trial == 1 else None)
    drive(memory, judge, make, events.extend, kept=lambda trial: best if trial == 0 else None)
    assert ends(events) == {0: end, 1: BY_BUDGET}
    assert [e.best for e in events if isinstance(e, RunEnded) and e.trial == 0] == [best]
    assert resumed(searching(asked, 9), events) == ([0, 1], list(range(2, 9)))


def test_no_run_goes_on_while_the_budget_is_used_up_and_each_has_an_end() -> None:
    clock, begun, events = Clock(), [RunStarted(0, 1000, {}, {}), RunStarted(1, 1000, {}, {})], list[Event]()
    meter = Meter(BudgetConfig(wall_s=20), begun, wall_s=21, now=clock)
    best = {"epoch": 3, "metrics": {"val_accuracy": 0.9}}
    drive(Slow(1, clock), Judge(OneRun(), RULES, meter), make, events.extend, begun, lambda trial: best if trial else None)
    assert [(type(e), e.trial) for e in events] == [(kind, trial) for trial in (0, 1) for kind in (RunResumed, RunEnded)]
    assert ends(events) == {0: BY_BUDGET, 1: BY_BUDGET}
    assert [e.best for e in events if isinstance(e, RunEnded)] == [None, best]
    judge, more = Judge(OneRun(), RULES), list[Event]()
    assert replay(judge, events) is None
    judge.meter = Meter(BudgetConfig(wall_s=20), events, wall_s=22, now=clock)
    drive(Slow(1, clock), judge, make, more.extend, under_way([*begun, *events]))
    assert more == [], "they were at rest already"


def test_a_run_that_had_been_stopped_for_another_reason_keeps_it() -> None:
    judge = Judge(OneRun(), RULES)
    judge.stopped |= {0: "asha", 1: "budget"}
    said = [judge.out_of_budget(RunEnded(trial, "stopped", 1000)) for trial in (0, 1, 2)]
    assert [e.stopped_by for e in said if isinstance(e, RunEnded)] == ["asha", "budget", "budget"]


def test_a_disk_that_is_full_when_the_budget_ends_is_said(experiment: MakeExperiment) -> None:
    clock, asked, events = Clock(), experiment(SPACE, "sweep.scheduler=none"), list[Event]()
    judge = Judge(searching(asked, 9), RULES, Meter(BudgetConfig(wall_s=15), now=clock))
    with pytest.raises(Lost, match="no room"):
        drive(Slow(2, clock, lambda e: replace(e, error="no room") if e.trial == 0 else e), judge, make, events.extend)
    assert ends(events) == {0: ("interrupted", None, "no room"), 1: BY_BUDGET}


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
    assert resumed(searching(asked, 9), events) == ([1], list(range(2, 9)))
