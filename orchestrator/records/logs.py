"""Where the output of a run's ranks lies: a file a rank, beside the ledger; of a cluster whose nodes don't see that, in the storage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from orchestrator.errors import Failed
from orchestrator.records.ledger import Launch, shown
from orchestrator.storage import below

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
    """The files of a folder or URI by rank, of each at most its last `largest` bytes. Raises Failed if that can't be told now."""
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(place)
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
        named = [(int(match[1]), info) for info in found if info.is_file and (match := NAME.fullmatch(info.base_name))]
        return [
            _read(filesystem, rank, info, below(place, info.base_name), largest) for rank, info in sorted(named, key=lambda one: one[0])
        ]
    except (OSError, pa.ArrowException, ValueError) as error:
        raise Failed(f"can't read the output at '{shown(place)}': {' '.join(str(error).split())}") from None


def _read(filesystem: pyarrow.fs.FileSystem, rank: int, info: pyarrow.fs.FileInfo, path: str, largest: int | None) -> LogFile:
    with filesystem.open_input_file(info.path) as opened:
        cut = 0 if largest is None else max(0, opened.size() - largest)
        opened.seek(cut)
        content = opened.read()
    return LogFile(rank, path, (f"... {cut} bytes before this are left out\n".encode() if cut else b"") + content)
