"""Tables and progress on a terminal, plain lines elsewhere, one JSON document with --json. Results on stdout, the rest on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.stdout import documents
from orchestrator.errors import OrchestratorError
from orchestrator.events import EpochEnded, Event, RunEnded, RunResumed, RunStarted

if TYPE_CHECKING:
    from orchestrator.experiment.plan import Plan
    from orchestrator.results import Result

WIDE = None if sys.stdout.isatty() else 200
SCORES = 6  # on a line; all of them are in --json and in MLflow
LOSSES = ("train_loss", "val_loss", "test_loss")


def say(text: str) -> None:
    """A line on stderr."""
    with contextlib.suppress(OSError):  # a closed pipe (`2>&1 | head`) must not end a training
        print(text, file=sys.stderr, flush=True)


def error(failure: OrchestratorError, as_json: bool) -> None:
    """An error: its lines on stderr; with --json also its result, or the errors, as the document."""
    for line in str(failure).splitlines():
        say(f"error: {line}")
    if failure.result is not None:
        result(failure.result, as_json)
    elif as_json:
        document(failure.document())


def document(data: Any) -> None:
    """The one JSON document on stdout."""
    print(json.dumps(data, indent=2, allow_nan=False, default=str), file=documents(), flush=True)


def result(done: Result, as_json: bool, lines: Sequence[str] = ()) -> None:
    """A result: its document, or its table and lines to read."""
    if as_json:
        document(_finite(done.document()))
        return
    rows = done.rows()
    if rows:
        table(rows)
    for line in lines:
        print(line)


def tables(several: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Those of the tables that have rows, an empty line after each."""
    for rows in several:
        if rows:
            table(rows)
            print()


def measured(protocol: str) -> list[str]:
    """How metrics are measured, where that isn't said by their names."""
    return [f"measured: {protocol}"] if protocol else []


def table(rows: Sequence[dict[str, Any]]) -> None:
    """Rows of one shape as a table."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys = [key for key in keys if any(_cell(row.get(key)) for row in rows)]
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for key in keys:
        drawn.add_column(escape(key), overflow="fold")
    for row in rows:
        drawn.add_row(*(escape(_cell(row.get(key))) for key in keys))
    Console(width=WIDE, no_color=bool(os.environ.get("NO_COLOR"))).print(drawn)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _finite(value: Any) -> Any:
    """JSON knows no infinity: null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))) else value


class Progress:
    """Says how a run goes, on stderr: a line an epoch for `train`, a line a trial for `sweep`."""

    def __init__(self) -> None:
        self.last: dict[int | None, EpochEnded] = {}
        self.started = self.ended = 0

    def __call__(self, event: Event | Plan) -> None:
        if not isinstance(event, Event):  # not by Plan: its module takes pydantic and a YAML parser
            self._planned(event)
        elif isinstance(event, RunStarted | RunResumed):
            self.started += 1
        elif isinstance(event, EpochEnded):
            self.last[event.trial] = event
            if event.trial is None:
                say(f"epoch {event.epoch:3d}  {_metrics(event)}")
        else:
            self._ended(event)

    def _planned(self, plan: Plan) -> None:
        runs = f"{plan.trials} trials, {plan.slots} at a time, up to " if plan.trials > 1 else ""
        epochs = f"{plan.epochs} epoch{'s' if plan.epochs > 1 else ''}"
        count = f"{plan.fewest} to {plan.workers}" if plan.fewest < plan.workers else str(plan.workers)
        workers = f"{count} worker{'s' if plan.workers > 1 else ''} of {plan.cpus:g} CPU{'' if plan.cpus == 1 else 's'}"
        say(f"{runs}{epochs}, {workers}, {plan.precision}; {plan.executor}: {plan.why}")
        for note in plan.notes:
            say(f"note: {note}")

    def _ended(self, event: RunEnded) -> None:
        self.ended += 1
        last = self.last.pop(event.trial, None)
        for note in event.notes:
            say(f"note: {'' if event.trial is None else f'trial {event.trial}: '}{note}")
        why = f"{event.error}" + (f"; the whole trace: {event.trace}" if event.trace else "")
        if event.trial is None:
            if event.error:
                say(f"{event.state}: {why}")
            return
        how = f"stopped by {event.stopped_by}" if event.stopped_by else event.state
        scores = f"  epoch {last.epoch}  {_metrics(last)}" if last else ""
        say(f"trial {event.trial:3d}  {how:<16}{scores}{f'  {why}' if event.error else ''}")


def scores(metrics: Mapping[str, float], most: int = SCORES) -> str:
    """Some scores on a line: the losses, then those that come first, as the experiment's own metric usually does; the rest is counted."""
    names = sorted((name for name in metrics if name.startswith(("train_", "val_", "test_"))), key=lambda name: name not in LOSSES)
    shown = [f"{name} {metrics[name]:.4f}" for name in names[:most]]
    return "  ".join([*shown, *([f"... {len(names) - most} more"] if len(names) > most else [])])


def _metrics(event: EpochEnded) -> str:
    return f"{scores(event.metrics)}  {event.metrics['samples_per_s']:,.0f} samples/s"
