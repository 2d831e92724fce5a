"""A network whose gradients are the mean over ranks: DistributedDataParallel, where there are several."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models.family import Family
from orchestrator.training import row_wise

LAID_OUT_AFTER = (
    2  # steps, after which its buckets stay as they are: by the order in which gradients came, for a static graph in the second
)


def distribute(family: Family, world_size: int, device: torch.device, accumulate: int) -> nn.Module:
    """What is to be called in training."""
    if world_size == 1:
        return family
    ignored = row_wise.names_of(family)  # see `row_wise.exchange`
    if all(name in ignored for name, parameter in family.named_parameters() if parameter.requires_grad):
        return family
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(family, ignored)
    return DistributedDataParallel(
        family,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=accumulate == 1,
        forward_sync_buffers=False,  # statistics are each rank's own until the epoch ends; see `evaluate`
    )
