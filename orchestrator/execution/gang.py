"""What each rank of a gang does: the same trial as the others, one after the other, until the gang is ended."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.v2._internal.execution.callback import ControllerCallback

from orchestrator.events import EpochEnded, RunEnded
from orchestrator.execution.deaths import Cause, brief
from orchestrator.execution.messages import Answer, Rank
from orchestrator.execution.worker import PROBE_S, on_node, oom_kills
from orchestrator.training.failure import PeerLost, is_of_a_peer
from orchestrator.training.job import Place

LONGEST_WAIT_S = 20.0  # in one question to the hub
STOP_EVERY_S = 0.5  # a look whether to stop costs as much as a short step


class Leave(RuntimeError):
    """This process ends, as it was told: its gang starts anew."""


class End(Exception):
    """This gang ends."""


def train(config: dict[str, Any]) -> None:
    """Ray Train runs this on every rank."""
    _Member(config).run()


class _Member:
    """A rank. Rank 0 asks and reports; what it is told is shared."""

    def __init__(self, config: dict[str, Any]) -> None:
        context = ray.train.get_context()
        self.hub, self.gang = config["hub"], config["gang"]
        self.wait_s = min(LONGEST_WAIT_S, config["timeout_s"] / 4)
        node = ray.get_runtime_context().get_node_id()
        self.me = Rank(context.get_world_rank(), context.get_world_size(), node, socket.gethostname(), os.getpid(), oom_kills())
        device = str(ray.train.torch.get_device()) if config["gpus"] else "cpu"
        self.place = Place(self.me.rank, self.me.size, device, node)
        ray.get(self.hub.register.remote(self.gang, self.me))
        self.look_at = 0.0
        self.asked = [self.hub.stop_asked.remote(self.gang)] if self.me.rank == 0 else []

    def run(self) -> None:
        """One trial after the other, until the gang ends. Raises where Ray Train is to end the other ranks and to start the group anew."""
        try:
            while True:
                self._trial(self._ask(lambda: self.hub.next.remote(self.gang, self.wait_s)))
        except End:
            return
        except PeerLost as lost:
            self._tell(self.hub.lost.remote(self.gang, self.me, str(lost)))
            raise

    def _trial(self, job: Any) -> None:
        from orchestrator.training import output

        steps = output.run(job, self.place, self._stop)
        event = next(steps)
        while isinstance(event, EpochEnded):
            report = partial(self.hub.report.remote, self.gang, event, self.wait_s)
            try:
                go_on = self._ask(report, again=lambda: self.hub.answer.remote(self.gang, self.wait_s))
            except (Leave, End):
                ended = steps.send(False)  # its checkpoint is written
                if self.me.rank == 0 and isinstance(ended, RunEnded):
                    self._tell(self.hub.report.remote(self.gang, replace(ended, state="interrupted"), 0))
                raise
            event = steps.send(go_on)
        self._end(event)

    def _end(self, event: RunEnded) -> None:
        if event.alone:  # the other ranks may be in the middle of a collective
            self._tell(self.hub.report.remote(self.gang, event, self.wait_s))
            raise RuntimeError(event.error)
        self._ask(lambda: self.hub.report.remote(self.gang, event, self.wait_s))

    def _stop(self) -> bool:
        if time.monotonic() < self.look_at:
            return False
        self.look_at = time.monotonic() + STOP_EVERY_S
        return bool(ray.wait(self.asked, timeout=0)[0])

    def _ask(self, question: Callable[[], Any], again: Callable[[], Any] | None = None) -> Any:
        """What rank 0 is answered, on every rank; `again`: how to ask after WAIT. Raises Leave or End, on every rank too."""
        answer = self._share(question)
        while answer is Answer.WAIT:
            answer = self._share(again or question)
        if answer is Answer.LEAVE:
            raise Leave("this gang moves, or changes its size")
        if answer is Answer.END:
            raise End
        return answer

    def _share(self, question: Callable[[], Any]) -> Any:
        import torch.distributed as dist

        box = [self._tell(question()) if self.me.rank == 0 else None]
        try:
            dist.broadcast_object_list(box, 0)
        except Exception as failure:
            if is_of_a_peer(failure):
                raise PeerLost(" ".join(str(failure).split())) from failure
            raise
        return box[0]

    def _tell(self, said: Any) -> Any:
        """The hub's answer; END if it is dead, and with it the sweep."""
        try:
            return ray.get(said)
        except ray.exceptions.ActorDiedError:
            print("the command, or the actor between it and its workers, died: this process ends", file=sys.stderr)
            return Answer.END


class Telling(ControllerCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller of a gang, and tells the hub what went wrong: nobody else hears of a start that fails."""

    def __init__(self, hub: Any, gang: int) -> None:
        self.hub, self.gang, self.told = hub, gang, False
        self.error: Any = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Whatever Ray Train's controller is at now."""
        if not self.told:
            self.told = True
            self.hub.controlled.remote(self.gang, ray.get_runtime_context().current_actor)
        error = getattr(current_state, "training_failed_error", None)
        if error is not None and error is not self.error:  # while it waits for room the state stays, and is said again and again
            self.error = error
            kills = self._oom_kills() if _vanished(error) else {}
            ray.get(self.hub.failed.remote(self.gang, *_cause(error), kills))  # raises, which ends the gang, if the hub is dead

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Before ranks are ended, for there is room for more of them, or less: they write a checkpoint."""
        ray.get(self.hub.pause.remote(self.gang))

    def _oom_kills(self) -> dict[str, int]:
        """Of the nodes where the gang was, those that are still there."""
        asked = {on_node(node, oom_kills): node for node in ray.get(self.hub.nodes.remote(self.gang))}
        found = {}
        for ref in ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_S)[0] if asked else ():
            with contextlib.suppress(ray.exceptions.RayError):
                found[asked[ref]] = ray.get(ref)
        return found


def _failures(error: Any) -> list[Any]:
    """What went wrong in a gang, the first one first."""
    workers = list(getattr(error, "worker_failures", {}).values())
    inner = getattr(error, "controller_failure", None) or next(iter(workers), error)
    return [getattr(each, "health_check_failure", each) for each in (inner, *workers)]


def _vanished(error: Any) -> bool:
    """Whether a process is gone without a word."""
    return any(isinstance(each, ray.exceptions.RayActorError) for each in _failures(error))


def _cause(error: Any) -> tuple[Cause, str, bool]:
    """(what a death counts as, in words, whether it is more than want of room)."""
    failures = _failures(error)
    said = brief(failures[0]) if _vanished(error) else " ".join(str(failures[0]).split())[-300:]  # a traceback ends with what was raised
    if any(isinstance(f, ray.exceptions.OutOfMemoryError) or "low on memory" in str(f) for f in failures):
        return "memory", said, True
    return "died", said, "StartupTimeout" not in type(failures[0]).__name__
