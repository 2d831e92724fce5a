"""What a budget ends, what is kept of it, and how it goes on where the budget is raised."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import EXPERIMENT, Here, Shell
from tests.e2e.test_resume import EXPERIMENT_OF_IT

pytestmark = pytest.mark.slow


def test_a_budget_ends_a_sweep_with_its_winner_and_is_counted_over_resumes(here: Here) -> None:
    words = ("sweep", EXPERIMENT, "training.epochs=2", "sweep.trials=6")
    said = here.run(*words, "budget.trials=2", "--json")
    assert (said.json["state"], len(said.json["trials"])) == ("finished", 2)
    assert said.json["best"]["test"]["test_accuracy"] > 0.3
    assert "the budget is used up: budget.trials: 2 of 2 have begun" in said.err
    more = here.run(*words, "budget.trials=3", "--resume", "--json").json
    assert len(more["trials"]) == 3
    used = here.run(*words, "budget.cpu_hours=1e-6", "--resume", "--json")
    assert len(used.json["trials"]) == 3
    assert "budget.cpu_hours" in used.err


TIRED = """
import time
from pathlib import Path

from models.cnn import CNN


class Net(CNN):
    'Each step takes a tenth of a second, while a file says so.'

    def forward(self, *inputs):
        if self.training and Path(__file__).with_name("tired").exists():
            time.sleep(0.1)
        return super().forward(*inputs)
"""


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("train", "budget.wall_s=8"), id="train"),
        pytest.param(("sweep", "sweep.trials=3", "budget.wall_s=16"), id="pool"),
        pytest.param(("train", "scaling.workers=2", "budget.wall_s=24"), id="gang"),
    ],
)
def test_a_budget_in_seconds_ends_runs_in_the_middle_of_an_epoch_and_they_go_on_where_it_is_raised(
    shell: Shell, words: tuple[str, ...]
) -> None:
    """On a machine that is busy it may end them in their first one. A file makes each step slow, and is removed for the resume."""
    (shell.folder / "tired.py").write_text(TIRED)
    (shell.folder / "tired.yaml").write_text(EXPERIMENT_OF_IT.replace("stuck_net:Net", "tired:Net"))
    (shell.folder / "tired").touch()
    command, *rest, budget = words
    words = (command, "tired.yaml", "training.batch_size=32", "training.epochs=12", "model.norm=none", *rest)  # 45 steps an epoch
    said = shell.run(*words, budget, "--json")
    assert "the budget is used up: budget.wall_s: " in said.err
    runs = shell.run("runs", "digits-cnn", "--json").json["runs"]
    assert {(run["state"], run["stopped_by"]) for run in runs} == {("stopped", "budget")}
    assert all(run["epochs"] < 12 for run in runs)
    best = said.json["best"]
    assert (best is not None) == any(run["epochs"] for run in runs)
    if best is not None:
        assert (best["test"] if command == "sweep" else said.json["test"])["test_accuracy"] > 0.05
    (shell.folder / "tired").unlink()
    more = shell.run(*words, "budget.wall_s=3600", "--resume", "--json").json
    after = shell.run("runs", "digits-cnn", "--json").json["runs"]
    assert more["state"] == "finished"
    assert {run["run_id"] for run in runs} <= {run["run_id"] for run in after}
    assert {(run["state"], run["stopped_by"], run["epochs"]) for run in after} == {("finished", None, 12)}
    for run in after:
        assert sorted(row.step for row in shell.client().get_metric_history(run["run_id"], "val_loss")) == list(range(1, 13))
