"""One Ray a module, since a process has one at a time and other tests start theirs; a small experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cluster
import models
import orchestrator
import pipelines
from cluster.connect import connect
from cluster.resources import Found
from orchestrator.catalog import catalog
from orchestrator.experiment.config import Experiment
from orchestrator.experiment.read import read
from orchestrator.launch import HOOK

SMALL = """
name: small
data: {source: digits}
model: {family: cnn, channels: [4], pool_after: [1]}
optimizer: {lr: 0.01}
training: {epochs: 4, batch_size: 256}
"""

MakeExperiment = Callable[..., Experiment]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Found]:
    packages = {m.__name__: Path(m.__file__ or "").parent for m in (orchestrator, models, pipelines, cluster)}
    with connect(None, HOOK, packages, orchestrator.__version__, {"OMP_NUM_THREADS": "1"}, 2) as found:
        yield found


@pytest.fixture
def experiment(tmp_path: Path) -> MakeExperiment:
    """A function from overrides to the experiment; a user's own modules lie in the test's folder."""
    (tmp_path / "small.yaml").write_text(SMALL)

    def make(*overrides: str) -> Experiment:
        return read(tmp_path / "small.yaml", overrides, catalog(tmp_path))

    return make
