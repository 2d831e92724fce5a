"""The driving loop, with an executor in memory: what is recorded, in which order, and who is stopped."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.catalog import catalog
from orchestrator.errors import Lost
from orchestrator.events import EpochEnded, Event, RunEnded, RunResumed, RunStarted
from orchestrator.execution.budget import Meter
from orchestrator.execution.executor import SlotEvent
from orchestrator.execution.search import OneRun, Search
from orchestrator.execution.sweep import Judge, Rules, adopt, drive, plateau, replay, under_way
from orchestrator.experiment.config import BudgetConfig, Experiment
from orchestrator.experiment.read import space_of, with_values
from orchestrator.records.ledger import Launch, Ledger
from tests.execution.conftest import MakeExperiment

EPOCHS = 8
RULES = Rules("val_accuracy", "max")
SPACE = "sweep.space={optimizer.lr: {loguniform: [1e-4, 1.0]}, model.dropout: {uniform: [0.0, 0.5]}}"
Score = Callable[[int, int], float]


class Memory:
    """An executor in memory: `score` of (trial, epoch); each `wait` gives the next event of every busy slot."""

    def __init__(self, slots: int, score: Score, log: list[Any] | None = None, epochs: int = EPOCHS) -> None:
        self.slots, self.score, self.epochs = slots, score, epochs
        self.log = [] if log is None else log
        self.busy: dict[int, tuple[int, int]] = {}
        self.stopped: set[int] = set()

    def start(self, slot: int, job: Any) -> None:
        assert slot not in self.busy
        self.log.append(("start", job.trial))
        self.busy[slot] = (job.trial, 0)

    def wait(self) -> list[SlotEvent]:
        assert self.busy, "a wait without a job would never end"
        return [(slot, self._next(slot)) for slot in list(self.busy)]

    def _next(self, slot: int) -> EpochEnded | RunEnded:
        trial, epoch = self.busy[slot]
        if slot in self.stopped or epoch == self.epochs:
            del self.busy[slot]
            state = "stopped" if slot in self.stopped else "finished"
            self.stopped.discard(slot)
            return RunEnded(trial, state, 1000)  # type: ignore[arg-type]
        self.busy[slot] = (trial, epoch + 1)
        try:
            return EpochEnded(trial, epoch + 1, {"val_accuracy": self.score(trial, epoch + 1)}, 1000, epoch + 1 == self.epochs)
        except ArithmeticError as error:
            del self.busy[slot]
            return RunEnded(trial, "failed", 1000, error=str(error))

    def verdict(self, slot: int, go_on: bool) -> None:
        self.log.append(("verdict", self.busy[slot][0], self.busy[slot][1], go_on))
        if not go_on:
            self.stopped.add(slot)

    def close(self) -> None:
        """Nothing to end."""


def make(trial: int, values: dict[str, Any], known: int | None) -> tuple[Any, RunStarted]:
    return SimpleNamespace(trial=trial, resume=known is not None), RunStarted(trial, 1000, values, values)


def searching(experiment: Experiment, trials: int) -> Search:
    return Search(experiment, space_of(experiment), EPOCHS, trials)


def swept(search: Any, memory: Memory, rules: Rules = RULES) -> list[Event]:
    events: list[Event] = []

    def append(new: Sequence[Event]) -> None:
        events.extend(new)
        memory.log.extend(("append", event) for event in new)

    drive(memory, Judge(search, rules), make, append)
    return events


def good(trial: int, epoch: int) -> float:
    return 0.8 + epoch / 100 + trial / 1000


def test_every_event_is_recorded_before_it_has_a_consequence(experiment: MakeExperiment) -> None:
    memory = Memory(2, good)
    events = swept(searching(experiment(SPACE), 6), memory)
    recorded = [entry[1] for entry in memory.log if entry[0] == "append"]
    assert recorded == events
    for place, entry in enumerate(memory.log):
        before = [other[1] for other in memory.log[:place] if other[0] == "append"]
        if entry[0] == "start":
            assert any(isinstance(e, RunStarted) and e.trial == entry[1] for e in before)
        if entry[0] == "verdict":
            _, trial, epoch, go_on = entry
            [event] = [e for e in before if isinstance(e, EpochEnded) and (e.trial, e.epoch) == (trial, epoch)]
            assert go_on == (event.verdict == "continue")


def test_values_that_do_not_go_together_are_a_failed_trial_and_the_others_go_on(experiment: MakeExperiment) -> None:
    space = "sweep.space={model.channels: {choice: [[4], [4, 6]]}, model.pool_after: {choice: [[1], [1, 2]]}}"
    asked = experiment(space, "sweep.search=grid", "sweep.scheduler=none")
    events: list[Event] = []

    def checked(trial: int, values: dict[str, Any], known: int | None) -> tuple[Any, RunStarted]:
        with_values(asked, values, catalog(Path()))
        return make(trial, values, known)

    drive(Memory(2, good), Judge(searching(asked, 4), RULES), checked, events.extend)
    begun = {e.trial: e.values for e in events if isinstance(e, RunStarted)}
    ends = {e.trial: e for e in events if isinstance(e, RunEnded)}
    [wrong] = [trial for trial, values in begun.items() if values == {"model.channels": [4], "model.pool_after": [1, 2]}]
    assert {trial: end.state for trial, end in ends.items()} == {**dict.fromkeys(range(4), "finished"), wrong: "failed"}
    assert (ends[wrong].error or "").startswith("model: pool_after names convolution 2")
    assert replay(Judge(searching(asked, 4), RULES), events) is None


def test_every_trial_has_its_start_its_epochs_in_order_and_its_end(experiment: MakeExperiment) -> None:
    events = swept(searching(experiment(SPACE, "sweep.scheduler=none"), 5), Memory(2, good))
    for trial in range(5):
        started, *epochs, ended = [e for e in events if e.trial == trial]
        assert isinstance(started, RunStarted)
        assert [e.epoch for e in epochs] == list(range(1, EPOCHS + 1))  # type: ignore[union-attr]
        assert isinstance(ended, RunEnded)
        assert ended.state == "finished"
    assert {e.trial for e in events} == set(range(5))


def test_a_free_slot_takes_the_next_trial_before_the_loop_waits_again(experiment: MakeExperiment) -> None:
    memory = Memory(3, good)
    busy: list[int] = []
    search = searching(experiment(SPACE, "sweep.scheduler=none"), 7)
    wait = memory.wait

    def watched() -> list[SlotEvent]:
        if search.asked < 7:
            busy.append(len(memory.busy))
        return wait()

    memory.wait = watched  # type: ignore[method-assign]
    swept(search, memory)
    assert set(busy) == {3}


def test_asha_stops_a_hopeless_trial_and_says_so(experiment: MakeExperiment) -> None:
    def score(trial: int, epoch: int) -> float:
        return 0.1 if trial == 5 else good(trial, epoch)

    asked = experiment(SPACE, "sweep.scheduler={name: asha, grace_period: 2, reduction_factor: 2}")
    events = swept(searching(asked, 6), Memory(1, score))
    hopeless = [e for e in events if e.trial == 5]
    assert [e.verdict for e in hopeless if isinstance(e, EpochEnded)] == ["continue", "asha"]
    assert isinstance(hopeless[-1], RunEnded)
    assert (hopeless[-1].state, hopeless[-1].stopped_by) == ("stopped", "asha")
    assert [e.state for e in events if isinstance(e, RunEnded) and e.trial == 0] == ["finished"]


def test_a_run_is_stopped_after_so_many_epochs_without_a_better_value() -> None:
    curve = [0.1, 0.5, 0.4, 0.5, 0.6, 0.6, 0.6, 0.7]
    events = swept(OneRun(), Memory(1, lambda trial, epoch: curve[epoch - 1]), replace(RULES, patience=2))
    assert [e.verdict for e in events if isinstance(e, EpochEnded)] == ["continue", "continue", "continue", "patience"]
    assert (events[-1].state, events[-1].stopped_by) == ("stopped", "patience")  # type: ignore[union-attr]


def test_a_run_is_not_stopped_at_its_last_epoch() -> None:
    events = swept(OneRun(), Memory(1, lambda trial, epoch: 0.5), replace(RULES, patience=EPOCHS - 1))
    assert (events[-1].state, events[-1].stopped_by) == ("finished", None)  # type: ignore[union-attr]


def test_the_plateau_is_counted_from_the_first_of_the_best_scores() -> None:
    assert (plateau([0.1, 0.5, 0.5], "max"), plateau([0.3, 0.2, 0.4], "min"), plateau([0.1], "max")) == (1, 1, 0)


def test_a_failed_trial_frees_its_slot_and_the_others_go_on(experiment: MakeExperiment) -> None:
    def score(trial: int, epoch: int) -> float:
        if trial == 1 and epoch == 2:
            raise ArithmeticError("train_loss is nan")
        return good(trial, epoch)

    events = swept(searching(experiment(SPACE, "sweep.scheduler=none"), 4), Memory(2, score))
    ended = {e.trial: (e.state, e.error) for e in events if isinstance(e, RunEnded)}
    assert ended == {0: ("finished", None), 1: ("failed", "train_loss is nan"), 2: ("finished", None), 3: ("finished", None)}


@pytest.mark.parametrize(("reason", "error"), [(KeyboardInterrupt(), None), (OSError("gone"), "gone"), (Lost("no hub"), "no hub")])
def test_what_is_cut_off_is_recorded_as_interrupted_and_the_reason_is_raised_again(
    experiment: MakeExperiment, reason: BaseException, error: str | None
) -> None:
    def score(trial: int, epoch: int) -> float:
        if (trial, epoch) == (1, 3):
            raise reason
        return good(trial, epoch)

    events: list[Event] = []
    with pytest.raises(type(reason)):
        drive(Memory(2, score), Judge(searching(experiment(SPACE), 9), RULES), make, events.extend)
    assert [(e.trial, e.state, e.error) for e in events if isinstance(e, RunEnded)] == [(trial, "interrupted", error) for trial in (0, 1)]


def test_an_epoch_that_was_judged_before_gets_its_verdict_again_and_is_recorded_once(experiment: MakeExperiment) -> None:
    memory = Memory(1, lambda trial, epoch: 0.5, epochs=3)
    told: list[int] = []

    class Listening(OneRun):
        def tell(self, trial: None, epoch: int, score: float) -> bool:
            told.append(epoch)
            return False

    again = memory._next

    def twice(slot: int) -> EpochEnded | RunEnded:
        event = again(slot)
        if isinstance(event, EpochEnded) and event.epoch == 2 and not getattr(memory, "restarted", False):
            memory.restarted = True  # type: ignore[attr-defined]
            memory.busy[slot] = (event.trial, 0)  # type: ignore[assignment]
        return event

    memory._next = twice  # type: ignore[method-assign]
    events = swept(Listening(), memory)
    assert told == [1, 2, 3]
    assert [e.epoch for e in events if isinstance(e, EpochEnded)] == [1, 2, 3]


# replay -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(experiment: MakeExperiment, tmp_path: Path) -> tuple[Experiment, Ledger]:
    """A sweep with stopped and failed trials and two slots, in a ledger."""

    def score(trial: int, epoch: int) -> float:
        if trial == 3:
            raise ArithmeticError("no number")
        return {2: 0.1, 4: 0.2}.get(trial, good(trial, epoch))

    asked = experiment(SPACE, "sweep.scheduler={name: asha, reduction_factor: 2}")
    ledger = Ledger(tmp_path / "home")
    ledger.launch(Launch("one", "sweep", "small", asked.plain(), "val_accuracy", "max", "data", str(tmp_path)))
    drive(Memory(2, score), Judge(searching(asked, 12), RULES), make, lambda events: ledger.append("one", events))
    return asked, ledger


def test_a_recorded_sweep_replays_without_a_difference(recorded: tuple[Experiment, Ledger]) -> None:
    asked, ledger = recorded
    search, events = searching(asked, 14), ledger.events("one")
    assert {e.state for e in events if isinstance(e, RunEnded)} == {"finished", "stopped", "failed"}
    assert replay(Judge(search, RULES), events) is None
    assert search.ask() is not None, "a replayed search goes on"


def test_a_sweep_that_was_cut_off_anywhere_goes_on_as_if_it_had_not_been(recorded: tuple[Experiment, Ledger]) -> None:
    """One slot, so that the order of events is one of the search and not of the machine's."""
    asked, _ = recorded

    def score(trial: int, epoch: int) -> float:
        if trial == 3:
            raise ArithmeticError("no number")
        return {2: 0.1, 4: 0.2}.get(trial, good(trial, epoch))

    whole = swept(searching(asked, 9), Memory(1, score))
    for place in range(1, len(whole)):
        before, judge = whole[:place], Judge(searching(asked, 9), RULES)
        assert replay(judge, before) is None
        after: list[Event] = []
        memory = Memory(1, score)
        drive(memory, judge, make, after.extend, under_way(before))
        assert [e for e in before + after if not isinstance(e, RunResumed)] == whole, place
        assert sum(isinstance(e, RunResumed) for e in after) == len(under_way(before))


