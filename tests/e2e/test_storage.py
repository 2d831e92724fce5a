"""Checkpoints in S3: a sweep whose runs lie there, promoted from there; its credentials are written down nowhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.events import RunEnded
from orchestrator.records.ledger import Ledger
from orchestrator.records.mirror import mirror_of, mirrored, restore
from orchestrator.training import checkpoint
from tests.e2e.conftest import EXPERIMENT, PROJECT, Shell, Typed, epochs_in_ledger, open_shell, wait_for
from tests.e2e.nodes import below
from tests.e2e.test_resume import ALONE, check_complete, with_killer
from tests.s3 import Bucket, bucket


@pytest.fixture(scope="module")
def s3() -> Iterator[Bucket]:
    with bucket() as made:
        yield made


@pytest.fixture(scope="module")
def swept(s3: Bucket, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, Any]:
    shell = open_shell(tmp_path_factory.mktemp("s3"))
    shell.env |= s3.env
    return shell, shell.run(
        "sweep", EXPERIMENT, "sweep.trials=2", "training.epochs=2", f"storage.path={s3.uri}", "--json", timeout_s=400
    ).json


def test_each_run_of_a_sweep_has_its_checkpoints_in_the_bucket(swept: tuple[Shell, Any], s3: Bucket) -> None:
    shell, sweep = swept
    assert [trial["state"] for trial in sweep["trials"] if trial["state"] not in ("finished", "stopped")] == []
    assert sweep["best"]["test"]["test_accuracy"] > 0.5
    folders = {name.split("/")[1] for name in s3.names() if name.startswith("checkpoints/")}
    assert folders >= {f"{sweep['sweep']}-{trial['trial']}" for trial in sweep["trials"]}
    assert not (shell.folder / ".orchestrator" / "checkpoints").exists()


def test_a_run_that_is_not_the_best_is_promoted_from_its_checkpoint_in_the_bucket(swept: tuple[Shell, Any]) -> None:
    shell, sweep = swept
    other = next(trial for trial in sweep["trials"] if trial["trial"] != sweep["best"]["trial"])
    promoted = shell.run("promote", "digits-cnn", "registry.require={}", "--run", other["run_id"], "--json").json
    assert (promoted["decision"], promoted["run_id"]) == ("promoted", other["run_id"])
    assert shell.client().get_model_version_by_alias("digits-cnn", "champion").run_id == other["run_id"]


def test_the_credentials_are_written_down_nowhere(swept: tuple[Shell, Any], s3: Bucket) -> None:
    shell, _ = swept
    files = [path for path in shell.folder.rglob("*") if path.is_file()]
    assert any(path.name == "ledger.sqlite" for path in files)
    assert any(path.name == "mlflow.db" for path in files)
    secret = s3.secret.encode()
    assert [path for path in files if secret in path.read_bytes()] == []
    assert [name for name in s3.names() if secret in s3.content(name)] == []


def ended_in_copy(storage: str) -> set[int | None]:
    """The trials that have ended, by the copy of the only sweep's ledger."""
    where = mirror_of(storage, "digits-cnn", "sweep")
    with tempfile.TemporaryDirectory() as folder:
        for launch in mirrored(where):
            restore(where, Path(folder), launch)
            with contextlib.closing(Ledger(Path(folder))) as copy:
                return {event.trial for event in copy.events(launch) if isinstance(event, RunEnded)}
    return set()


def test_a_sweep_whose_folder_is_lost_goes_on_in_another_one_from_the_storage(tmp_path: Path) -> None:
    """With a family of its own, and epochs that MLflow has and neither the ledger's copy nor a checkpoint."""
    first, second = (with_killer(open_shell(tmp_path / name)) for name in ("first", "second"))
    first.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{second.folder / 'mlflow.db'}"
    words = ("sweep", "killed.yaml", "sweep.trials=3", "training.epochs=4", "sweep.scheduler=none", ALONE)
    (first.folder / "moment").write_text("training 130")  # of 80 a trial
    (first.folder / "hold").touch()
    killed = first.start(*words, "storage.path=../shared")
    wait_for("the end of a trial in the copy", lambda: 0 in ended_in_copy(f"{tmp_path}/shared") or killed.process.poll() is not None)
    (first.folder / "hold").unlink()
    assert killed.finish(200).code == -signal.SIGKILL
    first.run("sync")
    shutil.rmtree(first.folder)
    done = second.run(*words, f"storage.path={tmp_path}/shared", "--resume", "--json")
    assert "goes on: runs that had ended: 1" in done.err
    check_complete(second, done.json, 3)
    assert second.run("promote", "digits-cnn", "registry.require={}", "--json").json["decision"] == "promoted"


