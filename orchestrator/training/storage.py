"""Small files at a URI: a folder, or any filesystem of pyarrow; written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs

from orchestrator.training.state_file import CheckpointError

FAILURES = (OSError, pa.ArrowException, ValueError)


def write_file(uri: str, name: str, content: bytes | Iterable[Any]) -> None:
    """`content` (bytes, or buffers of them) at uri/name, whole or not at all. Raises CheckpointError (disk full, no permission ...)."""
    buffers: Iterable[Any] = [content] if isinstance(content, bytes) else content
    try:
        folder = _folder(uri)
        if folder is None:
            _put(uri, name, buffers)
        else:
            _replace(folder, name, buffers)
    except FAILURES as error:
        raise CheckpointError(f"can't write '{uri}/{name}': {_says(error)}") from None


def open_file(uri: str, name: str) -> Any | None:
    """A file at a URI, open for reading, or None if there is none. Raises CheckpointError if that can't be told now."""
    try:
        folder = _folder(uri)
        if folder is not None:
            return (folder / name).open("rb")
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
        return filesystem.open_input_file(f"{path}/{name}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except FAILURES as error:
        raise CheckpointError(f"can't read '{uri}/{name}': {_says(error)}") from None


def read_file(uri: str, name: str) -> bytes | None:
    """The content of uri/name, or None if there is none."""
    opened = open_file(uri, name)
    if opened is None:
        return None
    with opened:
        return bytes(opened.read())


def names(uri: str) -> list[str]:
    """The names of the files at a URI; none if there is no such place. Raises CheckpointError if that can't be told now."""
    try:
        folder = _folder(uri)
        if folder is not None:
            return [path.name for path in folder.iterdir()] if folder.is_dir() else []
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
        return [info.base_name for info in filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True)) if info.is_file]
    except FAILURES as error:
        raise CheckpointError(f"can't list '{uri}': {_says(error)}") from None


def delete(uri: str, name: str) -> None:
    """Delete uri/name, if that can be done: what is left over costs room, not the run."""
    with contextlib.suppress(*FAILURES):
        folder = _folder(uri)
        if folder is not None:
            (folder / name).unlink(missing_ok=True)
            return
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
        filesystem.delete_file(f"{path}/{name}")


def _folder(uri: str) -> Path | None:
    """The folder that a URI is, if it is one."""
    return Path(uri.removeprefix("file://")) if "://" not in uri or uri.startswith("file://") else None


def _replace(folder: Path, name: str, buffers: Iterable[Any]) -> None:
    """Write beside, then rename: whoever reads sees the old file or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{name}.{os.getpid()}"
    try:
        with beside.open("wb") as opened:
            opened.writelines(buffers)
            opened.flush()
            os.fsync(opened.fileno())
        beside.rename(folder / name)
    finally:
        beside.unlink(missing_ok=True)


def _put(uri: str, name: str, buffers: Iterable[Any]) -> None:
    """Object stores: one PUT, seen when it is whole. A stream that breaks off is closed all the same, so its part is deleted."""
    filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    filesystem.create_dir(path, recursive=True)
    try:
        with filesystem.open_output_stream(f"{path}/{name}") as out:
            for buffer in buffers:
                out.write(buffer)
    except BaseException:
        delete(uri, name)
        raise


def _says(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())
