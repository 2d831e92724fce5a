"""Tracking against a real MLflow server over HTTP, artifacts through it; it is down at first."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.errors import Failed
from orchestrator.events import best_first
from orchestrator.records import tracking
from orchestrator.records.ledger import Ledger
from orchestrator.records.tracking import client, destination, recorded, sync
from tests.records.conftest import Record

HOME = Path(".orchestrator")
DEADLINE_S = 90
Start = Callable[[], None]


@pytest.fixture
def start(folder: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """MLFLOW_TRACKING_URI names a server of our own; it answers once this was called."""
    there = tmp_path_factory.mktemp("server")
    (there / "mlflow.db").write_bytes(empty_store.read_bytes())
    (folder / "mlflow.db").unlink()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    started: list[subprocess.Popen[bytes]] = []

    def up() -> None:
        words = [
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
            "--backend-store-uri",
            f"sqlite:///{there}/mlflow.db",
        ]
        words += ["--artifacts-destination", str(there / "artifacts")]
        with (there / "log").open("wb") as log:
            command = [sys.executable, "-m", "mlflow", *words]
            process = subprocess.Popen(command, cwd=there, stdout=log, stderr=log, start_new_session=True)
        started.append(process)
        _wait_until_it_answers(f"{uri}/health", process, there / "log")

    yield up
    for process in started:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    pause = threading.Event()
    for _ in range(DEADLINE_S * 10):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            pause.wait(0.1)  # between two questions
    raise AssertionError(f"{url} did not answer in {DEADLINE_S} s: {log.read_text()}")


def test_a_server_that_was_down_gets_everything_once_it_is_up_artifacts_through_it(start: Start, record: Record, ledger: Ledger) -> None:
    launch, entries = record(), len(ledger.entries())
    with pytest.raises(Failed, match="took not everything"):
        sync(HOME)
    assert ledger.left(destination()) == entries
    start()
    assert sync(HOME) == (entries, 0)
    of = tracking.reachable_client()
    before = recorded(of, "corners")
    trials = best_first([run.result for run in before if run.kind == "trial"], "val_accuracy", "max")
    assert [(trial.trial, trial.state) for trial in trials] == [(0, "finished"), (1, "stopped"), (2, "failed"), (3, "interrupted")]
    winner = next(run for run in before if run.result.trial == 0)
    assert tracking.experiment_file(of, winner) == tracking.to_yaml(launch.experiment)
    assert winner.model_id is not None
    model = of.get_logged_model(winner.model_id)
    assert model.artifact_location.startswith("mlflow-artifacts:/")
    assert sorted(path.name for path in HOME.parent.iterdir()) == [".orchestrator"]  # no mlruns/ here: the server has the files
    assert sync(HOME, again=True) == (entries, 0)
    assert recorded(client(), "corners") == before
    history = of.get_metric_history(winner.result.run_id, "val_accuracy")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.7), (3, 0.6)]
