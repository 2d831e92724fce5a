"""What a rank prints, in a file of its own: file descriptors 1 and 2 of its process, so that what C code prints counts too.

A file is appended to, so a run that is resumed goes on in it. Nothing here fails a run: what can't be written isn't kept.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.events import EpochEnded
from orchestrator.storage import StorageError, read_file, write_file
from orchestrator.training import trial
from orchestrator.training.job import Job, Place, Steps, log_name

ECHO_EVERY_S = 0.1  # a person at a terminal sees no delay
STREAMS = (1, 2)


def run(job: Job, place: Place, *more: Any) -> Steps:
    """`trial.run` in a process that does nothing else: what it prints goes to the rank's file, whole when the run's end is told."""
    folder: str | None = getattr(job, "logs", None)
    keep = job.checkpoints if job.apart else None
    with captured(folder, place.rank, keep=keep), contextlib.closing(trial.run(job, place, *more)) as steps:
        if job.resume:
            print(f"--- goes on, {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}, node {place.node} ---", file=sys.stderr)
        event = next(steps)
        while isinstance(event, EpochEnded):
            event = steps.send((yield event))
    yield event


@contextlib.contextmanager
def captured(folder: str | None, rank: int = 0, *, keep: str | None = None, echo: bool = False) -> Iterator[None]:
    """What this process prints meanwhile goes to folder/rank-<rank>.log; nothing changes without a folder.

    `keep`: the URI to which the file is copied at the end, where nobody else sees this node's disk.
    `echo`: it is shown on stderr too, at once, also what was printed to stdout: a command's stdout is its result's.
    """
    opened = None if folder is None else _open(Path(folder), log_name(rank), keep)
    if opened is None:
        yield
        return
    file, path = opened
    try:
        with _redirected(file) as stderr, _Echo(path, stderr) if echo else contextlib.nullcontext():
            yield
    finally:
        os.close(file)
        if keep is not None:
            with contextlib.suppress(OSError, StorageError):
                write_file(keep, path.name, path.read_bytes())


def _open(folder: Path, name: str, keep: str | None) -> tuple[int, Path] | None:
    """(descriptor, path) of a file to append to: in the folder, or in this node's temporary one. What another node kept comes first."""
    for place in (folder, Path(tempfile.gettempdir()) / "orchestrator-logs" / folder.name):
        with contextlib.suppress(OSError, StorageError):
            place.mkdir(parents=True, exist_ok=True)
            path = place / name
            before = read_file(keep, name) if keep is not None and not path.exists() else None
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.write(file, before or b"")
            return file, path
    return None


@contextlib.contextmanager
def _redirected(file: int) -> Iterator[Any]:
    """Descriptors 1 and 2, and Python's streams, write to the file; gives what stderr was before."""
    before = sys.stdout, sys.stderr
    _flush(*before)
    kept = [_copy_of(number) for number in STREAMS]
    try:
        for number in STREAMS:
            os.dup2(file, number)
        sys.stdout, sys.stderr = _stream(1), _stream(2)
        yield _stream(kept[1]) if _is_descriptor(before[1], 2) else before[1]
    finally:
        _flush(sys.stdout, sys.stderr, *before)  # a logger may hold the stream of before: what it has is this run's
        sys.stdout, sys.stderr = before
        for number, was in zip(STREAMS, kept, strict=True):
            os.dup2(was, number)
            os.close(was)


def _copy_of(number: int) -> int:
    try:
        return os.dup(number)
    except OSError:  # closed
        return os.open(os.devnull, os.O_WRONLY)


def _flush(*streams: Any) -> None:
    for stream in streams:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
            stream.flush()


def _is_descriptor(stream: Any, number: int) -> bool:
    try:
        return bool(stream.fileno() == number)
    except (OSError, ValueError, AttributeError):  # a notebook's, a test's
        return False


def _stream(number: int) -> io.TextIOWrapper:
    raw = _Lossy(number, "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", errors="backslashreplace", line_buffering=True)


class _Lossy(io.FileIO):
    """A full disk loses what is printed, not the run that prints it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


class _Echo:
    """Shows what is appended to a file, from now on, until its block ends."""

    def __init__(self, path: Path, to: Any) -> None:
        self.path, self.to = path, to
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="echo", daemon=True)

    def __enter__(self) -> None:
        self._file = self.path.open("rb")
        self._file.seek(0, os.SEEK_END)
        self._thread.start()

    def __exit__(self, *failure: object) -> None:
        _flush(sys.stdout, sys.stderr)
        self._ended.set()
        self._thread.join()
        self._file.close()

    def _follow(self) -> None:
        while True:
            ended = self._ended.wait(ECHO_EVERY_S)
            if found := self._file.read():
                with contextlib.suppress(OSError, ValueError):
                    self.to.write(found.decode(errors="replace"))
                    self.to.flush()
            if ended:
                return
