"""One trial on one rank, from a job to its last event: what every executor drives.

`run` is a generator: it yields an EpochEnded, waits for the driver's verdict, and ends with a RunEnded. Errors of a trial are its
result, not the executor's.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from models import FAMILIES
from models.family import Family
from orchestrator import names
from orchestrator.events import EpochEnded, RunEnded, better
from orchestrator.experiment.config import Experiment
from orchestrator.training import checkpoint, seeds, transfer
from orchestrator.training.augment import augmenting
from orchestrator.training.loop import Diverged, Settings, Training
from orchestrator.training.memory import keep_freed_memory
from orchestrator.training.optim import OPTIMIZERS
from orchestrator.training.transfer import Origin
from pipelines import batches, stream
from pipelines.prepare import Prepared
from pipelines.schema import Schema

CHECKPOINT_EVERY_S = 5.0  # between whole states; the best weights are kept in memory meanwhile, and written at the end in any case


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


@dataclass(frozen=True)
class Place:
    """Where a rank runs."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    node: str = "local"


Steps = Generator[EpochEnded | RunEnded, bool, None]


def run(job: Job, place: Place | None = None) -> Steps:
    """The trial's events; send False to stop it after an epoch. Each rank yields the same events."""
    place = place or Place()
    began = time.time()
    nodes: tuple[str, ...] = (place.node,)
    trial: _Trial | None = None
    state, error, trace, alone = "finished", None, None, False
    try:
        nodes = _nodes(place)
        trial = _Trial(job, place)
        while not trial.training.finished:  # a run may be resumed after its last epoch
            event = trial.epoch()
            go_on = yield event
            if event.last or not go_on:
                state = "finished" if event.last else "stopped"
                break
        trial.close()
    except GeneratorExit:
        with contextlib.suppress(checkpoint.CheckpointError):
            if trial is not None:
                trial.close()
        raise
    except Exception as failure:  # whatever a trial raises is its result
        state, error = "failed", one_line(failure, Path(job.folder))
        trace = _keep_trace(job, failure)
        alone = place.world_size > 1 and not isinstance(failure, Diverged)  # which is judged by sums that all ranks have
    finally:
        if place.device != "cpu":
            torch.cuda.empty_cache()
    yield RunEnded(job.trial, state, _now_ms(), None, error, trace, time.time() - began, nodes, alone)  # type: ignore[arg-type]


def build_family(experiment: Experiment, schema: Schema, folder: str) -> Family:
    """The experiment's network for data of that schema."""
    cls = names.load(experiment.model.family, FAMILIES, "family", Path(folder))
    made: Family = cls(options(cls.Config, experiment.model.options), schema)
    return made


def options(cls: type, plain: dict[str, Any]) -> Any:
    """A Config from checked plain options: JSON's lists become tuples again."""
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()})


