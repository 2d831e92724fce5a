"""A folder with an MLflow store and a ledger in it, a sweep to record, and what MLflow has then."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.events import EpochEnded, Event, RunEnded, RunStarted, State
from orchestrator.records import tracking
from orchestrator.records.ledger import Launch, Ledger
from orchestrator.records.tracking import client
from tests.conftest import MakeExperiment

HOME = Path(".orchestrator")
AT = 1_700_000_000_000
ABOUT = {
    "commit": "c0ffee",
    "dirty": True,
    "diff": "+LR = 0.2\n",
    "versions": {"torch": "2"},
    "user": "somebody",
    "machine": "here (2 CPUs)",
    "source": "orchestrator sweep corners.yaml",
    "data": {"source": "corners", "path": None, "columns": [{"type": "image", "name": "image"}], "rows": {"train": 90}},
}
ENDS: dict[int, tuple[State, str | None, str | None]] = {
    0: ("finished", None, None),
    1: ("stopped", "asha", None),
    2: ("failed", None, "ValueError: no (nets.py:6)"),
    3: ("interrupted", None, None),
}
Record = Callable[..., Launch]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store, made once: it takes longer than all that is written to it."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.make_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def folder(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with an empty store."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def ledger(folder: Path) -> Iterator[Ledger]:
    made = Ledger(folder / ".orchestrator")
    yield made
    made.close()


@pytest.fixture
def begin(ledger: Ledger, make_experiment: MakeExperiment) -> Record:
    """Begin a launch in the ledger."""

    def made(
        name: str = "sweep-1", command: str = "sweep", at_ms: int = AT, experiment_name: str = "corners", storage: str = "", **about: Any
    ) -> Launch:
        stored = [f"storage.path={storage}"] if storage else []
        experiment = make_experiment("sweep.space.optimizer.lr={loguniform: [1e-3, 1e-1]}", *stored)
        launch = Launch(
            name, command, experiment_name, experiment.plain(), "val_accuracy", "max", "f" * 40, "/experiments", ABOUT | about, at_ms
        )
        ledger.launch(launch)
        return launch

    return made


def events(trial: int | None, end: tuple[State, str | None, str | None], scores: tuple[float, ...] = (0.5, 0.7, 0.6)) -> list[Event]:
    """A run's events: an epoch for each score."""
    at, lr = AT + 1000 * ((trial or 0) + 1), 0.01 * ((trial or 0) + 1)
    params = {"optimizer.lr": lr, "optimizer.name": "adam", "model.channels": [4, 6]}
    found: list[Event] = [RunStarted(trial, at, {"optimizer.lr": lr}, params, {"executor": "inline", "world_size": 1})]
    for epoch, score in enumerate(scores, start=1):
        metrics = {"train_loss": 1 / epoch, "val_loss": 1.0 - score, "val_accuracy": score - 0.01 * (trial or 0)}
        found.append(EpochEnded(trial, epoch, metrics, at + epoch, epoch == len(scores), "continue"))
    state, stopped_by, error = end
    return [*found, RunEnded(trial, state, at + 100, stopped_by, error, "/trace" if error else None, 1.5, ("here",))]


@pytest.fixture
def record(ledger: Ledger, begin: Record) -> Record:
    """Record a whole sweep: a run of each end, the winner's bundle, the closing."""

    def made(name: str = "sweep-1", **about: Any) -> Launch:
        launch = begin(name, **about)
        for trial, end in ENDS.items():
            ledger.append(launch.id, events(trial, end))
        bundle = ledger.path.parent / "bundles" / f"{name}-0"
        bundle.mkdir(parents=True)
        (bundle / "MLmodel").write_text("flavors: {}\n")
        (bundle / "weights.safetensors").write_bytes(b"weights")
        ledger.note(launch.id, 0, "kept", {"bundle": str(bundle), "epoch": 2, "test": {"test_accuracy": 0.65, "test_loss": 0.4}})
        closing = {
            "state": "finished",
            "tags": {"state": "finished", "best_trial": 0},
            "metrics": {"val_accuracy": 0.7},
            "note": "| table |",
        }
        ledger.note(launch.id, None, "closed", closing)
        return launch

    return made


def runs(of: Any = None) -> dict[str, Any]:
    """MLflow's runs by their key."""
    of = of or client()
    experiment = of.get_experiment_by_name("corners")
    found = of.search_runs([experiment.experiment_id]) if experiment else []
    return {run.data.tags["orchestrator.key"]: run for run in found}


def everything() -> dict[str, Any]:
    """All that MLflow has of the experiment, without the ids that a store gives."""
    of, seen = client(), {}
    keys = {run.info.run_id: key for key, run in runs(of).items()}
    for key, run in runs(of).items():
        tags = {k: v for k, v in run.data.tags.items() if k != "orchestrator.model_id"}
        if "mlflow.parentRunId" in tags:
            tags["mlflow.parentRunId"] = keys[tags["mlflow.parentRunId"]]
        history = {
            name: [(m.value, m.timestamp, m.step) for m in of.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
        }
        inputs = [(d.dataset.name, d.dataset.digest, d.tags[0].value) for d in run.inputs.dataset_inputs]
        seen[key] = {
            "name": run.info.run_name,
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time),
            "params": run.data.params,
            "tags": tags,
            "history": history,
            "inputs": inputs,
            "models": len(run.outputs.model_outputs) if run.outputs else 0,
            "files": sorted(f.path for f in of.list_artifacts(run.info.run_id)),
        }
    return seen


def unused_port() -> int:
    """Where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
