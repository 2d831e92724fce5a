"""A copy of the ledger beside a run's checkpoints, so that a driver on another machine can go on where this one died.

Every launch has a copy of its own, `ledgers/EXPERIMENT/COMMAND/LAUNCH.sqlite`, which no other launch of that name replaces. SQLite's online
backup gives one consistent state, whoever else writes meanwhile; a copy is replaced as a whole, so that a reader finds the one before or
this one. Beside it `LAUNCH.driver` says which command drives the launch: the one that began last. One that finds another's name there, cut
off from its cluster for a while, say, and given up for dead, writes no copy any more.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from orchestrator.errors import Failed, OrchestratorError, Refused
from orchestrator.records.ledger import ALL, Ledger
from orchestrator.storage import StorageError, below, delete, names, put_new, read_file, write_file

NAME = "ledger.sqlite"
REST = 9.0  # times what a copy took is waited after it: a large ledger of short trials isn't copied all the time
COPY = re.compile(r"([\w-]+)\.sqlite")  # of a launch


def mirror_of(storage: str, experiment: str, command: str) -> str:
    """The URI, or the folder, of the mirrored ledgers of a command's launches below `storage.path`."""
    return below(storage if "://" in storage else str(Path(storage).expanduser()), "ledgers", experiment, command)


def mirror(ledger: Path, uri: str, launch: str) -> None:
    """Copy what a ledger has of a launch to `<uri>/<launch>.sqlite`, atomically. Raises Failed, with what is there left as it is."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / NAME
            _back_up(ledger, copy)
            with contextlib.closing(Ledger(Path(folder))) as copied:
                copied.keep_only(launch)
            write_file(uri, _copy_of(launch), copy.read_bytes())
    except (OSError, sqlite3.Error, OrchestratorError) as error:
        raise _cant_be(uri, error) from None


def mirrored(uri: str) -> list[str]:
    """The launches whose ledgers are mirrored there, oldest first. Raises Failed if that can't be told now."""
    return sorted(found[1] for found in map(COPY.fullmatch, names(uri)) if found)


def restore(uri: str, folder: Path, launch: str) -> bool:
    """Fetch a launch's mirrored ledger into a folder that has none; whether there was one. Raises Failed."""
    if (folder / NAME).exists():
        return False
    try:
        content = read_file(uri, _copy_of(launch))
        if content is None:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{NAME}-{secrets.token_hex(4)}"
        try:
            beside.write_bytes(content)
            _check(beside)
            put_new(beside, folder / NAME)  # another command may just have made one: that one counts
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, sqlite3.Error, StorageError) as error:
        raise Failed(f"the ledger mirrored at '{uri}' can't be restored: {_says(error)}") from None
    return True


def has_more(uri: str, launch: str, ledger: Ledger) -> bool:
    """Whether a launch's copy has entries that a ledger hasn't: another machine has gone on with it. Raises Failed if it can't be told now.

    One that is damaged has none.
    """
    try:
        content = read_file(uri, _copy_of(launch))
        if content is None:
            return False
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / NAME).write_bytes(content)
            with contextlib.closing(Ledger(Path(folder))) as copy:
                there = copy.entries(launch, limit=ALL)
        return ledger.entries(launch, limit=len(there)) != there
    except (Refused, sqlite3.Error):  # a damaged one
        return False
    except (OSError, StorageError) as error:
        raise Failed(f"the ledger mirrored at '{uri}' can't be read: {_says(error)}") from None


def forget(uri: str, launch: str) -> None:
    """Delete a launch's copy, if that can be done."""
    delete(uri, _copy_of(launch))
    delete(uri, _driver_of(launch))


def _copy_of(launch: str) -> str:
    return f"{launch}.sqlite"


def _driver_of(launch: str) -> str:
    return f"{launch}.driver"


class Mirror:
    """Mirrors a folder's ledger in the background, if it has changed: at once, every so often, and soon after `wake`.

    What fails is tried again, and its last error kept. `taken`: where another command has gone on with the launch since.
    """

    def __init__(self, folder: Path, uri: str, launch: str, every_s: float = 30.0) -> None:
        self.problem: str | None = None
        self.taken: str | None = None
        self._own = f"{secrets.token_hex(8)} {socket.gethostname()}".encode()
        self._claimed, self._lock = False, threading.Lock()
        self._ledger, self._uri, self._launch, self._every_s = folder / NAME, uri, launch, every_s
        self._asked, self._ended = threading.Event(), threading.Event()
        self._seen: Any = None
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Something happened that is not to be lost."""
        self._asked.set()

    def end(self) -> None:
        """Mirror the rest, and end."""
        self._ended.set()
        self._asked.set()

    def finish(self, timeout_s: float) -> str | None:
        """Wait for the end; what is wrong, if anything."""
        self.end()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return f"the ledger wasn't mirrored to '{self._uri}' within {timeout_s:.3g} s"
        return self.problem

    def _work(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            self._once()
            self._ended.wait(REST * (time.monotonic() - began))
            self._asked.wait(self._every_s)
            self._asked.clear()
        self._once()

    def _once(self) -> None:
        try:
            if self.look():
                return
            state = _state(self._ledger)
            if state != self._seen:
                mirror(self._ledger, self._uri, self._launch)
                self._seen = state
            self.problem = None
        except (OrchestratorError, OSError) as error:
            self.problem = str(error)

    def look(self) -> bool:
        """Whether another command drives the launch by now; this one does from its first copy on. Raises Failed if it can't be told."""
        with self._lock:
            if self.taken is None and (driver := self._driver()) != self._own:
                self.taken = driver.decode(errors="replace").partition(" ")[2]
                with contextlib.closing(Ledger(self._ledger.parent)) as ledger:
                    ledger.note(self._launch, None, "taken", {"by": self.taken})
        return self.taken is not None

    def _driver(self) -> bytes:
        try:
            if not self._claimed:
                write_file(self._uri, _driver_of(self._launch), self._own)
                self._claimed = True
            return read_file(self._uri, _driver_of(self._launch)) or self._own
        except StorageError as error:
            raise _cant_be(self._uri, error) from None


def _state(ledger: Path) -> list[tuple[int, int]]:
    """What changes with every commit: size and time of the file and of its write-ahead log."""
    found = []
    for path in (ledger, ledger.with_name(f"{ledger.name}-wal")):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found.append((stat.st_size, stat.st_mtime_ns))
    return found


def _back_up(ledger: Path, copy: Path) -> None:
    """One state of a database, taken at once, which keeps no writer waiting (WAL)."""
    if not ledger.exists():
        raise FileNotFoundError(f"no file '{ledger}'")
    with contextlib.closing(sqlite3.connect(ledger, timeout=30)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def _check(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        said = db.execute("pragma quick_check").fetchone()[0]
    if said != "ok":
        raise OSError(f"it is damaged ({said})")


def _cant_be(uri: str, error: Exception) -> Failed:
    return Failed(f"the ledger can't be mirrored to '{uri}': {_says(error)}")


def _says(error: Exception) -> str:
    return " ".join((error.reason if isinstance(error, StorageError) else str(error)).split())[:200]
