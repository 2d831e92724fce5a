"""The driving loop: ask, start, event, ledger, verdict. Resuming is making the recorded calls again, then going on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from orchestrator.errors import ExperimentError, Lost
from orchestrator.events import EpochEnded, Event, RunEnded, RunResumed, RunStarted
from orchestrator.execution.budget import Meter
from orchestrator.execution.executor import GRACE_S, Executor
from orchestrator.execution.search import best_so_far
from orchestrator.experiment.config import BudgetConfig
from orchestrator.training.job import Job


class Asks(Protocol):
    """What suggests trials and judges them: execution.search."""

    def ask(self) -> tuple[Any, dict[str, Any]] | None: ...
    def repeats(self, trial: Any, values: dict[str, Any]) -> bool: ...
    def take(self, trial: Any, values: dict[str, Any]) -> None: ...
    def learn(self, values: dict[str, Any], score: float) -> bool: ...
    def tell(self, trial: Any, epoch: int, score: float) -> bool: ...
    def end(self, trial: Any, failed: bool) -> None: ...


Kept = Callable[[Any], dict[str, Any] | None]
Make = Callable[[Any, dict[str, Any], int | None], tuple[Job, RunStarted]]


@dataclass(frozen=True)
class Rules:
    """What the loop judges by: the metric, its mode, and the epochs without a better value after which a run is stopped."""

    metric: str
    mode: str
    patience: int | None = None


def drive(
    executor: Executor,
    judge: Judge,
    make: Make,
    append: Callable[[Sequence[Event]], None],
    under_way: Iterable[RunStarted] = (),
    kept: Kept = lambda trial: None,
) -> str | None:
    """Run until the search has no further trial and every slot is free. Every event is appended before it has a consequence.

    `under_way`: runs of a resumed launch, which go on first; `make(trial, values, known)` gives a run's job, `known`: how many
    epochs are recorded of one that goes on; `kept(trial)`: the best epoch in a run's newest checkpoint. When the budget is used up no run
    begins, those under way end at their next step, and it is returned what was used up. On an interrupt and on an error of the executor
    they are appended as interrupted, and it is raised again.
    """
    free, running, waiting = list(range(executor.slots)), dict[int, RunStarted | RunResumed](), deque(under_way)

    def record(events: Sequence[Event]) -> None:
        append(events)
        for event in events:
            judge.meter.see(event)

    try:
        while True:
            while free and (begun := _next(waiting, judge, make)) is not None:
                job, event = begun
                record([event])
                if isinstance(job, RunEnded):
                    record([judge(job)])
                    continue
                running[free[0]] = event
                executor.start(free.pop(0), job)
            happened = executor.wait(judge.meter.left_s()) if running else []
            if not happened:
                break  # nothing is left to do, or the budget is used up
            judged = [(slot, judge.knows(event), judge(event)) for slot, event in happened]
            record([event for _, known, event in judged if not known])
            for slot, _, said in judged:
                if isinstance(said, EpochEnded):
                    executor.verdict(slot, said.verdict == "continue")
                else:
                    del running[slot]
                    free.append(slot)
            _raise_if_interrupted([event for _, _, event in judged])
        full = judge.meter.full()
        if running or waiting:
            _out_of_budget(executor, judge, running, waiting, record, kept)
        return full
    except BaseException as reason:
        record([_cut_off(begun, reason) for begun in running.values()])
        raise


def _out_of_budget(
    executor: Executor,
    judge: Judge,
    running: dict[int, RunStarted | RunResumed],
    waiting: Iterable[RunStarted],
    record: Callable[[Sequence[Event]], None],
    kept: Kept,
) -> None:
    """End the runs under way, and those that were to go on, as stopped by the budget: where it is raised they go on one day."""
    trouble: str | None = None
    for slot, event in executor.stop(GRACE_S) if running else ():
        known, judged = judge.knows(event), judge.out_of_budget(event)
        record([] if known else [judged])
        if isinstance(judged, RunEnded):
            del running[slot]
            trouble = judged.error if judged.state == "interrupted" else trouble
    for slot, silent in list(running.items()):
        record([judge.out_of_budget(_silent(silent, judge, kept))])
        del running[slot]
    for before in (run for run in waiting if run.trial not in judge.at_rest):
        begun = RunResumed(before.trial, int(time.time() * 1000), before.env)
        record([begun, judge.out_of_budget(_silent(begun, judge, kept))])
    if trouble is not None:
        raise Lost(trouble)


def _silent(begun: RunStarted | RunResumed, judge: Judge, kept: Kept) -> RunEnded:
    """The end of a run that said none: its best epoch is that of its newest checkpoint."""
    best = kept(begun.trial)
    if best is None and judge.verdicts.get(begun.trial):
        return _cut_off(begun, Lost("the budget is used up, and no checkpoint holds its epochs"))
    return replace(_cut_off(begun, KeyboardInterrupt()), best=best)


def _next(waiting: deque[RunStarted], judge: Judge, make: Make) -> tuple[Job | RunEnded, RunStarted | RunResumed] | None:
    """The job of the next run, and the event of its beginning: first what was under way, then what the search asks for.

    Values that don't go together, each of which is allowed, make no job: the run has failed.
    """
    if judge.meter.over() is not None:
        return None
    if waiting:
        before = waiting.popleft()
        job, started = make(before.trial, before.values, len(judge.verdicts.get(before.trial, ())))
        return job, RunResumed(before.trial, int(time.time() * 1000), started.env)
    if judge.meter.full() is not None:
        return None
    if (asked := judge.search.ask()) is None:
        return None
    try:
        return make(*asked, None)
    except ExperimentError as error:
        trial, values = asked
        now = int(time.time() * 1000)
        return RunEnded(trial, "failed", now, error=" ".join(str(error).split())), RunStarted(trial, now, values, dict(values))


def _raise_if_interrupted(events: Sequence[Event]) -> None:
    """A run that ended without an end of its own ends the loop: it was asked to, or has no room for its checkpoint."""
    for event in events:
        if isinstance(event, RunEnded) and event.state == "interrupted":
            raise Lost(event.error) if event.error else KeyboardInterrupt


def _cut_off(begun: RunStarted | RunResumed, reason: BaseException) -> RunEnded:
    now = time.time()
    error = None if isinstance(reason, KeyboardInterrupt) else " ".join(str(reason).split())
    return RunEnded(begun.trial, "interrupted", int(now * 1000), error=error, wall_s=now - begun.at_ms / 1000)


class Judge:
    """The verdict on each event: a function of the events so far. An epoch that was judged before gets the same verdict again.

    `meter`: what was used of the budget.
    """

    def __init__(self, search: Asks, rules: Rules, meter: Meter | None = None) -> None:
        self.search, self.rules, self.meter = search, rules, meter or Meter(BudgetConfig())
        self.scores: dict[Any, list[float]] = {}
        self.verdicts: dict[Any, list[str]] = {}
        self.stopped: dict[Any, str] = {}
        self.at_rest: set[Any] = set()  # the runs that the budget stopped and that didn't go on

    def out_of_budget(self, event: EpochEnded | RunEnded) -> EpochEnded | RunEnded:
        """The same of an event of runs that were asked to end, for the budget is used up."""
        if not isinstance(event, RunEnded) or event.state not in ("interrupted", "stopped") or event.error is not None:
            return self(event)
        if event.state == "stopped" and self.stopped.get(event.trial, "budget") != "budget":
            return self(event)  # it had been stopped before, for another reason
        self.stopped.pop(event.trial, None)
        return self(replace(event, state="stopped", stopped_by="budget"))

    def knows(self, event: Event) -> bool:
        """Whether it is an epoch that was judged before: a run that went on from an older checkpoint comes by it again."""
        return isinstance(event, EpochEnded) and event.epoch <= len(self.verdicts.get(event.trial, []))

    def __call__(self, event: EpochEnded | RunEnded) -> EpochEnded | RunEnded:
        self.at_rest.discard(event.trial)
        if isinstance(event, RunEnded):
            if event.state == "interrupted":
                return event  # it goes on one day: nothing to judge
            if event.state == "stopped":
                event = replace(event, stopped_by=self.stopped.pop(event.trial, event.stopped_by))
            if event.stopped_by == "budget":
                self.at_rest.add(event.trial)  # it may go on one day too
            else:
                self.search.end(event.trial, failed=event.state == "failed")
            return event
        if self.knows(event):
            return replace(event, verdict=self.verdicts[event.trial][event.epoch - 1])
        return self.note(replace(event, verdict=self._verdict(event)))

    def note(self, event: EpochEnded) -> EpochEnded:
        """Remember an epoch's verdict, in place of what was remembered of it, if anything."""
        assert event.verdict is not None
        verdicts = self.verdicts.setdefault(event.trial, [])
        verdicts[event.epoch - 1 :] = [event.verdict]
        self.stopped.pop(event.trial, None)
        if event.verdict != "continue":
            self.stopped[event.trial] = event.verdict
        return event

    def _verdict(self, event: EpochEnded) -> str:
        scores = self.scores.setdefault(event.trial, [])
        scores.append(event.metrics[self.rules.metric])
        stop = self.search.tell(event.trial, event.epoch, best_so_far(scores, self.rules.mode))
        if event.last:
            return "continue"
        if stop:
            return "asha"
        if self.rules.patience is not None and plateau(scores, self.rules.mode) >= self.rules.patience:
            return "patience"
        return "continue" if self.meter.over() is None else "budget"


