"""Files at a URI: a folder, or any filesystem of pyarrow; written whole or not at all, read, counted, deleted."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs

from orchestrator.errors import Failed, shown

FAILURES = (OSError, pa.ArrowException, ValueError)
OBJECTS = ("s3", "gcs", "abfs")  # filesystems without folders, which replace an object as a whole


class StorageError(Failed):
    """A place that can't be read or written, or what lies there can't be used. `reason`: what the system said, without the place."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


def below(base: str, *parts: str) -> str:
    """A URI, or a folder, below another; a URI's options (s3://bucket/path?endpoint_override=...) stay at its end."""
    place, mark, query = base.partition("?") if "://" in base else (base, "", "")
    return f"{'/'.join([place.rstrip('/'), *parts])}{mark}{query}"


def write_file(uri: str, name: str, content: bytes | Iterable[Any]) -> None:
    """`content` (bytes, or buffers of them) at uri/name, whole or not at all. Raises StorageError (disk full, no permission ...)."""
    buffers: Iterable[Any] = [content] if isinstance(content, bytes) else content
    try:
        folder = _folder(uri)
        if folder is not None:
            _replace(folder, name, buffers)
            return
        filesystem, path = _filesystem(uri)
        if filesystem.type_name in OBJECTS:
            _put(filesystem, f"{path}/{name}", buffers)
        else:
            _put_beside(filesystem, path, name, buffers)
    except FAILURES as error:
        raise _failure("write", below(uri, name), error) from None


def put_new(made: Path, path: Path) -> None:
    """A finished file under its name, in the same file system, unless another process was first: a link replaces nothing."""
    try:
        os.link(made, path)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        if not path.exists():
            made.rename(path)


def open_file(uri: str, name: str) -> Any | None:
    """A file at a URI, open for reading, or None if there is none. Raises StorageError if that can't be told now."""
    try:
        folder = _folder(uri)
        if folder is not None:
            return (folder / name).open("rb")
        filesystem, path = _filesystem(uri)
        return filesystem.open_input_file(f"{path}/{name}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except FAILURES as error:
        raise _failure("read", below(uri, name), error) from None


def read_file(uri: str, name: str) -> bytes | None:
    """The content of uri/name, or None if there is none. Raises StorageError if it can't be read now."""
    opened = open_file(uri, name)
    if opened is None:
        return None
    try:
        with opened:
            return bytes(opened.read())
    except FAILURES as error:
        raise _failure("read", below(uri, name), error) from None


def names(uri: str) -> list[str]:
    """The names of the files at a URI; none if there is no such place. Raises StorageError if that can't be told now."""
    try:
        folder = _folder(uri)
        if folder is not None:
            return [path.name for path in folder.iterdir()]
        filesystem, path = _filesystem(uri)
        return [info.base_name for info in filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True)) if info.is_file]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except FAILURES as error:
        raise _failure("list", uri, error) from None


def delete(uri: str, name: str) -> None:
    """Delete uri/name, if that can be done: what is left over costs room, not the run."""
    with contextlib.suppress(*FAILURES):
        folder = _folder(uri)
        if folder is not None:
            (folder / name).unlink(missing_ok=True)
            return
        filesystem, path = _filesystem(uri)
        filesystem.delete_file(f"{path}/{name}")


def size_bytes(uri: str) -> int:
    """The bytes of all that lies below a URI; 0 where there is nothing. Raises StorageError if that can't be told now."""
    try:
        folder = _folder(uri)
        if folder is not None:
            return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
        filesystem, path = _filesystem(uri)
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, recursive=True, allow_not_found=True))
        return sum(info.size or 0 for info in found if info.is_file)
    except FAILURES as error:
        raise _failure("look at", uri, error) from None


def delete_all(uri: str) -> None:
    """Delete a URI with all below it, if it is there. Raises StorageError where something can't be deleted."""
    try:
        folder = _folder(uri)
        if folder is not None:
            if folder.exists():
                shutil.rmtree(folder)
            return
        filesystem, path = _filesystem(uri)
        if filesystem.get_file_info(path).type != pyarrow.fs.FileType.NotFound:
            filesystem.delete_dir(path)
    except FAILURES as error:
        raise _failure("remove", uri, error) from None


def read_end(uri: str, name: str, largest: int | None) -> tuple[bytes, int]:
    """(the last `largest` bytes of uri/name, how many are before them); of a file that isn't there nothing. Raises StorageError."""
    opened = open_file(uri, name)
    if opened is None:
        return b"", 0
    try:
        with opened:
            opened.seek(0, os.SEEK_END)
            cut = 0 if largest is None else max(0, opened.tell() - largest)
            opened.seek(cut)
            return bytes(opened.read()), cut
    except FAILURES as error:
        raise _failure("read", below(uri, name), error) from None


def pieces(opened: Any, uri: str, name: str, size: int) -> Iterator[bytes]:
    """The content of an open file, in pieces of so many bytes. Raises StorageError if it breaks off."""
    try:
        while piece := opened.read(size):
            yield piece
    except FAILURES as error:
        raise _failure("read", below(uri, name), error) from None


def _folder(uri: str) -> Path | None:
    """The folder that a URI is, if it is one."""
    if uri.startswith("file://"):
        return Path(unquote(uri.removeprefix("file://")))
    return None if "://" in uri else Path(uri)


def _filesystem(uri: str) -> tuple[Any, str]:
    filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    return filesystem, path.rstrip("/")


def _beside(name: str) -> str:
    """The name of a file while it is written; another one for every process and thread."""
    return f".{name}.{secrets.token_hex(4)}"


def _replace(folder: Path, name: str, buffers: Iterable[Any]) -> None:
    """Write beside, then rename: whoever reads sees the old file or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / _beside(name)
    try:
        with beside.open("wb") as opened:
            opened.writelines(buffers)
            opened.flush()
            os.fsync(opened.fileno())
        beside.rename(folder / name)
    finally:
        beside.unlink(missing_ok=True)


def _put_beside(filesystem: Any, path: str, name: str, buffers: Iterable[Any]) -> None:
    """The same on another filesystem that has folders."""
    filesystem.create_dir(path, recursive=True)
    beside = f"{path}/{_beside(name)}"
    try:
        with filesystem.open_output_stream(beside) as out:
            for buffer in buffers:
                out.write(buffer)
        filesystem.move(beside, f"{path}/{name}")
    except BaseException:  # Ctrl-C too: nothing half-written stays
        with contextlib.suppress(*FAILURES):
            filesystem.delete_file(beside)
        raise


def _put(filesystem: Any, path: str, buffers: Iterable[Any]) -> None:
    """One PUT, seen when it is whole. A stream that breaks off can only be closed, which puts a part: that is deleted."""
    out = filesystem.open_output_stream(path)
    try:
        for buffer in buffers:
            out.write(buffer)
    except BaseException:  # Ctrl-C too
        with contextlib.suppress(*FAILURES):  # where it can't be closed nothing was put: what was there before stays
            out.close()
            filesystem.delete_file(path)
        raise
    out.close()


def _failure(verb: str, place: str, error: BaseException) -> StorageError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return StorageError(f"can't {verb} '{shown(place)}': {shown(reason)}", shown(reason))
