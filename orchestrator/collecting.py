"""Removing what is no longer needed: runs by a policy, with all that is kept of them, here and in MLflow, and data that no run uses."""

from __future__ import annotations

import contextlib
import functools
import secrets
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.asking import home
from orchestrator.deployment import garbage
from orchestrator.errors import Failed, Note
from orchestrator.experiment.file import parse_value
from orchestrator.records import tracking
from orchestrator.records.driving import active, is_driven
from orchestrator.records.ledger import Ledger
from orchestrator.records.logs import folder_of as logs_of
from orchestrator.records.mirror import forget, mirror_of
from orchestrator.records.retention import going, policy
from orchestrator.records.tracking import RecordedRun
from orchestrator.results import Result
from orchestrator.storage import below, delete_all, size_bytes
from orchestrator.training.checkpoint import folder_of, run_key
from orchestrator.training.rows import unpublish

REMOVING = ".removing-"
WAIT_S = 60.0  # for a command that is sending from this ledger


@dataclass(frozen=True)
class Collected(Result):
    """What `gc` removed, or would: runs `{run_id, trial, sweep, bytes}`, prepared data `{fingerprint, bytes}`; `kept`: runs that stay."""

    experiment: str
    removed: list[dict[str, Any]]
    kept: int
    bytes: int
    dry_run: bool
    data: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        runs = [{"run": _named(run["trial"], run["sweep"]), **run} for run in self.removed]
        rows = [*runs, *({"run": "prepared data", "run_id": one["fingerprint"], "bytes": one["bytes"]} for one in self.data)]
        return [{"what": row["run"], "id": row["run_id"], "sweep": row.get("sweep"), "size": sized(row["bytes"])} for row in rows]

    def summary(self) -> str:
        """What it comes to, in one line."""
        went, runs = "would be removed" if self.dry_run else "removed", len(self.removed)
        return f"{went}: {runs} run{'' if runs == 1 else 's'}, {sized(self.bytes)}; kept: {self.kept} (a sweep's own run counts)"


@dataclass(frozen=True)
class _Run:
    """A run that goes: what of it lies here or in the storage, and what all of it holds."""

    run: RecordedRun
    places: tuple[str, ...]
    base: str  # below which its checkpoints are, and a copy of the prepared data where the nodes see no other
    size: int
    here: bool  # this folder's ledger has it
    mirror: str | None = None  # of a launch's own run: where the ledger's copy is

    @property
    def run_id(self) -> str:
        return str(self.run.result.run_id)

    def row(self) -> dict[str, Any]:
        """As a result shows it; of a sweep's own run `trial` is None."""
        sweep = None if self.run.kind == "train" else self.run.launch
        return {"run_id": self.run_id, "trial": self.run.result.trial, "sweep": sweep, "bytes": self.size}


@dataclass(frozen=True)
class _Data:
    """Prepared data that go: here, and the copies in the storage."""

    fingerprint: str
    copies: tuple[str, ...]
    size: int

    def row(self) -> dict[str, Any]:
        """As a result shows it."""
        return {"fingerprint": self.fingerprint, "bytes": self.size}

    def drop(self) -> None:
        """Whoever opens the folder now finds all of it or nothing."""
        folder = home() / "data" / self.fingerprint
        for uri in self.copies:
            unpublish(uri)
        if folder.is_dir():
            aside = folder.with_name(f"{REMOVING}{secrets.token_hex(4)}")
            folder.rename(aside)
            delete_all(str(aside))


def gc(name: str, *, keep: str | None = None, older: str | None = None, dry_run: bool = False) -> Collected:
    """Remove runs of an experiment: all but the best (`keep="top:3"`), those that ended long ago (`older="30d"`); of both, what is neither.

    With a run go its MLflow run, model, artifacts, checkpoints, bundle, figures and logs; with the last run on them the prepared data.
    Never a run that a version of a registered model is made of, nor one of a launch under way. Raises Refused; Failed, with the result, if
    something could not be removed.
    """
    rule = policy(keep, older)
    client = tracking.reachable_client()
    with contextlib.ExitStack() as until:
        ledger = _open_ledger(until, dry_run)
        runs = tracking.recorded(client, name)
        needed = garbage.needed(client)
        registered = {str(run.result.run_id): why for run in runs if (why := needed.why(run))}
        chosen, stays = going(runs, rule, registered, active(home(), ledger, runs), int(time.time() * 1000))
        _say_what_stays(stays)
        planned = _sized(client, ledger, chosen, name)
        failed: list[str] = []
        gone = planned if dry_run else _remove(client, ledger, planned, failed)
        for left in () if dry_run else (home() / "data").glob(f"{REMOVING}*"):  # of a gc that was cut off
            _try(f"'{left}'", functools.partial(delete_all, str(left)), failed)
        data = _data(client, ledger, gone, needed.fingerprints)
        if not dry_run:
            data = [one for one in data if _try(f"prepared data {one.fingerprint}", one.drop, failed)]
    rows, of_data, kept = [one.row() for one in gone], [one.row() for one in data], len(runs) - len(gone)
    done = Collected(name, rows, kept, sum(row["bytes"] for row in [*rows, *of_data]), dry_run, of_data, failed)
    if failed:
        raise Failed(f"not everything could be removed: {'; '.join(failed[:3])}", result=done)
    return done


