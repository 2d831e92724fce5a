"""The C library's allocator: freed memory stays with the process."""

from __future__ import annotations

import contextlib
import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)


@functools.cache
def keep_freed_memory() -> None:
    """Tell glibc to keep up to 1 GB of freed memory, and to take blocks of up to 32 MB from it.

    A training step frees and takes the same activations again and again; given back to the system they are mapped and zeroed each
    time, 3,000 to 110,000 page faults in 50 steps of a small CNN, against 2. Elsewhere than on glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
