"""A sweep that goes on: the recorded calls are made again, or what they led to is evidence for another search."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from orchestrator.events import EpochEnded, Event, RunEnded, RunResumed, RunStarted
from orchestrator.execution.search import Search
from orchestrator.execution.sweep import Judge, adopt, drive, replay, under_way
from orchestrator.experiment.config import Experiment
from orchestrator.experiment.read import space_of
from orchestrator.records.ledger import Launch, Ledger
from tests.execution.conftest import MakeExperiment
from tests.execution.memory import EPOCHS, RULES, SPACE, Memory, good, make, searching, swept


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
