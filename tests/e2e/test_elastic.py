"""A run of `scaling.workers: [1, 2]` on nodes that die and come back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import EXPERIMENT, Shell, Started, Typed, epochs_in_ledger, wait_for
from tests.e2e.nodes import cluster

pytestmark = pytest.mark.slow
ELASTIC = (
    "scaling.workers=[1,2]",
    "scaling.resize_s=2",
    "training.batch_size=64",
    "training.epochs=4000",
    "training.checkpoint_every={epochs: 1}",
)


def test_a_run_begins_with_what_is_there_grows_with_a_node_and_shrinks_without_it(
    shell: Shell, begin: Callable[..., Started], typed: Typed, tmp_path: Path
) -> None:

    def trained(more: int) -> None:
        """So many epochs were recorded; one that saw more rows than there are, or fewer, ends a run as failed."""
        enough = epochs_in_ledger(tmp_path) + more
        wait_for("epochs", lambda: epochs_in_ledger(tmp_path) >= enough or run.process.poll() is not None, 180)
        assert run.process.poll() is None, (run.said / "err").read_text()[-2000:]

    def resumed() -> list[str]:
        said = typed("logs", "digits-cnn").out
        return [line.partition("note: ")[2] for line in said.splitlines() if "note: resumed with" in line]

    with cluster(nodes=1) as nodes:
        shell.env |= nodes.env
        run = begin("train", EXPERIMENT, *ELASTIC, "--address", nodes.address, "--json")
        trained(3)
        nodes.add()
        wait_for("a rank on the new node", resumed, 180, every_s=1)
        trained(3)
        nodes.kill(1)
        wait_for("the rank alone", lambda: len(resumed()) > 1, 180, every_s=1)
        trained(3)
        os.kill(run.process.pid, signal.SIGTERM)
        said = run.finish(60)
    assert said.code == 130, said.err[-3000:]
    assert said.json["state"] == "interrupted"
    assert resumed() == [f"resumed with {now} workers instead of {was}: from here not bit for bit" for now, was in ((2, 1), (1, 2))]
    steps = [m.step for m in shell.client().get_metric_history(said.json["run_id"], "train_loss")]
    assert sorted(steps) == list(range(1, said.json["epochs"] + 1))
