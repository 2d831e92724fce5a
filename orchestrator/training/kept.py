"""What a run keeps while it trains: its history, its best weights, and what each rank knows; saved and brought back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from orchestrator.events import better
from orchestrator.training import checkpoint, seeds
from orchestrator.training.loop import Training


class Kept:
    """A run's record beside its training. Every rank has one; rank 0 writes the checkpoints, the generations after those `before`."""

    def __init__(self, training: Training, uri: str, before: checkpoint.Found) -> None:
        self.training, self.rank, self.world_size = training, training.settings.rank, training.settings.world_size
        self.writer = checkpoint.Writer(uri, before.number, before.damaged)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.best_weights: dict[str, torch.Tensor] = {}
        self.ranks: list[Any] = []
        self.notes: tuple[str, ...] = ()  # what to know of the run, of all its starts, a sentence each
        self.saved = self.gathered = training.step  # the steps at which a checkpoint was made, and `ranks`

    def add(self, metrics: dict[str, float], at_ms: int, metric: str, mode: str) -> None:
        """An epoch that has ended; its weights, if they are the best so far, with the score that they earned. A collective."""
        epoch = self.training.epoch
        self.history.append({"epoch": epoch, "metrics": metrics, "at_ms": at_ms})
        if self.best is None or better(metrics[metric], self.best["metrics"][metric], mode):
            self.best = {"epoch": epoch, "metrics": metrics}
            self._keep_weights()
        self.gather()

    def gather(self) -> None:
        """Every rank's own state, at this step. A collective."""
        if self.ranks and self.gathered == self.training.step:
            return
        own = {"seeds": seeds.save(), **self.training.own_state()}
        self.ranks, self.gathered = [own], self.training.step
        if self.world_size > 1:
            self.ranks = [None] * self.world_size
            dist.all_gather_object(self.ranks, own)

    def save(self) -> None:
        """Begin to write the state that was gathered, if it isn't yet. Raises StorageError if the one before couldn't be written."""
        if self.saved != self.training.step and self.rank == 0:
            own = {"history": self.history, "best": self.best, "weights": self.best_weights}
            self.writer.save({"training": self.training.state_dict(), "ranks": self.ranks, "notes": list(self.notes), **own})
        self.saved = self.training.step

    def note(self, notes: Iterable[str]) -> None:
        """Something to know of the run from now on, whatever becomes of this process; a sentence that is known already isn't repeated."""
        self.notes = tuple(dict.fromkeys([*self.notes, *notes]))

    def resume(self, state: dict[str, Any]) -> tuple[str, ...]:
        """Go on from what was saved; what is to be known of this start, a sentence each."""
        self.notes = tuple(state.get("notes", ()))
        self.training.load_state_dict(state["training"])
        self.training.lay_out()
        self.history, self.best, self.best_weights = state["history"], state["best"], state["weights"]
        self.saved = self.gathered = self.training.step
        ranks = state["ranks"]
        if len(ranks) == self.world_size:
            self.ranks = ranks
            seeds.restore(ranks[self.rank]["seeds"])
            self.training.load_own_state(ranks[self.rank])
            return ()
        seeds.set_all(seeds.mixed(self.training.settings.seed, self.training.epoch, self.training.step, self.rank))
        if self.rank == 0:  # sums over all rows may lie with any rank
            self.training.load_own_state({key: sum(own[key] for own in ranks) for key in ("loss", "rows")})
        return (f"resumed with {self.world_size} workers instead of {len(ranks)}: from here not bit for bit",)

    def _keep_weights(self) -> None:
        """Copy the weights, into the same memory each time."""
        for name, tensor in self.training.family.state_dict().items():
            if name in self.best_weights:
                self.best_weights[name].copy_(tensor)
            else:
                self.best_weights[name] = tensor.detach().clone()


def newest_for_all(uri: str, rank: int, world_size: int) -> checkpoint.Found:
    """The checkpoint to go on from: rank 0 chooses it for all of them. A collective."""
    found = checkpoint.newest(uri) if rank == 0 else checkpoint.Found()
    if world_size == 1:
        return found
    chosen = [(found.number, found.notes)]
    dist.broadcast_object_list(chosen, 0)
    number, notes = chosen[0]
    return checkpoint.Found(checkpoint.read(uri, number), number, notes) if rank and number else found
