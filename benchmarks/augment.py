"""What augmentation costs: ms of CPU a batch for each change, beside kornia's own module for it.

python benchmarks/augment.py
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import orchestrator  # noqa: F401  first: it binds `models` and `pipelines` to this project's own
from orchestrator.experiment.config import AugmentConfig
from orchestrator.training.augment import Augment

SHAPES = {"digits": (64, 1, 8, 8), "MNIST": (128, 1, 28, 28), "colour": (16, 3, 128, 128)}
CHANGES: dict[str, dict[str, Any]] = {
    "shift": {"shift": 0.1},
    "flip": {"flip": "horizontal"},
    "rotate": {"rotate": 15.0},
    "crop": {"crop": 0.7},
    "cutout": {"cutout": 0.3},
    "shift + flip": {"shift": 0.1, "flip": "horizontal"},
    "all": {"shift": 0.1, "flip": "horizontal", "rotate": 15.0, "crop": 0.7, "cutout": 0.3},
}
ROUNDS = 60


def kornias(side: tuple[int, int]) -> dict[str, Any]:
    """kornia's own modules for the same changes."""
    import kornia.augmentation as k

    return {
        "shift": k.RandomAffine(0.0, translate=(0.1, 0.1), p=1.0),
        "flip": k.RandomHorizontalFlip(),
        "rotate": k.RandomRotation(15.0, p=1.0),
        "crop": k.RandomResizedCrop(side, scale=(0.7, 1.0), p=1.0),
        "cutout": k.RandomErasing(scale=(0.09, 0.09), ratio=(1.0, 1.0), p=1.0),
    }


def milliseconds(runs: list[Callable[[], Any]]) -> list[float]:
    """The median of each, taken in turns; CPU time of the one thread, which other work on the machine disturbs least."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(ROUNDS + 20):
        for place, run in enumerate(runs):
            began = time.process_time()
            run()
            if turn >= 20:
                times[place].append(1000 * (time.process_time() - began))
    return [statistics.median(each) for each in times]


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'batch':<28}{'change':<14}{'ms':>8}{'kornia ms':>11}{'ratio':>7}")
    for name, (rows, channels, height, width) in SHAPES.items():
        images: Tensor = torch.randn(rows, height, width, channels).permute(0, 3, 1, 2)
        theirs = kornias((height, width))
        for change, options in CHANGES.items():
            own = Augment(AugmentConfig(**options), ("image",))
            runs: list[Callable[[], Any]] = [functools.partial(own, {"image": images})]
            if change in theirs:
                runs.append(functools.partial(theirs[change], images))
            found = milliseconds(runs)
            beside = f"{found[1]:>11.2f}{found[1] / found[0]:>7.1f}" if len(found) > 1 else ""
            print(f"{name + f' {rows} x {channels} x {height} x {width}':<28}{change:<14}{found[0]:>8.2f}{beside}")


if __name__ == "__main__":
    main()
