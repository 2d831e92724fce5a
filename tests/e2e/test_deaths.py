"""Nodes that die, nodes that are taken away with notice, a head that dies, memory that is used up."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import EXPERIMENT, Shell, Started, epochs_in_ledger, wait_for
from tests.e2e.nodes import Nodes, below, cluster, commands
from tests.e2e.test_resume import check_complete, recorded

pytestmark = pytest.mark.slow
Begin = Callable[..., Started]
OTHERS_GO_ON = {0.4: "failed", 0.1: "finished", 0.2: "finished", 0.3: "finished"}
NO_MEMORY = "out of memory, and out of memory again when it was alone on its node"
SWEEP = ("sweep.trials=4", "sweep.scheduler=none", "training.batch_size=64")
GREEDY = '''
import os
from pathlib import Path

import torch
from models.cnn import CNN


class Net(CNN):
    """Takes memory until it is killed, where the dropout says so; leaves a line each time."""

    def forward(self, batch):
        if self.training and self.config.dropout == 0.4:
            with open(Path(__file__).with_name("tries"), "a") as tries:
                print("tried", file=tries)
            group = Path(__file__).with_name("group")
            if group.exists():
                Path(group.read_text(), "cgroup.procs").write_text(str(os.getpid()))
            taken = [torch.ones(25 << 20) for _ in range(100)]
        return super().forward(batch)
'''
HUNGRY = """
name: hungry
data: {source: digits}
model: {class: greedy:Net, channels: [4], pool_after: [1]}
training: {epochs: 2, batch_size: 256}
sweep: {search: grid, scheduler: none, space: {model.dropout: {choice: [0.4, 0.1, 0.2, 0.3]}}}
"""


COUNTING = """
import time
from pathlib import Path

from models.cnn import CNN


class Net(CNN):
    # Notes each step that it is trained for, and takes its time: a trial is to be under way when its node leaves.
    def forward(self, batch):
        if self.training:
            time.sleep(0.01)
            with open(Path(FOLDER, f"steps-{self.config.dropout}"), "a") as steps:
                print("step", file=steps)
        return super().forward(batch)
"""
COUNTED = """
name: digits-cnn
data: {source: digits}
model: {class: counting:Net, channels: [4], pool_after: [1]}
training: {epochs: 40, batch_size: 64, checkpoint_every: {minutes: 60}}
sweep: {search: grid, scheduler: none, space: {model.dropout: {choice: [0.1, 0.2, 0.3, 0.4]}}}
"""
STEPS = 40 * 23  # of 1,437 rows


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Nodes]:
    with cluster(nodes=3) as nodes:
        yield nodes


def under_way(nodes: Nodes, shell: Shell, begin: Begin, experiment: str, *words: str) -> Started:
    """A sweep whose every slot has begun an epoch."""
    shell.env |= nodes.env
    sweep = begin("sweep", experiment, *words, "--address", nodes.address, "--json")
    wait_for("epochs", lambda: epochs_in_ledger(shell.folder) >= 6 or sweep.process.poll() is not None, 180)
    assert sweep.process.poll() is None, (sweep.said / "err").read_text()[-2000:]
    return sweep


def test_trials_move_from_nodes_that_leave_and_a_notice_costs_no_step(three_nodes: Nodes, shell: Shell, begin: Begin) -> None:
    """There is no checkpoint but those that a notice brings about: the trial of the node that is killed begins anew."""
    (shell.folder / "counting.py").write_text(COUNTING.replace("FOLDER", repr(str(shell.folder))))
    (shell.folder / "counted.yaml").write_text(COUNTED)
    sweep = under_way(three_nodes, shell, begin, "counted.yaml")
    head = three_nodes.id(0)
    three_nodes.drain(1)
    three_nodes.kill(2)
    said = sweep.finish(400)
    assert said.code == 0, said.err[-3000:]
    done = said.json
    assert (done["state"], [t["state"] for t in done["trials"]]) == ("finished", ["finished"] * 4)
    assert [(t["epochs"], t["error"]) for t in done["trials"]] == [(40, None)] * 4
    client = shell.client()
    for trial in done["trials"]:
        steps = [m.step for m in client.get_metric_history(trial["run_id"], "val_loss")]
        assert sorted(steps) == list(range(1, 41))
        assert json.loads(client.get_run(trial["run_id"]).data.tags["orchestrator.nodes"]) == [head]
    assert len(shell.recorded()) == 5
    trained = sorted(len(path.read_text().splitlines()) for path in shell.folder.glob("steps-*"))
    assert trained[:3] == [STEPS] * 3
    assert trained[3] > STEPS


def test_a_head_that_dies_ends_the_sweep_resumable_and_it_says_how(three_nodes: Nodes, shell: Shell, begin: Begin) -> None:
    words = (EXPERIMENT, *SWEEP, "training.epochs=100")
    sweep = under_way(three_nodes, shell, begin, *words)
    three_nodes.kill(0)
    said = sweep.finish(120)
    assert said.code == 130, said.err[-3000:]
    assert "died" in said.errors[0]
    assert "--resume" in said.err
    assert said.json["state"] == "interrupted"
    before = recorded(shell)
    done = shell.run("sweep", *words, "--resume", "--json", timeout_s=400).json
    check_complete(shell, done, 4)
    after = recorded(shell)
    assert all(after[trial][: len(epochs)] == epochs for trial, epochs in before.items()), "what was recorded was recorded again"


def test_the_death_of_the_control_process_alone_ends_the_sweep_before_ray_ends_the_command(shell: Shell, begin: Begin) -> None:
    sweep = begin("sweep", EXPERIMENT, *SWEEP, "training.epochs=4000", "--json")
    wait_for("epochs", lambda: epochs_in_ledger(shell.folder) >= 4 or sweep.process.poll() is not None, 180)
    assert sweep.process.poll() is None, (sweep.said / "err").read_text()[-2000:]
    ours = below(sweep.process.pid)
    [gcs] = [pid for pid, words in commands().items() if words[0].endswith("gcs_server") and pid in ours]
    os.kill(gcs, signal.SIGKILL)
    said = sweep.finish(120)
    assert said.code == 130, said.err[-3000:]
    assert "Ray's head" in said.errors[0]
    assert "--resume" in said.err


def memory() -> dict[str, int]:
    """Bytes, by /proc/meminfo's names."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}


