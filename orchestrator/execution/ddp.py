"""Multi-worker trials: warm gangs, one Ray Train TorchTrainer.fit() each, DDP inside.

`fit()` costs 10-20 s before its first step, so a gang is fitted once and runs many trials: rank 0 takes a job from the hub and broadcasts
it, every rank drives the same trial, rank 0 reports each epoch to the hub and broadcasts the verdict. Nothing is killed to stop a
trial. When a rank dies Ray Train restarts the group, which is given its job again, to go on from the checkpoint; or another gang is, if
there is no room for it any more. A trial that raises on one rank ends as failed, and the group is restarted for the next one, since
the other ranks may wait in a collective.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from typing import Any

import ray
import ray.train  # here, not in the gangs' threads: two at once would find it half imported
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import Failed, Lost, Note
from orchestrator.events import RunEnded
from orchestrator.execution.deaths import MAX_RESTARTS, brief
from orchestrator.execution.elastic import ElasticTrainer
from orchestrator.execution.executor import SlotEvent
from orchestrator.execution.gang import Telling, train
from orchestrator.execution.hub import Hub
from orchestrator.execution.messages import Heard, Rank, State
from orchestrator.execution.watch import LOOK_EVERY_S, STALL_S, Head, Leaving, Stall, placed_groups
from orchestrator.execution.worker import end_process, on_node
from orchestrator.training.job import Job

LATER_S = 600.0  # after which a death is no longer one of a row
ABORT_S = 8.0  # Ray Train gives the ranks 5 s to shut down
RETURN_S = 6.0  # Ray Train looks every half second, and ends the ranks' processes
ENDING_S = 30.0  # for a task that ends a rank on its node


@dataclass(frozen=True)
class _Ending:
    """Ranks that hang: the tasks that end them, and until when these are waited for."""

    trial: int | None
    asked: dict[Any, Rank]
    until: float


class Gangs:
    """`slots` gangs of (fewest, most) `workers`, each fitted in a thread of this process.

    `timeout_s`: within which a rank that hangs is found; `resize_s`: how often a gang of fewer ranks than the most looks for room.
    """

    def __init__(
        self, slots: int, workers: tuple[int, int], cpus: float, gpus: float, accelerator: str | None = None, timeout_s: float = 600.0,
        resize_s: float = 60.0, stall_s: float = STALL_S,
    ) -> None:  # fmt: skip
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # default 2: a death is seen so much later
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # default 60: busy machines need more
        os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(timeout_s + 60))  # default 600: ours is to come first
        self.slots, self.fewest, self.timeout_s = slots, workers[0], timeout_s
        self.collective_s, settle_s = shares(timeout_s)
        self.each = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # soft: Ray puts it elsewhere at times
        self.hub = ray.remote(Hub).options(num_cpus=0, scheduling_strategy=here).remote(slots, settle_s)
        self.running: dict[int, Job] = {}
        self.broken: dict[int, str] = {}
        self.heard = Heard([], [], [])
        self.head, self.leaving, self.stall = Head.here(), Leaving(), Stall(stall_s)
        self.moved: set[int] = set()
        self.ending: dict[int, _Ending] = {}  # ranks that hang, by gang
        self._closed = self._stopped = self._lost = self._deaf = False  # lost: Ray itself; deaf: the hub
        self.folder = tempfile.TemporaryDirectory(prefix="orchestrator-train-")
        scaling = ray.train.ScalingConfig(
            num_workers=workers if workers[0] < workers[1] else workers[1],
            use_gpu=bool(gpus),
            resources_per_worker=self.each,
            accelerator_type=accelerator,
            elastic_resize_monitor_interval_s=resize_s,
        )
        self.threads = [threading.Thread(target=self._fit, args=(number, scaling, gpus), daemon=True) for number in range(slots)]
        for thread in self.threads:
            thread.start()

    def _fit(self, number: int, scaling: ray.train.ScalingConfig, gpus: float) -> None:
        """Until the gang returns. Where a rank dies while the others start, Ray Train gives up: it is asked anew."""
        deaths = 0
        while not self._closed:
            began = time.monotonic()
            try:
                self._trainer(number, scaling, gpus).fit()
                return
            except SystemExit:  # Ray's own way to end a thread that waits, when this process leaves it
                return
            except Exception as error:  # whatever Ray Train raises ends this gang, and is said by `wait`
                deaths = 1 if time.monotonic() - began > LATER_S else deaths + 1
                if not self._closed and (deaths > MAX_RESTARTS or not self._is_of_a_rank(error)):
                    self.broken[number] = " ".join(str(error).split())[:500]
                    return

    def _trainer(self, number: int, scaling: ray.train.ScalingConfig, gpus: float) -> TorchTrainer:
        kind = ElasticTrainer if scaling.elasticity_enabled else TorchTrainer
        return kind(
            train,
            train_loop_config={"hub": self.hub, "gang": number, "gpus": gpus, "timeout_s": self.timeout_s},
            torch_config=TorchConfig(timeout_s=self.collective_s),
            scaling_config=scaling,
            run_config=ray.train.RunConfig(
                name=f"gang-{number}-{secrets.token_hex(4)}",
                storage_path=self.folder.name,
                failure_config=ray.train.FailureConfig(max_failures=-1),  # the hub counts them, a trial at a time
                callbacks=[Telling(self.hub, number)],
            ),
        )

    def _is_of_a_rank(self, error: Exception) -> bool:
        failure = getattr(error, "controller_failure", None)
        return isinstance(failure, ray.exceptions.RayActorError) and failure.actor_id != self.hub._actor_id.hex()

    def start(self, slot: int, job: Job) -> None:
        """Give a free gang a job."""
        self.running[slot] = job
        self.hub.submit.remote(slot, job)

    def wait(self, within_s: float | None = None) -> list[SlotEvent]:
        """Block until a gang has an event; every event that is there, none once the time is over."""
        until = math.inf if within_s is None else time.monotonic() + within_s
        while True:
            self._listen(max(0.0, min(until - time.monotonic(), LOOK_EVERY_S)))
            for slot, event in self.heard.events:
                if isinstance(event, RunEnded):
                    self.running.pop(slot, None)
            for hung in self.heard.hung:
                asked = {on_node(rank.node, end_process, rank.pid): rank for rank in hung.ranks}
                self.ending[hung.gang] = _Ending(hung.trial, asked, time.monotonic() + ENDING_S)
            self._look_around()
            self._end_hung()
            if self.heard.events:
                return self.heard.events
            for slot, says in self.broken.items():
                raise Failed(f"gang {slot} of workers ended and did not come back: {says}")
            for slot, state in enumerate(self.heard.gangs):
                if state.broken is not None:
                    raise Failed(f"the workers of gang {slot} can't start: {state.broken}")
            if time.monotonic() >= until:
                return []

    def verdict(self, slot: int, go_on: bool) -> None:
        """Answer a gang's EpochEnded."""
        self.hub.verdict.remote(slot, go_on)

    def stop(self, grace_s: float) -> list[SlotEvent]:
        """Ask the runs under way to write a checkpoint and end; what they say within so many seconds. Then the gangs return."""
        self._closed = True
        deadline, said = time.monotonic() + grace_s, []
        self.hub.close.remote()
        while any(gang.up and gang.slot in self.running for gang in self.heard.gangs) and (rest := deadline - time.monotonic()) > 0:
            self._listen(min(rest, LOOK_EVERY_S))
            for slot, event in self.heard.events:
                said.append((slot, event))
                if isinstance(event, RunEnded):
                    self.running.pop(slot, None)
        until = time.monotonic() + RETURN_S
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._stopped = True
        return said

    def close(self, grace_s: float = 0) -> None:
        """Stop the runs under way, if there is a grace, and end the gangs with everything that Ray Train started."""
        self._closed = True
        try:
            if grace_s > 0 and not (self._deaf or self._stopped):
                with contextlib.suppress(Lost):
                    self.stop(grace_s)
        finally:
            self.leaving.close()
            with contextlib.suppress(Exception):  # the newest of Ray Train's actors
                if not self._deaf:
                    self._listen(0)
            with contextlib.suppress(Exception):  # Ray may be gone; what the runs' end is, is known
                self._abort([gang for gang, thread in zip(self.heard.gangs, self.threads, strict=False) if thread.is_alive()])
            with contextlib.suppress(Exception):
                ray.kill(self.hub)
            for thread in self.threads:
                thread.join(0 if self._lost else 30 if self._deaf else 10)
            self.folder.cleanup()

    def _abort(self, gangs: list[State]) -> None:
        """As Ray Train ends a run at Ctrl-C: ranks, placement group, its cleaner. After a mere kill the last two would stay."""
        controls = [gang.control for gang in gangs if gang.control is not None]
        if controls and not self._lost:
            ray.wait([control.abort.remote() for control in controls], num_returns=len(controls), timeout=ABORT_S)
        for control in controls:
            ray.kill(control)

    def _listen(self, timeout_s: float = LOOK_EVERY_S) -> None:
        """Hear what there is. Raises Lost if the hub, or what it runs on, is gone."""
        ref = self.hub.wait.remote(timeout_s)
        try:
            while not ray.wait([ref], timeout=LOOK_EVERY_S)[0]:
                self._check_head()
            self.heard = ray.get(ref)
        except ray.exceptions.RayActorError as error:
            self._deaf = True
            self._check_head()
            raise Lost(f"the actor between the workers and this command died: {brief(error)}") from None
        except ConnectionError as error:  # of a client (ray://)
            self._deaf = self._lost = True
            raise Lost(f"the connection to Ray broke: {error}") from None

    def _check_head(self) -> None:
        try:
            self.head.check()
        except Lost:
            self._deaf = self._lost = True
            raise

    def _look_around(self) -> None:
        """The head, nodes that leave, and whether anything goes on."""
        self._check_head()
        gangs = self.heard.gangs
        for number, state in enumerate(gangs):
            if not state.nodes & self.leaving.nodes:
                self.moved.discard(number)
            elif state.up and number not in self.moved:  # one that starts is asked when it is up
                self.moved.add(number)
                self.hub.move.remote(number)
        at_work = {gang.slot for gang in gangs}
        if self.running.keys() - at_work and not all(gang.up for gang in gangs):  # else it waits until it may be alone
            self.stall.check(self.fewest, self.each, lambda: placed_groups() < self.slots, self.fewest)
        else:
            self.stall.progress()

    def _end_hung(self) -> None:
        """Say which ranks don't answer, once they are killed, or can't be: Ray Train then sees a death like any other."""
        for gang, ending in list(self.ending.items()):
            done = ray.wait(list(ending.asked), num_returns=len(ending.asked), timeout=0)[0] if ending.asked else []
            if len(done) < len(ending.asked) and time.monotonic() < ending.until:
                continue
            for ref, rank in ending.asked.items():
                killed: bool | None = None
                with contextlib.suppress(ray.exceptions.RayError):  # its node is gone, or doesn't answer either
                    killed = ray.get(ref) if ref in done else None
                if killed is not False:
                    self._say_hung(ending.trial, rank, bool(killed))
            self.hub.settled.remote(gang)
            del self.ending[gang]

    def _say_hung(self, trial: int | None, rank: Rank, killed: bool) -> None:
        warnings.warn(
            f"rank {rank.rank} of trial {trial} hung: on node {rank.node} ({rank.host}), pid {rank.pid}, it didn't answer within "
            f"{self.timeout_s:g} s (scaling.timeout_s); {'it was killed' if killed else 'nor does its node answer'}, and the trial goes "
            "on from its last checkpoint",
            Note,
            stacklevel=2,
        )


def shares(timeout_s: float) -> tuple[float, float]:
    """Of the time within which a rank that hangs is to be found: (what the others' collective waits, what is left to see who is silent)."""
    settle_s = max(2.0, min(30.0, timeout_s / 4))
    return max(timeout_s - settle_s, timeout_s / 2), settle_s