def _open_ledger(until: contextlib.ExitStack, dry_run: bool) -> Ledger | None:
    """This folder's ledger, if there is one, its rest sent; nobody else sends from it until the end."""
    if not (home() / "ledger.sqlite").exists():
        return None
    ledger = Ledger(home())
    until.callback(ledger.close)
    try:
        tracking.sync(home())
    except Failed as error:
        warnings.warn(f"{error}; what MLflow hasn't got stays", Note, stacklevel=3)
    if not dry_run:
        until.enter_context(tracking.sending_lock(home(), WAIT_S))
    return ledger


def sized(count: int) -> str:
    """Bytes, short."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def _named(trial: int | None, sweep: str | None) -> str:
    return f"trial {trial}" if trial is not None else "train" if sweep is None else "the sweep itself"


def _say_what_stays(stays: dict[str, str]) -> None:
    """Why runs stay that the policy would let go, each reason once."""
    reasons = list(stays.values())
    for why in dict.fromkeys(reasons):
        warnings.warn(f"{reasons.count(why)} run{'' if reasons.count(why) == 1 else 's'} not removed: {why}", Note, stacklevel=3)


def _sized(client: Any, ledger: Ledger | None, chosen: Sequence[RecordedRun], name: str) -> list[_Run]:
    """The runs that go, with what there is of each."""
    here = set(ledger.launches()) if ledger is not None else set()
    storage: dict[str, str | None] = {}
    found = []
    for run in chosen:
        if run.launch not in storage:
            storage[run.launch] = _storage(client, ledger if run.launch in here else None, run)
        trial, key = run.result.trial, run_key(run.launch, run.result.trial)
        own = [home() / "bundles" / key, home() / "figures" / key, logs_of(home(), run.launch, trial)]
        base = storage[run.launch]
        places = (folder_of(base, home(), run.launch, trial), *map(str, own))
        size = garbage.size_bytes(client, str(run.result.run_id)) + sum(map(size_bytes, places))
        mirror = mirror_of(base, name, run.kind) if base and run.kind in ("sweep", "train") else None
        found.append(_Run(run, places, base or str(home() / "checkpoints"), size, run.launch in here, mirror))
    return found


def _storage(client: Any, ledger: Ledger | None, run: RecordedRun) -> str | None:
    """`storage.path` of a launch's experiment, as it is spelt out from here."""
    if ledger is not None:
        experiment: dict[str, Any] = ledger.find(run.launch).experiment
    else:
        try:
            experiment = parse_value(tracking.experiment_file(client, run))
        except Failed:  # its artifacts are gone
            return None
    path = (experiment.get("storage") or {}).get("path")
    return path if path is None or "://" in path else str(Path(path).expanduser().resolve())


def _remove(client: Any, ledger: Ledger | None, planned: Sequence[_Run], failed: list[str]) -> list[_Run]:
    """Remove runs one by one, sweeps after their trials; those that are gone. First the ledger: no `sync` may bring a removed run back."""
    gone: list[_Run] = []
    stuck: set[str] = set()
    for one in planned:
        if one.run.kind == "sweep" and one.run.launch in stuck:
            continue  # a trial of it is there still
        if _try(_named(one.run.result.trial, one.row()["sweep"]) + f" ({one.run_id})", _removal(client, ledger, one), failed):
            gone.append(one)
        else:
            stuck.add(one.run.launch)
    for launch in dict.fromkeys(one.run.launch for one in gone if one.here and one.run.kind in ("sweep", "train")):
        assert ledger is not None
        ledger.forget(launch)
    return gone


def _removal(client: Any, ledger: Ledger | None, one: _Run) -> Callable[[], None]:
    def work() -> None:
        garbage.check(client, one.run_id)
        if is_driven(home(), one.run.launch):
            raise Failed(f"{one.run.launch} is running by now")
        if ledger is not None and one.here:
            ledger.remove(one.run.launch, one.run.result.trial)
        for place in one.places:
            delete_all(place)
        if one.mirror is not None:
            forget(one.mirror, one.run.launch)
        garbage.remove(
            client, one.run_id, for_good=one.here
        )  # a run of another ledger stays known as deleted, so that this doesn't send it

    return work


def _try(what: str, work: Callable[[], None], failed: list[str]) -> bool:
    try:
        work()
    except (Failed, OSError) as error:
        failed.append(f"{what}: {' '.join(str(error).split())}")
        return False
    return True


def _data(client: Any, ledger: Ledger | None, gone: Sequence[_Run], needed: Collection[str]) -> list[_Data]:
    """The prepared data of runs that go, which no other run, no version and no launch of this ledger is of."""
    ids, ended = {one.run_id for one in gone}, {one.run.launch for one in gone if one.run.kind in ("sweep", "train")}
    used = {"", *needed, *(_fingerprints(ledger, ended) if ledger is not None else ())}
    found = []
    for fingerprint in dict.fromkeys(one.run.fingerprint for one in gone if one.run.fingerprint not in used):
        copies = tuple(dict.fromkeys(below(one.base, "data", fingerprint) for one in gone if one.run.fingerprint == fingerprint))
        size = sum(map(size_bytes, (str(home() / "data" / fingerprint), *copies)))
        if size > 0 and not garbage.is_used(client, fingerprint, ids):
            found.append(_Data(fingerprint, copies, size))
    return found


def _fingerprints(ledger: Ledger, without: Collection[str]) -> Iterator[str]:
    yield from (ledger.find(launch).fingerprint for launch in ledger.launches() if launch not in without)
