"""What a process is given to do, as plain data: it passes through processes that train nothing, so that this imports no torch."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from orchestrator.events import EpochEnded, RunEnded
from orchestrator.experiment.config import Experiment

Steps = Generator[EpochEnded | RunEnded, bool, None]  # a trial's events, each answered: go on, or end


@dataclass(frozen=True)
class Origin:
    """Weights to start from, as plain data. `weights`: a safetensors file; `said`: what they are and whose, to read.

    `recoded`: columns whose codes (words, ids, classes) mean something else in the model that the weights are from.
    """

    weights: str
    said: str
    recoded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A trial to run, as plain data. `folder`: below which a user's own modules lie; `checkpoints`: the URI of this run's own.

    `origin`: weights to start from, unless there is a checkpoint to go on from.
    """

    trial: int | None
    experiment: Experiment
    data: str
    checkpoints: str
    folder: str
    precision: str
    threads: int
    epochs: int
    resume: bool = False
    streamed: bool = False  # rows are read from disk while it trains
    origin: Origin | None = None
    logs: str | None = None  # the folder of what its ranks print
    apart: bool = False  # the nodes don't see the driver's folders: what they print is copied to `checkpoints`
    known: int | None = None  # epochs of a resumed run that are recorded; None: all, but maybe its last
    code: bytes | None = None  # the user's own modules, packed, for a machine without `folder`


@dataclass(frozen=True)
class Place:
    """Where a rank runs."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    node: str = "local"


def log_name(rank: int) -> str:
    """The file, below a job's `logs`, of what a rank prints."""
    return f"rank-{rank}.log"
