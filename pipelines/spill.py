"""Tables larger than memory may hold: written to a file as they come, and mapped from there, so that they take no memory of their own.

The file is Arrow's IPC format. It never has a name: the system takes it back with the last table that uses it,
however the process ends. What is mapped lies in the system's cache of files, which gives way to whatever needs memory.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

SPILL_BYTES = 64 << 20  # tables up to this size stay in memory
_FOLDER: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextlib.contextmanager
def spilling(folder: Path) -> Iterator[None]:
    """Large tables made inside go to files in `folder`; elsewhere they stay in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


def at_hand() -> bool:
    """Whether there is a folder for large tables."""
    return _FOLDER.get() is not None


def empty(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """An array to be filled; a large one lies in a file."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= SPILL_BYTES or not at_hand():
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix=".spill-", dir=_FOLDER.get()) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and not a signal when it is written
        return np.memmap(file, dtype, "r+", shape=shape)


def spilled(tables: Iterable[pa.Table]) -> pa.Table:
    """Tables of one schema, at least one, one below the other, in a file."""
    spill = Spill()
    for table in tables:
        spill.add(table)
    return spill.table()


class Spill:
    """A table that grows at its end: in a file, or in memory where there is no folder for it."""

    def __init__(self) -> None:
        self._held: list[pa.Table] = []
        self._file: IO[bytes] | None = None
        self._writer: pa.ipc.RecordBatchFileWriter | None = None

    def add(self, table: pa.Table) -> None:
        """Rows to come after those there are."""
        if not at_hand():
            self._held.append(table)
            return
        if self._writer is None:
            self._file = tempfile.TemporaryFile(prefix=".spill-", dir=_FOLDER.get())  # noqa: SIM115
            self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), table.schema)
        self._writer.write_table(table)

    def table(self) -> pa.Table:
        """All of it; nothing is added afterwards."""
        if self._writer is None or self._file is None:
            return pa.concat_tables(self._held)
        self._writer.close()
        self._file.flush()
        with self._file as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        pa.default_memory_pool().release_unused()
        return pa.ipc.open_file(pa.py_buffer(mapped)).read_all()
