"""An executor in memory, and a search driven on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from orchestrator.events import EpochEnded, Event, RunEnded, RunStarted
from orchestrator.execution.executor import SlotEvent
from orchestrator.execution.search import Search
from orchestrator.execution.sweep import Judge, Rules, drive
from orchestrator.experiment.config import Experiment
from orchestrator.experiment.read import space_of

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

    def wait(self, within_s: float | None = None) -> list[SlotEvent]:
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

    def stop(self, grace_s: float) -> list[SlotEvent]:
        """Every run's end, as if it had been asked for one."""
        said: list[SlotEvent] = [(slot, RunEnded(trial, "interrupted", 1000)) for slot, (trial, _) in self.busy.items()]
        self.busy.clear()
        return said

    def close(self, grace_s: float = 0) -> None:
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
