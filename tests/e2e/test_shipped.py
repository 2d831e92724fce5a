"""What ships does what it promises: the main job at its full size, DDP on this machine, several gangs, real MNIST."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.e2e.conftest import DATA, EXPERIMENT, Shell

pytestmark = pytest.mark.slow
SAME = ("training.epochs=1", "training.precision=fp32", "training.batch_size=50", "model.dropout=0.0", "model.norm=none")


def test_the_main_job_stops_bad_trials_early_and_its_champion_passes_the_gate(shell: Shell) -> None:
    swept = shell.run("sweep", EXPERIMENT, "--json").json
    assert len(swept["trials"]) == 16
    stopped = [trial for trial in swept["trials"] if trial["stopped_by"] == "asha"]
    assert stopped
    assert all(trial["epochs"] < 10 for trial in stopped)
    assert swept["trials"][0]["params"] == {"optimizer.lr": 0.003, "optimizer.name": "adam", "model.dropout": 0.25}
    assert swept["best"]["test"]["test_accuracy"] >= 0.975
    assert shell.run("promote", "digits-cnn", "--json").json["run_id"] == swept["best"]["run_id"]


def test_two_workers_on_this_machine_end_with_the_weights_of_one(shell: Shell) -> None:
    ends = [
        shell.run("train", EXPERIMENT, f"scaling.workers={workers}", *SAME, "optimizer={name: sgd, lr: 0.05}", "--json").json
        for workers in (1, 2)
    ]
    assert [(end["executor"], end["workers"], len(end["nodes"])) for end in ends] == [("inline", 1, 1), ("ddp", 2, 2)]
    one, two = (load_file(shell.folder / end["bundle"] / "weights.safetensors") for end in ends)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5


def test_two_gangs_train_at_once_where_half_a_cpu_a_worker_is_enough(shell: Shell) -> None:
    swept = shell.run(
        "sweep", EXPERIMENT, "scaling={workers: 2, cpus_per_worker: 0.5}", "sweep.trials=4", "sweep.scheduler=none", "training.epochs=2",
        "--json",
    ).json  # fmt: skip
    assert [trial["state"] for trial in swept["trials"]] == ["finished"] * 4
    spans = intervals(shell.folder)
    assert any(a[0] < b[1] and b[0] < a[1] for place, a in enumerate(spans) for b in spans[place + 1 :])
    assert spans[1][0] < spans[0][1], "the second trial waited for the first one's end"


def intervals(folder: Path) -> list[tuple[int, int]]:
    """(start, end) of each trial in ms, by number."""
    with contextlib.closing(sqlite3.connect(folder / ".orchestrator" / "ledger.sqlite")) as db:
        rows = db.execute("select trial, kind, data from entries where kind in ('started', 'ended') and trial is not null").fetchall()
    times: dict[int, dict[str, Any]] = {}
    for trial, kind, data in rows:
        times.setdefault(trial, {})[kind] = json.loads(data)["at_ms"]
    return [(times[trial]["started"], times[trial]["ended"]) for trial in sorted(times)]


@pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason=f"no MNIST in {DATA / 'mnist'}; set ORCHESTRATOR_TEST_DATA to where mnist/ lies")
def test_mnist_reaches_its_published_accuracy_in_one_epoch(shell: Shell) -> None:
    trained = shell.run("train", "configs/mnist-cnn.yaml", f"data.path={DATA / 'mnist'}", "--json", timeout_s=900).json
    assert trained["epochs"] == 1
    assert trained["test"]["test_accuracy"] >= 0.992
