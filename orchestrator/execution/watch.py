"""Whether there is still something to run on: Ray's head, nodes that are being taken away, and progress at all."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping

import ray
from ray.autoscaler.v2.sdk import get_cluster_status

from orchestrator.errors import Lost, Note

HEAD_SILENT_S = 10.0  # Ray itself says nothing for 60 s after its head's death, and then ends the process
HEAD_EVERY_S = 3.0  # Ray logs each look
LOOK_EVERY_S = 1.0
STALL_S = 30.0
STARTING = 10  # times as long is not worth a word while Ray starts a worker: on a busy machine that takes a minute


class Head:
    """Whether Ray's head and this machine's raylet answer, asked at their sockets: a call of Ray's would hang with them."""

    def __init__(self, gcs: str, raylet: str) -> None:
        self.gcs, self.raylet = gcs, raylet
        self.answered_at = self.looked_at = time.monotonic()

    @classmethod
    def here(cls) -> Head:
        """Those that this process is connected to. A client (ray://) knows neither: its calls raise ConnectionError."""
        with contextlib.suppress(Exception):
            context = ray.get_runtime_context()
            own = context.get_node_id()
            return cls(context.gcs_address, next(node["RayletSocketName"] for node in ray.nodes() if node["NodeID"] == own))
        return cls("", "")

    def check(self, at_once: bool = False) -> bool:
        """Whether the head answered at the last look, now and then or `at_once`. Raises Lost if it is gone, or this machine's node."""
        now = time.monotonic()
        if now - self.looked_at < HEAD_EVERY_S and not at_once:
            return self.answered_at == self.looked_at
        self.looked_at = now
        if self.raylet and refused(self.raylet):
            raise Lost("Ray's node on this machine died")
        host, _, port = self.gcs.rpartition(":")
        if not self.gcs or not refused((host.strip("[]"), int(port))):
            self.answered_at = now
        elif now - self.answered_at > HEAD_SILENT_S:
            raise Lost(f"Ray's head at {self.gcs} died: it hasn't answered for {now - self.answered_at:.0f} s")
        return self.answered_at == now


def refused(address: str | tuple[str, int]) -> bool:
    """Whether nobody answers at a unix socket's path, or at (host, port)."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.settimeout(2)
        try:
            tried.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:  # no answer in time, no way there; or a busy raylet's queue is full
            return family != socket.AF_UNIX
    return False


class Leaving:
    """The nodes that Ray was told will be taken away (ids). Asked in a thread: the call hangs with the head."""

    def __init__(self) -> None:
        self.nodes: frozenset[str] = frozenset()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="leaving-nodes", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._closed.wait(LOOK_EVERY_S):
            try:
                self.nodes = frozenset(ray._private.state.state.get_draining_nodes())
            except Exception:  # a client's connection (ray://) can't ask; the head died: `Head` says so
                continue

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join(2)


class Stall:
    """Says from time to time why nothing goes on, instead of waiting for ever in silence."""

    def __init__(self, every_s: float = STALL_S) -> None:
        self.every_s = every_s
        self.since = self.said_at = time.monotonic()

    def progress(self) -> None:
        """Something goes on."""
        self.since = self.said_at = time.monotonic()

    def check(self, workers: int, each: Mapping[str, float], waits: Callable[[], bool], least: int = 1) -> None:
        """Warns (Note) if nothing went on for long. `workers` wait, `each` for these resources if `waits`, or for Ray to start them.

        `least`: how many of them must have room for any to go on.
        """
        now = time.monotonic()
        if now - self.said_at < self.every_s:
            return
        says = shortage(workers, each, waits, least)
        if says is not None:  # asked again: a place is taken a moment before it is known whose it is
            time.sleep(LOOK_EVERY_S)
            says = shortage(workers, each, waits, least)
        self.said_at = now
        if says is None and now - self.since >= STARTING * self.every_s:
            says = "Ray has room for the workers, and still starts them"
        if says is not None:
            warnings.warn(f"no progress for {now - self.since:.0f} s: {says}", Note, stacklevel=2)


def shortage(workers: int, each: Mapping[str, float], waits: Callable[[], bool], least: int = 1) -> str | None:
    """Which resource is short, and who holds it, as far as Ray says; None: there is room, or the workers have it and still start."""
    need = " and ".join(f"{amount:g} {name}" for name, amount in each.items() if amount)
    wait = f"{workers} worker{'s wait' if workers > 1 else ' waits'} for {need}" + (" each" if workers > 1 else "")
    with contextlib.suppress(Exception):  # a client's connection (ray://) may not be able to say
        if not waits():
            return None
    try:
        total, free = _per_node("total_resources_per_node"), _per_node("available_resources_per_node")
        holders = _holders()
    except Exception:  # a client's connection (ray://)
        return wait
    if _room(free, each) >= least:
        return None
    if not _room(total, each):
        largest = "; ".join(" and ".join(f"{node.get(name, 0):g} {name}" for name in each) for node in total.values())
        return f"{wait}; no node is large enough: {largest or 'there is none'}"
    short = [name for name, amount in each.items() if _room(free, {name: amount}) < least]
    held = ", ".join(
        f"{sum(n.get(name, 0) for n in free.values()):g} of {sum(n.get(name, 0) for n in total.values()):g} {name} free"
        for name in short or each
    )
    return f"{wait}; {held}; held by {holders or 'tasks, which Ray does not name'}"


def _room(nodes: Mapping[str, Mapping[str, float]], each: Mapping[str, float]) -> int:
    """How many workers find their place on nodes."""
    return sum(int(min((node.get(name, 0) + 1e-9) // amount for name, amount in each.items() if amount)) for node in nodes.values())


def demanded(each: Mapping[str, float]) -> bool:
    """Whether an actor waits in Ray for such resources: one that has its place is pending too, until its process is up."""
    demands = get_cluster_status(ray.get_runtime_context().gcs_address).resource_demands.ray_task_actor_demand
    asked = [shape for demand in demands for shape in demand.bundles_by_count]
    return any(all(shape.bundle.get(name) == amount for name, amount in each.items()) for shape in asked)


def placed_groups() -> int:
    """How many placement groups of this command have their place."""
    own = ray.get_runtime_context().get_job_id()  # a group's id ends with it
    groups = ray.util.placement_group_table().values()
    return sum(group["state"] == "CREATED" and group["placement_group_id"].endswith(own) for group in groups)


def _per_node(what: str) -> dict[str, dict[str, float]]:
    return dict(getattr(ray._private.state, what)())


def _holders() -> str:
    """Who has actors that are alive, by job."""
    state = ray._private.state.state
    jobs = {job["JobID"]: job for job in state.job_table()}
    own = ray.get_runtime_context().get_job_id()
    alive = Counter(a["JobID"] for a in state.actor_table(None, actor_state_name="ALIVE").values())
    said = []
    for job, actors in alive.items():
        about = jobs.get(job, {})
        who = "this command" if job == own else f"'{about.get('Entrypoint') or 'a driver'}' (job {job}, pid {about.get('DriverPid')})"
        said.append(f"{who} with {actors} actor{'s' if actors > 1 else ''}")
    return ", ".join(said)
