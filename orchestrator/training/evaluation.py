"""What a network is worth on some rows: its loss and its metrics, as global sums over the rows of all ranks (see models.metrics)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from models.family import Batch, Family, Outputs
from models.metrics import METRICS
from orchestrator import names
from pipelines.batches import Part
from pipelines.encode import Encoder

EVALUATION_BATCH = 250  # larger batches leave the cache: 11,500 images/s at 250, 4,700 at 4,000 (MNIST, 2 cores)


class Totals:
    """The sums of one family's loss and metrics, batch by batch."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.device = next(family.parameters()).device
        self.metrics = {name: names.load(METRICS[name], {}, "metric")() for name in family.metrics}
        self.loss = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.sums: dict[str, Tensor] = {}

    def add(self, outputs: Outputs, batch: Batch) -> None:
        rows = self.family.loss(outputs, batch)
        self.loss += torch.stack([rows.sum(dtype=torch.float64), rows.new_tensor(len(rows), dtype=torch.float64)])
        for name, metric in self.metrics.items():
            sums = metric.sums(outputs, batch, self.family.schema)
            self.sums[name] = self.sums[name] + sums if name in self.sums else sums

    def over_ranks(self) -> None:
        """Add up what the ranks have; one that had no row adds nothing."""
        shapes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shapes, {name: tuple(t.shape) for name, t in self.sums.items()})
        shape_of = {name: shape for shapes_of_rank in shapes for name, shape in shapes_of_rank.items()}
        zeros = {name: torch.zeros(shape, dtype=torch.float64, device=self.device) for name, shape in shape_of.items()}
        self.sums = {name: self.sums.get(name, zeros[name]) for name in shape_of}
        for tensor in (self.loss, *self.sums.values()):
            dist.all_reduce(tensor)

    def values(self, prefix: str) -> dict[str, float]:
        """`{prefix}_loss` and the metrics."""
        values = {f"{prefix}_loss": float(self.loss[0] / self.loss[1])}
        return values | {f"{prefix}_{name}": metric.value(self.sums[name]) for name, metric in self.metrics.items()}


class Evaluation:
    """Evaluates a network, or what stands for it, without changing it."""

    def __init__(self, family: Family, encoder: Encoder, precision: str = "fp32") -> None:
        self.family, self.encoder, self.precision = family, encoder, precision

    @torch.inference_mode()
    def __call__(
        self, part: Part, prefix: str, rank: int = 0, world_size: int = 1, forward: Callable[[Batch], Outputs] | None = None
    ) -> dict[str, float]:
        """`{prefix}_loss` and the family's metrics, over the rows of all ranks. `forward`: instead of the network (its baseline)."""
        totals = Totals(self.family)
        for batch in self.batches(part, rank, world_size):
            totals.add(self.outputs(batch, forward), batch)
        if world_size > 1:
            totals.over_ranks()
        return totals.values(prefix)

    def batches(self, part: Part, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Batches of a rank's rows, encoded; the network is in evaluation while they are taken."""
        was_training = self.family.training
        self.family.eval()
        try:
            for piece in part.in_order(EVALUATION_BATCH, rank, world_size):
                yield self.encoder.tensors(piece)
        finally:
            self.family.train(was_training)

    def outputs(self, batch: Batch, forward: Callable[[Batch], Outputs] | None = None) -> Outputs:
        """What the network, or `forward`, makes of a batch."""
        with autocast(self.precision, next(self.family.parameters()).device):
            return (forward or self.family)(batch)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bf16 or fp16, or nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
