"""Two machines, as nearly as one can be two: head and worker in network namespaces of their own, with addresses and file systems apart.

The worker doesn't see the driver's folder: the rows reach it through S3, the user's network and the toolkit with the job.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import PROJECT, Said, clean_env, wait_for

BIN = Path(sys.executable).parent
HEAD, WORKER = "10.213.7.1", "10.213.7.2"
NET = "from models.cnn import CNN\nfrom .width import CHANNELS\n\nclass Net(CNN):\n    made_by = 'a user', CHANNELS\n"
EXPERIMENT = """
name: apart
data: {source: digits}
model: {class: 'nets:Net', channels: [4, 6], pool_after: [1, 2]}
training: {epochs: 2, batch_size: 128}
scaling: {workers: 2}
"""
SERVER = """
import json, sys
from tests.s3 import bucket
with bucket(sys.argv[1]) as made:
    print(json.dumps([made.uri, made.env]), flush=True)
    for _ in sys.stdin:
        print(json.dumps(made.names()), flush=True)
"""
NODES = """
import json, ray, sys
ray.init(address=sys.argv[1], logging_level=40, log_to_driver=False)
print(json.dumps({node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}))
"""


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


def why_not() -> str | None:
    """Why this machine can't do it; None if it can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "it needs root and the command `ip`"
    name = f"orc{os.getpid()}t"
    try:
        ip("netns", "add", name)
        try:
            ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("netns", "exec", name, "mount", "-t", "tmpfs", "none", "/mnt")
        finally:
            ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"
    return None


@dataclass
class Apart:
    """`inside`: the words that run a command in each of the two; `hidden`: the driver's folder, which the worker doesn't see."""

    inside: tuple[tuple[str, ...], tuple[str, ...]]
    folder: Path
    hidden: Path
    uri: str
    env: dict[str, str]
    server: subprocess.Popen[str]

    address = f"{HEAD}:6379"

    def run(self, *words: str, code: int = 0) -> Said:
        """An orchestrator command beside the head, in the folder that the worker doesn't see."""
        command = [*self.inside[0], str(BIN / "orchestrator"), *words, "--address", self.address]
        done = subprocess.run(command, cwd=self.hidden, env=self.env, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return Said(done.returncode, done.stdout, done.stderr)

    def stored(self) -> list[str]:
        """What is in the bucket."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write("\n")
        self.server.stdin.flush()
        names: list[str] = json.loads(self.server.stdout.readline())
        return names


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    if (why := why_not()) is not None:
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="nn", dir="/tmp"))  # short: unix sockets lie below it
    names = [f"orc{os.getpid()}{side}" for side in "ab"]
    started: list[subprocess.Popen[Any]] = []
    try:
        link(*names)
        inside = [("ip", "netns", "exec", name) for name in names]
        yield start(folder, (inside[0], inside[1]), started)
    finally:
        end(names, started)
        shutil.rmtree(folder, ignore_errors=True)


def link(one: str, other: str) -> None:
    """Two namespaces, each with an interface eth0 and an address of its own."""
    for name in (one, other):
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    ip("link", "add", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", other)
    for name, address in ((one, HEAD), (other, WORKER)):
        ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")


def start(folder: Path, inside: tuple[tuple[str, ...], tuple[str, ...]], started: list[subprocess.Popen[Any]]) -> Apart:
    """The S3 server and the head in the one, the worker in the other."""
    for part in ("driver", "0", "1"):
        (folder / part / "tmp").mkdir(parents=True)
    (folder / "token").write_text(os.urandom(32).hex())
    write_experiment(folder / "driver")
    env = clean_env() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "GLOO_SOCKET_IFNAME": "eth0", "AWS_EC2_METADATA_DISABLED": "true"}
    server = subprocess.Popen(
        [*inside[0], sys.executable, "-c", SERVER, HEAD], cwd=PROJECT, env=env, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    started.append(server)
    assert server.stdout is not None
    uri, credentials = json.loads(server.stdout.readline())
    env |= credentials
    head = ("--head", f"--node-ip-address={HEAD}", "--port=6379", "--include-dashboard=false")
    started.append(start_node(inside[0], head, env, folder / "0", hide=None))
    worker = (f"--address={HEAD}:6379", f"--node-ip-address={WORKER}")
    started.append(start_node(inside[1], worker, env, folder / "1", hide=folder / "driver"))
    return Apart(inside, folder, folder / "driver", uri, env, server)


def write_experiment(folder: Path) -> None:
    (folder / "apart.yaml").write_text(EXPERIMENT)
    (folder / "nets.py").write_text(NET)
    (folder / "width.py").write_text("CHANNELS = 2\n")
    with (folder / "much.bin").open("wb") as much:
        much.truncate(200_000_000)


def start_node(
    inside: Sequence[str], words: Sequence[str], env: Mapping[str, str], folder: Path, hide: Path | None
) -> subprocess.Popen[bytes]:
    """A raylet that has started. `hide`: a folder that is empty for it."""
    common = ("--num-cpus=1", "--object-store-memory=150000000", "--disable-usage-stats", "--block", f"--temp-dir={folder}/t")
    hidden = f"mount -t tmpfs none '{hide}' && " if hide is not None else ""
    command = [*inside, "sh", "-c", f'{hidden}exec "$@"', "node", str(BIN / "ray"), "start", *words, *common]
    with (folder / "log").open("w") as log:
        node = subprocess.Popen(
            command, env={**env, "TMPDIR": str(folder / "tmp")}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def there() -> bool:
        said = (folder / "log").read_text()
        assert node.poll() is None, said[-3000:]
        return "Ray runtime started" in said

    wait_for("the node", there, 180)
    return node


def end(names: Sequence[str], started: Sequence[subprocess.Popen[Any]]) -> None:
    """Every process of the namespaces, then these themselves."""
    for process in reversed(started):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while (pids := inhabitants(names)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in started:
        process.kill()
        process.wait(20)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def inhabitants(names: Sequence[str]) -> list[int]:
    """The processes in the namespaces."""
    said = [subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout for name in names]
    return [int(pid) for pid in " ".join(said).split()]


def test_a_folder_that_the_other_machine_does_not_see_is_refused_before_the_start(apart: Apart) -> None:
    refused = apart.run("train", "apart.yaml", "--json", code=2)
    (error,) = json.loads(refused.out)["errors"]
    assert error["key"] == "storage.path"
    assert f"node {WORKER} doesn't share '{apart.hidden}/.orchestrator/checkpoints'" in error["message"]
    assert "set storage.path to a place that all nodes see" in error["message"]


def test_a_run_has_a_rank_on_each_machine_with_rows_and_code_that_only_the_driver_had(apart: Apart) -> None:
    trained = json.loads(apart.run("train", "apart.yaml", f"storage.path={apart.uri}", "--json").out)
    assert (trained["state"], trained["executor"], trained["epochs"]) == ("finished", "ddp", 2)
    said = subprocess.run([*apart.inside[0], sys.executable, "-c", NODES, apart.address], env=apart.env, capture_output=True, text=True)
    addresses = json.loads(said.stdout)
    assert sorted(addresses[node] for node in trained["nodes"]) == [HEAD, WORKER]
    stored = apart.stored()
    assert [name for name in stored if name.startswith("checkpoints/data/") and name.endswith("files.json")] != []
    assert not any("much" in name for name in stored)
    code = sorted(path.name for path in (apart.folder / "1" / "tmp").rglob("*.py"))
    assert code == ["nets.py", "width.py"]
    assert list((apart.folder / "1" / "tmp").rglob("train.parquet")) != []
