"""Where the output of a run's ranks lies: a file a rank, beside the ledger; of a cluster whose nodes don't see that, in the storage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.records.ledger import Launch
from orchestrator.storage import below, names, read_end

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
    storage = (launch.experiment.get("storage") or {}).get("path") or ""
    remote = "://" in storage and not storage.startswith("file://")
    return [str(own), *([below(storage, own.name)] if remote else [])]


def files(place: str, largest: int | None = None) -> list[LogFile]:
    """The files of a folder or URI by rank, of each at most its last `largest` bytes. Raises StorageError if that can't be told now."""
    ranks = sorted(int(match[1]) for match in map(NAME.fullmatch, names(place)) if match)
    return [LogFile(rank, below(place, f"rank-{rank}.log"), _end_of(place, f"rank-{rank}.log", largest)) for rank in ranks]


def _end_of(place: str, name: str, largest: int | None) -> bytes:
    content, cut = read_end(place, name, largest)
    return (f"... {cut} bytes before this are left out\n".encode() if cut else b"") + content
