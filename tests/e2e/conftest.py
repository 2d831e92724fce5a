"""The command line as a person types it: in a folder of its own, in a process of its own."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import app
from tests.e2e.forked import Forked, Forks
from tests.e2e.nodes import Nodes, cluster

PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
DATA = Path(os.environ.get("ORCHESTRATOR_TEST_DATA", PROJECT.parent / "shared" / "data"))
EXPERIMENT = "configs/digits-cnn.yaml"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in its background, and the commands would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
READ_AT_USE = ("MLFLOW_TRACKING_", "AWS_", "ORCHESTRATOR_")
SHORT = ("sweep.trials=3", "training.epochs=2")


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which must be exactly one JSON document."""
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that say what is wrong."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@functools.cache
def forks() -> Forks:
    return Forks(clean_env())


@dataclass
class Shell:
    """Types commands in a folder. `anew`: each imports everything itself, as it does for a person."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    anew: bool = False

    def start(self, *words: str) -> Started:
        """Start a command in a process group of its own; its output goes to files, so that no pipe is ever full."""
        said = Path(tempfile.mkdtemp(prefix="said-"))
        if not self.anew and not self._is_read_by_imports():
            return Started(forks().start(words, self.folder, self.env, said / "out", said / "err"), said)
        with (said / "out").open("w") as out, (said / "err").open("w") as err:
            command = [str(BIN / "orchestrator"), *words]
            process = subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=out, stderr=err, start_new_session=True)
        return Started(process, said)

    def _is_read_by_imports(self) -> bool:
        """Whether the environment holds what may be read when something is imported, and forks() has imported everything without."""
        return any(not name.startswith(READ_AT_USE) for name, _ in self.env.items() ^ clean_env().items())

    def run(self, *words: str, code: int = 0, timeout_s: float = 240) -> Said:
        """Run a command to its end; fails unless it exits with `code`, without a traceback."""
        said = self.start(*words).finish(timeout_s)
        assert said.code == code, f"orchestrator {' '.join(words)}: exit {said.code}, not {code}\n{said.out[-2000:]}\n{said.err[-3000:]}"
        assert "Traceback (most recent call last)" not in said.err + said.out, said.err[-3000:]
        return said

    def client(self) -> Any:
        """An MlflowClient on the folder's own store."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=f"sqlite:///{self.folder / 'mlflow.db'}")

    def recorded(self, experiment: str = "digits-cnn") -> list[Any]:
        """Every MLflow run of an experiment."""
        client = self.client()
        return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=1000))


@dataclass
class Started:
    """A command under way."""

    process: Forked | subprocess.Popen[bytes]
    said: Path

    def finish(self, timeout_s: float) -> Said:
        """Wait for its end; killed, with its group, when the time is up."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            pytest.fail(f"no end after {timeout_s} s\n{(self.said / 'err').read_text()[-3000:]}")
        said = Said(self.process.returncode, (self.said / "out").read_text(), (self.said / "err").read_text())
        shutil.rmtree(self.said, ignore_errors=True)
        return said


def wait_for(what: str, there: Callable[[], Any], timeout_s: float = 180, every_s: float = 0.05) -> Any:
    """Until `there()` is true, which is its answer; fails when the time is up."""
    deadline = time.monotonic() + timeout_s
    while not (found := there()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(every_s)
    return found


def epochs_in_ledger(folder: Path) -> int:
    """How many epochs are on disk."""
    path = folder / ".orchestrator" / "ledger.sqlite"
    if not path.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            return int(db.execute("select count(*) from entries where kind = 'epoch'").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


@functools.cache
def _env() -> dict[str, str]:
    """This process's, as it was at first: what is imported here may add to it."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "RAY_", "ORCHESTRATOR_"))}


def clean_env() -> dict[str, str]:
    return _env() | {"MLFLOW_DISABLE_TELEMETRY": "true", "COLUMNS": "200"}


@functools.cache
def new_store() -> bytes:
    """MLflow's store without a run in it, which takes seconds to make: as a command before would have left it."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db").search_experiments()
        return (Path(folder) / "mlflow.db").read_bytes()


def open_shell(folder: Path) -> Shell:
    shutil.copytree(PROJECT / "configs", folder / "configs")
    (folder / "mlflow.db").write_bytes(new_store())
    return Shell(folder, clean_env())


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return open_shell(tmp_path)


@pytest.fixture
def begin(shell: Shell) -> Iterator[Callable[..., Started]]:
    """Starts a command that ends with the test, whatever happens."""
    begun: list[Started] = []

    def made(*words: str) -> Started:
        begun.append(shell.start(*words))
        return begun[-1]

    yield made
    for command in begun:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.wait()


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, Any]:
    """A folder in which the main job has run once, as a person starts it, and what the sweep said."""
    shell = open_shell(tmp_path_factory.mktemp("swept"))
    shell.anew = True
    return shell, shell.run("sweep", EXPERIMENT, *SHORT, "--json").json


Typed = Callable[..., Said]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    """A command that is parsed, run and printed as in a terminal, but in this process: imports cost more than most commands."""
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def type_(*words: str, folder: Path = tmp_path, env: Mapping[str, str] | None = None) -> Said:
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["orchestrator", *words])
        before = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        code = 0
        try:
            with warnings.catch_warnings():
                app.main()
        except SystemExit as leave:
            code = int(leave.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return type_


@dataclass
class Here(Shell):
    """Types commands that run in this process."""

    typed: Typed = field(kw_only=True)

    def run(self, *words: str, code: int = 0, timeout_s: float = 240) -> Said:
        """Run a command; fails unless it exits with `code`."""
        said = self.typed(*words, folder=self.folder)
        assert said.code == code, f"orchestrator {' '.join(words)}: exit {said.code}, not {code}\n{said.out[-2000:]}\n{said.err[-3000:]}"
        return said


@pytest.fixture
def here(shell: Shell, typed: Typed) -> Here:
    """A shell whose commands run in this process."""
    return Here(shell.folder, shell.env, typed=typed)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Nodes]:
    with cluster() as nodes:
        yield nodes
