"""A sweep on a cluster whose nodes die: every node but the head is killed again and again, and every trial ends all the same.

A head without CPUs and two nodes of one CPU, all on this machine. Every `--every` seconds one of the two nodes (raylet, agents, workers)
gets SIGKILL, and a new one joins; the sweep's driver lives. Printed: how many nodes died, that every trial has ended with every epoch
recorded once, and the seconds against the same sweep on nodes that nobody kills.

    python benchmarks/killer.py [--quick] [--trials 24] [--every 30]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

sys.path.insert(0, str(measure.ROOT))
from tests.e2e.nodes import Nodes, cluster


def sweep(nodes: Nodes, folder: Path, trials: int, every_s: float | None) -> tuple[dict[str, Any], float, int]:
    """(its document, its seconds, how many nodes died)."""
    words = [measure.ORCHESTRATOR, "sweep", str(measure.CONFIG), f"sweep.trials={trials}", "training.epochs=10", "sweep.scheduler=none"]
    env = measure.environment(1) | nodes.env
    began, died = time.monotonic(), 0
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen([*words, "--address", nodes.address, "--json"], cwd=folder, env=env, stdout=out, stderr=err)
        while process.poll() is None:
            if every_s is not None and time.monotonic() - began > (died + 1) * every_s:
                nodes.replace(1 + died % 2)
                died += 1
            time.sleep(0.2)
    if process.returncode:
        raise measure.ContenderFailed((folder / "err").read_text()[-2000:])
    return json.loads((folder / "out").read_text()), time.monotonic() - began, died


def check(folder: Path, done: dict[str, Any], trials: int) -> None:
    """Every trial has ended, and has each of its epochs once. Raises AssertionError."""
    from mlflow import MlflowClient

    assert {trial["state"] for trial in done["trials"]} == {"finished"}, done["trials"]
    assert len(done["trials"]) == trials
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    for trial in done["trials"]:
        steps = sorted(row.step for row in client.get_metric_history(trial["run_id"], "val_loss"))
        assert steps == list(range(1, 11)), (trial["trial"], steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 trials: does it run at all?")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two deaths; a node and its worker take about 15 to come")
    asked = parser.parse_args()
    trials = 6 if asked.quick else asked.trials
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    seconds, died = {}, 0
    for name, every_s in (("undisturbed", None), ("killed", asked.every)):
        with tempfile.TemporaryDirectory(prefix="killer-") as folder, cluster(nodes=3, cpus=1, head_cpus=0) as nodes:
            done, seconds[name], killed = sweep(nodes, Path(folder), trials, every_s)
            check(Path(folder), done, trials)
            died += killed
    measure.heading(f"{trials} trials of 10 epochs on two nodes, of which one dies every {asked.every:g} s")
    measure.table(
        [
            ("nodes that died; trials that ended", f"{died}; {trials} of {trials}", "", "", "all"),
            measure.compare("seconds, against nodes that nobody kills", seconds["killed"], seconds["undisturbed"], "told"),
        ]
    )


if __name__ == "__main__":
    main()
