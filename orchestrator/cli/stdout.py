"""With --json stdout is the document's alone: what any other code prints there, of Python or not, goes to stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

_documents: TextIO | None = None


def documents() -> TextIO:
    """Where a document is printed."""
    return sys.stdout if _documents is None else _documents


@contextlib.contextmanager
def kept_for_the_document(as_json: bool) -> Iterator[None]:
    """Until the end `documents()` alone is what stdout was; nothing changes without --json."""
    global _documents
    before = sys.stdout
    if not as_json or before is None:
        yield
        return
    before.flush()
    kept = os.dup(1)
    try:
        own = before.fileno() == 1
    except (OSError, ValueError):  # a test's, a notebook's
        own = False
    try:
        with open(kept, "w", encoding="utf-8", closefd=False) as copied:
            _documents = copied if own else before
            os.dup2(2, 1)
            sys.stdout = sys.stderr
            yield
    finally:
        _documents, sys.stdout = None, before
        os.dup2(kept, 1)
        os.close(kept)
