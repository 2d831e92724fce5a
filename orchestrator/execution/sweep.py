"""The driving loop: ask, start, event, ledger, verdict. Resuming is replaying the same calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from orchestrator.events import EpochEnded, Event, RunEnded, RunStarted, State
from orchestrator.execution.executor import Executor
from orchestrator.execution.search import best_so_far
from orchestrator.training.trial import Job


class Asks(Protocol):
    """What suggests trials and judges them: execution.search."""

    def ask(self) -> tuple[Any, dict[str, Any]] | None: ...
    def tell(self, trial: Any, epoch: int, score: float) -> bool: ...
    def end(self, trial: Any, failed: bool) -> None: ...


@dataclass(frozen=True)
class Rules:
    """What the loop judges by: the metric, its mode, and the epochs without a better value after which a run is stopped."""

    metric: str
    mode: str
    patience: int | None = None


def drive(
    executor: Executor,
    search: Asks,
    make: Callable[[Any, dict[str, Any]], tuple[Job, RunStarted]],
    append: Callable[[Sequence[Event]], None],
    rules: Rules,
) -> None:
    """Run until the search has no further trial and every slot is free. Every event is appended before it has a consequence.

    On an interrupt the runs under way are appended as interrupted, on an error of the executor as failed; it is raised again.
    """
    free, running = list(range(executor.slots)), {}
    judge = Judge(search, rules)
    try:
        while True:
            while free and (asked := search.ask()) is not None:
                job, started = make(*asked)
                append([started])
                running[free[0]] = started
                executor.start(free.pop(0), job)
            if not running:
                return
            judged = [(slot, judge(event)) for slot, event in executor.wait()]
            append([event for _, event in judged])
            for slot, event in judged:
                if isinstance(event, EpochEnded):
                    executor.verdict(slot, event.verdict == "continue")
                else:
                    del running[slot]
                    free.append(slot)
    except BaseException as reason:
        append([_cut_off(started, reason) for started in running.values()])
        raise


def _cut_off(started: RunStarted, reason: BaseException) -> RunEnded:
    now = time.time()
    state: State = "interrupted" if isinstance(reason, KeyboardInterrupt) else "failed"
    error = " ".join(str(reason).split()) if state == "failed" else None
    return RunEnded(started.trial, state, int(now * 1000), error=error, wall_s=now - started.at_ms / 1000)


class Judge:
    """The verdict on each event: a function of the events so far. An epoch that was judged before is told to go on."""

    def __init__(self, search: Asks, rules: Rules) -> None:
        self.search, self.rules = search, rules
        self.scores: dict[Any, list[float]] = {}
        self.stopped: dict[Any, str] = {}

    def __call__(self, event: EpochEnded | RunEnded) -> EpochEnded | RunEnded:
        if isinstance(event, RunEnded):
            self.search.end(event.trial, failed=event.state == "failed")
            return replace(event, stopped_by=self.stopped.pop(event.trial, None) if event.state == "stopped" else None)
        return replace(event, verdict=self._verdict(event))

    def _verdict(self, event: EpochEnded) -> str:
        scores = self.scores.setdefault(event.trial, [])
        if event.epoch <= len(scores):
            return "continue"
        scores.append(event.metrics[self.rules.metric])
        stop = self.search.tell(event.trial, event.epoch, best_so_far(scores, self.rules.mode))
        if event.last:
            return "continue"
        if stop:
            self.stopped[event.trial] = "asha"
        elif self.rules.patience is not None and plateau(scores, self.rules.mode) >= self.rules.patience:
            self.stopped[event.trial] = "patience"
        return self.stopped.get(event.trial, "continue")


def plateau(scores: list[float], mode: str) -> int:
    """Epochs since the best score."""
    return len(scores) - 1 - scores.index(best_so_far(scores, mode))


def replay(search: Asks, events: Iterable[Event], rules: Rules) -> list[str]:
    """Make the recorded calls to a fresh search; where its answers differ from the recorded ones, in sentences (none: exact)."""
    judge, differences = Judge(search, rules), []
    for event in events:
        if isinstance(event, RunStarted):
            asked = search.ask()
            if asked != (event.trial, event.values):
                differences.append(f"trial {event.trial}: the ledger has {event.values}, the search says {asked and asked[1]}")
                return differences
        elif not (isinstance(event, RunEnded) and event.state == "interrupted"):
            judged = judge(event)
            if judged != event:
                said = getattr(judged, "verdict", None) or getattr(judged, "stopped_by", None)
                recorded = getattr(event, "verdict", None) or getattr(event, "stopped_by", None)
                differences.append(f"trial {event.trial}: the ledger has the verdict {recorded}, the search says {said}")
    return differences
