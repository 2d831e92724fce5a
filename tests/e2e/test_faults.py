"""What goes wrong while it runs: a key pressed, a trial that fails, a server that is down, a folder that is hostile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.e2e.conftest import EXPERIMENT, Shell, clean_env, epochs_in_ledger, open_shell, wait_for
from tests.e2e.nodes import alive, below

pytestmark = pytest.mark.slow
OWN = '''
from models.cnn import CNN


class Net(CNN):
    """Raises where the dropout says so."""

    def forward(self, batch):
        if self.training and self.config.dropout == 0.4:
            raise ValueError("the user's\\nown mistake")
        return super().forward(batch)
'''
TROUBLED = """
name: troubled
data: {source: digits}
model: {class: own.net:Net, channels: [4], pool_after: [1], norm: none}
optimizer: {name: sgd}
training: {epochs: 2, batch_size: 128}
sweep:
  search: grid
  scheduler: none
  space: {model.dropout: {choice: [0.0, 0.4]}, optimizer.lr: {choice: [1e-2, 1e38]}}
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sweep_within_seconds_with_its_runs_killed_and_no_process_left(shell: Shell, sent: signal.Signals) -> None:
    long = ("sweep.trials=8", "training.epochs=500", "sweep.scheduler=none", "--json")
    sweep = shell.start("sweep", EXPERIMENT, *long)
    try:
        wait_for("an epoch", lambda: epochs_in_ledger(shell.folder) >= 4 or sweep.process.poll() is not None)
        ours = below(sweep.process.pid)
        asked = time.monotonic()
        os.kill(sweep.process.pid, sent)
        said = sweep.finish(60)
    finally:
        if sweep.process.poll() is None:
            os.killpg(sweep.process.pid, signal.SIGKILL)
    assert time.monotonic() - asked < 30
    assert said.code == 130
    assert said.errors[0].startswith("error: interrupted: 0 of 8 runs had ended")
    assert f"To go on: orchestrator sweep {EXPERIMENT} " in said.errors[0]
    assert f" --resume {said.json['sweep']}" in said.errors[0]
    assert (said.json["state"], {trial["state"] for trial in said.json["trials"]}) == ("interrupted", {"interrupted"})
    wait_for("the end of every process", lambda: not alive(ours), 15)
    assert [run.info.status for run in shell.recorded()] == ["KILLED"] * 3
    epochs = {trial["run_id"]: trial["epochs"] for trial in said.json["trials"]}
    assert sum(epochs.values()) >= 4
    client = shell.client()
    assert {run: len(client.get_metric_history(run, "val_loss")) for run in epochs} == epochs


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, Any]:
    """A sweep of a user's own family in a folder with spaces and packages that raise: one trial is well, two raise, one diverges."""
    folder = tmp_path_factory.mktemp("a folder with spaces")
    shell = open_shell(folder)
    for name in ("models", "pipelines", "cluster"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('the package of the user')\n")
    (folder / "own").mkdir()
    (folder / "own" / "__init__.py").write_text("")
    (folder / "own" / "net.py").write_text(OWN)
    (folder / "troubled.yaml").write_text(TROUBLED)
    return shell, shell.run("sweep", "troubled.yaml", "--json").json


def test_a_sweep_goes_on_when_trials_fail(troubled: tuple[Shell, Any]) -> None:
    _, sweep = troubled
    states = {(t["params"]["model.dropout"], t["params"]["optimizer.lr"] < 1): t["state"] for t in sweep["trials"]}
    assert states == {(0.0, True): "finished", (0.0, False): "failed", (0.4, True): "failed", (0.4, False): "failed"}
    assert sweep["state"] == "finished"
    assert sweep["best"]["params"] == {"model.dropout": 0.0, "optimizer.lr": 0.01}
    assert sweep["best"]["test"]["test_accuracy"] > 0.2


def test_a_failed_trial_says_in_one_line_what_and_where_in_the_users_own_code(troubled: tuple[Shell, Any]) -> None:
    shell, sweep = troubled
    for trial in (t for t in sweep["trials"] if t["params"]["model.dropout"] == 0.4):
        assert trial["error"] == "ValueError: the user's own mistake (net.py:10)"
    [diverged] = [t["error"] for t in sweep["trials"] if t["params"] == {"model.dropout": 0.0, "optimizer.lr": 1e38}]
    assert diverged == "train_loss is nan at epoch 1: lower optimizer.lr or set training.clip_norm"
    assert len(list((shell.folder / ".orchestrator" / "checkpoints").glob("*/error.txt"))) == 3


def test_a_failed_trial_is_a_failed_run_in_mlflow_with_its_error(troubled: tuple[Shell, Any]) -> None:
    shell, sweep = troubled
    runs = {run.info.run_id: run for run in shell.recorded("troubled")}
    for trial in sweep["trials"]:
        run = runs[trial["run_id"]]
        assert run.info.status == ("FAILED" if trial["error"] else "FINISHED")
        assert run.data.tags.get("orchestrator.error", "") == (trial["error"] or "")
    assert runs[sweep["run_id"]].info.status == "FINISHED"


def test_a_users_own_family_is_promoted_and_predicts(troubled: tuple[Shell, Any]) -> None:
    shell, _ = troubled
    assert shell.run("promote", "troubled", "--json").json["decision"] == "promoted"
    [test] = (shell.folder / ".orchestrator" / "data").glob("*/test.parquet")
    said = shell.run("predict", "models:/troubled@champion", str(test), "out put.csv", "--json").json
    assert said["rows"] > 100
    assert said["failed"] == 0


def test_a_run_that_fails_alone_is_exit_1_with_the_users_line(troubled: tuple[Shell, Any]) -> None:
    shell, _ = troubled
    said = shell.run("train", "troubled.yaml", "model.dropout=0.4", "--json", code=1)
    [error] = said.errors
    assert error.startswith("error: ValueError: the user's own mistake (net.py:10); the whole trace: ")
    assert "Traceback" in Path(error.partition("; the whole trace: ")[2]).read_text()
    assert (said.json["state"], said.json["error"]) == ("failed", "ValueError: the user's own mistake (net.py:10)")


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


def test_a_server_that_is_down_loses_nothing_and_sync_sends_the_rest(shell: Shell, port: int) -> None:
    uri = f"http://127.0.0.1:{port}"
    shell.env |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    said = shell.run("train", EXPERIMENT, "training.epochs=2", "--json")
    assert (said.json["state"], said.json["run_id"], said.json["epochs"]) == ("finished", None, 2)
    assert "orchestrator sync" in said.err
    refused = shell.run("runs", "digits-cnn", code=1)
    assert uri in refused.errors[0]
    env = clean_env() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
         "--backend-store-uri", "sqlite:///late.db", "--artifacts-destination", "late"],
        cwd=shell.folder, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def answers() -> bool:
        assert server.poll() is None
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for("the server", answers)
        sent = shell.run("sync", "--json").json
        assert sent["left"] == 0
        assert sent["sent"] > 4
        client = MlflowClient(tracking_uri=uri)
        [run] = client.search_runs([client.get_experiment_by_name("digits-cnn").experiment_id])
        assert sorted(m.step for m in client.get_metric_history(run.info.run_id, "val_loss")) == [1, 2]
        assert run.data.metrics["test_accuracy"] == said.json["test"]["test_accuracy"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_before_the_first_trial_is_recorded_too(shell: Shell, sent: signal.Signals) -> None:
    sweep = shell.start("sweep", EXPERIMENT, "sweep.trials=8", "--json")
    try:
        wait_for("the launch", lambda: launches_in_ledger(shell.folder) == 1 or sweep.process.poll() is not None)
        os.kill(sweep.process.pid, sent)
        said = sweep.finish(90)
    finally:
        if sweep.process.poll() is None:
            os.killpg(sweep.process.pid, signal.SIGKILL)
    assert said.code == 130
    assert said.errors[-1].startswith("error: interrupted")
    assert said.json
    assert {run.info.status for run in shell.recorded()} == {"KILLED"}


def launches_in_ledger(folder: Path) -> int:
    ledger = folder / ".orchestrator" / "ledger.sqlite"
    if not ledger.exists():
        return 0
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        try:
            return int(db.execute("select count(*) from launches").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def test_an_environment_whose_path_has_a_space_works(shell: Shell, tmp_path: Path) -> None:
    """Ray starts its workers through a shell; a clone in `My Projects/` has such an environment."""
    environment = tmp_path / "my environment"
    environment.symlink_to(sys.prefix)
    words = [
        str(environment / "bin" / "python"),
        "-m",
        "orchestrator",
        "sweep",
        EXPERIMENT,
        "sweep.trials=1",
        "training.epochs=1",
        "--json",
    ]
    done = subprocess.run(words, cwd=shell.folder, env=shell.env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [trial["state"] for trial in json.loads(done.stdout)["trials"]] == ["finished"]