@pytest.mark.parametrize(
    ("change", "of", "says"),
    [
        ("'$.values.\"optimizer.lr\"', 0.5", "kind = 'started' and trial = 4", "it no longer suggests {'optimizer.lr': 0.5"),
        (
            "'$.verdict', 'asha'",
            "kind = 'epoch' and trial = 1 and json_extract(data, '$.epoch') = 1",
            "its verdict on trial 1 after epoch 1 is no longer asha",
        ),
        ("'$.stopped_by', 'patience'", "kind = 'ended' and trial = 2", "trial 2 would no longer end as stopped"),
    ],
)
def test_a_tampered_ledger_is_noticed(recorded: tuple[Experiment, Ledger], change: str, of: str, says: str) -> None:
    asked, ledger = recorded
    with sqlite3.connect(ledger.path) as db:
        assert db.execute(f"update entries set data = json_set(data, {change}) where {of}").rowcount == 1
    difference = replay(Judge(searching(asked, 12), RULES), ledger.events("one"))
    assert difference is not None
    assert difference.startswith(says)


def test_a_searcher_that_raises_where_it_is_to_repeat_is_one_of_another_version(recorded: tuple[Experiment, Ledger]) -> None:
    asked, ledger = recorded
    search = searching(asked, 12)
    search.tell = lambda *given: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    difference = replay(Judge(search, RULES), ledger.events("one"))
    assert difference == "it can't repeat what was recorded, ZeroDivisionError: division by zero"