def between_sends(folder: Path) -> None:
    """Until nothing was sent to MLflow for half a second, after something was: the next time is a second later."""
    marks = [0] * 10
    while marks[0] == 0 or len(set(marks)) > 1:
        time.sleep(0.05)
        with contextlib.closing(sqlite3.connect(f"file:{folder}/.orchestrator/ledger.sqlite?mode=ro", uri=True)) as db:
            marks = [*marks[1:], db.execute("select coalesce(max(seq), 0) from sent").fetchone()[0]]


@pytest.mark.slow
def test_a_command_that_was_given_up_for_dead_and_lives_leaves_its_sweep_to_the_one_that_goes_on(tmp_path: Path) -> None:
    """Stopped, as if its machine were cut off, with its workers."""
    first, second = (open_shell(tmp_path / name) for name in ("first", "second"))
    first.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{second.folder / 'mlflow.db'}"
    words = ("sweep", EXPERIMENT, "sweep.trials=4", "training.epochs=12", "sweep.scheduler=none", f"storage.path={tmp_path}/shared")
    copies = tmp_path / "shared" / "ledgers" / "digits-cnn" / "sweep"
    sweep = first.start(*words)
    wait_for("an epoch", lambda: epochs_in_ledger(first.folder) >= 6 and list(copies.glob("*.sqlite")))
    between_sends(first.folder)
    stopped = below(sweep.process.pid)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    other = second.start(*words, "--resume", "--json")
    wait_for("the one that goes on", lambda: epochs_in_ledger(second.folder) >= 20 or other.process.poll() is not None)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    said, done = sweep.finish(120), other.finish(200)
    assert said.code == 130, said.err[-3000:]
    assert f"another command goes on with this launch by now, on {socket.gethostname()}: " in said.errors[0]
    assert "orchestrator sync" not in said.err
    assert done.code == 0, done.err[-3000:]
    first.run("sync")
    check_complete(second, done.json, 4)
    for trial in done.json["trials"]:
        state = checkpoint.load(f"{tmp_path}/shared/{done.json['sweep']}-{trial['trial']}")
        assert state is not None
        assert len(state["history"]) == 12
    refused = first.run(*words, "--resume", code=2)
    assert "another machine has gone on with sweep" in refused.errors[0]


@pytest.mark.parametrize("option", ["secret_key=hunter2", "access_key=hunter2", "session_token=hunter2"])
def test_credentials_in_the_uri_are_refused(typed: Typed, option: str) -> None:
    refused = typed("train", str(PROJECT / EXPERIMENT), f"storage.path=s3://bucket/x?{option}", "--json")
    assert (refused.code, refused.json["errors"][0]["key"]) == (2, "storage.path")
    assert "put them into the environment" in refused.json["errors"][0]["message"]
    assert "hunter2" not in refused.out + refused.err


def test_a_store_that_does_not_answer_is_refused_before_anything_is_trained(typed: Typed, s3: Bucket, tmp_path: Path) -> None:
    wrong = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_CONFIG_FILE": os.devnull}
    uri = s3.uri.replace(f":{s3.port}", ":1") + "&connect_timeout=1&request_timeout=1"
    refused = typed("train", str(PROJECT / EXPERIMENT), f"storage.path={uri}", "--json", env=wrong)
    assert (refused.code, refused.json["errors"][0]["key"]) == (2, "storage.path")
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / ".orchestrator" / "data").exists()
