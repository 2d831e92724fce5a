"""The narrow contract between the driving loop and where trials run: slots that take a job and give an event an epoch.

A slot takes a job, yields an EpochEnded, waits for the verdict, yields the next, and with a RunEnded is free again. When a worker dies
its executor starts the job again, to go on from its checkpoint: an epoch may then be said twice, and gets its verdict again. Executors
wrap nothing else: no stopping rules, no records, no retries of a trial's own errors.
"""

from __future__ import annotations

from typing import Protocol

from orchestrator.events import EpochEnded, RunEnded
from orchestrator.training.job import Job

GRACE_S = 10.0  # for runs under way to write a checkpoint, when a command is interrupted or its budget is used up

SlotEvent = tuple[int, EpochEnded | RunEnded]


class Executor(Protocol):
    """`slots`: how many jobs it runs at once."""

    slots: int

    def start(self, slot: int, job: Job) -> None:
        """Give a free slot a job."""

    def wait(self, within_s: float | None = None) -> list[SlotEvent]:
        """Block until at least one slot has an event; every event that is there, none once the time is over.

        An EpochEnded's slot waits for `verdict`. Raises Lost if what it runs on is gone, and Failed if its workers can't start.
        """

    def verdict(self, slot: int, go_on: bool) -> None:
        """Answer a slot's EpochEnded: go on, or end the run."""

    def stop(self, grace_s: float) -> list[SlotEvent]:
        """Ask the runs under way to end at their next step, with a checkpoint; what they say within so many seconds. No job comes after."""

    def close(self, grace_s: float = 0) -> None:
        """End every process that was started; runs under way are stopped before, if there is a grace, and what they say is dropped."""
