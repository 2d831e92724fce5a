"""What a gang's ranks, the hub and the driver tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from orchestrator.execution.executor import SlotEvent


class Answer(Enum):
    """What rank 0 is told instead of a job or a verdict."""

    WAIT = "ask again"
    LEAVE = "write a checkpoint, and end this process: the gang starts anew"
    END = "write a checkpoint, and return: the gang ends"


@dataclass(frozen=True)
class Rank:
    """A process of a gang of `size`. `oom_kills`: of its node, when it began."""

    rank: int
    size: int
    node: str
    host: str
    pid: int
    oom_kills: int


@dataclass(frozen=True)
class Hung:
    """The ranks of a gang that don't answer, while others say that they waited for them in vain."""

    gang: int
    trial: int | None
    ranks: tuple[Rank, ...]


@dataclass(frozen=True)
class State:
    """What the driver is told of a gang. `up`: its ranks run; `slot`: whose job it is at.

    `broken`: it can't start, and why; `control`: Ray Train's actor for it.
    """

    up: bool
    nodes: frozenset[str]
    slot: int | None
    broken: str | None
    control: Any


@dataclass(frozen=True)
class Heard:
    """What the driver hears at once."""

    events: list[SlotEvent]
    hung: list[Hung]
    gangs: list[State]
