"""What is refused as given: in a line or a few, with exit code 2, before anything starts."""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import PROJECT, Shell, Typed, clean_env

EXPERIMENT = str(PROJECT / "configs" / "digits-cnn.yaml")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimiser.lr=0.1", "optimiser: no key 'optimiser'; did you mean 'optimizer'?"),
        ("optimizer.lrr=0.1", "optimizer.lrr: no option of optimizer adam 'lrr'; did you mean 'lr'?"),
        ("optimizer.lr=fast", "optimizer.lr: it must be a"),
        ("optimizer.name=adamm", "optimizer.name: no optimizer 'adamm'; did you mean 'adam"),
        ("training.epochs=0", "training.epochs: it must be greater than 0, not 0"),
        ("training.batch_size=-4", "training.batch_size: it must be greater than 0, not -4"),
        ("model.family=cnnn", "model.family: no family 'cnnn'; did you mean 'cnn'?"),
        ("model.dropout=1.5", "model.dropout"),
        ("data.source=digit", "data.source: no source 'digit'; did you mean 'digits'?"),
        ("scaling.workers=500", "scaling.workers: 500 workers of 1 CPUs don't fit: this machine has"),
        ("sweep.metric=val_acuracy", "sweep.metric: no metric 'val_acuracy'; did you mean 'val_accuracy'?"),
        ("sweep.space={optimizer.lr: {uniform: [1.0, 0.1]}}", "sweep.space.optimizer.lr: uniform: the range [1.0, 0.1] is reversed"),
        ("sweep.space={optimizer.lr: {choice: []}}", "sweep.space.optimizer.lr: choice is empty"),
        ("training.epochs", "'training.epochs' is no KEY=VALUE"),
        ("model={class: nowhere:Net}", "model.class: no family 'nowhere:Net': No module named 'nowhere'"),
    ],
)
def test_a_wrong_experiment_is_one_line_and_nothing_is_recorded(typed: Typed, tmp_path: Path, override: str, says: str) -> None:
    refused = typed("sweep", EXPERIMENT, override, "--json")
    assert refused.code == 2
    [error] = refused.json["errors"]
    assert set(error) == {"key", "line", "message"}
    assert f"{error['key']}: {error['message']}".removeprefix("None: ").startswith(says)
    where = f" (line {error['line']})" if error["line"] else ""
    assert refused.err == (f"error: {error['key']}{where}: {error['message']}\n" if error["key"] else f"error: {error['message']}\n")
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / ".orchestrator" / "ledger.sqlite").exists()


def test_every_mistake_of_a_file_is_said_at_once_with_its_line(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(
        "name: a\ndata: {source: digit}\nmodel: {family: cnn, drop: 1}\ntraining:\n  epochs: 0\nmodle: {}\n"
    )
    refused = typed("train", "wrong.yaml", "--json")
    assert refused.code == 2
    assert [(e["key"], e["line"]) for e in refused.json["errors"]] == [
        ("data.source", 2), ("model.drop", 3), ("training.epochs", 5), ("modle", 6),
    ]  # fmt: skip
    assert len(refused.errors) == 4


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("train", "no-such-file.yaml"), 2, "error: experiment 'no-such-file.yaml': no such file"),
        (("train",), 2, "Missing argument 'EXPERIMENT.yaml'. (see orchestrator --help)"),
        (("sweeep", "a.yaml"), 2, "No such command 'sweeep'"),
        (("plan", EXPERIMENT, "--for", "war"), 2, "'war' is neither train nor sweep"),
        (("runs", "nothing"), 2, "error: no experiment 'nothing' at sqlite:///"),
        (("promote", "nothing"), 2, "error: no experiment 'nothing' at sqlite:///"),
        (("history", "nothing"), 2, "error: no model 'nothing' in the registry at sqlite:///"),
        (("rollback", "nothing"), 2, "error: no model 'nothing' in the registry at sqlite:///"),
        (("predict", "models:/nothing@champion", "in.csv", "out.csv"), 2, "error: no model 'nothing' in the registry at sqlite:///"),
        (("predict", "nothing", "in.csv", "out.csv"), 2, "error: 'nothing' is no model: give models:/NAME@alias"),
    ],
)
def test_what_does_not_exist_is_named(
    typed: Typed, tmp_path_factory: pytest.TempPathFactory, words: tuple[str, ...], code: int, says: str
) -> None:
    empty = tmp_path_factory.getbasetemp() / "empty store"  # one for all: a store takes seconds to make
    empty.mkdir(exist_ok=True)
    said = typed(*words, folder=empty)
    assert said.code == code
    assert says in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""
    [error] = typed(*words, "--json", folder=empty).json["errors"]
    assert error["message"] in said.err


