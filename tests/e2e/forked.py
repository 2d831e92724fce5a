"""`orchestrator` in a process of its own that needn't import anything: forked from one that has.

A command spends most of its time on imports, and the tests type hundreds. Everything else is as in a terminal: its own process, session,
folder, environment and output. A server that has imported all, and has started nothing, forks a nanny for each command, which forks the
command, says its id, waits for it, and says how it ended.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

PROJECT = Path(__file__).resolve().parents[2]
LARGEST = 1 << 20  # bytes of a request
EVERYTHING = (
    "orchestrator.cli.app", "orchestrator.api", "orchestrator.execution.pool", "orchestrator.execution.search",
    "orchestrator.training.output", "ray.tune.schedulers", "ray.tune.search.optuna", "torchmetrics.classification", "matplotlib.figure",
    "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store",
)  # fmt: skip


class Forked:
    """A command under way, with what the tests use of subprocess.Popen."""

    def __init__(self, told: socket.socket) -> None:
        self.returncode: int | None = None
        self._told = told
        self.pid = self._number()

    def poll(self) -> int | None:
        """Its exit code; minus the signal that killed it; None while it runs."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, sent: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, sent)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        self.send_signal(signal.SIGKILL)

    def _end(self) -> None:
        self.returncode = self._number()
        self._told.close()

    def _number(self) -> int:
        said = self._told.recv(64)
        assert said, "the process that forks commands has died"
        return int(said)


class Forks:
    """The server, as a test sees it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.e2e.forked", str(theirs.fileno())]
            self._server = subprocess.Popen(
                command, cwd=PROJECT, env=dict(env), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )

    def start(self, words: Sequence[str], folder: Path, env: Mapping[str, str], out: IO[str], err: IO[str]) -> Forked:
        """Start `orchestrator WORDS` in a folder, in a session of its own."""
        told, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            request = json.dumps({"words": list(words), "folder": str(folder), "env": dict(env)}).encode()
            socket.send_fds(self._socket, [request], [theirs.fileno(), out.fileno(), err.fileno()])
        return Forked(told)

    def close(self) -> None:
        """End the server; commands under way go on."""
        self._socket.close()
        self._server.wait(30)


def _import_everything() -> None:
    for name in EVERYTHING:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a thread doesn't live through a fork (those of jemalloc and OpenBLAS start again)"


def _serve(requests: socket.socket) -> None:
    """Fork a command for each request; returns in the commands only."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nannies leave no zombies
    while True:
        request, fds = _receive(requests)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if _is_command(json.loads(request), *fds):
                return
        for fd in fds:
            os.close(fd)


def _receive(requests: socket.socket) -> tuple[bytes, list[int]]:
    request, fds, _, _ = socket.recv_fds(requests, LARGEST, 3)
    return request, list(array.array("i", fds))


def _is_command(request: dict[str, object], told: int, out: int, err: int) -> bool:
    """In the nanny's process; returns in the command's."""
    if child := os.fork():
        os.setsid()  # it is to survive a signal to the command's group
        os.write(told, str(child).encode())
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(told, str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    os.setsid()
    os.close(told)
    for number, fd in ((1, out), (2, err)):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(str(request["folder"]))
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]
    sys.argv = ["orchestrator", *request["words"]]  # type: ignore[misc]
    return True


if __name__ == "__main__":
    _import_everything()
    gc.collect()
    gc.freeze()  # else each collection copies pages
    _serve(socket.socket(fileno=int(sys.argv[1])))
    from orchestrator.cli.app import main

    sys.exit(main())
