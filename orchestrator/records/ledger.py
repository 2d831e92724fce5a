"""The driver's durable outbox and a sweep's memory: SQLite, WAL, committed before it counts.

Two writers may share a ledger (two commands in one folder); every launch has its own id. What MLflow has got is remembered by
destination and launch, as the last entry that was sent; sending is idempotent, so a mark that is too low costs time and nothing else.
A destination is kept without its password.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock

from orchestrator.errors import Lost, Refused, shown
from orchestrator.events import KINDS, Event, TrialResult, from_plain, summarise, to_plain

_TABLES = """
create table if not exists launches (id text primary key, command text, experiment text, data text, at_ms integer);
create table if not exists entries (
    seq integer primary key autoincrement, launch text not null, trial integer,
    kind text not null, data text not null, at_ms integer not null
);
create index if not exists entries_of on entries (launch, trial, seq);
create index if not exists entries_in_order on entries (launch, seq);
create table if not exists identities (destination text, launch text, trial integer, run_id text, primary key (destination, launch, trial));
create table if not exists sent (destination text, launch text, seq integer not null, primary key (destination, launch));
"""
PARENT = -1  # identities' key column has no nulls


@dataclass(frozen=True)
class Launch:
    """One start of `train` or `sweep`. `experiment`: the resolved file; `metric`, `mode`: what is best; `about`: provenance."""

    id: str
    command: str
    name: str
    experiment: dict[str, Any]
    metric: str
    mode: str
    fingerprint: str
    folder: str
    about: dict[str, Any] = field(default_factory=dict)
    at_ms: int = 0
    format: int = 1


@dataclass(frozen=True)
class Entry:
    """One thing that happened. kinds: launched, reopened; the events' own (events.KINDS); kept (a bundle and its test scores); closed."""

    seq: int
    launch: str
    trial: int | None
    kind: str
    data: dict[str, Any]
    at_ms: int


_OF_A_LAUNCH = {"launches": "id", "entries": "launch", "identities": "launch", "sent": "launch"}  # the column that names it
_TAKEN = (  # by another command, that went on from the copy (records.mirror), and not resumed here since
    "select launch from entries as taken where kind = 'taken' "
    "and not exists (select 1 from entries where launch = taken.launch and kind = 'reopened' and seq > taken.seq)"
)
ALL = -1  # SQLite's word for no limit


