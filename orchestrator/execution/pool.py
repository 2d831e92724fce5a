"""One-worker trials: warm, persistent Ray actors, one slot each. A stopped trial's actor takes the next one at once."""

from __future__ import annotations

import time
from typing import Any

import ray

from orchestrator.events import RunEnded
from orchestrator.execution.executor import SlotEvent
from orchestrator.training.trial import Job


class _Worker:
    """The actor: drives one trial at a time, one call an event. torch is imported when the actor starts, not when a trial does."""

    def __init__(self, gpus: float) -> None:
        from orchestrator.training import trial

        self.trial = trial
        self.place = trial.Place(device="cuda:0" if gpus else "cpu", node=ray.get_runtime_context().get_node_id())
        self.steps: Any = None

    def start(self, job: Job) -> Any:
        """The first event of a job."""
        self.steps = self.trial.run(job, self.place)
        return next(self.steps)

    def answer(self, go_on: bool) -> Any:
        """The event after a verdict."""
        return self.steps.send(go_on)


class Pool:
    """`slots` actors, each with its CPUs and GPUs. A trial whose actor dies has failed; another actor takes the slot."""

    def __init__(self, slots: int, cpus: float, gpus: float, accelerator: str | None = None) -> None:
        self.slots, self.gpus = slots, gpus
        self.worker = ray.remote(_Worker).options(num_cpus=cpus, num_gpus=gpus, accelerator_type=accelerator, scheduling_strategy="SPREAD")
        self.workers = [self.worker.remote(gpus) for _ in range(slots)]
        self.jobs: dict[int, Job] = {}
        self._pending: dict[Any, int] = {}

    def start(self, slot: int, job: Job) -> None:
        """Give a free actor a job."""
        self.jobs[slot] = job
        self._pending[self.workers[slot].start.remote(job)] = slot

    def wait(self) -> list[SlotEvent]:
        """Block until an actor has an event; every event that is there."""
        ray.wait(list(self._pending), num_returns=1)
        done, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        return [self._event(ref, self._pending.pop(ref)) for ref in done]

    def _event(self, ref: Any, slot: int) -> SlotEvent:
        try:
            return slot, ray.get(ref)
        except ray.exceptions.RayError as death:
            self.workers[slot] = self.worker.remote(self.gpus)
            says = f"its worker died: {' '.join(str(death).split())[:300]}"
            return slot, RunEnded(self.jobs[slot].trial, "failed", int(time.time() * 1000), error=says)

    def verdict(self, slot: int, go_on: bool) -> None:
        """Answer an actor's EpochEnded."""
        self._pending[self.workers[slot].answer.remote(go_on)] = slot

    def close(self) -> None:
        """Kill the actors: what they had to write is written when they say RunEnded."""
        for worker in self.workers:
            ray.kill(worker)
