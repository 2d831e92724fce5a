"""What a launch has used of its budget: counted from its events, so that retries and resumes count too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from orchestrator.events import Event, RunEnded, RunResumed, RunStarted
from orchestrator.experiment.config import BudgetConfig

MARGIN_S = 0.05  # clocks differ


class Meter:
    """Sees every event of a launch, those of earlier commands too. `wall_s`: what those took; `now`: the clock, in seconds.

    A run holds its CPUs and GPUs (`cpus`, `gpus`, `world_size` of its start) from its start to its last event; of a command that was
    killed that is what is known.
    """

    def __init__(
        self, budget: BudgetConfig, events: Iterable[Event] = (), wall_s: float = 0.0, now: Callable[[], float] = time.time
    ) -> None:
        self.budget, self.now, self.wall_s, self.began = budget, now, wall_s, now()
        self.cpu_s = self.gpu_s = 0.0
        self.trials = 0
        self._held: dict[Any, tuple[float, float]] = {}
        self._at: dict[Any, float] = {}
        for event in events:
            self.see(event)
        self._at.clear()  # nothing of it runs any more

    def see(self, event: Event) -> None:
        """Count an event."""
        at = event.at_ms / 1000
        if isinstance(event, RunStarted | RunResumed):
            self.trials += isinstance(event, RunStarted)
            workers = event.env.get("world_size", 1)
            self._held[event.trial] = (workers * event.env.get("cpus", 0.0), workers * event.env.get("gpus", 0.0))
        elif event.trial in self._at:
            cpus, gpus = self._held[event.trial]
            seconds = max(0.0, at - self._at[event.trial])
            self.cpu_s, self.gpu_s = self.cpu_s + seconds * cpus, self.gpu_s + seconds * gpus
        if isinstance(event, RunEnded):
            self._at.pop(event.trial, None)
        else:
            self._at[event.trial] = at

    def over(self) -> str | None:
        """The part of the budget that is used up, in a sentence."""
        for key, limit, used, _ in self._used():
            if used >= limit:
                return f"budget.{key}: {used:.4g} of {limit:g} are used"
        return None

    def left_s(self) -> float | None:
        """Seconds until a part of it is used up, as runs go now; then `over` says so. None: never."""
        return min((max(0.0, (limit - used) / rate) + MARGIN_S for _, limit, used, rate in self._used() if rate), default=None)

    def _used(self) -> list[tuple[str, float, float, float]]:
        """(key, limit, what is used of it, how much more each second) of what is bounded in time."""
        now = self.now()
        open_s = [(now - at, self._held[trial]) for trial, at in self._at.items()]
        cpu_s = self.cpu_s + sum(s * cpus for s, (cpus, _) in open_s)
        gpu_s = self.gpu_s + sum(s * gpus for s, (_, gpus) in open_s)
        cpus, gpus = (sum(held[i] for _, held in open_s) for i in (0, 1))
        found = [
            ("gpu_hours", self.budget.gpu_hours, gpu_s / 3600, gpus / 3600),
            ("cpu_hours", self.budget.cpu_hours, cpu_s / 3600, cpus / 3600),
            ("wall_s", self.budget.wall_s, self.wall_s + now - self.began, 1.0),
        ]
        return [(key, limit, used, rate) for key, limit, used, rate in found if limit is not None]

    def full(self) -> str | None:
        """Why no further run may begin, in a sentence."""
        limit = self.budget.trials
        return f"budget.trials: {self.trials} of {limit} have begun" if limit is not None and self.trials >= limit else self.over()