def greedy(shell: Shell) -> None:
    (shell.folder / "greedy.py").write_text(GREEDY)
    (shell.folder / "hungry.yaml").write_text(HUNGRY)


def with_a_greedy_trial(shell: Shell) -> tuple[dict[float, str], str, int]:
    """Of a sweep of which one trial takes memory without end: the states by dropout, that trial's error, and how often it was tried."""
    trials: Any = shell.run("sweep", "hungry.yaml", "--json", timeout_s=400).json["trials"]
    states = {trial["params"]["model.dropout"]: trial["state"] for trial in trials}
    [error] = [trial["error"] for trial in trials if trial["params"]["model.dropout"] == 0.4]
    return states, error, len((shell.folder / "tries").read_text().splitlines())


@pytest.fixture
def group(shell: Shell) -> Iterator[None]:
    """A control group of little memory for the processes of the trial that takes more: the kernel ends them."""
    root, limit = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
    if not root.exists():  # cgroup v2
        root, limit = root.parent, "memory.max"
    made = root / f"orchestrator-test-{os.getpid()}"
    try:
        made.mkdir()
        (made / limit).write_text(str(300 << 20))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    (shell.folder / "group").write_text(str(made))
    yield
    wait_for("the end of whoever was in the group", lambda: not (made / "cgroup.procs").read_text(), 30)
    made.rmdir()


def test_a_trial_that_the_kernel_kills_for_want_of_memory_gets_one_retry_and_has_failed_with_that_word(shell: Shell, group: None) -> None:
    greedy(shell)
    states, error, tries = with_a_greedy_trial(shell)
    assert states == OTHERS_GO_ON
    assert (error.startswith(NO_MEMORY), tries) == (True, 2)


def test_a_gang_that_the_kernel_kills_for_want_of_memory_gets_one_retry_and_has_failed_with_that_word(shell: Shell, group: None) -> None:
    greedy(shell)
    failed = shell.run("train", "hungry.yaml", "model.dropout=0.4", "scaling.workers=2", "--json", code=1).json
    assert failed["error"].startswith(NO_MEMORY)


@pytest.mark.alone
def test_a_trial_that_ray_kills_for_want_of_memory_gets_one_retry_and_has_failed_and_the_others_go_on(shell: Shell) -> None:
    total, free = memory()["MemTotal"], memory()["MemAvailable"]
    if free < 14e9:
        pytest.skip("less than 14 GB of memory are free: whoever else runs here would be in the way")
    greedy(shell)
    share = (total - free + 5e9) / total
    shell.env |= {"RAY_memory_usage_threshold": f"{share:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    states, error, tries = with_a_greedy_trial(shell)
    assert states == OTHERS_GO_ON
    assert (error.startswith(NO_MEMORY), tries) == (True, 2)
