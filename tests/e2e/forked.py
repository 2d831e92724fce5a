"""`orchestrator` in a process of its own that needn't import anything: forked from one that has, by multiprocessing's fork server.

A command spends most of its time on imports, and the tests type hundreds. Everything else is as in a terminal: its own process, session,
folder, environment and output, and its end.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path

EVERYTHING = [
    "orchestrator.cli.app", "orchestrator.api", "orchestrator.execution.pool", "orchestrator.execution.search",
    "orchestrator.training.output", "ray.tune.schedulers", "ray.tune.search.optuna", "torchmetrics.classification", "matplotlib.figure",
    "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store",
]  # fmt: skip


class Forked:
    """A command under way, with what the tests use of subprocess.Popen."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process, self.pid = process, process.pid

    def poll(self) -> int | None:
        """Its exit code; minus the signal that killed it; None while it runs."""
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def send_signal(self, sent: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, sent)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        self.send_signal(signal.SIGKILL)


class Forks:
    """The fork server of this process; `env`: with which it imports."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(EVERYTHING)
        before = dict(os.environ)
        try:
            _become(env)
            ensure_running()
        finally:
            _become(before)

    def start(self, words: Sequence[str], folder: Path, env: Mapping[str, str], out: Path, err: Path) -> Forked:
        """Start `orchestrator WORDS` in a folder, in a session of its own."""
        for path in (out, err):
            path.touch()  # there at once, as the caller opens them
        process = self._context.Process(target=_command, args=(list(words), str(folder), dict(env), str(out), str(err)))
        process.start()
        return Forked(process)


def _become(env: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)


def _command(words: list[str], folder: str, env: Mapping[str, str], out: str, err: str) -> None:
    os.setsid()
    for number, path in ((1, out), (2, err)):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(folder)
    _become(env)
    sys.argv = ["orchestrator", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from orchestrator.cli.app import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
