"""The names that an experiment file may use, looked up where they live: what `experiment` is handed and may not import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models import FAMILIES
from models.metrics import METRICS
from orchestrator import names
from orchestrator.execution.search import check_scheduler, check_searcher
from orchestrator.experiment.config import Mode
from orchestrator.experiment.parts import Catalog, FamilyFacts
from orchestrator.training.optim import OPTIMIZERS
from pipelines import SOURCES
from pipelines.raw import config_class
from pipelines.splits import SplitConfig


def catalog(folder: Path) -> Catalog:
    """The look-ups; paths of a user's own parts are looked for below `folder` first."""

    def family(name: str) -> FamilyFacts:
        cls = names.load(name, FAMILIES, "family", folder)
        return FamilyFacts(cls.Config, metric_modes(cls))

    return Catalog(
        family=family,
        source=lambda name: config_class(names.load(name, SOURCES, "source", folder)),
        optimizer=lambda name: _config(names.load(name, OPTIMIZERS, "optimizer", folder)),
        searcher=lambda name: check_searcher(name, folder),
        scheduler=lambda name: check_scheduler(name, folder),
        split=SplitConfig,
    )


def metric_modes(family: Any) -> dict[str, Mode]:
    """The validation metrics of a family with their directions: its own first, then the loss."""
    own = {f"val_{name}": names.load(METRICS[name], {}, "metric").mode for name in family.metrics}
    return {**own, "val_loss": "min"}


def _config(cls: Any) -> type:
    config: type = cls.Config
    return config


def config_tables() -> tuple[dict[str, type], dict[str, type], dict[str, type], type]:
    """The Config of every source, family and optimizer of ours by name, and of the split."""
    names_of = catalog(Path.cwd())
    return (
        {name: names_of.source(name) for name in SOURCES},
        {name: names_of.family(name).config for name in FAMILIES},
        {name: names_of.optimizer(name) for name in OPTIMIZERS},
        SplitConfig,
    )