def plateau(scores: list[float], mode: str) -> int:
    """Epochs since the best score."""
    return len(scores) - 1 - scores.index(best_so_far(scores, mode))


def under_way(events: Iterable[Event]) -> list[RunStarted]:
    """The runs that had begun and not ended: those that the budget stopped haven't either."""
    open_runs: dict[Any, RunStarted] = {}
    for event in events:
        if isinstance(event, RunStarted):
            open_runs[event.trial] = event
        elif isinstance(event, RunEnded) and _is_over(event):
            open_runs.pop(event.trial, None)
    return list(open_runs.values())


def _is_over(event: RunEnded) -> bool:
    return event.state != "interrupted" and event.stopped_by != "budget"


def replay(judge: Judge, events: Iterable[Event]) -> str | None:
    """Make the recorded calls to a fresh search. Where an answer differs from the recorded one: a sentence, and the search is of no use."""
    try:
        return _difference(judge, events)
    except Exception as error:  # whatever another version of a searcher raises where it is to repeat what an older one said
        return f"it can't repeat what was recorded, {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _difference(judge: Judge, events: Iterable[Event]) -> str | None:
    for event in events:
        if isinstance(event, RunStarted):
            if not judge.search.repeats(event.trial, event.values):
                return f"it no longer suggests {event.values} for trial {event.trial}"
        elif isinstance(event, EpochEnded):
            said = judge(event)
            if event.verdict != "budget" and said != event:  # a budget is no search's matter; that run goes on where it is raised
                return f"its verdict on trial {event.trial} after epoch {event.epoch} is no longer {event.verdict}"
        elif isinstance(event, RunEnded) and judge(event) != event:
            return f"trial {event.trial} would no longer end as {event.state}"
    return None


def adopt(judge: Judge, events: Iterable[Event]) -> tuple[int, int]:
    """Give a fresh search what another one did: (the trials that it learns from, those that ended with a score)."""
    values: dict[Any, dict[str, Any]] = {}
    learnt = ended = 0
    for event in events:
        if isinstance(event, RunStarted):
            values[event.trial] = event.values
            judge.search.take(event.trial, event.values)
        elif isinstance(event, EpochEnded):
            judge(event)
            judge.note(event if event.verdict != "budget" else replace(event, verdict="continue"))
        elif isinstance(event, RunEnded) and _is_over(event):
            judge(event)
            if event.state != "failed" and judge.scores.get(event.trial):
                ended += 1
                learnt += judge.search.learn(values[event.trial], best_so_far(judge.scores[event.trial], judge.rules.mode))
    return learnt, ended
