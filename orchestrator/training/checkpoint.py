"""The whole state of a run <-> one file at a URI: atomic, checksummed, no pickle.

A checkpoint is one safetensors file: every tensor of a nested state by its path, everything else as JSON in the header, beside the
xxh3 of both. It is written beside and renamed, off the training thread, from a copy in buffers that are used again. Written and read
tensor by tensor (https://huggingface.co/docs/safetensors: a length, a header, the tensors end to end): large tables have no room twice.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import torch
import xxhash
from torch import Tensor

FORMAT = 1
NAME = "checkpoint.safetensors"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
LARGEST_HEADER = 100_000_000  # bytes, as in safetensors: a damaged length must not be believed


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


def pieces(state: Any) -> list[Any]:
    """A nested state as one safetensors file, in buffers to be written one after the other; the tensors' are their own memory."""
    data, tensors = flatten(state)
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # each lies at a multiple of its item's size
    names_of = {dtype: name for name, dtype in DTYPES.items()}
    described: dict[str, Any] = {
        "__metadata__": {"orchestrator": json.dumps({"format": FORMAT, "state": data, "checksum": _checksum(data, tensors)})}
    }
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        described[name] = {"dtype": names_of[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    header = json.dumps(described).encode()
    header += b" " * (-len(header) % 8)
    return [len(header).to_bytes(8, "little"), header, *(_memory(tensors[name]) for name in order)]


def to_bytes(state: Any) -> bytes:
    """A nested state as one safetensors file."""
    return b"".join(pieces(state))


def from_bytes(content: bytes, name: str) -> Any:
    """The nested state of a file's content; raises CheckpointError if it is damaged."""
    return from_file(io.BytesIO(content), name)


def from_file(opened: Any, name: str) -> Any:
    """The nested state of an open file; raises CheckpointError if it is damaged."""
    try:
        length = int.from_bytes(opened.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError("its header has no length")
        described = json.loads(opened.read(length))
        header = json.loads(described.pop("__metadata__")["orchestrator"])
        data, checksum = header["state"], header["checksum"]
        tensors = _tensors(opened, described)
    except Exception as error:  # whatever a damaged header leads to
        raise CheckpointError(f"checkpoint '{name}' is damaged: {error}") from None
    if _checksum(data, tensors) != checksum:
        raise CheckpointError(f"checkpoint '{name}' is damaged: its checksum is another one")
    return unflatten(data, tensors)


def _tensors(opened: Any, described: Mapping[str, Any]) -> dict[str, Tensor]:
    """Each tensor in memory of its own, read in the order in which they lie."""
    tensors, end = {}, 0
    for name, about in sorted(described.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = about["data_offsets"]
        if start != end:
            raise ValueError(f"'{name}' doesn't begin where the one before ends")
        cells, end = torch.empty(stop - start, dtype=torch.uint8), stop
        space = cells.numpy().data
        while space and (read := opened.readinto(space)):
            space = space[read:]
        if space:
            raise ValueError("it is cut off")
        tensors[name] = cells.view(DTYPES[about["dtype"]]).reshape(about["shape"])
    if opened.read(1):
        raise ValueError("it is too long")
    return tensors


def _memory(tensor: Tensor) -> Any:
    """The bytes of a contiguous tensor, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""


def _checksum(data: Any, tensors: Mapping[str, Tensor]) -> str:
    digest = xxhash.xxh3_64(json.dumps(data).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(_memory(tensors[name]))
    return digest.hexdigest()


def write_file(uri: str, name: str, content: bytes | Iterable[Any]) -> None:
    """`content` (bytes, or buffers of them) at uri/name, whole or not at all. Raises CheckpointError (disk full, no permission ...)."""
    buffers: Iterable[Any] = [content] if isinstance(content, bytes) else content
    try:
        if "://" in uri and not uri.startswith("file://"):
            filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
            filesystem.create_dir(path, recursive=True)
            with filesystem.open_output_stream(f"{path}/{name}") as out:  # object stores: one PUT, seen when it is whole
                for buffer in buffers:
                    out.write(buffer)
            return
        folder = Path(uri.removeprefix("file://"))
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
    except (OSError, pa.ArrowException, ValueError) as error:
        said = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(f"can't write '{uri}/{name}': {said}") from None


def probe(base: str) -> None:
    """Write and forget an empty file below a folder or URI. Raises CheckpointError if it can't be done."""
    write_file(base if "://" in base else str(Path(base).expanduser()), ".probe", b"")


def read_file(uri: str, name: str) -> bytes | None:
    """The content of uri/name, or None if there is none."""
    opened = _open(uri, name)
    if opened is None:
        return None
    with opened:
        return bytes(opened.read())


def load(uri: str) -> Any | None:
    """The state of the checkpoint at a URI, or None if there is none; raises CheckpointError if it is damaged."""
    opened = _open(uri, NAME)
    if opened is None:
        return None
    with opened:
        return from_file(opened, f"{uri}/{NAME}")


def _open(uri: str, name: str) -> Any | None:
    """A file at a URI, open for reading, or None if there is none."""
    try:
        if "://" in uri and not uri.startswith("file://"):
            filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
            return filesystem.open_input_file(f"{path}/{name}")
        return (Path(uri.removeprefix("file://")) / name).open("rb")
    except FileNotFoundError:
        return None


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
        self._start(unflatten(data, copies))

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

    def _start(self, copied: Any) -> None:
        def work() -> None:
            try:
                write_file(self.uri, NAME, pieces(copied))
            except Exception as error:  # said by the next save: a thread's own exception is seen by nobody
                known = isinstance(error, CheckpointError)
                self._error = error if known else CheckpointError(f"can't write '{self.uri}/{NAME}': {error}")  # type: ignore[assignment]

        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()
