"""The actor between the driver and its gangs: jobs and verdicts to them, events from them, and who of them is where.

Nothing here waits without bound on a rank's behalf: rank 0 asks again and again, since the other ranks wait for its answer in a
collective, which has a timeout.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.events import EpochEnded, RunEnded
from orchestrator.execution.deaths import MAX_RESTARTS, Cause, Past, judge, with_output
from orchestrator.execution.executor import SlotEvent
from orchestrator.execution.messages import Answer, Heard, Hung, Rank, State
from orchestrator.training.job import Job

PAUSE_S = 60.0  # for a step, or an evaluation, and a checkpoint
WORD_S = 2.0  # for another rank's word that a collective timed out: it closes its connections, and the others see no more than that
ELSEWHERE_S = 60.0  # after which ranks whose gang broke up write nothing more: another gang may take their job


@dataclass
class _Work:
    """A slot's job. `home`: the gang that was at it, to which it is left until `elsewhere_at`."""

    slot: int
    job: Job
    past: Past = field(default_factory=Past)
    home: int | None = None
    elsewhere_at: float = 0.0
    asked: asyncio.Future[bool] | None = None  # the verdict on an epoch


@dataclass
class _Gang:
    work: _Work | None = None  # what it is at
    up: bool = False
    moving: bool = False  # it was asked to stop, to go on elsewhere, or with more ranks, or fewer
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)  # after `stop`: its checkpoint is written
    ranks: dict[int, Rank] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)  # the ranks whose collective broke
    timed_out: asyncio.Event = field(default_factory=asyncio.Event)  # a rank's collective
    dealt: asyncio.Event = field(default_factory=asyncio.Event)  # with the ranks that hang
    failures: int = 0  # in a row, before its first question
    broken: str | None = None
    control: Any = None

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset(rank.node for rank in self.ranks.values())

    def is_beside(self, other: _Gang) -> bool:
        return other is not self and bool(self.nodes & other.nodes)


