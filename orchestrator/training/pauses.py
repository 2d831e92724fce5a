"""Between two steps: is the trial to stop, is a checkpoint due? The same answer on every rank, at next to no cost."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from orchestrator.experiment.config import CheckpointConfig

AT_EPOCHS_S = 5.0  # between whole states at epochs' ends, where nothing else is asked for; the end of a run is written in any case
SHARED_EVERY_S = 1.0  # between two broadcasts of rank 0's answer, about


def never() -> bool:
    """Nobody asks the trial to stop."""
    return False


class Pauses:
    """When a run pauses to save its state, or to stop. With several ranks, rank 0's clock and `stop` count for all of them.

    They are shared at steps that all ranks know: each broadcast says in how many steps the next one comes.
    """

    def __init__(self, every: CheckpointConfig, stop: Callable[[], bool], rank: int, world_size: int, device: str) -> None:
        self.every, self.stop, self.rank, self.world_size, self.device = every, stop, rank, world_size, torch.device(device)
        self.saved_at = self.shared_at = time.monotonic()
        self.share_at, self.between = 0, 1  # the step of the next broadcast, and how many lie between the last one and that

    def saved(self) -> None:
        """A state was saved now."""
        self.saved_at = time.monotonic()

    def before(self, step: int) -> tuple[bool, bool]:
        """(stop, save) before a step, by the number of steps that are done. A collective in some steps."""
        save = self.every.steps is not None and step % self.every.steps == 0
        if self.world_size == 1:
            return self.stop(), save or self._minutes_over()
        if step < self.share_at:
            return False, save
        stop, due = self._share(step)
        return stop, save or due

    def after_epoch(self, epoch: int, step: int) -> bool:
        """Whether a checkpoint is due at an epoch's end, on this rank's clock."""
        every = self.every
        if every.epochs is not None:
            return epoch % every.epochs == 0
        if every.steps is not None:
            return step % every.steps == 0
        return self._minutes_over() if every.minutes is not None else time.monotonic() - self.saved_at >= AT_EPOCHS_S

    def _minutes_over(self) -> bool:
        return self.every.minutes is not None and time.monotonic() - self.saved_at >= 60 * self.every.minutes

    def _share(self, step: int) -> tuple[bool, bool]:
        """Rank 0's (stop, save), and when it shares the next one."""
        answer = torch.zeros(3, dtype=torch.int64)
        if self.rank == 0:
            now = time.monotonic()
            ahead = steps_ahead(self.between, now - self.shared_at)
            answer, self.shared_at = torch.tensor([self.stop(), self._minutes_over(), ahead]), now
        answer = answer.to(self.device)
        dist.broadcast(answer, 0)
        stop, due, self.between = answer.tolist()
        self.share_at = step + self.between
        return bool(stop), bool(due)


def steps_ahead(steps: int, seconds: float) -> int:
    """How many steps take SHARED_EVERY_S, after so many took so long; it grows gently, since the first ones may be slow or fast."""
    return max(1, min(int(steps * SHARED_EVERY_S / max(seconds, 1e-9)), 4 * steps))
