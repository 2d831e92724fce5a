"""A run of many trials, as the benchmarks measure it; and ours: `orchestrator sweep` in an empty folder, everything recorded.

*Whole* is the wall time of the command, from its start to its end. *Marginal* is the cost of one trial more: with ends e1 <= ... <= en of
the trials, (en - ek) / (n - k) where k is a quarter of the trials (at least the slots, and whole rounds of them): the first ones, which
pay for warming up, don't count. *Busy* is the share of the slots' time, from the first start to the last end, in which a trial was there:
near 50 % with two slots, one of them did nothing.
"""

from __future__ import annotations

import json
import math
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure

SLOTS = 2
SEED = 0
Span = tuple[float, float]  # when a trial began and ended


@dataclass(frozen=True)
class Run:
    """One contender's run: its wall time and its trials' spans; ours only: the mean of a trial's epochs, and the driver's most memory."""

    whole_s: float
    spans: list[Span]
    compute_s: float = math.nan
    peak_bytes: int = 0

    def marginal_s(self, slots: int) -> float:
        """Seconds a trial more costs."""
        ends = sorted(end for _, end in self.spans)
        first = max(slots, len(ends) // 4 // slots * slots)
        return (ends[-1] - ends[first - 1]) / (len(ends) - first)

    def busy(self, slots: int) -> float:
        """The share of the slots' time in which a trial was there."""
        lasted = max(end for _, end in self.spans) - min(start for start, _ in self.spans)
        return sum(end - start for start, end in self.spans) / (slots * lasted)


def ours(trials: int, *overrides: str, config: Path = measure.CONFIG, files: dict[str, str] | None = None) -> Run:
    """A run of `orchestrator sweep` in an empty folder (but for `files`), everything recorded; spans from its ledger."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name, text in (files or {}).items():
            Path(folder, name).write_text(text)
        path = config if config.is_absolute() else Path(folder, config)
        command = [measure.ORCHESTRATOR, "sweep", str(path), *overrides, f"sweep.trials={trials}", "--json"]
        seconds, printed, peak = measure.run_with_peak(command, Path(folder))
        states = [trial["state"] for trial in json.loads(printed)["trials"]]
        if states != ["finished"] * trials:
            raise SystemExit(f"not every trial finished: {states}")
        return _from_ledger(seconds, peak, Path(folder, ".orchestrator", "ledger.sqlite"))


def _from_ledger(seconds: float, peak: int, ledger: Path) -> Run:
    began: dict[int, float] = {}
    ended: dict[int, float] = {}
    epochs: dict[int, float] = {}
    database = sqlite3.connect(ledger)
    for trial, kind, data, at_ms in database.execute("select trial, kind, data, at_ms from entries where trial is not null order by seq"):
        if kind == "started":
            began[trial] = at_ms / 1000
        elif kind == "epoch":
            epochs[trial] = epochs.get(trial, 0.0) + json.loads(data)["metrics"]["epoch_s"]
        elif kind == "ended":
            ended[trial] = at_ms / 1000
    database.close()
    late = sorted(ended, key=lambda trial: ended[trial])[len(ended) // 4 :]
    return Run(seconds, [(began[trial], ended[trial]) for trial in ended], sum(epochs[trial] for trial in late) / len(late), peak)


Runs = dict[str, list[Any]]


def whole(runs: Runs, name: str) -> float:
    return measure.median([run.whole_s for run in runs[name]])


def marginal(runs: Runs, name: str, slots: int = SLOTS) -> float:
    return measure.median([run.marginal_s(slots) for run in runs[name]])


def peak_mb(runs: Runs, name: str) -> float:
    return measure.median([run.peak_bytes / 1e6 for run in runs[name]])
