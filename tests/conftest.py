"""What tests share: small data sets, experiments that train in a fraction of a second, and jobs to run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import orchestrator  # noqa: F401  first: it binds `models`, `pipelines` and `cluster` to this project's own
from orchestrator.catalog import catalog
from orchestrator.events import EpochEnded
from orchestrator.experiment.config import Experiment
from orchestrator.experiment.file import apply_override
from orchestrator.experiment.read import resolve
from orchestrator.training.job import Job
from orchestrator.training.trial import run
from pipelines.prepare import Prepared, prepare
from pipelines.raw import Raw, image_column
from pipelines.schema import Column
from pipelines.splits import SplitConfig
from tests.receiver import receiver as receiver

for name, value in {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}.items():
    os.environ.setdefault(name, value)  # MLflow reads them when it is imported
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the tests start hundreds of processes: the first one compiles for all
sys.dont_write_bytecode = False

MakeExperiment = Callable[..., Experiment]
MakeJob = Callable[..., Job]


def drive(job: Job, epochs: int = 99) -> list[Any]:
    """The events of a job that runs in this process, to its end or closed after so many epochs."""
    steps = run(job)
    events: list[Any] = [next(steps)]
    while isinstance(events[-1], EpochEnded) and len(events) < epochs:
        events.append(steps.send(True))
    steps.close()
    return events


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from more, and lose much where other processes run beside."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class CornersConfig:
    """Images of 8x8 whose bright corner is their class; `rows` of them."""

    rows: int = 150
    seed: int = 0


def corners(config: CornersConfig) -> Raw:
    """Learnable in a few steps, and not at once."""
    rng = np.random.default_rng(config.seed)
    labels = rng.permutation(config.rows) % 3
    pixels = rng.integers(0, 160, (config.rows, 8, 8), dtype=np.uint8)
    for row, (label, (y, x)) in enumerate(zip(labels, np.array([(0, 0), (0, 4), (4, 0)])[labels], strict=True)):
        pixels[row, y : y + 4, x : x + 4] += np.uint8(60 + label)
    table = pa.table({"image": image_column(pixels), "label": pa.array([f"corner {label}" for label in labels])})
    return Raw(table, (Column("image", "image", (1, 8, 8), "uint8"),), Column("label", "class", dtype="str"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """150 rows of 8x8 in three classes: 90 to train (32 + 32 + 26), 30 to validate, 30 to test."""
    split = SplitConfig(train=0.6, validation=0.2, test=0.2)
    return prepare("corners", corners, CornersConfig(), split, tmp_path_factory.mktemp("corners"))


@pytest.fixture(scope="session")
def make_experiment(tmp_path_factory: pytest.TempPathFactory) -> MakeExperiment:
    """`make("training.epochs=3", folder=...)`: a small CNN for 2 epochs, with overrides."""
    elsewhere = tmp_path_factory.mktemp("experiment")

    def make(*overrides: str, folder: Path = elsewhere) -> Experiment:
        tree: dict[str, Any] = {
            "name": "corners",
            "data": {"source": "digits"},
            "model": {"family": "cnn", "channels": [4, 6], "pool_after": [1, 2]},
            "optimizer": {"name": "adam", "lr": 0.01},
            "training": {"epochs": 2, "batch_size": 32},
        }
        for override in overrides:
            apply_override(tree, {}, override)
        return resolve(tree, catalog(folder))

    return make


@pytest.fixture
def make_job(make_experiment: MakeExperiment, prepared: Prepared, tmp_path: Path) -> MakeJob:
    """`make("training.epochs=3", checkpoints="a")`: a job of the small experiment; its checkpoints lie below `tmp_path`."""

    def make(*overrides: str, checkpoints: str = "run", resume: bool = False, trial: int | None = None, folder: Path = tmp_path) -> Job:
        experiment = make_experiment(*overrides, folder=folder)
        uri = str(tmp_path / checkpoints)
        return Job(trial, experiment, str(prepared.folder), uri, str(folder), "fp32", 1, experiment.training.epochs, resume)

    return make
