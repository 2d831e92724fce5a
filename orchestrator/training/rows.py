"""Prepared data on their way to machines that don't see the driver's folder: put beside the checkpoints once, fetched once a machine.

A list of the files, with their sizes and hashes, is written last: without it there is nothing, and what doesn't fit it isn't used.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import xxhash

from orchestrator.storage import StorageError, below, delete, delete_all, open_file, pieces, read_file, write_file

LIST = "files.json"
PIECE_BYTES = 8 << 20
ANOTHER_S = 3600.0  # how long a rank waits for the one that fetches


def publish(source: Path, base: str, kind: str) -> str:
    """Copy a file, or the files of a flat folder, to base/kind/<its name>, unless they are there; the URI. Raises StorageError.

    The name stands for the content: what is there under it is the same.
    """
    uri = below(base, kind, source.stem if source.is_file() else source.name)
    if read_file(uri, LIST) is None:
        files = {}
        for path in [source] if source.is_file() else sorted(p for p in source.iterdir() if p.is_file()):
            digest = xxhash.xxh3_128()
            write_file(uri, path.name, _pieces(path, digest))
            files[path.name] = [path.stat().st_size, digest.hexdigest()]
        write_file(uri, LIST, json.dumps({"format": 1, "files": files}).encode())
    return uri


def unpublish(uri: str) -> None:
    """Remove what `publish` put at a URI; its list first, without which it isn't there. Raises StorageError."""
    delete(uri, LIST)
    delete_all(uri)


def local_copy(uri: str, cache: Path) -> Path:
    """The files of what `publish` put at a URI, in a folder of this machine below `cache`; fetched by one process, once.

    Raises StorageError if it isn't there, or isn't whole.
    """
    folder = cache / uri.partition("?")[0].rstrip("/").rpartition("/")[2]
    with filelock.FileLock(f"{folder}.lock", timeout=ANOTHER_S):
        if not folder.is_dir():
            beside = Path(tempfile.mkdtemp(prefix=".making-", dir=cache))
            try:
                _fetch(uri, beside)
                os.rename(beside, folder)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    return folder


def _pieces(path: Path, digest: Any) -> Iterator[bytes]:
    with path.open("rb") as opened:
        while piece := opened.read(PIECE_BYTES):
            digest.update(piece)
            yield piece


def _fetch(uri: str, folder: Path) -> None:
    listed = read_file(uri, LIST)
    if listed is None:
        raise StorageError(f"the prepared data aren't at '{uri}' any more: start the command again, and they are put there anew")
    for name, (size, expected) in json.loads(listed)["files"].items():
        digest = xxhash.xxh3_128()
        opened = open_file(uri, name)
        if opened is None:
            raise StorageError(f"'{name}' is missing from the prepared data at '{uri}': delete '{LIST}' there, and start the command again")
        with opened, (folder / name).open("wb") as out:
            for piece in pieces(opened, uri, name, PIECE_BYTES):
                digest.update(piece)
                out.write(piece)
        if (folder / name).stat().st_size != size or digest.hexdigest() != expected:
            raise StorageError(f"'{name}' of the prepared data at '{uri}' is damaged: delete '{LIST}' there, and start the command again")
