"""The whole states of a run at a URI: the newest two, each a file of its own; atomic, checksummed, written off the training thread.

A state holds all that a run is, its best weights among it. Each save is a new generation, `checkpoint-<n>.safetensors`; an older one goes
when two newer are whole. So a file that is damaged or missing costs the steps since the one before it, and nothing else.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import Note
from orchestrator.storage import StorageError, below, delete, names, open_file, write_file
from orchestrator.training.state_file import Damaged, flatten, from_file, pieces, unflatten

KEPT = 2
ANEW = ": the run starts at its beginning"
NONE_LEFT = f", and there is no other one{ANEW}"
NAME = re.compile(r"checkpoint-(\d+)\.safetensors")
LEFT_OVER = re.compile(r"\.checkpoint-\d+\.safetensors\.[0-9a-f]+")  # of a process that was killed while it wrote


def folder_of(base: str | None, home: Path, launch: str, trial: int | None) -> str:
    """The URI of a run's checkpoints below `storage.path`, or below `home`; in one place, for who writes and who reads them later."""
    where = base or str(home / "checkpoints")
    if "://" not in where:
        where = str(Path(where).expanduser().resolve())
    return below(where, run_key(launch, trial))


def run_key(launch: str, trial: int | None) -> str:
    """The name of a run's folders."""
    return launch if trial is None else f"{launch}-{trial}"


def name_of(number: int) -> str:
    """The file of a generation, from 1."""
    return f"checkpoint-{number}.safetensors"


def probe(base: str) -> None:
    """Write and forget an empty file below a folder or URI. Raises StorageError if it can't be done."""
    write_file(base if "://" in base else str(Path(base).expanduser()), ".probe", b"")


@dataclass(frozen=True)
class Found:
    """The newest good state at a URI and its generation; (None, 0) if there is none.

    `damaged`: the generations after it, of no use; `notes`: what was wrong, a sentence each.
    """

    state: Any | None = None
    number: int = 0
    notes: tuple[str, ...] = ()
    damaged: tuple[int, ...] = ()


def newest(uri: str) -> Found:
    """The newest state that is whole. Raises StorageError if what there is can't be told now."""
    numbers = _numbers(names(uri))
    wrong = []
    for place, number in enumerate(numbers):
        try:
            state = read(uri, number)
        except Damaged as error:
            wrong.append(str(error))
            continue
        if len(numbers) < KEPT and number > 1:
            wrong.append(f"one of the two checkpoints in '{uri}' is missing")
        notes = tuple(f"{each}: '{name_of(number)}' is used" for each in wrong)
        return Found(state, number, notes, tuple(numbers[:place]))
    return Found(notes=tuple(f"{each}{NONE_LEFT}" for each in wrong[:1]), damaged=tuple(numbers))


def load(uri: str) -> Any | None:
    """The newest good state at a URI, or None if there is none. Warns (Note) of a damaged one; raises StorageError if all are."""
    found = newest(uri)
    if found.state is None and found.notes:
        raise StorageError(found.notes[0].removesuffix(NONE_LEFT))
    for note in found.notes:
        warnings.warn(note, Note, stacklevel=2)
    return found.state


def clear(uri: str) -> None:
    """Delete what a run of the same number left there that no ledger knows of. Raises StorageError if that can't be told now."""
    for name in names(uri):
        if NAME.fullmatch(name) or LEFT_OVER.fullmatch(name):
            delete(uri, name)


def read(uri: str, number: int) -> Any:
    """The state of one generation. Raises Damaged, or StorageError if it can't be read now."""
    name = name_of(number)
    opened = open_file(uri, name)
    if opened is None:
        raise Damaged(f"checkpoint '{below(uri, name)}' is missing")
    with opened:
        return from_file(opened, below(uri, name))


def _numbers(there: list[str]) -> list[int]:
    """The generations among the names of files, the newest first."""
    return sorted((int(found[1]) for found in map(NAME.fullmatch, there) if found), reverse=True)


class Writer:
    """Writes generations to a URI in a thread: `save` blocks for the copy only, and for the one before if that isn't written yet.

    `number` is the generation that the run goes on from; `damaged` ones after it go before they are written anew.
    """

    def __init__(self, uri: str, number: int = 0, damaged: Sequence[int] = ()) -> None:
        self.uri, self.number, self._damaged, self._first = uri, number, frozenset(damaged), True
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: StorageError | None = None

    def save(self, state: Any) -> None:
        """Copy a state and write the copy; raises what the one before raised."""
        self.flush()
        data, tensors = flatten(state)
        copies = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        self._start(unflatten(data, copies))

    def flush(self) -> None:
        """Wait until everything is written; raises StorageError if it could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return buffer.copy_(tensor)

    def _start(self, copied: Any) -> None:
        def work() -> None:
            try:
                if self._first:
                    self._prune(self._damaged.__contains__)
                    self._first = False
                write_file(self.uri, name_of(self.number + 1), pieces(copied))
                self.number += 1
                self._prune(lambda number: number <= self.number - KEPT)
            except Exception as error:  # said by the next save: a thread's own exception is seen by nobody
                known = isinstance(error, StorageError)
                says = f"can't write '{below(self.uri, name_of(self.number + 1))}': {error}"
                self._error = error if known else StorageError(says)  # type: ignore[assignment]

        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def _prune(self, goes: Callable[[int], bool]) -> None:
        """Delete generations; before the first is written also what processes left that were killed. What can't be listed is left.

        What is newer otherwise is somebody else's: of a driver that goes on with the run elsewhere, and has given up this one for dead.
        """
        try:
            there = names(self.uri)
        except StorageError:
            return
        for name in there:
            found = NAME.fullmatch(name)
            if goes(int(found[1])) if found else self._first and LEFT_OVER.fullmatch(name):
                delete(self.uri, name)
