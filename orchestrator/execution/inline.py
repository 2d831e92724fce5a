"""One slot, in this process: for runs of their own, for debugging, and for most tests. A debugger works in it."""

from __future__ import annotations

import socket

from orchestrator.execution.executor import SlotEvent
from orchestrator.training import trial
from orchestrator.training.trial import Job, Place


class Inline:
    """Runs the job in `wait`, an epoch at a time."""

    slots = 1

    def __init__(self, gpus: float = 0) -> None:
        self.place = Place(device="cuda:0" if gpus else "cpu", node=socket.gethostname())
        self._steps: trial.Steps | None = None
        self._go_on: bool | None = None

    def start(self, slot: int, job: Job) -> None:
        """Take a job; nothing runs before `wait`."""
        self._steps, self._go_on = trial.run(job, self.place), None

    def wait(self) -> list[SlotEvent]:
        """Run to the next event."""
        assert self._steps is not None
        event = next(self._steps) if self._go_on is None else self._steps.send(self._go_on)
        return [(0, event)]

    def verdict(self, slot: int, go_on: bool) -> None:
        """Keep the answer for the next `wait`."""
        self._go_on = go_on

    def close(self) -> None:
        """Let a run under way write its checkpoint."""
        if self._steps is not None:
            self._steps.close()
