"""What is used of a budget, and what ends when it is used up."""

from __future__ import annotations

from orchestrator.events import EpochEnded, Event, RunEnded, RunResumed, RunStarted
from orchestrator.execution.budget import Meter
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
