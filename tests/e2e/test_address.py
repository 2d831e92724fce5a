"""The forms of --address against a real head: its own port, the Ray Client's, with the right token, a wrong one and none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import EXPERIMENT, PROJECT, open_shell
from tests.e2e.nodes import Nodes, cluster

pytestmark = pytest.mark.alone  # the Ray Client gives up a connection after 30 s, which a busy machine exceeds
GREET = """
import sys
import orchestrator
from cluster.handshake import ClusterError, greet, resolved
try:
    greet(resolved(sys.argv[1]))
    print("welcome")
except ClusterError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Nodes]:
    with cluster(nodes=1, cpus=2) as made:
        yield made


def greeted(address: str, env: dict[str, str], home: Path) -> str:
    """What a process without anything of Ray's in its environment but `env` is told at an address."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(home)} | env
    done = subprocess.run([sys.executable, "-c", GREET, address], cwd=PROJECT, env=clean, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.mark.parametrize("form", ["address", "client_address"])
def test_the_token_decides(head: Nodes, form: str, tmp_path: Path) -> None:
    address = getattr(head, form)
    assert greeted(address, head.env, tmp_path) == "welcome"
    (tmp_path / "wrong").write_text("0" * 64)
    wrong = greeted(address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")}, tmp_path)
    assert wrong.startswith(f"the cluster at '{address}' doesn't take this machine's token: it must be the one of its head")
    assert greeted(address, {}, tmp_path).startswith(f"the cluster at '{address}' asks for a token, and there is none here: copy")
    gone = greeted(address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, tmp_path)
    assert gone.startswith(f"no token for '{address}': RAY_AUTH_TOKEN_PATH is set but file cannot be opened")
    assert "\n" not in wrong + gone


def test_a_sweep_through_the_ray_client_ends_like_any_other(head: Nodes, tmp_path: Path) -> None:
    shell = open_shell(tmp_path)
    shell.env |= head.env
    words = ("sweep.trials=2", "training.epochs=2", "sweep.scheduler=none")
    swept = shell.run("sweep", EXPERIMENT, *words, "--address", head.client_address, "--json", timeout_s=400)
    assert (swept.json["state"], [trial["epochs"] for trial in swept.json["trials"]]) == ("finished", [2, 2])


def test_a_run_of_two_workers_through_the_ray_client_ends_like_any_other(head: Nodes, tmp_path: Path) -> None:
    shell = open_shell(tmp_path)
    shell.env |= head.env
    words = ("training.epochs=2", "scaling.workers=2", "--address", head.client_address, "--json")
    trained = shell.run("train", EXPERIMENT, *words, timeout_s=400).json
    assert (trained["state"], trained["executor"], trained["workers"], trained["epochs"]) == ("finished", "ddp", 2, 2)
    assert trained["test"]["test_accuracy"] > 0.5
