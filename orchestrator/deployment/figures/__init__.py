"""Pictures and numbers of how a network does on test, for people to look at: one kind a task, one line in FIGURES."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

from models.family import Batch, Family, Outputs

FIGURES = {
    "classification": "orchestrator.deployment.figures.classification:Classification",
    "regression": "orchestrator.deployment.figures.regression:Regression",
    "segmentation": "orchestrator.deployment.figures.segmentation:Segmentation",
    "ranking": "orchestrator.deployment.figures.ranking:Ranking",
}


class Figures(Protocol):
    """Collects what it needs of each batch, in bounded memory, and draws at the end."""

    def __init__(self, family: Family) -> None: ...

    def add(self, outputs: Outputs, batch: Batch) -> None: ...

    def write(self, folder: Path, scores: dict[str, float], part: str) -> None:
        """PNG and JSON files. `scores`: the metrics of the same rows, named `{part}_...`."""
        ...


def figures_of(family: Family) -> Figures | None:
    """The figures of a family's task; None for a task that has none."""
    path = FIGURES.get(family.task)
    if path is None:
        return None
    module, _, name = path.partition(":")
    made: Figures = getattr(importlib.import_module(module), name)(family)
    return made