def test_another_seed_is_noticed_at_the_first_trial_that_differs(recorded: tuple[Experiment, Ledger]) -> None:
    asked, ledger = recorded
    other = asked.model_copy(update={"sweep": asked.sweep.model_copy(update={"seed": 99})})
    difference = replay(Judge(searching(other, 12), RULES), ledger.events("one"))
    assert difference is not None
    assert difference.endswith("for trial 1")


# another space --------------------------------------------------------------------------------------------------------------


def going_on(experiment: Experiment, trials: int) -> Search:
    return Search(experiment, space_of(experiment), EPOCHS, trials, goes_on=True)


def test_ended_trials_that_fit_a_changed_space_are_evidence_for_a_fresh_search(
    recorded: tuple[Experiment, Ledger], experiment: MakeExperiment
) -> None:
    _, ledger = recorded
    events = ledger.events("one")
    narrow = "sweep.space={optimizer.lr: {loguniform: [1e-2, 1.0]}, model.dropout: {uniform: [0.0, 0.5]}}"
    search = going_on(experiment(narrow), 15)
    learnt, ended = adopt(Judge(search, RULES), events)
    fits = [e for e in events if isinstance(e, RunStarted) and e.values["optimizer.lr"] >= 1e-2 and e.trial != 3]
    assert (learnt, ended) == (len(fits), 11)
    assert 0 < learnt < ended
    study = search.searcher._ot_study
    assert sorted(t.params["optimizer.lr"] for t in study.trials) == sorted(e.values["optimizer.lr"] for e in fits)
    asked = [search.ask() for _ in range(4)]
    assert [a and a[0] for a in asked] == [12, 13, 14, None]
    assert all(a[1]["optimizer.lr"] >= 1e-2 for a in asked if a is not None)