def test_predict_refuses_input_that_does_not_fit_with_exit_2_and_writes_nothing(swept: tuple[Shell, object], typed: Typed) -> None:
    folder = swept[0].folder
    [bundle] = [path for path in (folder / ".orchestrator" / "bundles").iterdir() if (path / "MLmodel").exists()][:1]
    pq.write_table(pa.table({"wrong": [1]}), folder / "wrong.parquet")
    said = typed("predict", str(bundle), "wrong.parquet", "wrong-out.parquet", "--json", folder=folder)
    assert said.code == 2
    assert said.json["errors"][0]["message"] == "input 'wrong.parquet': no column 'image'; the input has: wrong"
    assert not (folder / "wrong-out.parquet").exists()


# data ---------------------------------------------------------------------------------------------------------------------


def idx(folder: Path) -> Path:
    """A tiny set of IDX files."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, rows in (("train", 60), ("t10k", 20)):
        images, labels = rng.integers(0, 255, (rows, 8, 8), dtype=np.uint8), (np.arange(rows) % 2).astype(np.uint8)
        for what, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, values.ndim]) + b"".join(int(side).to_bytes(4, "big") for side in values.shape)
            (folder / f"{part}-{what}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    return folder


@pytest.mark.parametrize("harm", ["missing", "empty", "truncated", "not-idx"])
def test_broken_data_files_are_named(typed: Typed, tmp_path: Path, harm: str) -> None:
    victim = idx(tmp_path / "mnist") / "train-images-idx3-ubyte.gz"
    whole = victim.read_bytes()
    victim.unlink()
    if harm != "missing":
        victim.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "not-idx": b"hello" * 100}[harm])
    said = typed("train", EXPERIMENT, "name=mnist", "data={source: idx, path: mnist}", "--json")
    assert said.code == 2
    assert len(said.errors) == 1
    assert "train-images" in said.errors[0]
    assert said.json["errors"][0]["key"].startswith("data")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", "image,label\n", "t.csv"),
        ("t.csv", "a,b\n1,2\n", "data.target: the target is missing"),
        ("t.parquet", "no parquet", "t.parquet"),
    ],
)
def test_a_broken_table_is_named(typed: Typed, tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    said = typed("data", "show", EXPERIMENT, f"data={{source: table, path: {name}}}")
    assert said.code == 2
    assert says in said.errors[0]


# places -------------------------------------------------------------------------------------------------------------------


def test_a_store_of_another_mlflow_version_is_refused_with_the_command_that_helps(typed: Typed, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as db:
        db.execute("create table alembic_version (version_num text)")
        db.execute("insert into alembic_version values ('0123456789ab')")
    said = typed("train", EXPERIMENT)
    assert said.code == 2
    assert "has schema 0123456789ab, the installed MLflow needs" in said.errors[0]
    assert f"mlflow db upgrade sqlite:///{tmp_path / 'mlflow.db'}" in said.errors[0]
    doctor = typed("doctor", "--json")
    assert doctor.code == 1
    assert [c["name"] for c in doctor.json["checks"] if c["state"] == "error"] == ["mlflow store"]


def test_a_file_that_is_no_store_is_refused(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("my notes")
    said = typed("runs", "anything")
    assert (said.code, len(said.errors)) == (2, 1)
    assert "is no MLflow store" in said.errors[0]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """An empty tmpfs of one megabyte."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"can't mount here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_folder_that_can_not_be_written_is_one_line(mounted: Path) -> None:
    shutil.copy(EXPERIMENT, mounted)
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    said = Shell(mounted, clean_env()).run("train", "digits-cnn.yaml", code=2, timeout_s=60)
    assert len(said.errors) == 1
    assert "Read-only file system" in said.errors[0]
    assert said.out == ""


def test_a_disk_that_is_full_is_one_line(mounted: Path) -> None:
    shutil.copy(EXPERIMENT, mounted)
    with (mounted / "filler").open("wb") as filler:
        free = os.statvfs(mounted)
        filler.write(b"\0" * (free.f_bavail * free.f_frsize - 8192))
    said = Shell(mounted, clean_env()).start("train", "digits-cnn.yaml").finish(60)
    assert said.code in (1, 2)
    assert len(said.errors) == 1
    assert "No space left" in said.errors[0] or "disk" in said.errors[0] or "can't write" in said.errors[0]
    assert "Traceback" not in said.err
