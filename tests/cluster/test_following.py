"""A log that is followed, of a head that may fall silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import jobs
from cluster.connect import ClusterError
from cluster.jobs import Job, Jobs


def test_a_log_in_which_nothing_comes_is_left_for_a_look_whether_the_job_runs_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "QUIET_S", 0.05)

    async def tail(id: str) -> AsyncIterator[str]:
        yield "a line\n"
        await asyncio.sleep(3600)

    there: Any = Jobs.__new__(Jobs)
    there._client = SimpleNamespace(tail_job_logs=tail)
    shown: list[str] = []
    asyncio.run(asyncio.wait_for(there._tail("id", jobs._Log(shown.append)), 30))
    assert shown == ["a line\n"]


class Clock:
    """A clock that goes on when something is waited for."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("silences", "gone"), [([3, 3, 3], False), ([70], True)])
def test_a_cluster_is_gone_when_it_did_not_answer_for_a_minute_however_long_its_log_was_followed_before(
    monkeypatch: pytest.MonkeyPatch, silences: list[float], gone: bool
) -> None:
    """Each look: an hour of a log, then a connection that is broken for so many seconds."""
    clock, running = Clock(), Job("id", "digits", "running", 0, None, "")
    monkeypatch.setattr(jobs, "time", clock)
    until, ends = list[float](), iter(silences)

    async def tail(self: Jobs, id: str, log: Any) -> None:
        if until and clock.now < until[-1]:
            raise ClusterError("no answer")
        clock.now += 3600

    def info(id: str) -> None:
        if (silence := next(ends, None)) is not None:
            until.append(clock.now + silence)
            raise ClusterError("no answer")

    monkeypatch.setattr(Jobs, "_tail", tail)
    monkeypatch.setattr(jobs, "_job", lambda details: replace(running, state="finished"))
    there: Any = Jobs.__new__(Jobs)
    there.given, there.find = "http://head", lambda id: running
    there._client = SimpleNamespace(get_job_info=info, get_job_logs=lambda id: "")
    if gone:
        with pytest.raises(jobs.ClusterGone):
            there.follow("id", print)
    else:
        assert there.follow("id", print).state == "finished"


def test_a_job_that_does_not_end_when_it_is_asked_to_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "STOPPED_S", 0.0)
    running = Job("id", "digits", "running", 0, None, "")
    monkeypatch.setattr(jobs, "_job", lambda details: running)
    there: Any = Jobs.__new__(Jobs)
    there.given, there.find = "http://head", lambda id: running
    there._client = SimpleNamespace(stop_job=lambda id: None, get_job_info=lambda id: None)
    with pytest.raises(ClusterError, match="job id was asked to end, and hasn't within 0 s"):
        there.stop("id")
