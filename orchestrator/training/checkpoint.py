"""The whole state of a run <-> one file at a URI: atomic, checksummed, no pickle.

A checkpoint is one safetensors file: every tensor of a nested state by its path, everything else as JSON in the header, beside the
xxh3 of both. It is written beside and renamed, off the training thread, from a copy in buffers that are used again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import torch
import xxhash
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

FORMAT = 1
NAME = "checkpoint.safetensors"


def folder_of(base: str | None, home: Path, launch: str, trial: int | None) -> str:
    """The URI of a run's checkpoints below `storage.path`, or below `home`; in one place, for who writes and who reads them later."""
    where = base or str(home / "checkpoints")
    if "://" not in where:
        where = str(Path(where).expanduser().resolve())
    return f"{where.rstrip('/')}/{run_key(launch, trial)}"


def run_key(launch: str, trial: int | None) -> str:
    """The name of a run's folders."""
    return launch if trial is None else f"{launch}-{trial}"


class CheckpointError(ValueError):
    """A checkpoint that can't be read or written; the message names the file."""


def flatten(state: Any, path: str = "", tensors: dict[str, Tensor] | None = None) -> tuple[Any, dict[str, Tensor]]:
    """A nested state -> (JSON-ready data with tensors replaced by their paths, the tensors by path)."""
    tensors = {} if tensors is None else tensors
    if isinstance(state, Tensor):
        tensors[path] = state
        return {"$tensor": path}, tensors
    if isinstance(state, Mapping):
        return {"$items": [[key, flatten(value, f"{path}/{key}", tensors)[0]] for key, value in state.items()]}, tensors
    if isinstance(state, list | tuple):
        return [flatten(value, f"{path}/{place}", tensors)[0] for place, value in enumerate(state)], tensors
    return state, tensors


def unflatten(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nested state of what `flatten` gave."""
    if isinstance(data, dict):
        if "$tensor" in data:
            return tensors[data["$tensor"]]
        return {key: unflatten(value, tensors) for key, value in data["$items"]}
    return [unflatten(value, tensors) for value in data] if isinstance(data, list) else data


def to_bytes(state: Any) -> bytes:
    """A nested state as one safetensors file."""
    data, tensors = flatten(state)
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    header = {"format": FORMAT, "state": data, "checksum": _checksum(data, tensors)}
    return bytes(save_tensors(tensors, metadata={"orchestrator": json.dumps(header)}))


def from_bytes(content: bytes, name: str) -> Any:
    """The nested state of a file's content; raises CheckpointError if it is damaged."""
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["orchestrator"])
        data, checksum, tensors = header["state"], header["checksum"], load_tensors(content)
    except Exception as error:  # safetensors raises types of its own
        raise CheckpointError(f"checkpoint '{name}' is damaged: {error}") from None
    if _checksum(data, tensors) != checksum:
        raise CheckpointError(f"checkpoint '{name}' is damaged: its checksum is another one")
    return unflatten(data, tensors)


def _checksum(data: Any, tensors: Mapping[str, Tensor]) -> str:
    digest = xxhash.xxh3_64(json.dumps(data).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        if tensors[name].numel():
            digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_file(uri: str, name: str, content: bytes) -> None:
    """`content` at uri/name, whole or not at all. Raises CheckpointError (disk full, no permission ...)."""
    try:
        if "://" in uri and not uri.startswith("file://"):
            filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
            filesystem.create_dir(path, recursive=True)
            with filesystem.open_output_stream(f"{path}/{name}") as out:  # object stores: one PUT, seen when it is whole
                out.write(content)
            return
        folder = Path(uri.removeprefix("file://"))
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{name}.{os.getpid()}"
        try:
            with beside.open("wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            beside.rename(folder / name)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, pa.ArrowException, ValueError) as error:
        said = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(f"can't write '{uri}/{name}': {said}") from None


def probe(base: str) -> None:
    """Write and forget an empty file below a folder or URI. Raises CheckpointError if it can't be done."""
    write_file(base if "://" in base else str(Path(base).expanduser()), ".probe", b"")


def read_file(uri: str, name: str) -> bytes | None:
    """The content of uri/name, or None if there is none."""
    try:
        if "://" in uri and not uri.startswith("file://"):
            filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
            with filesystem.open_input_file(f"{path}/{name}") as opened:
                return bytes(opened.read())
        return (Path(uri.removeprefix("file://")) / name).read_bytes()
    except FileNotFoundError:
        return None


def load(uri: str) -> Any | None:
    """The state of the checkpoint at a URI, or None if there is none; raises CheckpointError if it is damaged."""
    content = read_file(uri, NAME)
    return None if content is None else from_bytes(content, f"{uri}/{NAME}")


class Writer:
    """Writes checkpoints to a URI in a thread: `save` blocks for the copy only, and for the one before if that isn't written yet."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None

    def save(self, state: Any) -> None:
        """Copy a state and write the copy; raises what the one before raised."""
        self.flush()
        data, tensors = flatten(state)
        copies = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        self._start(lambda: to_bytes(unflatten(data, copies)))

    def flush(self) -> None:
        """Wait until everything is written; raises CheckpointError if it could not be."""
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

    def _start(self, make: Callable[[], bytes]) -> None:
        def work() -> None:
            try:
                write_file(self.uri, NAME, make())
            except Exception as error:  # said by the next save: a thread's own exception is seen by nobody
                known = isinstance(error, CheckpointError)
                self._error = error if known else CheckpointError(f"can't write '{self.uri}/{NAME}': {error}")  # type: ignore[assignment]

        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()
