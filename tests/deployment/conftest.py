"""A working folder with trained runs, made in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import orchestrator
from orchestrator.records.tracking import make_store
from orchestrator.results import Trained

FILE = """
name: small
data: {source: digits}
model: {family: cnn, channels: [8], pool_after: [1]}
optimizer: {lr: 0.02}
training: {epochs: 2, batch_size: 128}
"""

Train = Callable[..., Trained]


@pytest.fixture(scope="session")
def made_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with `small.yaml` in it, the same one for every module: a store takes seconds to make."""
    made = tmp_path_factory.mktemp("working folder")
    (made / "small.yaml").write_text(FILE)
    make_store(f"sqlite:///{made / 'mlflow.db'}")
    return made


@pytest.fixture(scope="module")
def folder(made_folder: Path) -> Iterator[Path]:
    """The working folder while the module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made_folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield made_folder


@pytest.fixture(scope="module")
def train(folder: Path) -> Train:
    """`train("training.epochs=1")`: a run of small.yaml in the working folder."""
    return lambda *overrides: orchestrator.train("small.yaml", overrides)  # type: ignore[no-any-return]