class _Trial:
    """A run under way: the loop, its best so far, and its checkpoints."""

    def __init__(self, job: Job, place: Place) -> None:
        self.job, self.place, self.experiment = job, place, job.experiment
        torch.set_num_threads(job.threads)
        keep_freed_memory()
        seeds.set_all(job.experiment.training.seed)
        self.prepared, train, validation = _data(job.data, place.device, job.streamed)
        family = build_family(job.experiment, self.prepared.schema, job.folder)
        family.bind(self.prepared.tables())
        before = checkpoint.load(job.checkpoints) if job.resume else None
        if job.origin is not None and before is None:
            transfer.load(family, job.origin)
        self.training = self._training(family, train, validation)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.best_weights: dict[str, torch.Tensor] = {}
        self.writer = checkpoint.Writer(job.checkpoints)
        self.saved_at = time.monotonic()
        seeds.set_all(job.experiment.training.seed + 7919 * place.rank)  # dropout differs between ranks, initial weights don't
        if before is not None:
            self._resume(before)

    def _training(self, family: Family, train: Any, validation: Any) -> Training:
        t, place = self.experiment.training, self.place
        kind = names.load(self.experiment.optimizer.name, OPTIMIZERS, "optimizer", Path(self.job.folder))
        settings = Settings(
            self.job.epochs, t.batch_size, t.seed, self.job.precision, t.max_steps, t.clip_norm, t.accumulate,
            place.rank, place.world_size, place.device, self.experiment.model.freeze,
        )  # fmt: skip
        cut = stream.StreamedBatches if self.job.streamed else batches.Batches
        shuffled = cut(train, t.batch_size, t.seed, place.rank, place.world_size, t.accumulate)
        optimizer = (kind, options(kind.Config, self.experiment.optimizer.options))
        augment = augmenting(t.augment, self.prepared.schema)
        return Training(family, self.prepared.encoder, shuffled, validation, optimizer, settings, augment)

    def epoch(self) -> EpochEnded:
        """One epoch; the best weights so far are kept with the score that they earned."""
        metrics = self.training.run_epoch()
        self.history.append({"epoch": self.training.epoch, "metrics": metrics})
        if self.best is None or better(metrics[self.experiment.metric], self.best["metrics"][self.experiment.metric], self.experiment.mode):
            self.best = self.history[-1]
            self._keep_best()
        rngs = self._rngs()
        if self.place.rank == 0 and time.monotonic() - self.saved_at >= CHECKPOINT_EVERY_S:
            self.writer.save(self.state(rngs))
            self.saved_at = time.monotonic()
        return EpochEnded(self.job.trial, self.training.epoch, metrics, _now_ms(), self.training.finished)

    def close(self) -> None:
        """Write the last checkpoint: the best weights, their record, and the state to go on from."""
        if self.place.rank == 0 and self.best is not None:
            self.writer.save(self.state(self._last_rngs))
            self.writer.flush()

    def state(self, rngs: list[Any]) -> dict[str, Any]:
        """All of a run: training, every rank's random generators, its history, and its best."""
        own = {"history": self.history, "best": self.best, "weights": self.best_weights}
        return {"training": self.training.state_dict(), "rngs": rngs, **own}

    def _resume(self, state: dict[str, Any]) -> None:
        self.training.load_state_dict(state["training"])
        self.history, self.best, self.best_weights = state["history"], state["best"], state["weights"]
        self._last_rngs = state["rngs"]
        seeds.restore(state["rngs"][self.place.rank])

    def _keep_best(self) -> None:
        """Copy the weights, into the same memory each time."""
        for name, tensor in self.training.family.state_dict().items():
            if name in self.best_weights:
                self.best_weights[name].copy_(tensor)
            else:
                self.best_weights[name] = tensor.detach().clone()

    _last_rngs: list[Any]

    def _rngs(self) -> list[Any]:
        own = seeds.save()
        self._last_rngs = [own]
        if self.place.world_size > 1:
            self._last_rngs = [None] * self.place.world_size
            dist.all_gather_object(self._last_rngs, own)
        return self._last_rngs


def best_weights(uri: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """(the best epoch's record, its weights) of the checkpoint at a URI; None if there is none."""
    state = checkpoint.load(uri)
    return None if state is None else (state["best"], state["weights"])


_DATA: dict[tuple[str, str, bool], tuple[Prepared, Any, Any]] = {}


def _data(folder: str, device: str, streamed: bool) -> tuple[Prepared, Any, Any]:
    """A prepared data set and its training and validation rows, on the device or streamed to it; the last is kept for the next trials."""
    key = (folder, device, streamed)
    if key not in _DATA:
        _DATA.clear()
        prepared, parts = Prepared.open(Path(folder)), ("train", "validation")
        if streamed:
            made: list[Any] = [stream.Streamed.of(prepared, part, device=device) for part in parts]
        else:
            made = [batches.load(prepared, part).to(device) for part in parts]
        _DATA[key] = (prepared, made[0], made[1])
    return _DATA[key]


def _nodes(place: Place) -> tuple[str, ...]:
    """The node of each rank."""
    if place.world_size == 1:
        return (place.node,)
    nodes: list[Any] = [None] * place.world_size
    dist.all_gather_object(nodes, place.node)
    return tuple(nodes)


def one_line(failure: BaseException, folder: Path) -> str:
    """An exception in one line: what, and the last file:line of the user's own code, else of ours."""
    frames = traceback.extract_tb(failure.__traceback__)
    theirs = [f for f in frames if Path(f.filename).is_relative_to(folder.resolve()) and "site-packages" not in f.filename]
    said = " ".join(str(failure).split()) or "no message"
    if isinstance(failure, ArithmeticError) and not theirs:
        return said
    at = (theirs or frames)[-1:]
    where = f" ({Path(at[0].filename).name}:{at[0].lineno})" if at else ""
    return f"{type(failure).__name__}: {said}{where}"


def _keep_trace(job: Job, failure: BaseException) -> str | None:
    """Write the whole traceback beside the checkpoints; its path."""
    text = "".join(traceback.format_exception(failure))
    with contextlib.suppress(checkpoint.CheckpointError):
        header = json.dumps({"trial": job.trial})
        checkpoint.write_file(job.checkpoints, "error.txt", f"{header}\n{text}".encode())
        return f"{job.checkpoints}/error.txt"
    return None


def _now_ms() -> int:
    return int(time.time() * 1000)
