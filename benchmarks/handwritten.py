"""The hand-written contender: what a good engineer writes with nothing but torch. No records, no checkpoints, no resuming.

Rows are normalised tensors in memory, an epoch is one permutation and an `index_select` a batch, optimizers are the fused ones, memory is
channels_last, and the loss stays on the device until the epoch ends. The networks are those of `models.cnn` with the same settings.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Values = dict[str, Any]  # a trial's: optimizer.name, optimizer.lr, optimizer.momentum, model.dropout
EPOCHS, BATCH, SMOOTHING = 5, 64, 0.1  # of a trial of the digits network


@dataclass(frozen=True)
class Rows:
    """Images [N, C, H, W] float32, normalised; labels [N] int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled; each rank takes its piece of every global batch, from the same permutation."""
        for batch in torch.randperm(len(self)).split(size):
            piece = batch.tensor_split(world_size)[rank] if world_size > 1 else batch
            yield self.images.index_select(0, piece), self.labels.index_select(0, piece)


def rows_of(images: Tensor, labels: Tensor) -> Rows:
    """From [N, C, H, W] of any type."""
    wide = images.float()
    return Rows(((wide - wide.mean()) / wide.std()).contiguous(memory_format=torch.channels_last), labels.long())


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, pool: bool = False) -> list[nn.Module]:
    """Convolution, pooling, batch normalisation, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [convolution, *([nn.MaxPool2d(2)] if pool else []), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def digits_network(dropout: float) -> nn.Sequential:
    """For 8x8 images: the CNN family's defaults."""
    layers = [*block(1, 32), *block(32, 64, pool=True), *block(64, 64, pool=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(256, 10)).to(memory_format=torch.channels_last)


def mnist_network() -> nn.Sequential:
    """For 28x28 images: a 5x5 stem of stride 2, then three 3x3 convolutions; 99 k parameters."""
    layers = [*block(1, 32, kernel=5, stride=2), *block(32, 64, pool=True), *block(64, 64), *block(64, 64, pool=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1), nn.Linear(576, 10)).to(memory_format=torch.channels_last)


def tiny_network() -> nn.Sequential:
    """For 8x8 images: one convolution of 8 channels, pooled; a step takes well under a millisecond."""
    layers = [*block(1, 8, pool=True), nn.Flatten(), nn.Dropout(0.0), nn.Linear(128, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def optimizer_of(net: nn.Module, values: Values) -> torch.optim.Optimizer:
    """The optimizer that a trial names, fused where torch has it so."""
    name, lr, momentum = values["optimizer.name"], values["optimizer.lr"], values.get("optimizer.momentum", 0.9)
    if name == "sgd":
        return torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, fused=True)
    if name == "rmsprop":
        return torch.optim.RMSprop(net.parameters(), lr=lr, momentum=momentum, foreach=True)
    if name == "adamw":
        return torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2, fused=True)
    return torch.optim.Adam(net.parameters(), lr=lr, fused=True)


@dataclass
class Loop:
    """A network in training. `net` may be wrapped in DDP; then `rank` and `world_size` say which piece of each batch is this process's."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    rows: Rows
    batch: int
    smoothing: float = 0.0
    schedule: Any = None
    bf16: bool = False
    rank: int = 0
    world_size: int = 1

    def epoch(self) -> float:
        """One epoch; the mean of its batches' losses, as this rank saw them."""
        self.net.train()
        total, steps = torch.zeros(()), 0
        for images, labels in self.rows.batches(self.batch, self.rank, self.world_size):
            with torch.autocast("cpu", torch.bfloat16) if self.bf16 else contextlib.nullcontext():
                outputs = self.net(images)
            loss = F.cross_entropy(outputs.float(), labels, label_smoothing=self.smoothing)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.schedule is not None:
                self.schedule.step()
            total += loss.detach()
            steps += 1
        return float(total) / steps

    @torch.inference_mode()
    def accuracy(self, rows: Rows, batch: int = 250) -> float:
        """The share of rows that the network gets right."""
        net = self.net.module if isinstance(self.net, nn.parallel.DistributedDataParallel) else self.net
        net.eval()
        right = torch.zeros((), dtype=torch.int64)
        for images, labels in zip(rows.images.split(batch), rows.labels.split(batch), strict=True):
            right += (net(images).argmax(1) == labels).sum()
        return float(right) / len(rows)


def digits() -> tuple[Rows, Rows]:
    """scikit-learn's 1,797 digits: (70 % for training, 10 % for validation)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels, classes = torch.from_numpy(images).float().reshape(-1, 1, 8, 8)[order], torch.from_numpy(labels)[order]
    every = rows_of(pixels, classes)
    return Rows(every.images[:1258], every.labels[:1258]), Rows(every.images[1258:1438], every.labels[1258:1438])


def digits_loop(values: Values, train: Rows, rank: int = 0, world_size: int = 1) -> Loop:
    """A trial of the digits network, ready to train; with two ranks the process group must be there."""
    torch.manual_seed(0)
    net: nn.Module = digits_network(values["model.dropout"])
    if world_size > 1:
        net = distributed(net)
    optimizer = optimizer_of(net, values)
    steps = EPOCHS * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, values["optimizer.lr"], total_steps=steps + 1, cycle_momentum=False)
    return Loop(net, optimizer, train, BATCH, SMOOTHING, schedule, rank=rank, world_size=world_size)


def distributed(net: nn.Module) -> nn.Module:
    """DDP with the options that make it fastest on gloo."""
    return nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True, static_graph=True, forward_sync_buffers=False)


def digits_trial(values: Values, train: Rows, validation: Rows) -> tuple[float, float, float]:
    """A whole trial: (when it began, when it ended, its best validation accuracy)."""
    began = time.time()
    loop = digits_loop(values, train)
    best = 0.0
    for _ in range(EPOCHS):
        loop.epoch()
        best = max(best, loop.accuracy(validation))
    return began, time.time(), best
