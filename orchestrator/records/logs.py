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
    """A file a rank, the longest of those that the places have: at most its last `largest` bytes.

    A run that began on this machine and went on elsewhere has printed to both.

    Raises StorageError if nothing is found and a place can't be read now.
    """
    found: dict[int, tuple[int, LogFile]] = {}
    problem: StorageError | None = None
    for place in places:
        try:
            ranks = {int(match[1]) for match in map(NAME.fullmatch, names(place)) if match}
            for rank in ranks:
                name = f"rank-{rank}.log"
                content, cut = read_end(place, name, largest)
                size, cut_off = len(content) + cut, f"... {cut} bytes before this are left out\n".encode() if cut else b""
                if rank not in found or size > found[rank][0]:
                    found[rank] = size, LogFile(rank, below(place, name), cut_off + content)
        except StorageError as error:
            problem = error
    if problem is not None and not found:
        raise problem
    return [found[rank][1] for rank in sorted(found)]
