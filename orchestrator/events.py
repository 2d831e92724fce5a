"""What a run says while it goes on: frozen, versioned, plain data. Workers make them, the ledger keeps them, MLflow gets them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FORMAT = 1

State = Literal["running", "finished", "stopped", "interrupted", "failed"]


@dataclass(frozen=True)
class RunStarted:
    """A trial was given its values and a slot. `values`: the searched keys; `params`: every parameter, flat; `env`: what it runs on."""

    trial: int | None
    at_ms: int
    values: dict[str, Any]
    params: dict[str, Any]
    env: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True)
class RunResumed:
    """A run that was under way when its command ended goes on, from its last checkpoint or from the beginning."""

    trial: int | None
    at_ms: int
    env: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True)
class EpochEnded:
    """One epoch's metrics, the same on every rank. `last`: the run has no further epoch of its own accord."""

    trial: int | None
    epoch: int  # from 1
    metrics: dict[str, float]
    at_ms: int
    last: bool = False
    verdict: str | None = None  # continue | asha | patience | budget: what the driver answered
    format: int = FORMAT


@dataclass(frozen=True)
class RunEnded:
    """The end of a run. `error` is one line; `trace` is the path of the full one. `nodes`: the node of each rank."""

    trial: int | None
    state: State
    at_ms: int
    stopped_by: str | None = None
    error: str | None = None
    trace: str | None = None
    wall_s: float = 0.0
    nodes: tuple[str, ...] = ()
    alone: bool = False  # one rank of several failed by itself: the others may be waiting for it
    notes: tuple[str, ...] = ()  # what to know of it, a sentence each: a damaged checkpoint, another number of workers
    best: dict[str, Any] | None = None  # epoch and metrics of the weights that are kept, where it came to an end of its own
    format: int = FORMAT


Event = RunStarted | RunResumed | EpochEnded | RunEnded
KINDS: dict[str, type[Event]] = {"started": RunStarted, "resumed": RunResumed, "epoch": EpochEnded, "ended": RunEnded}


def to_plain(event: Event) -> tuple[str, dict[str, Any]]:
    """(kind, plain data) of an event."""
    kind = next(name for name, cls in KINDS.items() if type(event) is cls)
    return kind, asdict(event)


def from_plain(kind: str, data: dict[str, Any]) -> Event:
    """The event of what `to_plain` made; fields that this version doesn't know are left out."""
    cls = KINDS[kind]
    known: dict[str, Any] = {k: tuple(v) if k in ("nodes", "notes") else v for k, v in data.items() if k in cls.__dataclass_fields__}
    return cls(**known)


@dataclass(frozen=True)
class Best:
    """The best epoch of a run and its metrics: the score, and the checkpoint that earned it."""

    epoch: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrialResult:
    """A run as commands print it. `trial` and `sweep` are None for a run of `train`; `run_id` while MLflow hasn't been reached."""

    trial: int | None
    run_id: str | None
    state: State
    stopped_by: str | None
    params: dict[str, Any]
    epochs: int
    best: Best | None
    error: str | None
    wall_s: float
    sweep: str | None = None


def better(value: float, than: float, mode: str) -> bool:
    """Strictly better: of equals the earlier one stays."""
    return value > than if mode == "max" else value < than


def summarise(events: Iterable[Event], metric: str, mode: str) -> TrialResult:
    """One run's events, in order -> its result."""
    started = ended = None
    epochs, best, wall_s = 0, None, 0.0
    for event in events:
        if isinstance(event, RunStarted):
            started = event
        elif isinstance(event, RunResumed):
            ended = None
        elif isinstance(event, EpochEnded):
            epochs = max(epochs, event.epoch)
            if best is None or better(event.metrics[metric], best.metrics[metric], mode):
                best = Best(event.epoch, event.metrics)
        else:
            ended, wall_s = event, wall_s + event.wall_s
            if event.best is not None:  # epochs that were trained again, on a GPU or by fewer ranks, may have other scores than they had
                best = Best(**event.best)
    assert started is not None
    state: State = ended.state if ended else "running"
    return TrialResult(
        started.trial,
        None,
        state,
        ended.stopped_by if ended else None,
        started.values,
        epochs,
        best,
        ended.error if ended else None,
        round(wall_s, 3),
    )


def best_first(results: Iterable[TrialResult], metric: str, mode: str) -> list[TrialResult]:
    """By the metric, then val_loss, then the lower trial number; runs without a score come last."""
    sign = -1.0 if mode == "max" else 1.0

    def key(result: TrialResult) -> tuple[float, float, float]:
        number = -1.0 if result.trial is None else float(result.trial)
        if result.best is None or metric not in result.best.metrics:
            return (math.inf, math.inf, number)
        return (sign * result.best.metrics[metric], result.best.metrics.get("val_loss", math.inf), number)

    return sorted(results, key=key)
