"""A nested state <-> one safetensors file: no pickle, a checksum, and large tensors have no room twice.

Every tensor lies in the file by its path; everything else is JSON in the header, beside the xxh3 of both. Written and read tensor by tensor
(https://huggingface.co/docs/safetensors: a length, a header, the tensors end to end).
"""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor

from orchestrator.storage import StorageError

FORMAT = 1
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
LARGEST_HEADER = 100_000_000  # bytes, as in safetensors: a damaged length must not be believed


class Damaged(StorageError):
    """A checkpoint's file isn't what was written."""


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
    """The nested state of a file's content; see from_file."""
    return from_file(io.BytesIO(content), name)


def from_file(opened: Any, name: str) -> Any:
    """The nested state of an open file. Raises Damaged if it isn't what was written, StorageError if it can't be read now."""
    try:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(0)
        length = int.from_bytes(opened.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError("its header has no length")
        described = json.loads(opened.read(length))
        header = json.loads(described.pop("__metadata__")["orchestrator"])
        data, checksum = header["state"], header["checksum"]
        tensors = _tensors(opened, described, size - 8 - length)
    except OSError as error:
        if error.errno != errno.EIO:  # a network that is down damages nothing
            raise StorageError(f"can't read '{name}': {' '.join(str(error).split())}") from None
        raise Damaged(f"checkpoint '{name}' is damaged: {error.strerror}") from None
    except MemoryError:
        raise StorageError(f"can't read '{name}': there is no memory for it") from None
    except Exception as error:  # whatever a damaged header leads to
        raise Damaged(f"checkpoint '{name}' is damaged: {error}") from None
    if _checksum(data, tensors) != checksum:
        raise Damaged(f"checkpoint '{name}' is damaged: its checksum is another one")
    return unflatten(data, tensors)


def _tensors(opened: Any, described: Mapping[str, Any], size: int) -> dict[str, Tensor]:
    """Each tensor in memory of its own, read in the order in which they lie; `size`: the bytes that there are for them."""
    tensors, end = {}, 0
    for name, about in sorted(described.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = about["data_offsets"]
        if start != end:
            raise ValueError(f"'{name}' doesn't begin where the one before ends")
        if stop > size:
            raise ValueError("it is cut off")
        cells, end = _memory_for(stop - start), stop
        space = cells.numpy().data
        while space and (read := opened.readinto(space)):
            space = space[read:]
        if space:
            raise ValueError("it is cut off")
        tensors[name] = cells.view(DTYPES[about["dtype"]]).reshape(about["shape"])
    if opened.read(1):
        raise ValueError("it is too long")
    return tensors


def _memory_for(size: int) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8)
    except RuntimeError as error:  # torch's own word for it
        raise MemoryError from error


def _memory(tensor: Tensor) -> Any:
    """The bytes of a contiguous tensor, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""


def _checksum(data: Any, tensors: Mapping[str, Tensor]) -> str:
    digest = xxhash.xxh3_64(json.dumps(data).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(_memory(tensors[name]))
    return digest.hexdigest()