class Hub:
    """`gangs` gangs; a rank that doesn't answer within `settle_s` after another one's collective timed out hangs.

    A free gang takes the job that waits longest, whichever slot that is in; one whose ranks died waits first of all.
    """

    def __init__(self, gangs: int, settle_s: float) -> None:
        self.gangs = [_Gang() for _ in range(gangs)]
        self.settle_s = settle_s
        self.waiting: list[_Work] = []
        self.oom_kills: dict[str, int] = {}  # of each node, as last seen
        self.closing = False
        self.events: list[SlotEvent] = []
        self.hung: list[Hung] = []
        self.news = asyncio.Event()  # for the driver
        self.change = asyncio.Event()  # for gangs that wait for a job; another one each time

    # of the driver

    async def submit(self, slot: int, job: Job) -> None:
        """A job of a slot."""
        self.waiting.append(_Work(slot, job))
        self._changed()

    async def verdict(self, slot: int, go_on: bool) -> None:
        """The driver's answer; to a gang that died meanwhile it is no answer any more."""
        for gang in self.gangs:
            if gang.work is not None and gang.work.slot == slot and gang.work.asked is not None and not gang.work.asked.done():
                gang.work.asked.set_result(go_on)

    async def move(self, gang: int) -> None:
        """The gang is to write a checkpoint and end, to go on elsewhere."""
        self.gangs[gang].moving = True
        self.gangs[gang].stop.set()
        self._changed()

    async def close(self) -> None:
        """Every gang is to write a checkpoint and end, those that start now too."""
        self.closing = True
        for gang in self.gangs:
            gang.moving = False
            gang.stop.set()
        self._changed()

    async def settled(self, gang: int) -> None:
        """The ranks that hang have been ended."""
        self.gangs[gang].dealt.set()

    async def wait(self, timeout_s: float) -> Heard:
        """Everything that is there, after at most so many seconds."""
        if not self.events and not self.hung:
            self.news.clear()
            await _within(self.news.wait(), timeout_s)
        states = [State(g.up, g.nodes, g.work.slot if g.work else None, g.broken, g.control) for g in self.gangs]
        heard = Heard(self.events, self.hung, states)
        self.events, self.hung = [], []
        return heard

    # of a gang's ranks

    async def register(self, gang: int, rank: Rank) -> None:
        """A rank has started."""
        found = self.gangs[gang]
        found.ranks = {r.rank: r for r in found.ranks.values() if r.size == rank.size} | {rank.rank: rank}
        found.lost &= found.ranks.keys() - {rank.rank}
        self.oom_kills.setdefault(rank.node, rank.oom_kills)
        if rank.rank == 0:
            found.left, found.timed_out, found.dealt, found.moving = asyncio.Event(), asyncio.Event(), asyncio.Event(), False
            self._afresh(found)

    def _afresh(self, found: _Gang) -> None:
        """Who asked before is gone: a question for a job that waits here still must not be given one."""
        found.stop.set()
        found.stop = asyncio.Event()
        if self.closing:
            found.stop.set()

    async def stop_asked(self, gang: int) -> bool:
        """Answers when the gang is to stop."""
        return await self.gangs[gang].stop.wait()

    async def next(self, gang: int, wait_s: float) -> Job | Answer:
        """The gang's next job; asked by rank 0."""
        found = self.gangs[gang]
        found.up, found.failures = True, 0
        self._again(gang, "moved", "")  # ranks that were replaced without a word
        stop, deadline = found.stop, time.monotonic() + wait_s
        while not stop.is_set():
            found.work = self._taken(gang)
            if found.work is not None:
                return found.work.job
            rest = deadline - time.monotonic()
            if rest <= 0:
                return Answer.WAIT
            await _within(self.change.wait(), rest)
        return self._leave(found) if found.stop is stop else self._stopped

    def _taken(self, gang: int) -> _Work | None:
        """The job that a gang begins now, or goes on with."""
        found, now = self.gangs[gang], time.monotonic()
        beside = [g for g in self.gangs if g.is_beside(found)]
        at_work = [g.work for g in beside if g.work is not None]
        reserved = any(w.past.alone and w.home is not None and self.gangs[w.home].up and self.gangs[w.home] in beside for w in self.waiting)
        for work in self.waiting:
            if work.home not in (None, gang) and now < work.elsewhere_at:
                continue
            if at_work if work.past.alone else reserved or any(other.past.alone for other in at_work):
                return None
            self.waiting.remove(work)
            return work
        return None

    def _leave(self, found: _Gang) -> Answer:
        """To ranks that have nothing more to write."""
        found.left.set()
        return self._stopped

    @property
    def _stopped(self) -> Answer:
        return Answer.END if self.closing else Answer.LEAVE

    def _again(self, gang: int, cause: Cause, says: str) -> None:
        """The unfinished job of ranks that died, were moved, or became more or fewer: it waits before the others, or has failed."""
        work = self.gangs[gang].work
        if work is None:
            return
        sentence = judge(work.past, cause, says)
        if sentence.error is not None:
            error = with_output(sentence.error, work.job.logs, len(self.gangs[gang].ranks))
            self._ended(gang, RunEnded(work.job.trial, "failed", int(time.time() * 1000), error=error))
            return
        elsewhere_at = time.monotonic() + ELSEWHERE_S
        self.waiting.insert(0, _Work(work.slot, dataclasses.replace(work.job, resume=True), sentence.past, gang, elsewhere_at))
        self.gangs[gang].work = None
        self._changed()

    async def report(self, gang: int, event: EpochEnded | RunEnded, wait_s: float) -> bool | Answer | None:
        """An event of a gang, and the verdict on an epoch. A run's end counts once, whichever rank says it."""
        found = self.gangs[gang]
        if found.work is None or found.work.job.trial != event.trial:
            return self._stopped if isinstance(event, EpochEnded) else None
        if isinstance(event, EpochEnded):
            found.work.past = found.work.past.after(event.epoch)
            found.work.asked = asyncio.get_running_loop().create_future()
            self._tell(found.work.slot, event)
            return await self.answer(gang, wait_s)
        if event.state == "interrupted" and event.error is None and found.moving:
            return self._leave(found)
        self._ended(gang, event)
        return self._leave(found) if found.stop.is_set() else None

    async def answer(self, gang: int, wait_s: float) -> bool | Answer:
        """The verdict on the epoch that was reported."""
        found = self.gangs[gang]
        asked = found.work.asked if found.work is not None else None
        if asked is None or found.stop.is_set():
            return self._stopped
        stopped: asyncio.Future[bool] = asyncio.ensure_future(found.stop.wait())
        await asyncio.wait([asked, stopped], timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        return asked.result() if asked.done() else Answer.WAIT

    async def lost(self, gang: int, rank: Rank, says: str) -> None:
        """A rank's collective broke. After a timeout each waits here until it is known who hangs, so that no rank ends before."""
        found = self.gangs[gang]
        group, dealt = dict(found.ranks), found.dealt
        if group.get(rank.rank) != rank:  # of ranks that were replaced meanwhile
            return
        found.lost.add(rank.rank)
        if not _is_timeout(says):
            await _within(found.timed_out.wait(), WORD_S)
            if not found.timed_out.is_set():
                return
        elif not found.timed_out.is_set():
            found.timed_out.set()
            await _within(self._all_lost(found), self.settle_s)
            if found.ranks != group:
                return
            missing = tuple(r for number, r in sorted(group.items()) if number not in found.lost)
            self.hung.append(Hung(gang, found.work.job.trial if found.work else None, missing))
            self.news.set()
        await _within(dealt.wait(), 60)

    async def _all_lost(self, found: _Gang) -> None:
        while len(found.lost) < len(found.ranks):
            await asyncio.sleep(0.05)

    # of Ray Train's controller

    async def controlled(self, gang: int, control: Any) -> None:
        """The actor that starts and watches the gang's ranks."""
        self.gangs[gang].control = control

    async def pause(self, gang: int) -> None:
        """Answers when a gang that runs has written its checkpoint, so that its ranks can be ended; or after a while."""
        found = self.gangs[gang]
        if not found.up:
            return
        await self.move(gang)
        if found.work is not None:
            await _within(found.left.wait(), PAUSE_S)
        found.up = False
        self._again(gang, "moved", "")

    async def nodes(self, gang: int) -> frozenset[str]:
        """Where its ranks are, or were."""
        return self.gangs[gang].nodes

    async def failed(self, gang: int, cause: Cause, says: str, counts: bool, oom_kills: Mapping[str, int]) -> None:
        """The gang's ranks ended, or didn't start; `counts`: for another reason than want of room.

        `oom_kills`: of its nodes, now, if a rank vanished: the kernel ended it for want of memory, if it has ended one since the last look.
        """
        found = self.gangs[gang]
        found.up = False
        if cause == "died" and any(kills > self.oom_kills.get(node, kills) for node, kills in oom_kills.items()):
            cause = "memory"
        self.oom_kills |= oom_kills
        self._again(gang, "moved" if found.moving else cause, says)
        self._afresh(found)
        found.failures += counts
        if found.failures > MAX_RESTARTS:
            found.broken = says
            self.news.set()

    def _ended(self, gang: int, event: RunEnded) -> None:
        work, self.gangs[gang].work = self.gangs[gang].work, None
        if work is not None:
            self._tell(work.slot, event)
            self._changed()

    def _changed(self) -> None:
        self.change.set()
        self.change = asyncio.Event()

    def _tell(self, slot: int, event: EpochEnded | RunEnded) -> None:
        self.events.append((slot, event))
        self.news.set()


def _is_timeout(says: str) -> bool:
    return "timed out" in says.lower() or "timeout" in says.lower()


async def _within(what: Any, seconds: float) -> None:
    try:
        await asyncio.wait_for(what, seconds)
    except TimeoutError:
        return
