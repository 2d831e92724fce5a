"""What torch can do with this machine's GPUs."""

from __future__ import annotations

import torch


def usable_gpus() -> bool:
    """Whether this torch can use them at all: a CPU build can't."""
    return torch.cuda.is_available()


def gpu_bf16() -> bool:
    """Whether they multiply bfloat16 (Ampere and newer)."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
