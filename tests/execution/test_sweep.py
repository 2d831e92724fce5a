"""The driving loop, with an executor in memory: what is recorded, in which order, and who is stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.catalog import catalog
from orchestrator.errors import Lost
from orchestrator.events import EpochEnded, Event, RunEnded, RunStarted
from orchestrator.execution.executor import SlotEvent
from orchestrator.execution.search import OneRun
from orchestrator.execution.sweep import Judge, drive, plateau, replay
from orchestrator.experiment.read import with_values
from tests.execution.conftest import MakeExperiment
from tests.execution.memory import EPOCHS, RULES, SPACE, Memory, good, make, searching, swept


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

    def watched(within_s: float | None = None) -> list[SlotEvent]:
        if search.asked < 7:
            busy.append(len(memory.busy))
        return wait(within_s)

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
