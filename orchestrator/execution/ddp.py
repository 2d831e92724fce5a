"""Multi-worker trials: warm gangs, one Ray Train TorchTrainer.fit() each, DDP inside.

`fit()` costs 10-20 s before its first step, so a gang is fitted once and runs many trials: rank 0 takes a job from the hub and broadcasts
it, every rank drives the same trial, rank 0 reports each epoch to the hub and broadcasts the verdict. Nothing is killed to stop a
trial. When a rank dies Ray Train restarts the group, which is given its job again, to go on from the checkpoint; a trial that raises on one
rank ends as failed, and the group is restarted for the next one, since the other ranks may wait in a collective.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import threading
import time
from typing import Any

import ray
import ray.train  # here, not in the gangs' threads: two at once would find it half imported
import ray.train.torch

from orchestrator.errors import Failed
from orchestrator.events import EpochEnded, RunEnded
from orchestrator.execution.executor import SlotEvent
from orchestrator.training.trial import Job

MAX_RESTARTS = 3  # of a gang for one trial


@ray.remote(num_cpus=0)
class _Hub:
    """Jobs and verdicts to the gangs, events from them."""

    def __init__(self, gangs: int) -> None:
        self.jobs: list[asyncio.Queue[Job | None]] = [asyncio.Queue() for _ in range(gangs)]
        self.asking: list[asyncio.Future[bool] | None] = [None] * gangs
        self.events: asyncio.Queue[SlotEvent] = asyncio.Queue()
        self.current: list[Job | None] = [None] * gangs
        self.restarts = [0] * gangs

    async def submit(self, gang: int, job: Job | None) -> None:
        """A job for a gang; None ends it."""
        await self.jobs[gang].put(job)

    async def next(self, gang: int) -> Job | None:
        """The gang's next job; the one it was at if it didn't end it."""
        unfinished = self.current[gang]
        if unfinished is not None and self.restarts[gang] < MAX_RESTARTS:
            self.restarts[gang] += 1
            self.asking[gang] = None
            return dataclasses.replace(unfinished, resume=True)
        if unfinished is not None:
            await self.report(gang, _died(unfinished, f"its workers died {MAX_RESTARTS + 1} times"))
        self.restarts[gang] = 0
        self.current[gang] = await self.jobs[gang].get()
        return self.current[gang]

    async def report(self, gang: int, event: EpochEnded | RunEnded) -> bool:
        """An event of a gang; the verdict, for an epoch. The end of a run counts once, whichever rank says it."""
        if isinstance(event, RunEnded):
            current = self.current[gang]
            if current is not None and current.trial == event.trial:
                self.current[gang] = None
                await self.events.put((gang, event))
            return True
        self.asking[gang] = asked = asyncio.get_running_loop().create_future()
        await self.events.put((gang, event))
        return bool(await asked)

    async def verdict(self, gang: int, go_on: bool) -> None:
        """The driver's answer; to a gang that died meanwhile it is no answer any more."""
        asked = self.asking[gang]
        if asked is not None and not asked.done():
            asked.set_result(go_on)

    async def wait(self, timeout_s: float) -> list[SlotEvent]:
        """Every event that is there, after at most so many seconds."""
        try:
            found = [await asyncio.wait_for(self.events.get(), timeout_s)]
        except TimeoutError:
            return []
        while not self.events.empty():
            found.append(self.events.get_nowait())
        return found


def _gang(config: dict[str, Any]) -> None:
    """What each rank of a gang does, until there is no further job."""
    import torch.distributed as dist

    from orchestrator.training import trial

    context, hub, gang = ray.train.get_context(), config["hub"], config["gang"]
    rank, size = context.get_world_rank(), context.get_world_size()
    device = str(ray.train.torch.get_device()) if config["gpus"] else "cpu"
    place = trial.Place(rank, size, device, ray.get_runtime_context().get_node_id())
    while True:
        job = _share(lambda: ray.get(hub.next.remote(gang)), rank, dist)
        if job is None:
            return
        steps = trial.run(job, place)
        event = next(steps)
        while isinstance(event, EpochEnded):
            go_on = _share(lambda event=event: ray.get(hub.report.remote(gang, event)), rank, dist)
            event = steps.send(go_on)
        if rank == 0 or event.alone:
            ray.get(hub.report.remote(gang, event))
        if event.alone:
            raise RuntimeError(event.error)  # Ray Train ends the other ranks and starts the group anew


def _died(job: Job, says: str) -> RunEnded:
    return RunEnded(job.trial, "failed", int(time.time() * 1000), error=says)


def _share(ask: Any, rank: int, dist: Any) -> Any:
    """What rank 0 gets by asking, on every rank."""
    box = [ask() if rank == 0 else None]
    dist.broadcast_object_list(box, 0)
    return box[0]


class Gangs:
    """`slots` gangs of `workers` ranks, each fitted in a thread of this process."""

    def __init__(self, slots: int, workers: int, cpus: float, gpus: float, accelerator: str | None = None) -> None:
        self.slots = slots
        self.hub = _Hub.remote(slots)  # type: ignore[attr-defined]
        self.running: dict[int, Job] = {}
        self.broken: dict[int, str] = {}
        self.folder = tempfile.TemporaryDirectory(prefix="orchestrator-train-")
        scaling = ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": cpus} | ({"GPU": gpus} if gpus else {}),
            accelerator_type=accelerator,
        )
        self.threads = [threading.Thread(target=self._fit, args=(gang, scaling, gpus), daemon=True) for gang in range(slots)]
        for thread in self.threads:
            thread.start()

    def _fit(self, gang: int, scaling: ray.train.ScalingConfig, gpus: float) -> None:
        try:
            ray.train.torch.TorchTrainer(
                _gang,
                train_loop_config={"hub": self.hub, "gang": gang, "gpus": gpus},
                scaling_config=scaling,
                run_config=ray.train.RunConfig(
                    name=f"gang-{gang}", storage_path=self.folder.name, failure_config=ray.train.FailureConfig(max_failures=-1)
                ),
            ).fit()
        except Exception as error:  # whatever Ray Train raises ends this gang, and is said by `wait`
            self.broken[gang] = " ".join(str(error).split())[:500]

    def start(self, slot: int, job: Job) -> None:
        """Give a free gang a job."""
        self.running[slot] = job
        self.hub.submit.remote(slot, job)

    def wait(self) -> list[SlotEvent]:
        """Block until a gang has an event; every event that is there. Raises Failed if a gang is gone for good."""
        while True:
            events: list[SlotEvent] = ray.get(self.hub.wait.remote(1.0))
            for slot, event in events:
                if isinstance(event, RunEnded):
                    self.running.pop(slot, None)
            if events:
                return events
            for slot, says in self.broken.items():
                raise Failed(f"gang {slot} of workers ended and did not come back: {says}")

    def verdict(self, slot: int, go_on: bool) -> None:
        """Answer a gang's EpochEnded."""
        self.hub.verdict.remote(slot, go_on)

    def close(self) -> None:
        """No further job: the gangs end by themselves; one that is in the middle of a trial ends with the cluster's connection."""
        for gang in range(self.slots):
            self.hub.submit.remote(gang, None)
        if not self.running:
            for thread in self.threads:
                thread.join(30)
        ray.kill(self.hub)
        self.folder.cleanup()
