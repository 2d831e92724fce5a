"""Normalisation layers: batch statistics of one rank (`batch`), of all ranks (`sync`), or none."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "sync", "none"]


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that also takes one value a channel (a last batch of one row, a map of one cell), which torch refuses.

    Such a batch has no variance: it is normalised by the running statistics, as in evaluation. x: [B, C, H, W].
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class SyncBatchNorm2d(BatchNorm2d):
    """Batch normalisation over the rows of every rank, on any backend.

    `torch.nn.SyncBatchNorm` runs on GPUs only; this one needs nothing but an all-reduce that autograd can pass through, so gloo
    serves. Counts travel with the sums: ranks may hold different numbers of rows. x: [B, C, H, W].
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        from torch.distributed.nn.functional import all_reduce

        wide = x.float()
        count = torch.full((1,), x.numel() / x.shape[1], device=x.device)
        totals = all_reduce(torch.cat([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3)), count]))
        channels, n = x.shape[1], totals[-1]
        mean = totals[:channels] / n
        variance = (totals[channels:-1] / n - mean.square()).clamp_min(0.0)
        self._track(mean.detach(), variance.detach() * (n / (n - 1).clamp_min(1)))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (wide * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum or 0.1)
        self.running_var.lerp_(variance, self.momentum or 0.1)


def norm2d(kind: Norm, channels: int) -> list[nn.Module]:
    """The layer of that kind over [B, channels, H, W], or no layer."""
    if kind == "none":
        return []
    return [SyncBatchNorm2d(channels) if kind == "sync" else BatchNorm2d(channels)]
