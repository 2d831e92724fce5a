"""What runs in the pool's actors, and the small tasks that look at a node or end a process there."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.training.job import Job, Place

OOM_COUNTERS = ("/sys/fs/cgroup/memory.events", "/proc/vmstat", "/sys/fs/cgroup/memory/memory.oom_control")  # cgroup v2, machine, v1
PROBE_S = 20.0  # for a look at the node of a process that died


@dataclass(frozen=True)
class About:
    """Where a process runs. `oom_kills`: how many the kernel ended there for want of memory, since it started."""

    node: str
    host: str
    pid: int
    oom_kills: int


class Worker:
    """Drives one trial at a time, one call an event. torch is imported when the actor starts, not when a trial does.

    `stop` and `life` are answered by threads of their own, while a call of the trial's is under way.
    """

    def __init__(self, gpus: float) -> None:
        from orchestrator.training import output

        self.run = output.run
        self.place = Place(device="cuda:0" if gpus else "cpu", node=ray.get_runtime_context().get_node_id())
        self.steps: Any = None
        self.serial, self.stopped = 0, 0

    def about(self) -> About:
        """Where it runs."""
        return about()

    def start(self, job: Job, serial: int) -> Any:
        """The first event of a job; `serial` is its number among those of this pool."""
        self.serial = serial
        self.steps = self.run(job, self.place, lambda: self.stopped == serial)
        return next(self.steps)

    def answer(self, go_on: bool) -> Any:
        """The event after a verdict."""
        return self.steps.send(go_on)

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def stop(self, serial: int) -> None:
        """Ask a job to stop, resumable: it is no other one's matter."""
        self.stopped = serial

    @ray.method(concurrency_group="life")  # type: ignore[untyped-decorator]
    def life(self) -> None:
        """Never answers: the reference fails when this process dies, whatever it was at."""
        threading.Event().wait()


def about() -> About:
    """Where this process runs."""
    return About(ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid(), oom_kills())


def oom_kills() -> int:
    """How many processes the kernel ended for want of memory: of this container, or of this machine where that isn't counted apart."""
    found = 0
    for path in OOM_COUNTERS[:1] if Path(OOM_COUNTERS[0]).exists() else OOM_COUNTERS[1:]:
        with contextlib.suppress(OSError, ValueError, IndexError):
            found += sum(int(line.split()[1]) for line in Path(path).read_text().splitlines() if line.startswith("oom_kill "))
    return found


def on_node(node: str, function: Any, *args: Any) -> Any:
    """Run a function as a task on that node, beside whatever runs there; its reference, which fails if the node is gone."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(*args)


def end_process(pid: int) -> bool:
    """SIGKILL a worker of Ray's on this machine; whether it was still there."""
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z" or b"ray::" not in _title(pid):
            return False
        os.kill(pid, signal.SIGKILL)
    except (OSError, IndexError):
        return False
    return True


def _title(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
