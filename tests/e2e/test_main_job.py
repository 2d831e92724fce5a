"""The main job, typed: sweep, look, promote, predict, roll back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow.entities import ViewType

from tests.e2e.conftest import BIN, EXPERIMENT, Said, Shell, Typed, wait_for

pytestmark = pytest.mark.slow
Swept = tuple[Shell, Any]
TRIAL = ["trial", "run_id", "state", "stopped_by", "params", "epochs", "best", "error", "wall_s"]


@pytest.fixture(scope="session")
def promoted(swept: Swept) -> Any:
    """The first promotion, with what it said."""
    return swept[0].run("promote", "digits-cnn", "registry.require={}", "--json").json


@pytest.fixture(scope="session")
def test_file(swept: Swept) -> Path:
    """The prepared test part, as `data prepare` names it."""
    shell, _ = swept
    prepared = shell.run("data", "prepare", EXPERIMENT, "--json").json
    assert {part: split["rows"] for part, split in prepared["splits"].items()} == {"train": 1258, "validation": 180, "test": 359}
    assert (prepared["inputs"], prepared["target"], prepared["classes"]) == (["image"], "label", [str(n) for n in range(10)])
    return shell.folder / prepared["splits"]["test"]["files"][0]


def test_a_sweep_says_every_trial_and_the_best_of_them_with_its_test_score(swept: Swept) -> None:
    _, sweep = swept
    assert list(sweep) == ["experiment", "sweep", "run_id", "state", "trials", "best", "wall_s", "baseline", "optimum", "protocol"]
    assert (sweep["experiment"], sweep["state"], [t["trial"] for t in sweep["trials"]]) == ("digits-cnn", "finished", [0, 1, 2])
    assert all(list(trial) == TRIAL for trial in sweep["trials"])
    assert {t["state"] for t in sweep["trials"]} <= {"finished", "stopped"}
    assert sweep["trials"][0]["params"] == {"optimizer.lr": 0.003, "optimizer.name": "adam", "model.dropout": 0.25}
    best = max(t["best"]["metrics"]["val_accuracy"] for t in sweep["trials"])
    assert sweep["best"]["best"]["metrics"]["val_accuracy"] == best
    assert set(sweep["best"]["test"]) == {"test_loss", "test_accuracy"}


def test_every_trial_is_one_run_in_mlflow_with_every_epoch_once(swept: Swept) -> None:
    shell, sweep = swept
    client = shell.client()
    runs = {run.info.run_id: run for run in shell.recorded()}
    trials = {t["run_id"]: t for t in sweep["trials"]}
    assert {run_id for run_id, run in runs.items() if run.data.tags.get("mlflow.parentRunId") == sweep["run_id"]} == set(trials)
    for run_id, trial in trials.items():
        assert runs[run_id].info.status == "FINISHED"
        assert float(runs[run_id].data.params["optimizer.lr"]) == trial["params"]["optimizer.lr"]
        for key in ("train_loss", "val_accuracy"):
            assert sorted(m.step for m in client.get_metric_history(run_id, key)) == list(range(1, trial["epochs"] + 1))


def test_the_leaderboard_is_best_first_and_can_be_cut(swept: Swept, typed: Typed) -> None:
    shell, sweep = swept
    runs = shell.run("runs", "digits-cnn", "--sweep", sweep["sweep"], "--json").json
    scores = [run["best"]["metrics"]["val_accuracy"] for run in runs["runs"]]
    assert scores == sorted(scores, reverse=True)
    assert (runs["runs"][0]["run_id"], {run["sweep"] for run in runs["runs"]}) == (sweep["best"]["run_id"], {sweep["sweep"]})
    table = typed("runs", "digits-cnn", "--top", "1", folder=shell.folder)
    head, run, baseline = table.out.strip().splitlines()
    assert "val_accuracy" in head
    assert run.startswith("1 ")
    assert baseline.split()[:4] == ["baseline:", "majority", "class", "0.1000"]


def test_the_best_trial_becomes_version_1(swept: Swept, promoted: Any) -> None:
    shell, sweep = swept
    assert list(promoted) == ["model", "version", "alias", "run_id", "decision", "reason", "challenger", "champion"]
    assert (promoted["decision"], promoted["version"], promoted["alias"]) == ("promoted", 1, "champion")
    assert promoted["run_id"] == sweep["best"]["run_id"]
    assert shell.client().get_model_version_by_alias("digits-cnn", "champion").run_id == promoted["run_id"]


def test_the_champion_predicts_a_file(swept: Swept, promoted: Any, test_file: Path) -> None:
    shell, _ = swept
    said = shell.run("predict", "models:/digits-cnn@champion", str(test_file), "out.parquet", "--json").json
    assert list(said) == ["rows", "failed", "output", "model", "version", "wall_s"]
    assert (said["rows"], said["failed"], said["model"], said["version"]) == (359, 0, "digits-cnn", 1)
    given, got = pq.read_table(test_file), pq.read_table(shell.folder / "out.parquet")
    right = [str(a) == b for a, b in zip(given["label"].to_pylist(), got["prediction"].to_pylist(), strict=True)]
    assert sum(right) / 359 == pytest.approx(promoted["challenger"]["test_accuracy"], abs=1e-6)


def test_history_rollback_and_the_gate_answer_on_the_command_line(swept: Swept, promoted: Any, typed: Typed) -> None:
    shell, _ = swept
    history = typed("history", "digits-cnn", "--json", folder=shell.folder).json
    assert history["model"] == "digits-cnn"
    assert list(history["entries"][0]) == ["when", "who", "action", "alias", "version", "from", "reason", "scores"]
    gated = typed(
        "promote", "digits-cnn", "registry.model=gated", "registry.require={test_accuracy: {min: 1.01}}", "--json", folder=shell.folder
    )
    assert (gated.code, gated.json["decision"]) == (1, "refused")
    assert "1.01" in gated.errors[0]
    none = typed("rollback", "digits-cnn", "--json", folder=shell.folder)
    assert (none.code, none.errors) == (1, ["error: no earlier champion of 'digits-cnn': nothing to roll back to"])
    assert none.json == {"errors": [{"key": None, "line": None, "message": none.errors[0].removeprefix("error: ")}]}
    trials = [t for t in typed("runs", "digits-cnn", "--json", folder=shell.folder).json["runs"] if t["run_id"] != promoted["run_id"]]
    forced = typed("promote", "digits-cnn", "registry.require={}", "--run", trials[0]["run_id"], "--force", "--json", folder=shell.folder)
    assert (forced.json["decision"], forced.json["version"]) == ("promoted", 2)
    back = typed("rollback", "digits-cnn", "--json", folder=shell.folder)
    assert (back.code, back.json) == (0, {"model": "digits-cnn", "alias": "champion", "from": 2, "to": 1})


def test_sync_has_nothing_to_send_twice(swept: Swept) -> None:
    shell, _ = swept
    before = [(run.info.run_id, len(run.data.metrics)) for run in shell.recorded()]
    assert shell.run("sync", "--json").json["left"] == 0
    assert sorted((run.info.run_id, len(run.data.metrics)) for run in shell.recorded()) == sorted(before)


def test_a_deleted_store_is_filled_again_from_the_ledger_bundles_included(swept: Swept, typed: Typed, tmp_path: Path) -> None:
    shell, sweep = swept
    another = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'another.db'}"}
    assert typed("sync", "--json", folder=shell.folder, env=another).json["left"] == 0
    again = typed("runs", "digits-cnn", "--json", folder=shell.folder, env=another).json["runs"]
    assert sorted(run["trial"] for run in again if run["sweep"] == sweep["sweep"]) == [0, 1, 2]
    promoted = typed("promote", "digits-cnn", "registry.require={}", "--json", folder=shell.folder, env=another).json
    assert (promoted["decision"], promoted["version"]) == ("promoted", 1)


def test_commands_that_only_look_print_what_they_are_for(swept: Swept, typed: Typed) -> None:
    folder = swept[0].folder
    plan = typed("plan", EXPERIMENT, "sweep.trials=3", "--json", folder=folder).json
    assert list(plan)[:8] == ["executor", "why", "trials", "epochs", "workers", "resources", "data", "disk_bytes"]
    assert (plan["executor"], plan["trials"], plan["data"]["rows"]) == ("pool", 3, 1797)
    assert plan["estimate_s"] > 0, "there is a run to estimate by"
    train = typed("plan", EXPERIMENT, "--for", "train", "scaling.workers=2", "--json", folder=folder).json
    assert (train["executor"], train["trials"]) == ("ddp", 1)
    checks = typed("doctor", "--json", folder=folder)
    assert {check["state"] for check in checks.json["checks"]} <= {"ok", "warning"}
    assert all(set(check) == {"name", "state", "says", "do"} for check in checks.json["checks"])
    shown = typed("data", "show", EXPERIMENT, "--json", folder=folder).json
    assert [column["name"] for column in shown["columns"]] == ["image", "label"]
    assert sum(shown["counts"]["train"].values()) == 1258
    schema = typed("schema", folder=folder).json
    assert {"name", "data", "model", "optimizer", "training", "scaling", "sweep", "registry", "storage"} <= set(schema["properties"])


def test_the_ui_answers_on_this_folders_store(swept: Swept) -> None:
    shell, _ = swept
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    ui = shell.start("ui", "--port", str(port))
    try:
        url = f"http://127.0.0.1:{port}"

        def answer() -> bytes:
            assert ui.process.poll() is None, (ui.said / "err").read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5) as found:
                    return bytes(found.read())
            except OSError:
                return b""

        assert wait_for("the UI", answer) == b"OK"
        ask = urllib.request.Request(
            f"{url}/api/2.0/mlflow/experiments/search", json.dumps({"max_results": 10}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(ask, timeout=20) as found:
            assert "digits-cnn" in [experiment["name"] for experiment in json.loads(found.read())["experiments"]]
        assert f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning" in (ui.said / "err").read_text()
    finally:
        os.killpg(ui.process.pid, signal.SIGTERM)
        ui.finish(30)


def test_nothing_is_recorded_but_by_this_experiment(swept: Swept) -> None:
    client = swept[0].client()
    assert sorted(e.name for e in client.search_experiments(view_type=ViewType.ALL)) == ["Default", "digits-cnn"]


def test_python_m_orchestrator_is_the_same_command(tmp_path: Path) -> None:
    done = [
        subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        for words in ([str(BIN / "orchestrator"), "--help"], [str(BIN / "python"), "-m", "orchestrator", "--help"])
    ]
    said = [Said(each.returncode, each.stdout, each.stderr) for each in done]
    assert (said[0].code, said[1].code) == (0, 0)
    commands = [each.out[each.out.index("Commands") :] for each in said]
    assert commands[0] == commands[1]
    assert "sweep" in commands[0]
