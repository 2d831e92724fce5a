"""What the death of a trial's worker means for the trial: again, again alone on its node, or failed. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from orchestrator.training.job import log_name

MAX_RESTARTS = 3  # of a trial whose worker died, without an epoch more between; a node that is taken away with notice doesn't count

Cause = Literal["died", "memory", "moved"]


@dataclass(frozen=True)
class Past:
    """How often a trial's worker died: of whatever since `epoch`, the last one that it ended, and for want of memory so far."""

    deaths: int = 0
    memory: int = 0
    epoch: int = 0

    @property
    def alone(self) -> bool:
        """Whether it may only go on with nothing beside it on its node."""
        return self.memory > 0

    def after(self, epoch: int) -> Past:
        """The past of a trial that has ended an epoch: one that gets on, if slowly, isn't given up."""
        return replace(self, deaths=0, epoch=epoch) if epoch > self.epoch else self


@dataclass(frozen=True)
class Sentence:
    """The past with this death in it, and the error with which the trial ends; None: it goes on from its checkpoint."""

    past: Past
    error: str | None


def judge(past: Past, cause: Cause, says: str) -> Sentence:
    """`cause`: `memory` if the system killed it for want of memory, `moved` if its node was being taken away; `says`: Ray's own words."""
    if cause == "moved":
        return Sentence(past, None)
    past = replace(past, deaths=past.deaths + 1, memory=past.memory + (cause == "memory"))
    if past.memory > 1:
        return Sentence(past, "out of memory, and out of memory again when it was alone on its node: make the model or the batch smaller")
    if past.deaths > MAX_RESTARTS:
        return Sentence(past, f"its worker died {past.deaths} times: {says}")
    return Sentence(past, None)


def brief(error: BaseException) -> str:
    """Ray's own words, which are many, on one line."""
    return " ".join(str(error).split())[:300]


def with_output(says: str, folder: str | None, ranks: int = 1) -> str:
    """An error of a run whose process left no traceback, with the file that it printed to (the folder, of several ranks), if it's here."""
    if folder is None:
        return says
    path = Path(folder) if ranks > 1 else Path(folder) / log_name(0)
    return f"{says}; what it printed: {path}" if path.exists() else says
