"""A run's values -> its job and the event of its beginning."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from orchestrator.asking import Asked, home
from orchestrator.catalog import catalog
from orchestrator.events import RunStarted
from orchestrator.experiment.config import parameters
from orchestrator.experiment.plan import Plan, epochs_of
from orchestrator.experiment.read import with_values
from orchestrator.records.ledger import Launch
from orchestrator.records.logs import folder_of as logs_of
from orchestrator.storage import StorageError
from orchestrator.training.checkpoint import folder_of
from orchestrator.training.job import Job
from orchestrator.training.trial import best_weights


@dataclass(frozen=True)
class Trials:
    """Makes the jobs of a launch."""

    asked: Asked
    plan: Plan
    launch: Launch

    def make(self, trial: int | None, values: dict[str, Any], known: int | None) -> tuple[Job, RunStarted]:
        """The job of a trial with these values (of `train`, without a number: the file's own).

        `known`: how many epochs are recorded of a run that goes on; None: it begins.
        """
        asked, plan, experiment = self.asked, self.plan, self.asked.experiment
        chosen = with_values(experiment, values, catalog(asked.folder)) if trial is not None and values else experiment
        origin, start = asked.starts.of(chosen) if asked.starts else (None, {})
        job = Job(
            trial,
            chosen,
            str(asked.prepared.folder),
            folder_of(experiment.storage.path, home(), self.launch.id, trial),
            str(asked.folder),
            plan.precision,
            plan.threads,
            epochs_of(chosen, asked.prepared.rows["train"]),
            resume=known is not None,
            known=known,
            streamed=plan.streamed,
            origin=origin,
            logs=str(logs_of(home(), self.launch.id, trial)),
        )
        env = {"executor": plan.executor, "world_size": plan.workers, "cpus": plan.cpus, "gpus": plan.gpus, "precision": plan.precision}
        started = RunStarted(
            trial, int(time.time() * 1000), values or self._given(), parameters(chosen.plain()), env | {"threads": plan.threads, **start}
        )
        return asked.sent(job), started

    def kept(self, trial: int | None) -> dict[str, Any] | None:
        """The best epoch in a run's newest checkpoint: its number and metrics."""
        with contextlib.suppress(StorageError):
            found = best_weights(folder_of(self.asked.experiment.storage.path, home(), self.launch.id, trial))
            return None if found is None else found[0]
        return None

    def _given(self) -> dict[str, Any]:
        """What distinguishes a run of `train`: the keys that were overridden, with their values."""
        flat = self.asked.experiment.flat()
        keys = [override.partition("=")[0].strip() for override in self.asked.overrides]
        return {key: flat[key] for key in keys if key in flat and not key.startswith("data.")}