def new_id() -> str:
    """An id of a launch: sorts by time, unique."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(2)


class Ledger:
    """The ledger below a folder; made when it is opened. One instance a thread."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(
                folder / "ledger.lock", timeout=30
            ):  # two that switch to WAL at once: SQLite refuses one, without waiting
                self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
                self._db.execute("pragma journal_mode = wal")
                self._db.execute("pragma synchronous = full")
                self._db.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise Refused(f"can't write '{self.path}': {error}; run it in a folder that you may write to and that has room") from None

    def launch(self, launch: Launch) -> None:
        """Begin a launch."""
        data = asdict(launch)
        with self._transaction() as db:
            db.execute(
                "insert into launches values (?, ?, ?, ?, ?)", (launch.id, launch.command, launch.name, json.dumps(data), launch.at_ms)
            )
            _insert(db, launch.id, None, "launched", {}, launch.at_ms)

    def reopen(self, launch: Launch, at_ms: int) -> None:
        """A launch goes on, with what its experiment file says now."""
        with self._transaction() as db:
            db.execute("update launches set data = ? where id = ?", (json.dumps(asdict(launch)), launch.id))
            _insert(db, launch.id, None, "reopened", {}, at_ms)

    def append(self, launch: str, events: Sequence[Event]) -> None:
        """Append events in one transaction; when this returns they are on disk. A run ends once, and once more if it was resumed."""
        with self._transaction() as db:
            for event in events:
                kind, data = to_plain(event)
                if kind == "ended" and _has_ended(db, launch, event.trial):
                    continue  # an interrupt came between its end and the driver's knowing of it
                _insert(db, launch, event.trial, kind, data, event.at_ms)

    def note(self, launch: str, trial: int | None, kind: str, data: dict[str, Any]) -> None:
        """Append what is no event of a run: kept, closed."""
        with self._transaction() as db:
            _insert(db, launch, trial, kind, data, int(time.time() * 1000))

    def find(self, launch: str) -> Launch:
        """A launch by its id."""
        row = self._db.execute("select data from launches where id = ?", (launch,)).fetchone()
        known = {k: v for k, v in json.loads(row[0]).items() if k in Launch.__dataclass_fields__}
        return Launch(**known)

    def launches(self) -> list[str]:
        """The ids of all launches, oldest first."""
        return [row[0] for row in self._db.execute("select id from launches order by at_ms, id")]

    def entries(self, launch: str | None = None, after: int = 0, limit: int = 10_000) -> list[Entry]:
        """Entries in order, of one launch or of all, after a sequence number."""
        of, values = ("launch = ? and", [launch]) if launch else ("", [])
        rows = self._db.execute(
            f"select seq, launch, trial, kind, data, at_ms from entries where {of} seq > ? order by seq limit ?", (*values, after, limit)
        )
        return [Entry(seq, of_launch, trial, kind, json.loads(data), at_ms) for seq, of_launch, trial, kind, data, at_ms in rows]

    def run_entries(self, launch: str, trial: int | None) -> list[Entry]:
        """Every entry of one run, in order."""
        rows = self._db.execute(
            "select seq, launch, trial, kind, data, at_ms from entries where launch = ? and trial is ? order by seq", (launch, trial)
        )
        return [Entry(seq, of_launch, trial, kind, json.loads(data), at_ms) for seq, of_launch, trial, kind, data, at_ms in rows]

    def events(self, launch: str) -> list[Event]:
        """The events of a launch, in the order in which they were judged."""
        return [from_plain(e.kind, e.data) for e in self.entries(launch, limit=ALL) if e.kind in KINDS]

    def wall_s(self, launch: str) -> float:
        """Seconds that the commands of a launch took: of each, from its beginning to its last entry."""
        total, began = 0, None
        last = 0
        for kind, at_ms in self._db.execute("select kind, at_ms from entries where launch = ? order by seq", (launch,)):
            if kind in ("launched", "reopened"):
                total, began = total + (0 if began is None else last - began), at_ms
            last = at_ms
        return max(0, total + (0 if began is None else last - began)) / 1000

    def results(self, launch: str, destination: str) -> list[TrialResult]:
        """Each run of a launch as commands print it, in the order of the trials' numbers."""
        about, ids = self.find(launch), self.identities(destination, launch)
        by_trial: dict[int | None, list[Event]] = {}
        for event in self.events(launch):
            by_trial.setdefault(event.trial, []).append(event)
        found = []
        for trial in sorted(by_trial, key=lambda t: -1 if t is None else t):
            result = summarise(by_trial[trial], about.metric, about.mode)
            sweep = launch if about.command == "sweep" else None
            found.append(TrialResult(**{**result.__dict__, "run_id": ids.get(trial), "sweep": sweep}))
        return found

    def remove(self, launch: str, trial: int | None) -> None:
        """A run is removed for good: no `sync` makes it again. Its events stay, as the memory of the search."""
        with self._transaction() as db:
            at_ms = db.execute("select max(at_ms) from entries where launch = ?", (launch,)).fetchone()[0]  # nothing of its time is used
            _insert(db, launch, trial, "removed", {}, at_ms)

    def removed(self, launch: str) -> set[int | None]:
        """The runs of a launch that were removed for good."""
        rows = self._db.execute("select distinct trial from entries where launch = ? and kind = 'removed'", (launch,))
        return {row[0] for row in rows}

    def forget(self, launch: str) -> None:
        """Forget a launch, all of whose runs were removed for good."""
        with self._transaction() as db:
            for table, column in _OF_A_LAUNCH.items():
                db.execute(f"delete from {table} where {column} = ?", (launch,))

    def keep_only(self, launch: str) -> None:
        """Forget every other launch, in a copy that is to be one file, and no larger than it must."""
        with self._transaction() as db:
            for table, column in _OF_A_LAUNCH.items():
                db.execute(f"delete from {table} where {column} != ?", (launch,))
        self._db.execute("vacuum")
        self._db.execute("pragma journal_mode = delete")

    # what MLflow has ---------------------------------------------------------------------------------------------------------

    def identities(self, destination: str, launch: str) -> dict[int | None, str]:
        """The MLflow run id of each run of a launch; the parent's (and a `train` run's) under None."""
        rows = self._db.execute("select trial, run_id from identities where destination = ? and launch = ?", (shown(destination), launch))
        return {None if trial == PARENT else trial: run_id for trial, run_id in rows}

    def identify(self, destination: str, launch: str, runs: Mapping[int | None, str]) -> None:
        """Remember the MLflow ids of a launch's runs; what is known already isn't written: a write waits for the disk."""
        new = runs.items() - self.identities(destination, launch).items()
        if not new:
            return
        rows = [(shown(destination), launch, PARENT if trial is None else trial, run_id) for trial, run_id in new]
        with self._transaction() as db:
            db.executemany("insert or replace into identities values (?, ?, ?, ?)", rows)

    def sent(self, destination: str, launch: str) -> int:
        """The last entry of a launch that the destination has."""
        row = self._db.execute("select seq from sent where destination = ? and launch = ?", (shown(destination), launch)).fetchone()
        return int(row[0]) if row else 0

    def mark_sent(self, destination: str, launch: str, seq: int) -> None:
        """Remember the last entry of a launch that the destination has."""
        with self._transaction() as db:
            db.execute("insert or replace into sent values (?, ?, ?)", (shown(destination), launch, seq))

    def forget_sent(self, destination: str) -> None:
        """Forget what the destination has: everything is looked up and sent again."""
        with self._transaction() as db:
            db.execute("delete from sent where destination = ?", (shown(destination),))
            db.execute("delete from identities where destination = ?", (shown(destination),))

    def unsent(self, destination: str) -> list[str]:
        """The launches of which the destination hasn't got everything yet, oldest first; those that were taken are another's to send."""
        mark = "coalesce((select seq from sent where destination = ? and launch = id), 0)"
        rows = self._db.execute(
            f"select id from launches where exists (select 1 from entries where launch = id and seq > {mark}) and id not in ({_TAKEN}) "
            "order by at_ms, id",
            (shown(destination),),
        )
        return [row[0] for row in rows]

    def left(self, destination: str) -> int:
        """How many entries the destination hasn't got yet, of unsent()."""
        mark = "coalesce((select seq from sent where destination = ? and launch = entries.launch), 0)"
        query = f"select count(*) from entries where seq > {mark} and launch not in ({_TAKEN})"
        return int(self._db.execute(query, (shown(destination),)).fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db, self.path)


