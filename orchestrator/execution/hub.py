"""The actor between the driver and its gangs: jobs and verdicts to them, events from them, and who of them is where.

Nothing here waits without bound on a rank's behalf: rank 0 asks again and again, since the other ranks wait for its answer in a
collective, which has a timeout.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from orchestrator.events import EpochEnded, RunEnded
from orchestrator.execution.deaths import MAX_RESTARTS, Cause, Past, judge
from orchestrator.execution.executor import SlotEvent
from orchestrator.execution.messages import Answer, Heard, Hung, Rank, State
from orchestrator.training.trial import Job

PAUSE_S = 60.0  # for a step, or an evaluation, and a checkpoint


@dataclass
class _Gang:
    jobs: deque[Job | None] = field(default_factory=deque)
    job: Job | None = None  # what it is at
    past: Past = field(default_factory=Past)
    up: bool = False
    moving: bool = False  # it was asked to stop, to go on elsewhere
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)  # after `stop`: its checkpoint is written
    asked: asyncio.Future[bool] | None = None  # the verdict on an epoch
    ranks: dict[int, Rank] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)  # the ranks whose collective broke
    dealt: asyncio.Event = field(default_factory=asyncio.Event)  # with the ranks that hang
    failure: tuple[Cause, str] | None = None  # since its last start
    failures: int = 0  # in a row, before its first question
    broken: str | None = None
    control: Any = None

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset(rank.node for rank in self.ranks.values())


class Hub:
    """`gangs` gangs; a rank that doesn't answer within `settle_s` after another one's collective timed out hangs."""

    def __init__(self, gangs: int, settle_s: float) -> None:
        self.gangs = [_Gang() for _ in range(gangs)]
        self.settle_s = settle_s
        self.events: list[SlotEvent] = []
        self.hung: list[Hung] = []
        self.news = asyncio.Event()  # for the driver
        self.change = asyncio.Event()  # for gangs that wait for a job; another one each time

    # of the driver

    async def submit(self, gang: int, job: Job | None) -> None:
        """A job for a gang; None ends it."""
        self.gangs[gang].jobs.append(job)
        self._changed()

    async def verdict(self, gang: int, go_on: bool) -> None:
        """The driver's answer; to a gang that died meanwhile it is no answer any more."""
        asked = self.gangs[gang].asked
        if asked is not None and not asked.done():
            asked.set_result(go_on)

    async def stop(self, gang: int, moving: bool) -> None:
        """The gang is to write a checkpoint and end; `moving`: to go on with its job elsewhere."""
        self.gangs[gang].moving = moving
        self.gangs[gang].stop.set()
        self._changed()

    async def settled(self, gang: int) -> None:
        """The ranks that hang have been ended."""
        self.gangs[gang].dealt.set()

    async def wait(self, timeout_s: float) -> Heard:
        """Everything that is there, after at most so many seconds."""
        if not self.events and not self.hung:
            self.news.clear()
            await _within(self.news.wait(), timeout_s)
        heard = Heard(self.events, self.hung, [State(g.up, g.nodes, g.broken, g.control) for g in self.gangs])
        self.events, self.hung = [], []
        return heard

    # of a gang's ranks

    async def register(self, gang: int, rank: Rank) -> None:
        """A rank has started."""
        found = self.gangs[gang]
        found.ranks = {r.rank: r for r in found.ranks.values() if r.size == rank.size} | {rank.rank: rank}
        found.lost.discard(rank.rank)
        if rank.rank == 0:
            found.stop.set()  # who waited for it is gone
            found.stop, found.left, found.dealt, found.moving = asyncio.Event(), asyncio.Event(), asyncio.Event(), False

    async def stop_asked(self, gang: int) -> bool:
        """Answers when the gang is to stop."""
        return await self.gangs[gang].stop.wait()

    async def next(self, gang: int, wait_s: float) -> Job | Answer | None:
        """The gang's next job, or the one it was at if it didn't end it; asked by rank 0."""
        found = self.gangs[gang]
        found.up, found.failures = True, 0
        if found.stop.is_set():
            return self._leave(found)
        self._start_again(gang, found)
        deadline = time.monotonic() + wait_s
        while self._held(found) or (found.job is None and not found.jobs):
            if found.stop.is_set():
                return self._leave(found)
            rest = deadline - time.monotonic()
            if rest <= 0:
                return Answer.WAIT
            await _within(self.change.wait(), rest)
        if found.job is None:
            found.past, found.job = Past(), found.jobs.popleft()
        return found.job

    def _leave(self, found: _Gang) -> Answer:
        """To ranks that have nothing more to write."""
        found.left.set()
        return Answer.LEAVE

    def _start_again(self, gang: int, found: _Gang) -> None:
        """The unfinished job of ranks that died, were moved, or became more or fewer."""
        (cause, says), found.failure = found.failure or ("moved", ""), None
        if found.job is None:
            return
        found.asked = None
        sentence = judge(found.past, cause, says)
        found.past, found.job = sentence.past, dataclasses.replace(found.job, resume=True)
        if sentence.error is not None:
            self._ended(gang, RunEnded(found.job.trial, "failed", int(time.time() * 1000), error=sentence.error))

    def _held(self, found: _Gang) -> bool:
        """Whether it must wait for a gang on its nodes: one of the two wants to be alone."""
        others = [g for g in self.gangs if g is not found and g.job is not None and g.nodes & found.nodes]
        return bool(found.job is not None and found.past.alone and others) or any(g.past.alone for g in others)

    async def report(self, gang: int, event: EpochEnded | RunEnded, wait_s: float) -> bool | Answer | None:
        """An event of a gang, and the verdict on an epoch. A run's end counts once, whichever rank says it; LEAVE: its ranks end too."""
        found = self.gangs[gang]
        if isinstance(event, EpochEnded):
            found.asked = asyncio.get_running_loop().create_future()
            self._tell(gang, event)
            return await self.answer(gang, wait_s)
        if found.job is None or found.job.trial != event.trial:
            return None
        if event.state == "interrupted" and event.error is None and found.moving:
            return self._leave(found)
        self._ended(gang, event)
        return self._leave(found) if found.stop.is_set() else None

    async def answer(self, gang: int, wait_s: float) -> bool | Answer:
        """The verdict on the epoch that was reported."""
        found = self.gangs[gang]
        asked = found.asked
        if asked is None or found.stop.is_set():
            return Answer.LEAVE
        stopped: asyncio.Future[bool] = asyncio.ensure_future(found.stop.wait())
        await asyncio.wait([asked, stopped], timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        return asked.result() if asked.done() else Answer.WAIT

    async def lost(self, gang: int, rank: Rank, says: str) -> None:
        """A rank's collective broke. After a timeout it waits here until it is known who hangs, so that no rank ends before."""
        found = self.gangs[gang]
        found.lost.add(rank.rank)
        if "timed out" not in says.lower() and "timeout" not in says.lower():
            return
        if len(found.lost) == 1:
            await _within(self._all_lost(found), self.settle_s)
            missing = tuple(r for number, r in sorted(found.ranks.items()) if number not in found.lost)
            self.hung.append(Hung(gang, found.job.trial if found.job else None, missing))
            self.news.set()
        await _within(found.dealt.wait(), 60)

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
        await self.stop(gang, True)
        if found.job is not None:
            await _within(found.left.wait(), PAUSE_S)
        found.up = False

    async def failed(self, gang: int, cause: Cause, says: str, counts: bool) -> None:
        """The gang's ranks ended, or didn't start; `counts`: for another reason than want of room."""
        found = self.gangs[gang]
        found.up, found.failure = False, ("moved" if found.moving else cause, says)
        found.failures += counts
        if found.failures > MAX_RESTARTS:
            found.broken = says
            self.news.set()

    def _ended(self, gang: int, event: RunEnded) -> None:
        self.gangs[gang].job, self.gangs[gang].past = None, Past()
        self._tell(gang, event)
        self._changed()

    def _changed(self) -> None:
        self.change.set()
        self.change = asyncio.Event()

    def _tell(self, gang: int, event: EpochEnded | RunEnded) -> None:
        self.events.append((gang, event))
        self.news.set()


async def _within(what: Any, seconds: float) -> None:
    try:
        await asyncio.wait_for(what, seconds)
    except TimeoutError:
        return
