"""What goes on beside a launch: MLflow gets what the ledger has, someone is told, the ledger is mirrored. None of it can fail a launch."""

from __future__ import annotations

import contextlib
import time
import warnings
from pathlib import Path

from orchestrator.errors import Failed, Note, Taken
from orchestrator.events import RunEnded, RunStarted, summarise
from orchestrator.experiment.config import Experiment
from orchestrator.records import notify
from orchestrator.records.ledger import Launch, Ledger
from orchestrator.records.mirror import Mirror, mirror_of
from orchestrator.records.notify import Notifier
from orchestrator.records.tracking import BackgroundSender

LEAST_S = 0.5  # for what was sent while MLflow was waited for


class Beside:
    """Begins with `start`, knows the launch from `follow` on, is given every event, and ends with `finish`.

    Raises ExperimentError if somebody is to be told and nothing is there to sign with.
    """

    def __init__(self, home: Path, experiment: Experiment) -> None:
        self.home, self.experiment, self.told = home, experiment, notify.destination(experiment.notify)
        self.sender: BackgroundSender | None = None
        self.notifier: Notifier | None = None
        self.mirror: Mirror | None = None

    def start(self) -> None:
        """MLflow is imported, in the background, and what it hasn't got is sent."""
        self.sender = BackgroundSender(self.home, self._is_ours)

    def follow(self, ledger: Ledger, launch: Launch) -> None:
        """The launch has begun, or goes on."""
        self.notifier = Notifier(self.experiment.notify, launch, self.told, _best(ledger, launch))
        if self.experiment.storage.path is not None:
            self.mirror = Mirror(self.home, mirror_of(self.experiment.storage.path, launch.name, launch.command), launch.id)
            self.mirror.start()

    def _is_ours(self) -> bool:
        """Looked at before MLflow is told anything: a launch that another command goes on with isn't sent any more."""
        if self.mirror is not None:
            with contextlib.suppress(Failed):  # it can't be told now
                return not self.mirror.look()
        return True

    @property
    def is_taken(self) -> bool:
        """Whether another command drives the launch by now."""
        return self.mirror is not None and self.mirror.taken is not None

    def __call__(self, event: object) -> None:
        """Something happened. Raises Taken if another command drives the launch by now."""
        if self.mirror is not None and self.mirror.taken is not None:
            raise Taken(f"another command goes on with this launch by now, on {self.mirror.taken}")
        if self.notifier is not None:
            self.notifier(event)
        if self.mirror is not None and isinstance(event, RunStarted | RunEnded):
            self.mirror.wake()

    def stop(self) -> None:
        """Nothing more will happen: the rest is sent while other things end."""
        if self.sender is not None:
            self.sender.stop()

    def finish(self, state: str, patience_s: float, trial: int | None = None, error: str | None = None) -> tuple[int, str | None]:
        """The end: (how many entries MLflow hasn't got after so many seconds, what it said). Ctrl-C ends the waiting."""
        assert self.sender is not None
        until = time.monotonic() + patience_s
        if self.mirror is not None:
            self.mirror.end()
        if self.notifier is not None:
            self.notifier.end(state, trial, error)
        with contextlib.suppress(KeyboardInterrupt):
            self.sender.finish(patience_s)
            for other in (self.mirror, self.notifier):
                if other is not None and (problem := other.finish(max(LEAST_S, until - time.monotonic()))) is not None:
                    warnings.warn(problem, Note, stacklevel=2)
        return self.sender.finish(0), self.sender.problem


def _best(ledger: Ledger, launch: Launch) -> float | None:
    """The best value of the metric so far, in a launch that goes on."""
    by_trial: dict[int | None, list[object]] = {}
    for event in ledger.events(launch.id):
        by_trial.setdefault(event.trial, []).append(event)
    found = [summarise(events, launch.metric, launch.mode).best for events in by_trial.values()]  # type: ignore[arg-type]
    values = [best.metrics[launch.metric] for best in found if best is not None]
    return (max if launch.mode == "max" else min)(values, default=None)
