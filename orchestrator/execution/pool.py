"""One-worker trials: warm, persistent Ray actors. A free actor takes the trial that waits longest, whichever slot that is in.

A trial whose actor dies waits first of all, to go on from its checkpoint in whichever actor is free next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray

from orchestrator.errors import Failed, Lost
from orchestrator.events import EpochEnded, RunEnded
from orchestrator.execution.deaths import MAX_RESTARTS, Cause, Past, brief, judge, with_output
from orchestrator.execution.executor import SlotEvent
from orchestrator.execution.placement import Seat, Wants, assign
from orchestrator.execution.watch import LOOK_EVERY_S, STALL_S, Head, Leaving, Stall, demanded
from orchestrator.execution.worker import PROBE_S, About, Worker, on_node, oom_kills
from orchestrator.training.job import Job

SETTLED_S = 0.5  # after a death: what died with it is gone by then too


@dataclass
class Actor:
    """An actor: `about` once it is up, `work` while it has one.

    `died_at` when it is no more, and none has taken its place; `probe` if it isn't known what it died of.
    """

    handle: Any
    about: About | None = None
    work: Work | None = None
    died_at: float | None = None
    probe: Probe | None = None


@dataclass
class Work:
    """A slot's job. `serial`: its place in the order of waiting; `moving`: it was asked to stop, to go on elsewhere."""

    slot: int
    job: Job
    serial: int
    past: Past = field(default_factory=Past)
    node: str | None = None
    waits: bool = True
    asks: bool = False  # for a verdict
    moving: bool = False


@dataclass(frozen=True)
class Probe:
    """A look at the node on which a job's actor died, as Ray `says`. `kills`: for want of memory, as known of the node when it began."""

    work: Work
    node: str
    says: str
    kills: int
    since: float


