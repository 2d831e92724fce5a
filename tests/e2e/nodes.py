"""A Ray cluster on this machine, of raylets with ports, folders and process groups of their own, so that a test can kill a node."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
DEAD_AFTER = {  # a dead node, which refuses connections, is seen after about 1.5 s, not 14; one that is only slow is waited for
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True)
class Nodes:
    """A running cluster. `env`: what a command needs to reach it (the token); `processes`: `ray start --block`, the head's first."""

    address: str
    env: dict[str, str]
    client_address: str  # ray://
    jobs_address: str | None  # http://, with a dashboard
    processes: list[subprocess.Popen[bytes]]
    folder: Path
    start: Callable[[Path, Mapping[str, str]], subprocess.Popen[bytes]]  # another node, below a folder of its own

    def add(self, env: Mapping[str, str] | None = None) -> None:
        """Another node; `env`: more for its environment."""
        self.processes.append(self.start(self.folder / str(len(self.processes)), env or {}))

    def id(self, place: int) -> str:
        """Of a running node: what its raylet was started with."""
        below = f"{self.folder}/{place}/"
        [raylet] = [words for words in commands().values() if words[0].endswith("raylet/raylet") and below in " ".join(words)]
        [node] = [word.partition("=")[2] for word in raylet if word.startswith("--node_id=")]
        return node

    def drain(self, place: int) -> None:
        """Ray's notice that a node will be taken away."""
        spot = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "600"]
        words = ["drain-node", "--address", self.address, "--node-id", self.id(place), *spot]
        subprocess.run([BIN / "ray", *words], env=os.environ | self.env, check=True, timeout=120)

    def kill(self, place: int) -> None:
        """SIGKILL a whole node: raylet, agents and workers; 0 is the head."""
        below = _running_below(self.folder / str(place))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes[place].pid, signal.SIGKILL)
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.processes[place].wait(20)

    def replace(self, place: int) -> None:
        """Kill a node, and start another one in its place."""
        self.kill(place)
        shutil.rmtree(self.folder / str(place), ignore_errors=True)
        self.processes[place] = self.start(self.folder / str(place), {})


@contextlib.contextmanager
def cluster(
    nodes: int = 2, cpus: int = 1, dashboard: bool = False, env: Mapping[str, str] | None = None, head_cpus: int | None = None
) -> Iterator[Nodes]:
    """So many raylets on 127.0.0.1, with token authentication; `env`: more for the nodes' environment. All ended at the end."""
    folder = Path(tempfile.mkdtemp(prefix="rn", dir="/tmp"))  # short: unix sockets lie below it
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "ORCHESTRATOR_"))}
    path = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    given = inherited | path | DEAD_AFTER | own | dict(env or {})
    gcs, client, board, *agents = _free_ports(3 + nodes)
    head = ["--head", "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--ray-client-server-port={client}"]
    head += [f"--include-dashboard={str(dashboard).lower()}"]
    started: list[subprocess.Popen[bytes]] = []
    hosts = itertools.count(2)

    def joining() -> list[str]:
        return [f"--address=127.0.0.1:{gcs}", f"--node-ip-address=127.0.0.{next(hosts)}"]  # else a command may be on any of them

    try:
        of_head = cpus if head_cpus is None else head_cpus
        started.append(_started([*head, f"--dashboard-port={board}"], agents[0], of_head, given, folder / "0"))
        for place in range(1, nodes):
            started.append(_started(joining(), agents[place], cpus, given, folder / str(place)))
        jobs = f"http://127.0.0.1:{board}" if dashboard else None

        def start(below: Path, more: Mapping[str, str]) -> subprocess.Popen[bytes]:
            return _started(joining(), _free_ports(1)[0], cpus, given | dict(more), below)

        yield Nodes(f"127.0.0.1:{gcs}", own, f"ray://127.0.0.1:{client}", jobs, started, folder, start)
    finally:
        _end(started, folder)


def _end(started: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    for node in reversed(started):
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(5)
    for pid in _running_below(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for node in started:
        node.kill()
        node.wait(20)
    shutil.rmtree(folder, ignore_errors=True)


def _running_below(folder: Path) -> list[int]:
    """The processes that were started with a path below the folder."""
    return [pid for pid, words in commands().items() if any(f"{folder}/" in word for word in words)]


def below(pid: int) -> list[int]:
    """A process, and all that it started, and what these started: Ray's workers have process groups of their own."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(_stat(path)[1]), []).append(int(path.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def alive(pids: Sequence[int]) -> list[int]:
    """Those that run still, zombies left out."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            found += [pid] if _stat(Path(f"/proc/{pid}/stat"))[0] != "Z" else []
    return found


def _stat(path: Path) -> list[str]:
    """State, parent, and so on: what follows the name, which may hold anything."""
    return path.read_text().rpartition(")")[2].split()


def commands() -> dict[int, list[str]]:
    """The command line of every process of this machine."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if words := path.read_text(errors="replace").split("\0"):
                found[int(path.parent.name)] = words
    return found


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def _started(words: Sequence[str], agent: int, cpus: int, env: Mapping[str, str], folder: Path) -> subprocess.Popen[bytes]:
    """A node that is up. Ray gives a raylet 30 s to come up, which a machine that does much else exceeds: then once more."""
    for _ in range(3):
        folder.mkdir()
        node = _start(words, agent, cpus, env, folder)
        if _is_up(node, folder / "log"):
            return node
        for pid in _running_below(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        said = (folder / "log").read_text()
        shutil.rmtree(folder, ignore_errors=True)
        assert "timed out during startup" in said, said[-3000:]
    raise AssertionError(f"no node came up: {said[-3000:]}")


def _start(words: Sequence[str], agent: int, cpus: int, env: Mapping[str, str], folder: Path) -> subprocess.Popen[bytes]:
    own = [f"--temp-dir={folder}/t", f"--num-cpus={cpus}", "--object-store-memory=150000000"]
    ports = [f"--dashboard-agent-listen-port={agent}", "--min-worker-port=0", "--max-worker-port=0"]  # 0: whichever are free
    with (folder / "log").open("w") as out:
        return subprocess.Popen(
            [str(BIN / "ray"), "start", *words, *own, *ports, "--disable-usage-stats", "--block"],
            env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def _is_up(node: subprocess.Popen[bytes], log: Path, timeout_s: float = 180) -> bool:
    """Whether it came up, or ended before it did."""
    deadline = time.monotonic() + timeout_s
    while "Ray runtime started" not in (said := log.read_text()):
        if node.poll() is not None:
            return False
        assert time.monotonic() < deadline, f"no node within {timeout_s} s\n{said[-3000:]}"
        time.sleep(0.1)
    return True
