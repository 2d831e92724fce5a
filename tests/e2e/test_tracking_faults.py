"""An MLflow server that is down, hangs, answers with errors, is slow: training goes on, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.e2e.conftest import EXPERIMENT, Said, Shell, Started, Typed, epochs_in_ledger, wait_for
from tests.mlflow_server import Mood, Proxy, server

pytestmark = pytest.mark.slow
SMALL = ("model.channels=[4]", "model.pool_after=[1]", "model.norm=none", "training.batch_size=256")
Begin = Callable[..., Started]
BOUND_S = 240  # of what takes some 10 s on an idle machine


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with server(tmp_path_factory.mktemp("server")) as port:
        yield port


@pytest.fixture
def proxy(port: int, shell: Shell) -> Iterator[Proxy]:
    """In front of the server; the shell's commands know no other way."""
    made = Proxy(port)
    shell.env["MLFLOW_TRACKING_URI"] = made.uri
    yield made
    made.becomes("well")  # lets go of what hangs
    made.close()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """An experiment of this test's own: the server is everybody's."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)


def rows(folder: Path) -> list[tuple[int | None, str, float | None, int]]:
    """(trial, kind, val_loss, at_ms) of every entry in the ledger."""
    with contextlib.closing(sqlite3.connect(folder / ".orchestrator" / "ledger.sqlite")) as db:
        return db.execute("select trial, kind, json_extract(data, '$.metrics.val_loss'), at_ms from entries order by seq").fetchall()


def everything_arrived_once(shell: Shell, port: int, name: str) -> dict[str, Any]:
    """Asserts that the server has each run of the ledger once, and of each run every epoch once; the runs by key."""
    client = MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id], max_results=1000)
    assert [key for key, n in Counter(run.data.tags["orchestrator.key"] for run in runs).items() if n > 1] == []
    by_trial = {run.data.tags["orchestrator.trial"]: run for run in runs}
    told: dict[str, list[float | None]] = {"": []}
    for trial, kind, loss, _ in rows(shell.folder):
        told.setdefault("" if trial is None else str(trial), []).extend([loss] if kind == "epoch" else [])
    assert set(by_trial) == set(told)
    for trial, losses in told.items():
        history = client.get_metric_history(by_trial[trial].info.run_id, "val_loss") if losses else []
        assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == list(enumerate(losses, start=1))
    return by_trial


def catch_up(said: Said, type_: Typed) -> None:
    """What a command could no longer send before its end, as it says."""
    if "orchestrator sync" in said.err:
        sync(type_)


def sync(type_: Typed) -> None:
    """Send the rest."""
    said = type_("sync")
    assert said.json.get("left") == 0, said.out + said.err


@pytest.fixture
def type_(typed: Typed, shell: Shell) -> Typed:
    """A command in the shell's folder and against its server, in this process."""

    def made(*words: str) -> Said:
        return typed(*words, "--json", folder=shell.folder, env={"MLFLOW_TRACKING_URI": shell.env["MLFLOW_TRACKING_URI"]})

    return made


def test_a_server_that_comes_up_while_training_runs_gets_everything(
    shell: Shell, begin: Begin, proxy: Proxy, port: int, name: str, type_: Typed
) -> None:
    proxy.becomes("refuses")
    train = begin("train", EXPERIMENT, *SMALL, f"name={name}", "training.epochs=40", "--json")
    wait_for("an epoch", lambda: epochs_in_ledger(shell.folder) >= 3 or train.process.poll() is not None, BOUND_S)
    proxy.becomes("well")
    said = train.finish(BOUND_S)
    assert (said.code, said.json["state"]) == (0, "finished")
    catch_up(said, type_)
    [run] = everything_arrived_once(shell, port, name).values()
    assert (run.info.run_id, run.info.status) == (said.json["run_id"], "FINISHED")  # the command itself began it
    assert run.data.metrics["test_accuracy"] == said.json["test"]["test_accuracy"]


PACED = """
import time

from models.cnn import CNN


class Paced(CNN):
    def forward(self, batch):
        if self.training:
            time.sleep(0.1)  # six times an epoch
        return super().forward(batch)
"""


def test_a_server_that_is_down_for_a_minute_in_the_middle_is_told_everything_once_while_training_runs(
    shell: Shell, begin: Begin, proxy: Proxy, port: int, name: str
) -> None:
    (shell.folder / "paced.py").write_text(PACED)
    words = (*SMALL, f"name={name}", "training.epochs=150", "--json")
    (shell.folder / "paced.yaml").write_text((shell.folder / EXPERIMENT).read_text().replace("family: cnn", "class: paced:Paced"))
    train = begin("train", "paced.yaml", *words)
    wait_for("an epoch in MLflow", lambda: proxy.answered >= 4 or train.process.poll() is not None, BOUND_S)
    before = epochs_in_ledger(shell.folder)
    proxy.becomes("refuses")
    time.sleep(60)
    during = epochs_in_ledger(shell.folder) - before
    proxy.becomes("well")
    assert train.process.poll() is None, "it was no trouble in the middle"
    assert during > 20, "training waited"
    said = train.finish(BOUND_S)
    assert (said.code, said.json["state"], said.json["epochs"]) == (0, "finished", 150)
    assert "orchestrator sync" not in said.err
    everything_arrived_once(shell, port, name)


