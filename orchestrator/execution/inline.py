"""One slot, in this process: for runs of their own, for debugging, and for most tests. A debugger works in it."""

from __future__ import annotations

import contextlib
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from orchestrator.events import EpochEnded, RunEnded
from orchestrator.execution.executor import SlotEvent
from orchestrator.training import trial
from orchestrator.training.job import Job, Place, Steps
from orchestrator.training.output import captured

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Inline:
    """Runs the job in `wait`, an epoch at a time.

    The first Ctrl-C or SIGTERM meanwhile lets the run end at its next step, with a checkpoint; the second raises at once.
    """

    slots = 1

    def __init__(self, gpus: float = 0) -> None:
        self.place = Place(device="cuda:0" if gpus else "cpu", node=socket.gethostname())
        self._steps: Steps | None = None
        self._logs: str | None = None
        self._go_on: bool | None = None
        self._stopping = False
        self._until = math.inf
        self._ended: list[SlotEvent] = []  # for want of time

    def start(self, slot: int, job: Job) -> None:
        """Take a job; nothing runs before `wait`."""
        self._steps, self._go_on, self._logs = trial.run(job, self.place, self._is_to_stop), None, job.logs

    def wait(self, within_s: float | None = None) -> list[SlotEvent]:
        """Run to the next event; when the time is over the run ends at its next step, which `stop` says."""
        assert self._steps is not None
        self._until = math.inf if within_s is None else time.monotonic() + within_s
        with self._signals(), captured(self._logs, echo=True):  # its stdout is the command's, for the result alone
            event: EpochEnded | RunEnded = next(self._steps) if self._go_on is None else self._steps.send(self._go_on)
        if isinstance(event, RunEnded) and event.state == "interrupted" and event.error is None and not self._stopping:
            self._ended = [(0, event)]
            return []
        return [(0, event)]

    def verdict(self, slot: int, go_on: bool) -> None:
        """Keep the answer for the next `wait`."""
        self._go_on = go_on

    def stop(self, grace_s: float) -> list[SlotEvent]:
        """The end of a run that had no more time."""
        return self._ended

    def close(self, grace_s: float = 0) -> None:
        """Let a run under way write its checkpoint."""
        if self._steps is not None:
            self._steps.close()

    def _is_to_stop(self) -> bool:
        return self._stopping or time.monotonic() > self._until

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ours in place of the program's, which come back; elsewhere than in the main thread there are none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        if self._stopping:
            raise KeyboardInterrupt
        self._stopping = True