class _Transaction:
    """begin immediate … commit, rolled back on an error; what SQLite says becomes a sentence."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self.db, self.path = db, path

    def __enter__(self) -> sqlite3.Connection:
        try:
            if self.db.in_transaction:  # one that Ctrl-C cut off before its first step
                self.db.execute("rollback")
            self.db.execute("begin immediate")
        except sqlite3.Error as error:
            raise Lost(f"can't write '{self.path}': {error}") from None
        return self.db

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.db.execute("commit" if error is None else "rollback")
        except sqlite3.Error as failure:
            raise Lost(f"can't write '{self.path}': {failure}; nothing of this step was recorded") from None
        if isinstance(error, sqlite3.Error):
            raise Lost(f"can't write '{self.path}': {error}; nothing of this step was recorded") from None


def _insert(db: sqlite3.Connection, launch: str, trial: int | None, kind: str, data: dict[str, Any], at_ms: int) -> None:
    row = (launch, trial, kind, json.dumps(data), at_ms)
    db.execute("insert into entries (launch, trial, kind, data, at_ms) values (?, ?, ?, ?, ?)", row)


def _has_ended(db: sqlite3.Connection, launch: str, trial: int | None) -> bool:
    last = "select kind from entries where launch = ? and trial is ? and kind in ('ended', 'resumed') order by seq desc limit 1"
    found = db.execute(last, (launch, trial)).fetchone()
    return found is not None and found[0] == "ended"


def by_run(entries: Iterable[Entry]) -> dict[tuple[str, int | None], list[Entry]]:
    """Entries grouped by the run that they belong to, each group in order."""
    groups: dict[tuple[str, int | None], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.launch, entry.trial), []).append(entry)
    return groups