@pytest.mark.parametrize("mood", ["hangs", "429", "500"])
def test_trouble_in_the_middle_loses_no_epoch_and_doubles_none(
    mood: Mood, shell: Shell, begin: Begin, proxy: Proxy, port: int, name: str, type_: Typed
) -> None:
    train = begin("train", EXPERIMENT, *SMALL, f"name={name}", "training.epochs=40", "--json")
    wait_for("an epoch in MLflow", lambda: proxy.answered >= 4 or train.process.poll() is not None, BOUND_S)
    proxy.becomes(mood)
    before = epochs_in_ledger(shell.folder)
    proxy.wait_until_asked(2 if mood != "hangs" else 1)
    wait_for(
        "training to go on", lambda: epochs_in_ledger(shell.folder) >= min(before + 10, 40) or train.process.poll() is not None, BOUND_S
    )
    proxy.becomes("well")
    said = train.finish(BOUND_S)
    assert (said.code, said.json["state"], said.json["epochs"]) == (0, "finished", 40)
    catch_up(said, type_)
    everything_arrived_once(shell, port, name)


@pytest.mark.parametrize("mood", ["hangs", "500"])
def test_a_sweep_that_ends_while_the_server_is_in_trouble_says_so_and_sync_sends_the_rest(
    mood: Mood, shell: Shell, proxy: Proxy, port: int, name: str, type_: Typed
) -> None:
    proxy.becomes(mood)
    short = ("sweep.trials=3", "training.epochs=2", "sweep.scheduler=none", "sweep.executor=inline")
    sweep = shell.run("sweep", EXPERIMENT, *SMALL, *short, f"name={name}", "--json", timeout_s=BOUND_S)
    assert (sweep.json["state"], sweep.json["run_id"], len(sweep.json["trials"])) == ("finished", None, 3)
    [note] = [line for line in sweep.err.splitlines() if "orchestrator sync" in line]
    assert note.startswith(f"note: MLflow at {proxy.uri} has not got everything (")
    asked = time.monotonic()
    refused = type_("runs", name)
    assert (refused.code, len(refused.errors)) == (1, 1)
    assert refused.errors[0].startswith(f"error: MLflow at {proxy.uri}: ")
    assert time.monotonic() - asked < 60  # 10 s of waiting; MLflow's own patience is 16 minutes
    proxy.becomes("well")
    entries = len(rows(shell.folder))
    assert type_("sync").json == {"sent": entries, "left": 0}
    assert type_("sync").json == {"sent": 0, "left": 0}
    everything_arrived_once(shell, port, name)
    assert [trial["epochs"] for trial in type_("runs", name).json["runs"]] == [2, 2, 2]


def test_a_slow_server_slows_no_training_and_the_command_ends(
    shell: Shell, begin: Begin, proxy: Proxy, port: int, name: str, type_: Typed
) -> None:
    proxy.becomes("slow")
    train = begin("train", EXPERIMENT, *SMALL, f"name={name}", "training.epochs=40", "--json")
    wait_for("the last epoch", lambda: epochs_in_ledger(shell.folder) == 40 or train.process.poll() is not None, BOUND_S)
    assert proxy.answered < 20  # one every 5 s; had an epoch to wait for its own, there were 40
    said = train.finish(BOUND_S)
    assert said.code == 0
    [note] = [line for line in said.err.splitlines() if "orchestrator sync" in line]
    assert f"note: MLflow at {proxy.uri} has not got everything" in note
    proxy.becomes("well")
    sync(type_)
    everything_arrived_once(shell, port, name)


def test_a_driver_killed_between_commit_and_sending_loses_nothing_and_repeats_nothing(
    shell: Shell, begin: Begin, proxy: Proxy, port: int, name: str, type_: Typed
) -> None:
    words = ("sweep", EXPERIMENT, *SMALL, f"name={name}", "sweep.trials=3", "sweep.scheduler=none", "training.epochs=20")
    proxy.becomes("hangs")
    sweep = begin(*words, "sweep.executor=inline")
    wait_for("a second trial", lambda: epochs_in_ledger(shell.folder) >= 25 or sweep.process.poll() is not None, BOUND_S)
    os.killpg(sweep.process.pid, signal.SIGKILL)
    sweep.process.wait()
    committed = epochs_in_ledger(shell.folder)
    assert (proxy.answered, 25 <= committed < 60) == (0, True)
    proxy.becomes("well")
    sync(type_)
    runs = everything_arrived_once(shell, port, name)
    assert {trial: run.info.status for trial, run in runs.items() if trial in ("", "0")} == {"": "RUNNING", "0": "FINISHED"}
    done = shell.run(*words, "sweep.executor=inline", "--resume", "--json", timeout_s=BOUND_S)
    catch_up(done, type_)
    assert (done.json["state"], [trial["epochs"] for trial in done.json["trials"]]) == ("finished", [20, 20, 20])
    after = everything_arrived_once(shell, port, name)
    assert {trial: run.info.run_id for trial, run in runs.items()}.items() <= {
        trial: run.info.run_id for trial, run in after.items()
    }.items()
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    assert epochs_in_ledger(shell.folder) == 60