def test_what_was_under_way_goes_on_in_a_changed_space(recorded: tuple[Experiment, Ledger], experiment: MakeExperiment) -> None:
    _, ledger = recorded
    events = ledger.events("one")
    cut = next(place for place, e in enumerate(events) if isinstance(e, EpochEnded) and (e.trial, e.epoch) == (5, 4)) + 1
    before = events[:cut]
    judge = Judge(going_on(experiment("sweep.space={model.dropout: {uniform: [0.6, 0.9]}}", "sweep.scheduler=none"), 8), RULES)
    assert adopt(judge, before)[0] == 0
    after: list[Event] = []
    drive(Memory(1, good), judge, make, after.extend, under_way(before))
    assert isinstance(after[0], RunResumed)
    ended = {e.trial: e.state for e in after if isinstance(e, RunEnded)}
    assert {trial: state for trial, state in ended.items() if trial >= 6} == {6: "finished", 7: "finished"}
    assert ended[5] == "finished"
    again = [e.epoch for e in after if isinstance(e, EpochEnded) and e.trial == 5]
    assert again == list(range(5, EPOCHS + 1)), "what is recorded isn't recorded again"


def test_a_grid_goes_on_with_the_points_that_no_earlier_trial_had(experiment: MakeExperiment) -> None:
    grid = ("sweep.search=grid", "sweep.scheduler=none")
    small = experiment("sweep.space={model.dropout: {choice: [0.0, 0.1]}}", *grid)
    events = swept(searching(small, 9), Memory(1, good))
    assert sum(isinstance(e, RunStarted) for e in events) == 2, "a grid ends when it is exhausted"
    larger = experiment("sweep.space={model.dropout: {choice: [0.0, 0.1, 0.2, 0.3]}}", *grid)
    judge = Judge(going_on(larger, 9), RULES)
    assert adopt(judge, events) == (2, 2)
    after: list[Event] = []
    drive(Memory(1, good), judge, make, after.extend)
    assert sorted(e.values["model.dropout"] for e in after if isinstance(e, RunStarted)) == [0.2, 0.3]


# a budget -------------------------------------------------------------------------------------------------------------------


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
