"""Whether every node of a cluster sees a place: a folder, or any URI of pyarrow.fs. Tried, not guessed."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs

from .every_node import ask

FAILURES = (OSError, pa.ArrowException, ValueError)


def not_sharing(place: str) -> dict[str, str]:
    """node -> why it doesn't share `place` with this process, to read and to write. Raises OSError if this process can't write there."""
    nonce = secrets.token_hex(8)
    name = f".probe-{nonce}"
    filesystem, path = _open(place)
    filesystem.create_dir(path, recursive=True)
    made = [name]
    try:
        _write(filesystem, f"{path}/{name}", nonce.encode())
        answers = ask(_exchange, place, name, nonce)
        made += [answer for answer in answers.values() if answer.startswith(name)]
        there = {info.base_name for info in filesystem.get_file_info([f"{path}/{file}" for file in made]) if info.is_file}
        return {node: _says(answer, name) for node, answer in answers.items() if answer not in there}
    finally:
        for file in made:
            with contextlib.suppress(*FAILURES):
                filesystem.delete_file(f"{path}/{file}")


def without(file: Path) -> list[str]:
    """The nodes that have no file of this path and content."""
    answers = ask(_digest, str(file))
    own = _digest(str(file))
    return [node for node, digest in answers.items() if digest != own]


def _exchange(place: str, name: str, nonce: str) -> str:
    """On a node: read what the driver wrote, write a file of one's own; its name, or what went wrong."""
    try:
        filesystem, path = _open(place)
        with filesystem.open_input_file(f"{path}/{name}") as opened:
            if opened.read() != nonce.encode():
                return "it reads something else there"
        own = f"{name}-{secrets.token_hex(4)}"
        _write(filesystem, f"{path}/{own}", b"")
        return own
    except FileNotFoundError:
        return "there is no such place, or another one of this name"
    except FAILURES as error:
        return " ".join(str(getattr(error, "strerror", None) or error).split())[:200]


def _says(answer: str, name: str) -> str:
    return "what it writes there doesn't arrive here" if answer.startswith(name) else answer


def _digest(file: str) -> str | None:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return None


def _open(place: str) -> tuple[Any, str]:
    if "://" in place:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(place)
        return filesystem, str(path)
    return pyarrow.fs.LocalFileSystem(), place


def _write(filesystem: Any, path: str, content: bytes) -> None:
    with filesystem.open_output_stream(path) as out:
        out.write(content)
