"""One trial on one rank, from a job to its last event: what every executor drives.

`run` is a generator: it yields an EpochEnded, waits for the driver's verdict, and ends with a RunEnded. Errors of a trial are its
result, not the executor's; only that another rank is lost is raised, for the executor to begin again from the checkpoint.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from models import FAMILIES
from models.family import Family
from orchestrator import names
from orchestrator.events import EpochEnded, RunEnded
from orchestrator.experiment.config import Experiment
from orchestrator.storage import StorageError
from orchestrator.training import checkpoint, seeds, transfer
from orchestrator.training.arrival import arrive
from orchestrator.training.augment import augmenting
from orchestrator.training.failure import PeerLost as PeerLost
from orchestrator.training.failure import is_of_a_peer, keep_trace, one_line
from orchestrator.training.job import Job, Place, Steps
from orchestrator.training.kept import Kept, newest_for_all
from orchestrator.training.loop import Diverged, Settings, Training
from orchestrator.training.memory import keep_freed_memory
from orchestrator.training.optim import OPTIMIZERS
from orchestrator.training.pauses import Pauses, never
from pipelines import batches, stream
from pipelines.prepare import Prepared
from pipelines.schema import Schema


class _Stopped(Exception):
    """The trial was asked to stop, and its checkpoint is written."""


def run(job: Job, place: Place | None = None, stop: Callable[[], bool] = never) -> Steps:
    """The trial's events; send False to stop it after an epoch. Each rank yields the same events. Raises PeerLost.

    `stop` is asked between steps, rank 0's for all: the trial then ends as interrupted, with a checkpoint that goes on exactly there.
    A resumed trial first says again what may have been trained and not recorded: its last epoch, or all that the job doesn't know of.
    """
    place = place or Place()
    began = time.time()
    nodes: tuple[str, ...] = (place.node,)
    trial: _Trial | None = None
    end: dict[str, Any] = {"state": "finished"}
    try:
        job = arrive(job)
        nodes = _nodes(place)
        trial = _Trial(job, place, stop)
        for event in trial.epochs():
            go_on = yield event
            if event.last or not go_on:
                end = {"state": "finished" if event.last else "stopped"}
                break
        trial.close()
    except GeneratorExit:
        with contextlib.suppress(StorageError):
            if trial is not None:
                trial.close()
        raise
    except Exception as failure:  # whatever a trial raises is its result
        end = _end_of(failure, job, place, trial)
    finally:
        if place.device != "cpu":
            torch.cuda.empty_cache()
    kept: dict[str, Any] = {} if trial is None else {"notes": trial.kept.notes, "best": trial.kept.best}
    yield RunEnded(job.trial, at_ms=_now_ms(), wall_s=time.time() - began, nodes=nodes, **kept, **end)


def _end_of(failure: Exception, job: Job, place: Place, trial: _Trial | None) -> dict[str, Any]:
    """How a run ends that raised. Raises PeerLost where that was another rank's doing."""
    if isinstance(failure, _Stopped):
        return {"state": "interrupted"}
    alone = place.world_size > 1
    if alone and is_of_a_peer(failure):
        with contextlib.suppress(StorageError):
            if trial is not None:
                trial.kept.writer.flush()
        raise PeerLost(" ".join(str(failure).split())) from failure
    if isinstance(failure, StorageError):  # a full disk: it goes on once there is room
        return {"state": "interrupted", "error": str(failure), "alone": alone}
    trace = keep_trace(job.checkpoints, job.trial, failure)
    alone &= not isinstance(failure, Diverged)  # which is judged by sums that all ranks have
    return {"state": "failed", "error": one_line(failure, Path(job.folder)), "trace": trace, "alone": alone}


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

    def __init__(self, job: Job, place: Place, stop: Callable[[], bool] = never) -> None:
        self.job, self.place, self.experiment = job, place, job.experiment
        torch.set_num_threads(job.threads)
        keep_freed_memory()
        seeds.set_all(job.experiment.training.seed)
        self.prepared, train, validation = _data(job.data, place.device, job.streamed)
        family = build_family(job.experiment, self.prepared.schema, job.folder)
        family.bind(self.prepared.tables())
        if not job.resume and place.rank == 0:
            checkpoint.clear(job.checkpoints)
        before = newest_for_all(job.checkpoints, place.rank, place.world_size) if job.resume else checkpoint.Found()
        if job.origin is not None and before.state is None:
            transfer.load(family, job.origin)
        self.training = self._training(family, train, validation)
        self.kept = Kept(self.training, job.checkpoints, before)
        self.pauses = Pauses(job.experiment.training.checkpoint_every, stop, place.rank, place.world_size, place.device)
        seeds.set_all(job.experiment.training.seed + 7919 * place.rank)  # dropout differs between ranks, initial weights don't
        news = before.notes or self._missing() if before.state is None else before.notes + self.kept.resume(before.state)
        self.kept.note(news)
        for note in news if place.rank == 0 else ():
            print(f"note: {note}", file=sys.stderr, flush=True)

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

    def _missing(self) -> tuple[str, ...]:
        """What is said where epochs were recorded, and there is nothing to go on from."""
        return (f"there is no checkpoint in '{self.job.checkpoints}'{checkpoint.ANEW}",) if self.job.known else ()

    def epochs(self) -> Iterator[EpochEnded]:
        """What a resumed run gave that may not be recorded, once more, and then one epoch after the other."""
        history = self.kept.history
        last = len(history) - 1
        for place in range(last if self.job.known is None else min(last, self.job.known), last):
            yield self._event(place, last=False)
        if history:
            yield self._event(last, self.training.finished)
        while not self.training.finished:
            self._epoch()
            yield self._event(-1, self.training.finished)

    def close(self) -> None:
        """Write the last checkpoint: the best weights, their record, and the state to go on from."""
        self.kept.save()
        self.kept.writer.flush()

    def _epoch(self) -> None:
        metrics = self.training.run_epoch(self._between_steps)
        self.kept.add(metrics, _now_ms(), self.experiment.metric, self.experiment.mode)
        due = self.pauses.after_epoch(self.training.epoch, self.training.step)
        if due or self.training.finished:  # the last one is written while the driver judges the epoch
            self._save()

    def _event(self, place: int, last: bool) -> EpochEnded:
        row = self.kept.history[place]
        return EpochEnded(self.job.trial, row["epoch"], row["metrics"], row["at_ms"], last)

    def _between_steps(self) -> None:
        """Save what is due, and stop if that is asked for. Raises _Stopped."""
        stop, save = self.pauses.before(self.training.step)
        if stop or save:
            self.kept.gather()
            self._save()
        if stop:
            self.kept.writer.flush()
            raise _Stopped

    def _save(self) -> None:
        self.kept.save()
        self.pauses.saved()


def best_weights(uri: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """(the best epoch's record, its weights) of the newest good checkpoint at a URI; None if there is none. See checkpoint.load."""
    state = checkpoint.load(uri)
    return None if state is None or state["best"] is None else (state["best"], state["weights"])


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


def _now_ms() -> int:
    return int(time.time() * 1000)
