"""Where the output of a run's ranks lies: a file a rank, beside the ledger; of nodes that don't see that, in the storage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.records.ledger import Launch
from orchestrator.storage import StorageError, below, names, read_end

NAME = re.compile(r"rank-(\d+)\.log")


@dataclass(frozen=True)
class LogFile:
    """What a rank printed. `path`: a file, or a URI."""

    rank: int
    path: str
    content: bytes


def folder_of(home: Path, launch: str, trial: int | None) -> Path:
    """The folder of a run's files; in one place, for who writes and who reads them later."""
    return home / "logs" / (launch if trial is None else f"{launch}-{trial}")


def places(home: Path, launch: Launch, trial: int | None) -> list[str]:
    """The folder of a run's files, then the URI of the copies that a cluster's nodes made."""
    own = folder_of(home, launch.id, trial)
    storage = (launch.experiment.get("storage") or {}).get("path")
    if storage is not None and "://" not in storage:
        storage = str(Path(storage).expanduser().resolve())
    return [str(own), *([below(storage, own.name)] if storage else [])]


def files(places: Sequence[str], largest: int | None = None) -> list[LogFile]:
    """A file a rank, of the first of the places that has it: at most its last `largest` bytes.

    Raises StorageError if nothing is found and a place can't be read now.
    """
    found: dict[int, LogFile] = {}
    problem: StorageError | None = None
    for place in places:
        try:
            ranks = {int(match[1]) for match in map(NAME.fullmatch, names(place)) if match}
            for rank in ranks - found.keys():
                name = f"rank-{rank}.log"
                found[rank] = LogFile(rank, below(place, name), _end_of(place, name, largest))
        except StorageError as error:
            problem = error
    if problem is not None and not found:
        raise problem
    return [found[rank] for rank in sorted(found)]


def _end_of(place: str, name: str, largest: int | None) -> bytes:
    content, cut = read_end(place, name, largest)
    return (f"... {cut} bytes before this are left out\n".encode() if cut else b"") + content
