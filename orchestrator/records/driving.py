"""Whether a launch is over. Who drives one holds a lock beside the ledger, which the system releases however it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

from orchestrator.errors import Failed, Refused
from orchestrator.records.ledger import ALL, Entry, Ledger
from orchestrator.records.mirror import has_more, mirror_of
from orchestrator.records.tracking.read import RecordedRun
from orchestrator.records.tracking.store import destination


def lock_of(home: Path, launch: str) -> Path:
    """The file that the command that drives a launch holds."""
    return home / "driving" / f"{launch}.lock"


@contextlib.contextmanager
def driving(home: Path, launch: str) -> Iterator[None]:
    """Held by the command that drives a launch. Raises Refused if another one does."""
    lock = filelock.FileLock(lock_of(home, launch), timeout=0)
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise Refused(f"another command is running {launch}; wait for its end, or end it", key="--resume") from None
    except OSError as error:
        raise Failed(f"can't lock '{lock.lock_file}': {error}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def is_driven(home: Path, launch: str) -> bool:
    """Whether a process on a machine that sees `home` drives the launch."""
    path = lock_of(home, launch)
    if not path.exists():
        return False
    try:
        with filelock.FileLock(path, timeout=0):
            return False
    except (filelock.Timeout, OSError):
        return True


@dataclass(frozen=True)
class Activity:
    """A launch that isn't over. `resumable`: it may go when its last sign of life is as old as the policy asks; else never."""

    why: str
    last_ms: int
    resumable: bool


def ended_ms(run: RecordedRun) -> int:
    """When a run ended, as far as it is recorded."""
    return max(run.started_ms + int(run.result.wall_s * 1000), run.ended_ms or 0)


def active(home: Path, ledger: Ledger | None, runs: Sequence[RecordedRun]) -> dict[str, Activity]:
    """The launches that aren't over: by the ledger, and where it doesn't know them by what MLflow has."""
    here = set(ledger.launches()) if ledger is not None else set()
    found: dict[str, Activity] = {}
    for launch in {run.launch for run in runs}:
        of_it = [run for run in runs if run.launch == launch]
        activity = _activity(home, ledger, launch, of_it) if ledger is not None and launch in here else _activity_elsewhere(of_it)
        if activity is not None:
            found[launch] = activity
    return found


def _activity(home: Path, ledger: Ledger, launch: str, runs: Sequence[RecordedRun]) -> Activity | None:
    entries = [entry for entry in ledger.entries(launch, limit=ALL) if entry.kind != "removed"]
    last_ms = entries[-1].at_ms
    if is_driven(home, launch):
        return Activity(f"{launch} is running", last_ms, resumable=False)
    try:
        if _is_elsewhere(ledger, launch):
            return _activity_elsewhere(runs)
    except Failed as error:
        return Activity(f"another machine may have gone on with {launch}: {error}", last_ms, resumable=False)
    if launch in ledger.unsent(destination()):
        return Activity(f"MLflow hasn't got all of {launch} yet (orchestrator sync)", last_ms, resumable=False)
    ends = [entry for entry in entries if entry.kind in ("launched", "reopened", "closed")]
    if ends[-1].kind == "closed" and ends[-1].data["state"] != "interrupted" and not _has_open_runs(entries):
        return None
    return Activity(f"{launch} was interrupted and can be resumed (--older lets it go in time)", last_ms, resumable=True)


def _is_elsewhere(ledger: Ledger, launch: str) -> bool:
    """Whether another machine has gone on with a launch of this ledger. Raises Failed if that can't be told now."""
    about = ledger.find(launch)
    storage = (about.experiment.get("storage") or {}).get("path")
    return storage is not None and has_more(mirror_of(storage, about.name, about.command), launch, ledger)


def _has_open_runs(entries: Sequence[Entry]) -> bool:
    """Whether a run has no end of its own: a launch that failed, for its workers can't start, say, goes on with it."""
    last = {entry.trial: entry for entry in entries if entry.kind in ("started", "resumed", "ended")}
    return any(entry.kind != "ended" or entry.data["state"] == "interrupted" for entry in last.values())


def _activity_elsewhere(runs: Sequence[RecordedRun]) -> Activity | None:
    launch, states = runs[0].launch, {run.result.state for run in runs}
    last_ms = max(ended_ms(run) for run in runs)
    if "running" in states:
        return Activity(f"{launch} is running elsewhere, as far as MLflow has it", last_ms, resumable=False)
    if "interrupted" in states:
        return Activity(
            f"{launch} was interrupted elsewhere and may be resumed there (--older lets it go in time)", last_ms, resumable=True
        )
    return None
