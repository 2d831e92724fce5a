"""A copy of the ledger beside a run's checkpoints, so that a driver on another machine can go on where this one died.

SQLite's online backup gives one consistent state, whoever else writes meanwhile; the copy is replaced as a whole, so that a reader finds
the one before or this one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import tempfile
import threading
from pathlib import Path
from typing import Any

from pyarrow import fs

from orchestrator.errors import Failed

NAME = "ledger.sqlite"
OBJECTS = ("s3", "gcs", "abfs")  # file systems without folders, which replace an object as a whole


def mirror_of(storage: str, experiment: str) -> str:
    """The URI, or the folder, of an experiment's mirrored ledger below `storage.path`."""
    return f"{storage.rstrip('/')}/ledgers/{experiment}"


def mirror(ledger: Path, uri: str) -> None:
    """Copy a ledger to `<uri>/ledger.sqlite`, atomically. Raises Failed, with what is there left as it is."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / NAME
        try:
            _back_up(ledger, copy)
            _put(copy, uri)
        except (OSError, sqlite3.Error) as error:
            raise Failed(f"the ledger can't be mirrored to '{uri}': {' '.join(str(error).split())[:200]}") from None


def restore(uri: str, folder: Path) -> bool:
    """Fetch a mirrored ledger into a folder that has none; whether there was one. Raises Failed."""
    if (folder / NAME).exists():
        return False
    try:
        files, path = _filesystem(uri)
        if files.get_file_info(f"{path}/{NAME}").type != fs.FileType.File:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        with files.open_input_stream(f"{path}/{NAME}") as source:
            content = source.read()
        beside = folder / f".{NAME}-{secrets.token_hex(4)}"
        try:
            beside.write_bytes(content)
            _check(beside)
            with contextlib.suppress(FileExistsError):  # another command has just made one: that one counts
                os.link(beside, folder / NAME)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        raise Failed(f"the ledger mirrored at '{uri}' can't be restored: {' '.join(str(error).split())[:200]}") from None
    return True


class Mirror:
    """Mirrors a folder's ledger in the background, whenever it has changed; what fails is tried again, and its last error kept."""

    def __init__(self, folder: Path, uri: str, every_s: float = 30.0) -> None:
        self.problem: str | None = None
        self._ledger, self._uri, self._every_s = folder / NAME, uri, every_s
        self._ended = threading.Event()
        self._seen: Any = None
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout_s: float = 20.0) -> str | None:
        """Mirror the rest, and end; what is wrong, if anything."""
        self._ended.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return f"the ledger wasn't mirrored to '{self._uri}' within {timeout_s:.0f} s"
        return self.problem

    def _work(self) -> None:
        while not self._ended.wait(self._every_s):
            self._once()
        self._once()

    def _once(self) -> None:
        state = _state(self._ledger)
        if state == self._seen:
            return
        try:
            mirror(self._ledger, self._uri)
            self._seen, self.problem = state, None
        except Failed as error:
            self.problem = str(error)


def _state(ledger: Path) -> list[tuple[int, int]]:
    """What changes with every commit: size and time of the file and of its write-ahead log."""
    found = []
    for path in (ledger, ledger.with_name(f"{ledger.name}-wal")):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found.append((stat.st_size, stat.st_mtime_ns))
    return found


def _back_up(ledger: Path, copy: Path) -> None:
    """One state of a database, as one file without a write-ahead log; taken at once, which keeps no writer waiting (WAL)."""
    if not ledger.exists():
        raise FileNotFoundError(f"no file '{ledger}'")
    with contextlib.closing(sqlite3.connect(ledger, timeout=30)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        target.execute("pragma journal_mode = delete")


def _check(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        said = db.execute("pragma quick_check").fetchone()[0]
    if said != "ok":
        raise OSError(f"it is damaged ({said})")


def _put(copy: Path, uri: str) -> None:
    """An object store replaces an object as a whole; elsewhere a file beside it is renamed."""
    files, path = _filesystem(uri)
    if files.type_name in OBJECTS:
        _write(files, f"{path}/{NAME}", copy)
        return
    files.create_dir(path, recursive=True)
    beside = f"{path}/.{NAME}-{secrets.token_hex(4)}"
    try:
        _write(files, beside, copy)
        if files.type_name == "local":
            with open(beside, "rb+") as written:
                os.fsync(written.fileno())
        files.move(beside, f"{path}/{NAME}")
    except BaseException:
        with contextlib.suppress(OSError):
            files.delete_file(beside)
        raise


def _write(files: Any, name: str, copy: Path) -> None:
    with files.open_output_stream(name) as target:
        target.write(copy.read_bytes())


def _filesystem(uri: str) -> tuple[Any, str]:
    try:
        files, path = fs.FileSystem.from_uri(uri if "://" in uri else str(Path(uri).absolute()))
    except (ValueError, OSError) as error:
        raise OSError(str(error)) from None
    return files, path.rstrip("/")
