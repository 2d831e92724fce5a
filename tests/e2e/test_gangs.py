"""Sweeps and runs of several processes each: the driver, the hub or a node goes, and what was under way goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import EXPERIMENT, Shell, Started, Typed, epochs_in_ledger, wait_for
from tests.e2e.nodes import Nodes, below, cluster, commands
from tests.e2e.test_resume import check_complete, kill_after, recorded

pytestmark = pytest.mark.slow
Begin = Callable[..., Started]
TALKS = """
from models.cnn import CNN


class Net(CNN):
    def __init__(self, config, schema):
        super().__init__(config, schema)
        print("made")
"""


def begun(nodes: Nodes, shell: Shell, begin: Begin) -> Started:
    """A run of a gang on two nodes that goes on until it is ended."""
    shell.env |= nodes.env
    words = ("scaling.workers=2", "training.epochs=4000", "training.batch_size=64", "--address", nodes.address, "--json")
    run = begin("train", EXPERIMENT, *words)
    under_way(shell, run, 3)
    return run


def under_way(shell: Shell, run: Started, epochs: int) -> None:
    wait_for("epochs", lambda: epochs_in_ledger(shell.folder) >= epochs or run.process.poll() is not None, 240)
    assert run.process.poll() is None, (run.said / "err").read_text()[-2000:]


def epochs_of(shell: Shell, run: Any) -> list[int]:
    return sorted(row.step for row in shell.client().get_metric_history(run["run_id"], "val_loss"))


def test_a_sweep_of_gangs_goes_on_after_the_deaths_of_its_driver_and_of_its_hub(shell: Shell, begin: Begin) -> None:
    (shell.folder / "talks.py").write_text(TALKS)
    (shell.folder / "talks.yaml").write_text((shell.folder / EXPERIMENT).read_text().replace("family: cnn", "class: talks:Net"))
    words = ("sweep", "talks.yaml", "scaling.workers=2", "sweep.trials=2", "training.epochs=8", "sweep.scheduler=none")
    kill_after(shell, 5, *words)
    before = recorded(shell)
    again = begin(*words, "--resume", "--json")
    under_way(shell, again, 12)
    follows = begin("logs", "digits-cnn", "--trial", "1", "-f")
    wait_for("the output of both", lambda: {"[rank 0] made", "[rank 1] made"} <= set((follows.said / "out").read_text().splitlines()))
    ours = below(again.process.pid)
    [hub] = [pid for pid, words in commands().items() if words[0].startswith("ray::Hub") and pid in ours]
    os.kill(hub, signal.SIGKILL)
    said = again.finish(90)
    assert (said.code, said.json["state"]) == (130, "interrupted")
    assert follows.finish(60).code == 0
    assert len(said.errors) == 1
    assert "--resume" in said.errors[0]
    done = shell.run(*words, "--resume", "--json")
    check_complete(shell, done.json, 2)
    assert "begins afresh" not in done.err
    after = recorded(shell)
    assert all(after[trial][: len(epochs)] == epochs for trial, epochs in before.items()), "what was recorded was recorded again"
    files = shell.run("logs", "digits-cnn", "--trial", "1", "--json").json["files"]
    assert [(file["rank"], "made" in file["lines"]) for file in files] == [(0, True), (1, True)]


def test_a_gang_moves_from_a_node_that_leaves_with_notice(shell: Shell, begin: Begin, typed: Typed) -> None:
    with cluster(nodes=2) as nodes:
        run = begun(nodes, shell, begin)
        nodes.add()
        nodes.drain(1)
        stay = [nodes.id(0), nodes.id(2)]
        wait_for(
            "ranks on the nodes that stay", lambda: all(f"node {id}" in typed("logs", "digits-cnn").out for id in stay), 240, every_s=1
        )
        under_way(shell, run, epochs_in_ledger(shell.folder) + 3)
        os.kill(run.process.pid, signal.SIGTERM)
        said = run.finish(60)
    assert (said.code, said.json["state"]) == (130, "interrupted"), said.err[-3000:]
    assert epochs_of(shell, said.json) == list(range(1, said.json["epochs"] + 1))


def test_a_head_that_dies_ends_a_run_of_a_gang_resumable_and_it_says_how(shell: Shell, begin: Begin) -> None:
    with cluster(nodes=2) as nodes:
        run = begun(nodes, shell, begin)
        nodes.kill(0)
        said = run.finish(150)
    assert (said.code, said.json["state"]) == (130, "interrupted"), said.err[-3000:]
    assert len(said.errors) == 1
    assert "died" in said.errors[0]
    assert " --resume " in said.errors[0]


def test_elastic_gangs_that_lose_a_node_share_what_is_left_and_every_trial_ends(shell: Shell, begin: Begin) -> None:
    with cluster(nodes=2, cpus=2) as nodes:
        shell.env |= nodes.env
        words = ("sweep.trials=3", "sweep.scheduler=none", "training.epochs=30", "training.batch_size=64", "scaling.resize_s=2")
        run = begin("sweep", EXPERIMENT, "scaling.workers=[1,2]", *words, "--address", nodes.address, "--json")
        under_way(shell, run, 8)
        nodes.kill(1)
        said = run.finish(400)
    assert said.code == 0, said.err[-3000:]
    assert (said.json["state"], [trial["state"] for trial in said.json["trials"]]) == ("finished", ["finished"] * 3)
    assert [epochs_of(shell, trial) for trial in said.json["trials"]] == [list(range(1, 31))] * 3
