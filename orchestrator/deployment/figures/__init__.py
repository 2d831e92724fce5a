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


def kind_of(task: str) -> type[Figures] | None:
    """The figures of a task; None for a task that has none. What draws and counts them is imported here, which takes seconds."""
    path = FIGURES.get(task)
    if path is None:
        return None
    module, _, name = path.partition(":")
    kind: type[Figures] = getattr(importlib.import_module(module), name)
    return kind