class Pool:
    """`slots` actors, each with its CPUs and GPUs, and as many trials at once."""

    def __init__(self, slots: int, cpus: float, gpus: float, accelerator: str | None = None, stall_s: float = STALL_S) -> None:
        self.slots, self.gpus, self.each = slots, gpus, {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        grouped = ray.remote(concurrency_groups={"control": 1, "life": 1})(Worker)
        self.worker = grouped.options(num_cpus=cpus, num_gpus=gpus, accelerator_type=accelerator, scheduling_strategy="SPREAD")
        self.works: dict[int, Work] = {}
        self.oom_kills: dict[str, int] = {}  # of each node, as last seen
        self.head, self.leaving, self.stall = Head.here(), Leaving(), Stall(stall_s)
        self._pending: dict[Any, tuple[str, Any]] = {}
        self._serial, self._failed_starts = 0, 0
        self._lost = self._stopped = False
        self.actors = [self._new() for _ in range(slots)]

    def _new(self) -> Actor:
        actor = Actor(self.worker.remote(self.gpus))
        self._pending[actor.handle.about.remote()] = ("up", actor)
        self._pending[actor.handle.life.remote()] = ("life", actor)
        return actor

    def start(self, slot: int, job: Job) -> None:
        """Give a free slot a job; an actor takes it at once, or when there is one."""
        self._serial += 1
        self.works[slot] = Work(slot, job, self._serial)
        self._assign()

    def wait(self, within_s: float | None = None) -> list[SlotEvent]:
        """Block until a slot has an event; every event that is there, none once the time is over."""
        until = math.inf if within_s is None else time.monotonic() + within_s
        while True:
            with self._listening():
                done = self._ready(until - time.monotonic())
                if done:
                    done, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
                events = [event for ref in done for event in self._heard(ref)]
                self._look_around()
            self._assign()
            if events or time.monotonic() >= until:
                return events

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Remember that Ray is gone, if it is. Raises Lost."""
        try:
            yield
        except Lost:
            self._lost = True
            raise
        except ConnectionError as error:  # of a client (ray://)
            self._lost = True
            raise Lost(f"the connection to Ray broke: {error}") from None

    def _ready(self, within_s: float) -> list[Any]:
        """The first reference that is ready, if any is within that time and a second."""
        if not self._pending:
            time.sleep(SETTLED_S)
            return []
        done, _ = ray.wait(list(self._pending), num_returns=1, timeout=max(0.0, min(within_s, LOOK_EVERY_S)))
        return list(done)

    def verdict(self, slot: int, go_on: bool) -> None:
        """Answer a slot's EpochEnded. If its actor died meanwhile, the epoch will be said again, if it isn't at its end."""
        work = self.works.get(slot)
        if work is None or not work.asks:
            return
        work.asks = False
        actor = self._of(work)
        if actor is not None:
            self._pending[actor.handle.answer.remote(go_on)] = ("event", actor)

    def stop(self, grace_s: float) -> list[SlotEvent]:
        """Ask the runs under way to write a checkpoint and end; what they say within so many seconds."""
        deadline, said = time.monotonic() + grace_s, list[SlotEvent]()
        left: dict[Any, Actor] = {}
        with self._listening():
            for actor in (a for a in self.actors if a.work is not None):
                if actor.work is not None and actor.work.asks:
                    left[actor.handle.answer.remote(False)] = actor
                elif actor.work is not None:
                    actor.handle.stop.remote(actor.work.serial)
            left |= {ref: of for ref, (kind, of) in self._pending.items() if kind == "event"}
            while left and (rest := deadline - time.monotonic()) > 0:
                self.head.check()
                done, _ = ray.wait(list(left), num_returns=1, timeout=min(rest, LOOK_EVERY_S))
                for ref in done:
                    said += self._last_words(ref, left)
        self._stopped = True
        return said

    def _last_words(self, ref: Any, left: dict[Any, Actor]) -> list[SlotEvent]:
        """What an actor that is to stop says; after an epoch there is more to come."""
        actor = left.pop(ref)
        try:
            event = ray.get(ref)
        except ray.exceptions.RayError:
            return []
        if isinstance(event, EpochEnded):
            left[actor.handle.answer.remote(False)] = actor
        return [(actor.work.slot, event)] if actor.work is not None else []

    def close(self, grace_s: float = 0) -> None:
        """Stop the runs under way, if there is a grace, and kill the actors."""
        try:
            if grace_s > 0 and not (self._lost or self._stopped):
                with contextlib.suppress(Lost):
                    self.stop(grace_s)
        finally:
            self._pending.clear()
            self.leaving.close()
            for actor in self.actors:
                with contextlib.suppress(Exception):  # whatever it is, the others are to be killed too
                    ray.kill(actor.handle)

    def _assign(self) -> None:
        """Give every free actor what it is to do."""
        up = {number: actor for number, actor in enumerate(self.actors) if actor.about is not None}
        seats = [
            Seat(number, actor.about.node, actor.work.slot if actor.work else None, actor.work is not None and actor.work.past.alone)
            for number, actor in up.items()
            if actor.about is not None
        ]
        waiting = sorted((w for w in self.works.values() if w.waits), key=lambda work: work.serial)
        wants = [Wants(work.slot, work.past.alone, work.node) for work in waiting]
        for slot, number in assign(wants, seats, self.leaving.nodes):
            actor, work = up[number], self.works[slot]
            actor.work, work.waits = work, False
            self._pending[actor.handle.start.remote(work.job, work.serial)] = ("event", actor)

    def _heard(self, ref: Any) -> list[SlotEvent]:
        """What comes of a reference that is ready."""
        kind, of = self._pending.pop(ref, ("", None))
        if kind == "probe":
            return self._probed(of, ref)
        try:
            said: Any = ray.get(ref) if kind else None
        except ray.exceptions.RayTaskError as error:
            if kind == "event":
                return self._event(of, _failed(of.work.job, brief(error)))
            return self._died(of, error)
        except ray.exceptions.RayError as error:
            return self._died(of, error)
        if kind == "up":
            of.about, self._failed_starts = said, 0
            if said.node not in {a.about.node for a in self.actors if a.work is not None and a.about is not None}:  # else it may be theirs
                self.oom_kills[said.node] = max(said.oom_kills, self.oom_kills.get(said.node, 0))  # another's, or was judged
        return self._event(of, said) if kind == "event" else []

    def _event(self, actor: Actor, event: EpochEnded | RunEnded) -> list[SlotEvent]:
        work = actor.work
        assert work is not None
        self.stall.progress()
        if isinstance(event, EpochEnded):
            work.asks, work.past = True, work.past.after(event.epoch)
            return [(work.slot, event)]
        actor.work = None
        if event.state == "interrupted" and event.error is None and work.moving:
            self._again(work)
            return []
        del self.works[work.slot]
        return [(work.slot, event)]

    def _died(self, actor: Actor, error: Exception) -> list[SlotEvent]:
        """Another actor will take its place; its trial goes on or has failed, when it is known of what it died."""
        about, work = actor.about, actor.work
        self._forget(actor)
        if about is None:
            self._failed_starts += 1
            if self._failed_starts > MAX_RESTARTS + self.slots:  # a node that dies takes several with it
                raise Failed(f"the workers can't start: {brief(error)}")
            return []
        if work is None:
            return []
        node = about.node
        work.asks, work.node = False, node
        if node in self.leaving.nodes or getattr(error, "preempted", False):
            return self._judged(work, "moved", "")
        if isinstance(error, ray.exceptions.OutOfMemoryError) or "low on memory" in str(error):
            return self._judged(work, "memory", "")
        actor.probe = Probe(work, node, brief(error), self.oom_kills.get(node, 0), time.monotonic())
        return []

    def _probed(self, probe: Probe, ref: Any) -> list[SlotEvent]:
        """What killed an actor that just vanished: the kernel, for want of memory, if it has killed there since; maybe several at once."""
        with contextlib.suppress(ray.exceptions.RayError):  # the node is gone with it
            self.oom_kills[probe.node] = ray.get(ref)
        cause: Cause = "memory" if self.oom_kills.get(probe.node, 0) > probe.kills else "died"
        return self._judged(probe.work, cause, probe.says)

    def _judged(self, work: Work, cause: Cause, says: str) -> list[SlotEvent]:
        sentence = judge(work.past, cause, says)
        work.past = sentence.past
        if sentence.error is None:
            self._again(work)
            return []
        del self.works[work.slot]
        return [(work.slot, _failed(work.job, with_output(sentence.error, work.job.logs)))]

    def _again(self, work: Work) -> None:
        """It waits, before whatever came later."""
        work.job = dataclasses.replace(work.job, resume=True)
        work.waits, work.asks, work.moving = True, False, False

    def _settle(self, actor: Actor) -> None:
        """Of an actor that died: a look at its node, if it isn't known what of, and another one in its place."""
        if actor.probe is not None:
            self._pending[on_node(actor.probe.node, oom_kills)] = ("probe", actor.probe)
        self._replace(actor)

    def _replace(self, actor: Actor) -> None:
        """Another actor in an actor's place."""
        self._forget(actor)
        with contextlib.suppress(Exception):  # it is dead, as a rule
            ray.kill(actor.handle)
        self.actors[self.actors.index(actor)] = self._new()

    def _forget(self, actor: Actor) -> None:
        """Of an actor that is gone; whatever it still says is not heard."""
        for ref in [r for r, (kind, of) in self._pending.items() if of is actor]:
            del self._pending[ref]
        actor.about, actor.work, actor.died_at = None, None, time.monotonic()

    def _look_around(self) -> None:
        """The head, actors that died, nodes that leave, looks at nodes that take too long, and whether anything goes on."""
        gone = [a for a in self.actors if a.died_at is not None and time.monotonic() - a.died_at > SETTLED_S]
        answers = self.head.check(at_once=bool(gone))  # it may have died with them: what asks it for an actor, or a task, would hang
        for actor in gone if answers else ():
            self._settle(actor)
        for actor in [a for a in self.actors if a.about is not None and a.about.node in self.leaving.nodes]:
            if actor.work is None and answers:
                self._replace(actor)
            elif actor.work is not None and not actor.work.moving:
                actor.work.moving = True
                actor.handle.stop.remote(actor.work.serial)
        for ref, (kind, of) in list(self._pending.items()):
            if kind == "probe" and time.monotonic() - of.since > PROBE_S:
                ray.cancel(ref, force=True)
        if any(w.waits for w in self.works.values()) and all(a.work is None for a in self.actors):
            self.stall.check(sum(a.about is None for a in self.actors), self.each, lambda: demanded(self.each))
        else:
            self.stall.progress()

    def _of(self, work: Work) -> Actor | None:
        return next((actor for actor in self.actors if actor.work is work), None)


def _failed(job: Job, says: str) -> RunEnded:
    return RunEnded(job.trial, "failed", int(time.time() * 1000), error=says)
