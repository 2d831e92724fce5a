"""The hub's decisions, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from orchestrator.events import EpochEnded, RunEnded
from orchestrator.execution.hub import Hub
from orchestrator.execution.messages import Answer, Rank
from orchestrator.training.job import Job


def job(trial: int) -> Job:
    return Job(trial, None, "", "", "", "fp32", 1, 3)  # type: ignore[arg-type]  # the hub doesn't look into it


def rank(number: int, node: str = "n", size: int = 2, oom_kills: int = 0) -> Rank:
    return Rank(number, size, node, "host", 100 + number, oom_kills)


Case = Callable[[], Coroutine[Any, Any, None]]


def run(case: Case) -> None:
    asyncio.run(case())


async def told(hub: Hub) -> list[Any]:
    return [event for _, event in (await hub.wait(0)).events]


def test_ranks_that_died_get_their_job_again_three_times_and_then_it_has_failed_and_the_next_one_comes() -> None:
    async def case() -> None:
        hub = Hub(1, 1)
        await hub.submit(0, job(1))
        await hub.submit(0, job(2))
        resumed = []
        for _ in range(4):
            given = await hub.next(0, 0)
            assert isinstance(given, Job)
            resumed.append((given.trial, given.resume))
            await hub.failed(0, "died", "SIGKILL", True, {})
        assert resumed == [(1, False), (1, True), (1, True), (1, True)]
        given = await hub.next(0, 0)
        assert isinstance(given, Job)
        assert (given.trial, given.resume) == (2, False)
        [event] = await told(hub)
        assert (event.trial, event.state, event.error) == (1, "failed", "its worker died 4 times: SIGKILL")

    run(case)


def test_ranks_that_never_ask_for_a_job_are_broken_after_four_starts_but_not_for_want_of_room() -> None:
    async def case() -> None:
        hub = Hub(1, 1)
        for _ in range(9):
            await hub.failed(0, "died", "no room within 60 s", False, {})
        assert (await hub.wait(0)).gangs[0].broken is None
        for _ in range(3):
            await hub.failed(0, "died", "ImportError: no", True, {})
        assert (await hub.wait(0)).gangs[0].broken is None
        await hub.failed(0, "died", "ImportError: no", True, {})
        assert (await hub.wait(0)).gangs[0].broken == "ImportError: no"

    run(case)


def test_a_gang_that_moves_gives_no_end_of_its_run_and_goes_on_with_it_at_no_charge() -> None:
    async def case() -> None:
        hub = Hub(1, 1)
        await hub.submit(0, job(1))
        for _ in range(9):
            await hub.register(0, rank(0))
            assert isinstance(await hub.next(0, 0), Job)
            asked = asyncio.create_task(hub.stop_asked(0))
            await hub.move(0)
            assert await asked
            assert await hub.report(0, RunEnded(1, "interrupted", 0), 0) is Answer.LEAVE
            await hub.failed(0, "died", "Leave", True, {})
        assert await told(hub) == []

    run(case)


@pytest.mark.parametrize("back", [True, False])
def test_a_rank_that_died_while_it_waited_for_a_job_is_given_none(back: bool) -> None:
    async def case() -> None:
        hub = Hub(1, 1)
        await hub.register(0, rank(0))
        waits = asyncio.create_task(hub.next(0, 5))
        await asyncio.sleep(0)
        if back:
            await hub.register(0, rank(0))
            again = asyncio.create_task(hub.next(0, 5))
            await asyncio.sleep(0)
        else:
            await hub.failed(0, "died", "SIGKILL", True, {})
        await hub.submit(0, job(1))
        assert await waits is Answer.LEAVE
        if not back:
            await hub.register(0, rank(0))
            again = asyncio.create_task(hub.next(0, 5))
        given = await again
        assert isinstance(given, Job)
        assert (given.trial, given.resume) == (1, False)

    run(case)


def test_a_gang_that_is_closed_leaves_wherever_it_is_and_its_run_has_ended() -> None:
    async def case() -> None:
        hub = Hub(1, 1)
        await hub.register(0, rank(0))
        await hub.submit(0, job(1))
        await hub.next(0, 0)
        await hub.report(0, EpochEnded(1, 1, {}, 0), 0)
        await hub.close()
        assert await hub.answer(0, 9) is Answer.END
        await hub.report(0, RunEnded(1, "interrupted", 0), 0)
        assert [type(event) for event in await told(hub)] == [EpochEnded, RunEnded]
        assert await hub.next(0, 9) is Answer.END

    run(case)


def test_who_waits_for_a_job_or_a_verdict_is_told_to_ask_again() -> None:
    async def case() -> None:
        hub = Hub(1, 1)
        assert await hub.next(0, 0.01) is Answer.WAIT
        await hub.submit(0, job(1))
        await hub.next(0, 0)
        await hub.report(0, EpochEnded(1, 1, {}, 0), 0)
        assert await hub.answer(0, 0.01) is Answer.WAIT
        await hub.verdict(0, False)
        assert await hub.answer(0, 9) is False

    run(case)


@pytest.mark.parametrize(("says", "hung"), [("Timed out waiting 20000ms for recv operation", [1]), ("Connection closed by peer", None)])
def test_a_rank_that_does_not_say_that_its_collective_timed_out_hangs(says: str, hung: list[int] | None) -> None:
    async def case() -> None:
        hub = Hub(1, 0.05)
        for number in range(3):
            await hub.register(0, rank(number, size=3))
        reports = [asyncio.create_task(hub.lost(0, rank(number, size=3), says)) for number in (0, 2)]
        heard = await hub.wait(1 if hung else 0.2)
        assert [[r.rank for r in each.ranks] for each in heard.hung] == ([hung] if hung else [])
        await hub.settled(0)
        await asyncio.wait_for(asyncio.gather(*reports), 5)

    run(case)


@pytest.mark.parametrize("first", ["Timed out waiting 20000ms for recv operation", "Connection closed by peer"])
def test_a_rank_that_timed_out_closes_its_connections_and_who_sees_that_waits_for_the_name_too(first: str) -> None:
    """As gloo does it: whoever waits for the one that gave up is told that it is gone, within a moment, before or after its word."""
    said = {0: first, 2: ({"Timed out waiting 20000ms for recv operation", "Connection closed by peer"} - {first}).pop()}

    async def case() -> None:
        hub = Hub(1, 0.3)
        for number in range(3):
            await hub.register(0, rank(number, size=3))
        reports = [asyncio.create_task(hub.lost(0, rank(number, size=3), says)) for number, says in said.items()]
        await asyncio.sleep(0.1)
        assert not any(report.done() for report in reports), "a rank that ends now has the others ended, before it is known who hangs"
        heard = await hub.wait(5)
        assert [[r.rank for r in each.ranks] for each in heard.hung] == [[1]]
        await hub.settled(0)
        await asyncio.wait_for(asyncio.gather(*reports), 5)

    run(case)


def test_ranks_that_were_started_anew_meanwhile_are_not_taken_for_those_that_hang() -> None:
    async def case() -> None:
        hub = Hub(1, 0.1)
        for number in range(3):
            await hub.register(0, rank(number, size=3))
        report = asyncio.create_task(hub.lost(0, rank(0, size=3), "Timed out waiting 20000ms for recv operation"))
        await asyncio.sleep(0)
        for number in range(3):
            await hub.register(0, rank(number, "another node", size=3))
        await asyncio.wait_for(report, 5)
        assert (await hub.wait(0)).hung == []
        await asyncio.wait_for(hub.lost(0, rank(1, size=3), "Timed out waiting 20000ms for recv operation"), 5)
        assert (await hub.wait(0.2)).hung == [], "the word of one that was replaced"

    run(case)


def test_a_trial_without_memory_runs_alone_on_its_nodes_and_gangs_elsewhere_go_on() -> None:
    async def case() -> None:
        hub = Hub(3, 1)
        for gang, node in enumerate(("a", "a", "b")):
            await hub.register(gang, rank(0, node, 1))
            await hub.submit(gang, job(gang))
            assert isinstance(await hub.next(gang, 0), Job)
        await hub.failed(0, "memory", "killed", True, {})
        assert await hub.next(0, 0.01) is Answer.WAIT, "gang 1 is still on its node"
        await hub.report(1, RunEnded(1, "finished", 0), 0)
        await hub.submit(1, job(3))
        assert isinstance(await hub.next(0, 0), Job)
        assert await hub.next(1, 0.01) is Answer.WAIT, "gang 0 is alone on its node"
        await hub.report(2, RunEnded(2, "finished", 0), 0)
        await hub.submit(2, job(4))
        assert isinstance(await hub.next(2, 0), Job)
        await hub.report(0, RunEnded(0, "finished", 0), 0)
        assert isinstance(await hub.next(1, 0), Job)

    run(case)


def test_a_rank_that_vanished_was_out_of_memory_if_the_kernel_has_ended_one_on_its_nodes_since_the_last_look() -> None:
    async def case() -> None:
        hub = Hub(1, 1)
        await hub.submit(0, job(1))
        seen = []
        for kills in (4, 5, 5, 6):
            for number, node in enumerate("ab"):
                await hub.register(0, rank(number, node, oom_kills=4))
            assert isinstance(await hub.next(0, 0), Job)
            await hub.failed(0, "died", "SIGKILL", True, {"a": 4, "b": kills})
            seen.append([work.past.alone for work in hub.waiting])
        assert seen == [[False], [True], [True], []]
        [event] = await told(hub)
        assert event.error.startswith("out of memory, and out of memory again")

    run(case)


def test_a_gang_that_gets_more_ranks_or_fewer_writes_its_checkpoint_first_and_goes_on_at_no_charge() -> None:
    async def case() -> None:
        hub = Hub(1, 1)
        await hub.submit(0, job(1))
        for start, size in enumerate((2, 1, 2, 3, 2)):
            await hub.register(0, rank(0, size=size))
            given = await hub.next(0, 0)
            assert isinstance(given, Job)
            assert given.resume == (start > 0)
            paused = asyncio.create_task(hub.pause(0))
            await asyncio.sleep(0.01)
            assert not paused.done(), "its checkpoint isn't written yet"
            assert await hub.report(0, RunEnded(1, "interrupted", 0), 0) is Answer.LEAVE
            await asyncio.wait_for(paused, 1)
            assert not (await hub.wait(0)).gangs[0].up
        assert await told(hub) == []

    run(case)


@pytest.mark.parametrize("at", ["no job", "the end of its job", "its start"])
def test_a_gang_with_nothing_to_write_is_paused_at_once(at: str) -> None:
    async def case() -> None:
        hub = Hub(1, 1)
        if at != "its start":
            await hub.register(0, rank(0))
            await (hub.submit(0, job(1)) if at == "the end of its job" else hub.next(0, 0))
            asked = asyncio.create_task(hub.next(0, 9))
            await asyncio.sleep(0)
        paused = asyncio.create_task(hub.pause(0))
        await asyncio.sleep(0.01)
        if at == "the end of its job":
            assert await hub.report(0, RunEnded(1, "finished", 0), 0) is Answer.LEAVE
            assert [event.state for event in await told(hub)] == ["finished"]
        await asyncio.wait_for(paused, 1)
        if at == "no job":
            assert await asked is Answer.LEAVE

    run(case)


def test_two_trials_without_memory_on_one_node_run_one_after_the_other() -> None:
    async def case() -> None:
        hub = Hub(2, 1)
        for gang in range(2):
            await hub.register(gang, rank(0, "a", 1))
            await hub.submit(gang, job(gang))
            assert isinstance(await hub.next(gang, 0), Job)
        for gang in range(2):
            await hub.failed(gang, "memory", "killed", True, {})
        assert isinstance(await hub.next(0, 0), Job)
        assert await hub.next(1, 0.01) is Answer.WAIT
        await hub.report(0, RunEnded(0, "finished", 0), 0)
        given = await hub.next(1, 0)
        assert isinstance(given, Job)
        assert given.trial == 1

    run(case)


def test_a_gang_that_does_not_come_back_leaves_its_job_to_another_one_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def case() -> None:
        hub = Hub(2, 1)
        for gang in range(2):
            await hub.register(gang, rank(0, f"node {gang}", 1))
            await hub.submit(gang, job(gang))
            assert isinstance(await hub.next(gang, 0), Job)
        await hub.failed(1, "died", "its node has died", True, {})
        await hub.report(0, RunEnded(0, "finished", 0), 0)
        assert await hub.next(0, 0.01) is Answer.WAIT, "its ranks may still write a checkpoint"
        hub.waiting[0].elsewhere_at = 0
        given = await hub.next(0, 0)
        assert isinstance(given, Job)
        assert (given.trial, given.resume) == (1, True)
        report = asyncio.create_task(hub.report(0, EpochEnded(1, 4, {}, 0), 9))
        await asyncio.sleep(0)
        assert (await hub.wait(0)).events[-1][0] == 1, "it is still the job of slot 1"
        await hub.verdict(1, False)
        assert await report is False

    run(case)


def test_who_hangs_is_found_in_a_gang_that_has_fewer_ranks_than_it_had() -> None:
    async def case() -> None:
        hub = Hub(1, 0.05)
        for number in range(4):
            await hub.register(0, rank(number, size=4))
        await hub.lost(0, rank(3, size=4), "Connection closed by peer")
        for number in range(3):
            await hub.register(0, rank(number, size=3))
        report = asyncio.create_task(hub.lost(0, rank(0, size=3), "Timed out"))
        [hung] = (await hub.wait(1)).hung
        assert [each.rank for each in hung.ranks] == [1, 2]
        await hub.settled(0)
        await asyncio.wait_for(report, 5)

    run(case)


def test_a_gang_that_starts_while_all_are_closed_ends_without_a_job() -> None:
    async def case() -> None:
        hub = Hub(1, 1)
        await hub.submit(0, job(1))
        await hub.register(0, rank(0))
        await hub.next(0, 0)
        await hub.failed(0, "died", "SIGKILL", True, {})
        await hub.close()
        await hub.register(0, rank(0))
        assert await hub.next(0, 9) is Answer.END

    run(case)
