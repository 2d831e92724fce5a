"""What a trial raised: in one line, whole beside its checkpoints, and whether it was its own failure or another rank's."""

from __future__ import annotations

import contextlib
import json
import traceback
from pathlib import Path

import torch.distributed as dist

from orchestrator.errors import shown
from orchestrator.storage import StorageError, below, write_file

TRACE = "error.txt"
# what gloo says when a peer died or doesn't answer; it raises plain RuntimeErrors
GLOO = (
    "gloo/transport/", "gloo/rendezvous/", "Connection closed by peer", "Connection reset by peer", "Timed out waiting ",
    "Application timeout caused pair closure",
)  # fmt: skip


class PeerLost(RuntimeError):
    """A collective broke, since another rank died or doesn't answer: no failure of this rank, nor of the trial."""


def is_of_a_peer(failure: BaseException) -> bool:
    """Whether a rank's exception comes of a broken collective."""
    return isinstance(failure, dist.DistError) or (type(failure) is RuntimeError and any(text in str(failure) for text in GLOO))


def one_line(failure: BaseException, folder: Path) -> str:
    """An exception in one line: what, and the last file:line of the user's own code, else of ours."""
    frames = traceback.extract_tb(failure.__traceback__)
    theirs = [f for f in frames if Path(f.filename).is_relative_to(folder.resolve()) and "site-packages" not in f.filename]
    said = shown(" ".join(str(failure).split())) or "no message"
    if isinstance(failure, ArithmeticError) and not theirs:
        return said
    at = (theirs or frames)[-1:]
    where = f" ({Path(at[0].filename).name}:{at[0].lineno})" if at else ""
    return f"{type(failure).__name__}: {said}{where}"


def keep_trace(uri: str, trial: int | None, failure: BaseException) -> str | None:
    """Write the whole traceback beside a trial's checkpoints; its path."""
    text = shown("".join(traceback.format_exception(failure)))
    with contextlib.suppress(StorageError):
        header = json.dumps({"trial": trial})
        write_file(uri, TRACE, f"{header}\n{text}".encode())
        return below(uri, TRACE)
    return None
