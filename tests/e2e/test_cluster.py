"""A cluster of two nodes on this machine, with a token, from a folder whose own packages raise."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import EXPERIMENT, PROJECT, Nodes, Shell, Typed, open_shell
from tests.e2e.nodes import cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shell(two_nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    shell = open_shell(tmp_path_factory.mktemp("cluster"))
    shell.env |= two_nodes.env
    for name in ("models", "pipelines", "cluster"):
        (shell.folder / name).mkdir()
        (shell.folder / name / "__init__.py").write_text("raise RuntimeError('the package of the user')\n")
    return shell


def nodes_of(shell: Shell, sweep: Any) -> set[str]:
    return {shell.client().get_run(trial["run_id"]).data.tags["orchestrator.nodes"] for trial in sweep["trials"]}


MEETING = """
import os
import time
from pathlib import Path

from models.cnn import CNN


class Net(CNN):
    # Waits until another worker trains too: one that starts late would find nothing left to do.
    def forward(self, batch):
        here, until = Path(FOLDER), time.monotonic() + 120
        (here / f"worker-{os.getpid()}").touch()
        while len(list(here.glob("worker-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        return super().forward(batch)
"""


def test_a_sweep_uses_both_nodes(shell: Shell, two_nodes: Nodes, tmp_path: Path) -> None:
    (shell.folder / "meeting.py").write_text(MEETING.replace("FOLDER", repr(str(tmp_path))))
    (shell.folder / "meeting.yaml").write_text((shell.folder / EXPERIMENT).read_text().replace("family: cnn", "class: meeting:Net"))
    words = ("sweep.trials=4", "training.epochs=2", "--address", two_nodes.address, "--json")
    sweep = shell.run("sweep", "meeting.yaml", *words).json
    assert {trial["state"] for trial in sweep["trials"]} <= {"finished", "stopped"}
    assert len(sweep["trials"]) == 4
    assert len(nodes_of(shell, sweep)) == 2, "one node did everything"


def test_a_run_of_two_workers_has_a_rank_on_each_node(shell: Shell, two_nodes: Nodes) -> None:
    there = Shell(shell.folder, shell.env | {"RAY_ADDRESS": two_nodes.address})
    trained = there.run("train", EXPERIMENT, "training.epochs=2", "scaling.workers=2", "--json").json
    assert (trained["state"], trained["executor"], trained["workers"], trained["epochs"]) == ("finished", "ddp", 2, 2)
    assert len(set(trained["nodes"])) == 2, "both ranks on one node"
    assert trained["test"]["test_accuracy"] > 0.5


def test_ranks_on_two_nodes_learn_together_what_one_worker_learns(shell: Shell, two_nodes: Nodes) -> None:
    same = ("training.epochs=2", "training.precision=fp32", "model.norm=none", "model.dropout=0", "optimizer={name: sgd, lr: 0.05}")
    one = shell.run("train", EXPERIMENT, *same, "--json").json
    two = shell.run("train", EXPERIMENT, *same, "scaling.workers=2", "--address", two_nodes.address, "--json").json
    assert len(set(two["nodes"])) == 2
    losses = [run["best"]["metrics"]["val_loss"] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4), "no gradient crosses"


def test_more_workers_than_the_cluster_has_are_refused(shell: Shell, two_nodes: Nodes) -> None:
    refused = shell.run("train", EXPERIMENT, "scaling.workers=500", "--address", two_nodes.address, code=2)
    assert len(refused.errors) == 1
    assert "the cluster has 2 CPUs" in refused.errors[0]


def test_an_address_where_nothing_answers_is_refused_at_once(typed: Typed) -> None:
    refused = typed("train", str(PROJECT / EXPERIMENT), "--address", "127.0.0.1:1", "--json")
    assert refused.code == 2
    assert "no Ray cluster answers at '127.0.0.1:1'" in refused.json["errors"][0]["message"]


def test_a_node_with_another_torch_is_refused_with_both_versions(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "torch-9.9.9.dist-info").mkdir()
    (tmp_path / "torch-9.9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    here = importlib.metadata.version("torch").partition("+")[0]
    with cluster(nodes=1) as nodes:
        nodes.add({"PYTHONPATH": str(tmp_path)})
        there = Shell(shell.folder, shell.env | nodes.env)
        refused = there.run("train", EXPERIMENT, "--address", nodes.address, code=2)
    [error] = refused.errors
    assert f"node 127.0.0.2 has torch 9.9.9 (here {here}): use the same versions on every node" in error
