"""A disk that is really full, under the ledger and under MLflow: nothing is lost, and with more room it goes on."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.records.tracking import make_store
from tests.e2e.conftest import EXPERIMENT, Said, Shell, Started, epochs_in_ledger, wait_for
from tests.e2e.test_resume import check_complete, recorded

pytestmark = pytest.mark.slow
SMALL = ("model.channels=[4]", "model.pool_after=[1]", "model.norm=none", "training.batch_size=256")
EPOCHS = 60
Begin = Callable[..., Started]
BOUND_S = 240  # of what takes some 10 s on an idle machine


@dataclass(frozen=True)
class Disk:
    """A tmpfs of some MB, mounted on a folder."""

    folder: Path

    def fill(self) -> None:
        """Take all that is left."""
        with (self.folder / "filler").open("wb", buffering=0) as filler:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        filler.write(bytes(size))

    def grow(self) -> None:
        """Plenty of room, from now on."""
        subprocess.run(["mount", "-o", "remount,size=256m", str(self.folder)], check=True)


MakeDisk = Callable[[Path, int], Disk]


@pytest.fixture
def disk() -> Iterator[MakeDisk]:
    """`disk(folder, size_mb)`: a small disk there; skipped where nobody may mount one."""
    with contextlib.ExitStack() as mounted:

        def made(folder: Path, size_mb: int) -> Disk:
            folder.mkdir()
            words = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)]
            try:
                done = subprocess.run(words, capture_output=True, text=True)
            except FileNotFoundError:
                pytest.skip("there is no `mount` here")
            if done.returncode:
                pytest.skip(f"a tmpfs can't be mounted here: {done.stderr.strip()}")
            mounted.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
            return Disk(folder)

        yield made


def epochs(folder: Path) -> list[int]:
    """The epochs in the ledger, in order; asserts that the file is sound."""
    with contextlib.closing(sqlite3.connect(folder / ".orchestrator" / "ledger.sqlite")) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        return [row[0] for row in db.execute("select json_extract(data, '$.epoch') from entries where kind = 'epoch' order by seq")]


def in_mlflow(shell: Shell, said: Said) -> list[int]:
    """The epochs of the only run that MLflow has, after a `sync` where the command said that one is due."""
    if "orchestrator sync" in said.err:
        assert shell.run("sync", "--json", timeout_s=BOUND_S).json["left"] == 0
    client = MlflowClient(tracking_uri=shell.env.get("MLFLOW_TRACKING_URI", f"sqlite:///{shell.folder}/mlflow.db"))
    [run] = client.search_runs([client.get_experiment_by_name("digits-cnn").experiment_id])
    assert run.info.status == "FINISHED"
    return [metric.step for metric in client.get_metric_history(run.info.run_id, "val_loss")]


def test_a_full_disk_under_the_ledger_is_one_line_and_with_room_the_run_goes_on(
    shell: Shell, begin: Begin, disk: MakeDisk, tmp_path_factory: pytest.TempPathFactory
) -> None:
    small = disk(shell.folder / ".orchestrator", 16)
    words = ("train", EXPERIMENT, *SMALL, f"training.epochs={EPOCHS}", f"storage.path={tmp_path_factory.mktemp('elsewhere')}")
    train = begin(*words, "--json")
    wait_for("epochs", lambda: epochs_in_ledger(shell.folder) >= 3 or train.process.poll() is not None, BOUND_S)
    small.fill()
    said = train.finish(BOUND_S)
    assert said.code == 130
    [error] = said.errors
    assert "can't write '" in error
    assert ".orchestrator/ledger.sqlite': database or disk is full" in error
    assert "orchestrator train" in error
    assert "--resume" in error
    assert "Traceback" not in said.err
    before = epochs(shell.folder)
    assert before == list(range(1, len(before) + 1))
    small.grow()
    done = shell.run(*words, "--json", "--resume", timeout_s=BOUND_S)
    assert (done.json["state"], done.json["epochs"]) == ("finished", EPOCHS)
    assert epochs(shell.folder) == in_mlflow(shell, done) == list(range(1, EPOCHS + 1))


def test_a_full_disk_under_mlflow_stops_no_training_and_with_room_sync_sends_the_rest(shell: Shell, begin: Begin, disk: MakeDisk) -> None:
    small = disk(shell.folder / "store", 8)
    store = small.folder / "mlflow.db"
    shell.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}"
    make_store(shell.env["MLFLOW_TRACKING_URI"])
    train = begin("train", EXPERIMENT, *SMALL, f"training.epochs={EPOCHS}", "--json")
    wait_for("an epoch", lambda: epochs_in_ledger(shell.folder) >= 1 or train.process.poll() is not None, BOUND_S)
    small.fill()
    said = train.finish(BOUND_S)
    assert (said.code, said.json["state"], said.json["epochs"]) == (0, "finished", EPOCHS)
    [note] = [line for line in said.err.splitlines() if "orchestrator sync" in line]
    assert "has not got everything" in note
    assert "full" in note or "No space left" in note
    assert "INSERT" not in note
    refused = shell.run("sync", code=1, timeout_s=BOUND_S)
    assert len(refused.errors) == 1
    small.grow()
    assert in_mlflow(shell, said) == list(range(1, EPOCHS + 1))


def test_a_full_disk_under_the_checkpoints_keeps_the_last_one_and_with_room_the_run_goes_on(
    shell: Shell, begin: Begin, disk: MakeDisk
) -> None:
    small = disk(shell.folder / "checkpoints", 4)
    words = ("train", EXPERIMENT, *SMALL, f"training.epochs={EPOCHS}", "storage.path=checkpoints")
    train = begin(*words, "--json")
    wait_for("epochs", lambda: epochs_in_ledger(shell.folder) >= 3 or train.process.poll() is not None, BOUND_S)
    small.fill()
    said = train.finish(BOUND_S)
    assert (said.code, said.json["state"]) == (130, "interrupted")
    [error] = said.errors
    assert "checkpoints" in error
    assert "No space left on device" in error
    assert "--resume" in error
    before = epochs(shell.folder)
    assert before == list(range(1, len(before) + 1))
    small.grow()
    done = shell.run(*words, "--json", "--resume", timeout_s=BOUND_S)
    assert (done.json["state"], done.json["epochs"]) == ("finished", EPOCHS)
    assert "damaged" not in done.err
    assert epochs(shell.folder) == in_mlflow(shell, done) == list(range(1, EPOCHS + 1))


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("sweep.trials=2", "sweep.scheduler=none"), id="two at a time"),
        pytest.param(("sweep.trials=1", "scaling.workers=2"), id="two workers"),
    ],
)
def test_a_full_disk_under_the_checkpoints_ends_a_sweep_resumable(
    shell: Shell, begin: Begin, disk: MakeDisk, words: tuple[str, ...]
) -> None:
    small = disk(shell.folder / "checkpoints", 4)
    words = ("sweep", EXPERIMENT, *SMALL, f"training.epochs={EPOCHS}", "storage.path=checkpoints", *words)
    sweep = begin(*words, "--json")
    wait_for("epochs", lambda: epochs_in_ledger(shell.folder) >= 3 or sweep.process.poll() is not None, BOUND_S)
    small.fill()
    said = sweep.finish(BOUND_S)
    assert (said.code, said.json["state"]) == (130, "interrupted")
    [error] = said.errors
    assert "No space left on device" in error
    assert "--resume" in error
    before = recorded(shell)
    small.grow()
    done = shell.run(*words, "--json", "--resume", timeout_s=BOUND_S)
    check_complete(shell, done.json, len(done.json["trials"]))
    assert {trial["epochs"] for trial in done.json["trials"]} == {EPOCHS}
    after = recorded(shell)
    assert all(after[trial][: len(epochs)] == epochs for trial, epochs in before.items()), "what was recorded was recorded again"
    assert "damaged" not in done.err
