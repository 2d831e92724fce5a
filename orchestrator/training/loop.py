"""The training loop: one epoch at a time, on one rank.

There is one loop for a run of its own, for a trial of a sweep and for a rank of many. It knows nothing of processes, files or
records: `run_epoch` gives the epoch's metrics, the same on every rank, and whoever drives it carries them away.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from models.family import Family
from orchestrator.training import optim, row_wise
from orchestrator.training.distribute import LAID_OUT_AFTER, distribute
from orchestrator.training.evaluation import Evaluation, autocast
from orchestrator.training.transfer import freeze
from pipelines.batches import Batch, Part, Shuffled, Step
from pipelines.encode import Encoder


class Diverged(ArithmeticError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Settings:
    """What the loop needs of a plan: resolved, nothing left to choose."""

    epochs: int
    batch_size: int
    seed: int
    precision: str = "fp32"
    max_steps: int | None = None
    clip_norm: float | None = None
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    freeze: tuple[str, ...] = ()


@dataclass
class Sums:
    """Of the epoch under way, on one rank: its rows' losses, how many they were, and for how long."""

    loss: Tensor  # [] float32, on the device
    rows: int = 0
    seconds: float = 0.0


def _nothing() -> None:
    pass


class Training:
    """A network in training: `run_epoch` until `finished`, and everything that must be saved to go on elsewhere."""

    def __init__(
        self,
        family: Family,
        encoder: Encoder,
        train: Shuffled,
        validation: Part,
        optimizer: tuple[Any, Any],
        settings: Settings,
        augment: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self.settings, self.encoder, self.train, self.validation = settings, encoder, train, validation
        self.augment = augment
        self.frozen = freeze(family, settings.freeze)
        self.device = torch.device(settings.device)
        self.family = family.to(self.device)
        if family.channels_last:
            self.family = self.family.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.tables = row_wise.tables_of(family)
        self.net = distribute(self.family, settings.world_size, self.device, settings.accumulate)
        kind, config = optimizer
        self.optimizer = optim.build(kind, config, family)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.total_steps = settings.epochs * train.steps
        if settings.max_steps is not None:
            self.total_steps = min(self.total_steps, settings.max_steps)
        self.schedule = optim.Schedule(config.schedule, self.total_steps, config.warmup)
        self.scaler = torch.amp.GradScaler(self.device.type) if settings.precision == "fp16" else None
        self.evaluation = Evaluation(family, encoder, settings.precision)
        self.epoch, self.step = 0, 0  # epochs and steps that are done
        self.sums = Sums(torch.zeros((), device=self.device))

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    def run_epoch(self, between: Callable[[], None] = _nothing) -> dict[str, float]:
        """Train one epoch, or what is left of it, and validate. Raises Diverged if the loss is no number, RuntimeError if rows were missed.

        `between` is called before each step: what it raises leaves the epoch there, to be gone on with.
        """
        began = time.perf_counter() - self.sums.seconds
        self._to_train()
        for step in self.train.epoch(self.epoch + 1, self.step - self.epoch * self.train.steps):
            self.sums.seconds = time.perf_counter() - began
            between()
            self.sums.loss += self._step(step)
            self.sums.rows += step.rows
            if self.finished:
                break
        return self._ended(began)

    def _to_train(self) -> None:
        self.family.train()
        for module in self.frozen:
            module.eval()

    def _ended(self, began: float) -> dict[str, float]:
        """The metrics of an epoch whose steps are done."""
        self.epoch += 1
        train_loss, seen = self._over_ranks(self.sums)
        self.sums = Sums(torch.zeros((), device=self.device))
        seconds = time.perf_counter() - began
        self._check(train_loss, seen)
        metrics = {"train_loss": train_loss, **self.evaluate(self.validation, "val")}
        if not math.isfinite(metrics["val_loss"]):
            raise Diverged(f"val_loss is {metrics['val_loss']} at epoch {self.epoch}: lower optimizer.lr or set training.clip_norm")
        metrics |= {"lr": self.optimizer.param_groups[0]["lr"], "samples_per_s": seen / seconds}
        return metrics | {"epoch_s": time.perf_counter() - began}

    def evaluate(self, part: Part, prefix: str) -> dict[str, float]:
        """Metrics on the rows of all ranks; running statistics of rank 0 count, as they will in the bundle."""
        if self.settings.world_size > 1:
            kept = self.family.state_dict().keys()
            for name, buffer in self.family.named_buffers():
                if name in kept:
                    dist.broadcast(buffer, 0)
        return self.evaluation(part, prefix, self.settings.rank, self.settings.world_size)

    def _step(self, step: Step) -> Tensor:
        """One optimizer step; the sum of the rows' losses."""
        factor = self.schedule.factor(self.step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        scale = self.settings.world_size / step.total  # DDP takes the mean over ranks of what are sums over rows
        losses = []
        for piece in step.pieces[:-1]:
            with self.net.no_sync() if isinstance(self.net, DistributedDataParallel) else contextlib.nullcontext():
                losses.append(self._backward(piece, scale))
        losses.append(self._backward(step.pieces[-1], scale))
        self._update()
        self.step += 1
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _backward(self, piece: Batch, scale: float) -> Tensor:
        batch: Batch = self.encoder.tensors(piece)
        if self.augment is not None:
            batch = self.augment(batch)
        with autocast(self.settings.precision, self.device):
            outputs = self.net(batch)
        rows = self.family.loss(outputs, batch)
        weights = rows.new_full(rows.shape, scale)  # of each row in the gradient: cheaper than summing and scaling in the graph
        (rows if self.scaler is None else self.scaler.scale(rows)).backward(weights)
        return rows.detach().sum()

    def _update(self) -> None:
        if self.tables and self.settings.world_size > 1:
            row_wise.exchange(self.tables, self.settings.world_size)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.settings.clip_norm is not None:
            row_wise.clip_norm(list(self.family.parameters()), self.settings.clip_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _over_ranks(self, sums: Sums) -> tuple[float, int]:
        """The mean loss over the rows of all ranks, and how many they were."""
        both = torch.tensor([float(sums.loss), float(sums.rows)], dtype=torch.float64, device=self.device)
        if self.settings.world_size > 1:
            dist.all_reduce(both)
        total, seen = both.tolist()
        return total / seen if seen else math.nan, round(seen)

    def _check(self, train_loss: float, seen: int) -> None:
        if not math.isfinite(train_loss):
            raise Diverged(f"train_loss is {train_loss} at epoch {self.epoch}: lower optimizer.lr or set training.clip_norm")
        expected = self.train.rows if self.step == self.epoch * self.train.steps else None
        if expected is not None and seen != expected:
            raise RuntimeError(f"epoch {self.epoch} saw {seen} rows of {expected}")

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, scaler, and where it stands: with the seeds' state all that a run is."""
        state: dict[str, Any] = {"model": self.family.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"epoch": self.epoch, "step": self.step, "seconds": self.sums.seconds}
        return state | ({"scaler": self.scaler.state_dict()} if self.scaler is not None else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.family.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, moments in self.optimizer.state.items():  # a fused step reads both as they lie in memory: channels_last
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.sums.seconds = state["epoch"], state["step"], state["seconds"]

    def lay_out(self) -> None:
        """Let DistributedDataParallel lay out its buckets as it has done by this step; draws random numbers, changes nothing else.

        Where a gradient lies says in which order more than two ranks add it: a run that goes on must not begin with the first layout again.
        """
        if self.finished or not isinstance(self.net, DistributedDataParallel):
            return
        self._to_train()
        before = {name: buffer.clone() for name, buffer in self.family.named_buffers()}
        for _ in range(min(self.step, LAID_OUT_AFTER)):
            self._backward(next(self.train.epoch(self.epoch + 1)).pieces[-1], 1.0)
            self.optimizer.zero_grad(set_to_none=True)
        for name, buffer in self.family.named_buffers():
            buffer.copy_(before[name])

    def own_state(self) -> dict[str, Any]:
        """What this rank alone knows in the middle of an epoch: its sums, its running statistics (rank 0's are in `state_dict`)."""
        state: dict[str, Any] = {"loss": float(self.sums.loss), "rows": self.sums.rows}
        if self.settings.rank == 0 or self.step == self.epoch * self.train.steps:
            return state
        kept = self.family.state_dict()
        return state | {"buffers": {name: kept[name].cpu() for name, _ in self.family.named_buffers() if name in kept}}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `own_state` gave on this rank."""
        self.sums.loss.fill_(state["loss"])
        self.sums.rows = state["rows"]
        self.family.load_state_dict(state.get("buffers", {}), strict=False)
