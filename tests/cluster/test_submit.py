"""What of a folder travels to a cluster, and the command that runs there."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import cluster
import orchestrator
from cluster import submit
from cluster.connect import ClusterError
from cluster.jobs import Jobs
from orchestrator.errors import Note, Refused

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "digits-cnn.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An experiment beside modules, and 5 GB that nobody asked for."""
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    for name, text in {
        "nets/__init__.py": "",
        "nets/deep/blocks.py": "",
        "unrelated.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "train.parquet").open("wb") as file:
        file.truncate(5_000_000_000)  # sparse
    return tmp_path


def relative(paths: list[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def test_of_a_folder_the_experiment_and_the_given_files_travel_only(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    own = tmp_path_factory.mktemp("packed")
    packages = {"cluster": Path(cluster.__file__ or "").parent}
    packed = submit.pack(folder / "mine.yaml", sorted((folder / "nets").rglob("*.py")), packages, "1.2", own)
    working = Path(packed["working_dir"])
    there = relative(sorted(path for path in working.rglob("*") if path.is_file()), working)
    assert there == ["mine.yaml", "nets/__init__.py", "nets/deep/blocks.py"]
    (wheel,) = packed["py_modules"]
    assert Path(wheel).name.startswith("orchestrator-1.2-")
    assert sum(path.stat().st_size for path in own.rglob("*") if path.is_file()) < 1_000_000


def test_a_job_takes_over_where_things_are_but_no_secret() -> None:
    given = {
        "MLFLOW_TRACKING_URI": "http://server",
        "MLFLOW_TRACKING_PASSWORD": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_REGION": "",
        "HOME": "/",
    }
    assert submit.environment(given)["env_vars"] == {
        "MLFLOW_TRACKING_URI": "http://server",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
    }


def test_a_password_in_a_uri_is_refused_and_what_does_not_travel_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@server")
    with pytest.raises(Refused, match="a user or a password stands in it") as refused:
        orchestrator.cluster_submit(str(CONFIG))
    assert refused.value.problems[0].key == "MLFLOW_TRACKING_URI"
    assert "hunter2" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://server")
    monkeypatch.setenv("ORCHESTRATOR_NOTIFY_URL", "https://hook")
    with pytest.raises(Refused, match="no Ray cluster answers"), pytest.warns(Note, match="ORCHESTRATOR_NOTIFY_URL doesn't travel"):
        orchestrator.cluster_submit(str(CONFIG))


def test_the_command_here_runs_in_the_folder_it_was_sent_from_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder; $HOME"
    (folder / "orchestrator").mkdir(parents=True)
    (folder / "orchestrator" / "__init__.py").write_text("raise RuntimeError('the package of the user')\n")
    entrypoint = submit.entrypoint_here(folder, ["schema"])
    done = subprocess.run(entrypoint, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert '"properties"' in done.stdout
    assert shlex.split(entrypoint)[1] == str(folder)
    assert shlex.split(entrypoint)[4] == sys.executable


class _Head(Jobs):
    """A head that says what it is told to."""

    def __init__(self, said: str) -> None:
        self.said, self.commands = said, list[str]()

    def output_of(self, command: str, timeout_s: float = 120) -> str:
        self.commands.append(command)
        nonce = Path(shlex.split(command)[-1])
        return self.said.format(boot=submit.BOOT.read_text(), nonce=nonce.read_text())


@pytest.mark.parametrize(
    ("said", "here"),
    [
        ("{boot}{nonce}", True),
        ("another boot\n{nonce}", False),  # a folder that both machines mount
        ("{boot}cat: no such file", False),  # a container on this machine
    ],
)
def test_only_a_head_on_this_machine_that_sees_the_folder_works_in_it(said: str, here: bool, tmp_path: Path) -> None:
    assert submit.on_this_machine(_Head(said), tmp_path) is here
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cant_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="can't write in"):
        submit.on_this_machine(_Head(""), tmp_path / "nowhere")
