"""The driver dies, at any moment, and `--resume` finishes exactly the rest."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import time
from typing import Any

import pytest

from orchestrator.execution.executor import GRACE_S
from orchestrator.records.ledger import Ledger
from orchestrator.training import checkpoint
from tests.e2e.conftest import EXPERIMENT, Here, Shell, epochs_in_ledger, open_shell, wait_for
from tests.e2e.nodes import alive, below

pytestmark = pytest.mark.slow
EACH_EPOCH = "training.checkpoint_every={epochs: 1}"
LONG = ("sweep.trials=8", "training.epochs=6", "sweep.scheduler=none", EACH_EPOCH)
SOME = ("sweep.trials=6", "training.epochs=3")
ALONE = "sweep.executor=inline"  # one slot, so that the searcher hears in one order; and ten starts without Ray's
TIMED = ("epoch_s", "samples_per_s")


def kill_after(shell: Shell, epochs: int, *words: str) -> None:
    """Start a command, and kill its driver when so many epochs are recorded; then what is left: Ray's agents take a minute to notice."""
    command = shell.start(*words)
    try:
        wait_for("epochs", lambda: epochs_in_ledger(shell.folder) >= epochs or command.process.poll() is not None, 300)
        command.process.kill()
        said = command.finish(60)
        assert said.code == -signal.SIGKILL, f"it had ended before, with {said.code}\n{said.err[-3000:]}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.process.pid, signal.SIGKILL)


def ledger_of(shell: Shell) -> Ledger:
    return Ledger(shell.folder / ".orchestrator")


def recorded(shell: Shell) -> dict[int, list[tuple[int, float]]]:
    """(epoch, val_loss) of every trial, as the ledger has them."""
    ledger = ledger_of(shell)
    [launch] = ledger.launches()
    found: dict[int, list[tuple[int, float]]] = {}
    for entry in ledger.entries(launch):
        if entry.kind == "epoch" and entry.trial is not None:
            found.setdefault(entry.trial, []).append((entry.data["epoch"], entry.data["metrics"]["val_loss"]))
    ledger.close()
    return found


def check_complete(shell: Shell, sweep: Any, trials: int) -> None:
    """Every trial is one MLflow run with every epoch once, as the ledger has it."""
    assert (sweep["state"], len(sweep["trials"])) == ("finished", trials)
    assert {trial["state"] for trial in sweep["trials"]} <= {"finished", "stopped"}
    runs = shell.recorded()
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == sweep["run_id"]]
    assert sorted(run.info.run_id for run in children) == sorted(trial["run_id"] for trial in sweep["trials"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    client, ledger = shell.client(), recorded(shell)
    for trial in sweep["trials"]:
        history = [(row.step, row.value) for row in client.get_metric_history(trial["run_id"], "val_loss")]
        assert sorted(history) == ledger[trial["trial"]]
        assert [epoch for epoch, _ in sorted(history)] == list(range(1, trial["epochs"] + 1))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[tuple[int, float]]]:
    """The main job, never killed: what it records."""
    shell = open_shell(tmp_path_factory.mktemp("undisturbed"))
    shell.run("sweep", EXPERIMENT, *LONG, ALONE)
    return recorded(shell)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_driver_killed_at_random_moments_loses_nothing_and_repeats_nothing(
    shell: Shell, seed: int, undisturbed: dict[int, list[tuple[int, float]]]
) -> None:
    moments = sorted(random.Random(seed).sample(range(1, 47), 10))
    words = ("sweep", EXPERIMENT, *LONG, ALONE)
    for place, epochs in enumerate(moments):
        kill_after(shell, epochs, *words, *(["--resume"] if place else []))
    before = recorded(shell)
    done = shell.run(*words, "--resume", "--json").json
    check_complete(shell, done, 8)
    after = recorded(shell)
    assert all(after[trial][: len(epochs)] == epochs for trial, epochs in before.items()), "what was recorded was recorded again"
    assert after == undisturbed, "it went another way than the sweep that nobody killed"


def test_a_sweep_of_two_slots_with_asha_goes_on_where_it_was_from_random_moments(shell: Shell) -> None:
    words = ("sweep", EXPERIMENT, "sweep.trials=10", "training.epochs=4", "sweep.scheduler={name: asha, reduction_factor: 2}")
    for place, epochs in enumerate(sorted(random.Random(2).sample(range(1, 15), 10))):
        kill_after(shell, epochs, *words, *(["--resume"] if place else []))
    said = shell.run(*words, "--resume", "--json")
    check_complete(shell, said.json, 10)
    assert "goes on: runs that had ended: " in said.err
    assert "begins afresh" not in said.err, "the replay was not exact"


COUNTING = """
import os
import time
from pathlib import Path

from models.cnn import CNN


class Net(CNN):
    # Notes each step that it is trained for, and takes its time.
    def forward(self, batch):
        if self.training:
            time.sleep(0.005)
            with Path(__file__).with_name("steps").open("ab") as steps:
                steps.write(b".")
        return super().forward(batch)
"""


def test_trials_that_were_under_way_in_the_pool_go_on_from_their_checkpoints_when_the_driver_is_back(shell: Shell) -> None:
    (shell.folder / "counting.py").write_text(COUNTING)
    (shell.folder / "counted.yaml").write_text((shell.folder / EXPERIMENT).read_text().replace("family: cnn", "class: counting:Net"))
    words = ("sweep", "counted.yaml", "sweep.trials=2", "training.epochs=20", "sweep.scheduler=none", EACH_EPOCH)
    kill_after(shell, 24, *words)
    shell.run("sync")
    of_killed = shell.run("runs", "digits-cnn", "--json").json["runs"]
    assert sorted((run["state"], run["epochs"]) for run in of_killed) == sorted(("running", len(e)) for e in recorded(shell).values())
    assert all(run["best"]["metrics"]["val_accuracy"] > 0.1 for run in of_killed)
    check_complete(shell, shell.run(*words, "--resume", "--json").json, 2)
    epoch = 20  # steps
    assert (shell.folder / "steps").stat().st_size <= 2 * 20 * epoch + 2 * 2 * epoch, "they began anew: each had some 12 epochs"


def weights(shell: Shell) -> dict[str, Any]:
    [folder] = (shell.folder / ".orchestrator" / "checkpoints").iterdir()
    state = checkpoint.load(str(folder))
    assert state is not None
    return dict(state["training"]["model"])


KILLER = """
import os
import signal
import time
from collections import Counter
from pathlib import Path

from models.cnn import CNN

MOMENT = Path(__file__).with_name("moment")
passes = Counter()


class Net(CNN):
    '''Kills its process at the forward pass that a file names, once.'''

    def forward(self, batch):
        kind = "training" if self.training else "evaluation"
        passes[kind] += 1
        if self.training:
            with MOMENT.with_name("steps").open("ab") as steps:
                steps.write(b".")
        if MOMENT.exists() and MOMENT.read_text() == f"{kind} {passes[kind]}":
            MOMENT.unlink()
            while MOMENT.with_name("hold").exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(batch)
"""
TRAIN = (
    "train", "killed.yaml", "training.epochs=6", "training.precision=fp32", "model.dropout=0.3", "training.augment.shift=0.1",
)  # fmt: skip


def with_killer(shell: Shell) -> Shell:
    (shell.folder / "killer.py").write_text(KILLER)
    text = (shell.folder / EXPERIMENT).read_text()
    assert "family: cnn" in text
    (shell.folder / "killed.yaml").write_text(text.replace("family: cnn", "class: killer:Net"))
    return shell


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """What an undisturbed run says, and its weights."""
    shell = with_killer(open_shell(tmp_path_factory.mktemp("whole")))
    return shell.run(*TRAIN, "--json").json, weights(shell)


@pytest.mark.parametrize(
    ("moment", "every", "recorded"),
    [
        ("training 61", "{epochs: 1}", 3),  # of 20 an epoch: the first one after an epoch's end
        ("evaluation 3", "{epochs: 1}", 2),  # at an epoch's end, before it is recorded
        ("training 70", "{steps: 3}", 3),  # in the middle, three steps after a checkpoint
        ("training 74", "{steps: 3}", 3),
    ],
)
def test_a_run_killed_exactly_there_ends_with_the_same_weights_bit_for_bit(
    here: Here, whole: tuple[Any, dict[str, Any]], moment: str, every: str, recorded: int
) -> None:
    words = (*TRAIN, f"training.checkpoint_every={every}")
    (with_killer(here).folder / "moment").write_text(moment)
    assert here.start(*words).finish(200).code == -signal.SIGKILL
    assert epochs_in_ledger(here.folder) == recorded
    resumed = here.run(*words, "--resume", "--json").json
    assert (resumed["state"], resumed["epochs"]) == ("finished", 6)
    assert (here.folder / "steps").stat().st_size <= 6 * 20 + 21, "it began anew, instead of at a checkpoint"
    undisturbed, expected = whole
    found = weights(here)
    assert expected.keys() == found.keys()
    assert all(bool((expected[name] == found[name]).all()) for name in expected)
    best, other = ({k: v for k, v in run["best"]["metrics"].items() if k not in TIMED} for run in (resumed, undisturbed))
    assert (best, resumed["test"]) == (other, undisturbed["test"])
    [run] = here.recorded()
    assert sorted(row.step for row in here.client().get_metric_history(run.info.run_id, "val_loss")) == [1, 2, 3, 4, 5, 6]
    assert run.info.status == "FINISHED"


def forget(shell: Shell, where: str) -> int:
    """As if the ledger were a copy from before: what is forgotten may lie in the checkpoints and in MLflow."""
    with contextlib.closing(sqlite3.connect(shell.folder / ".orchestrator" / "ledger.sqlite")) as db, db:
        lost = db.execute(f"delete from entries where {where}").rowcount
        db.execute("update sent set seq = (select max(seq) from entries)")
        db.execute("delete from identities")
    return lost


def test_a_run_whose_ledger_is_older_than_its_checkpoint_records_what_is_missing(here: Here) -> None:
    words = (*TRAIN, EACH_EPOCH)
    (with_killer(here).folder / "moment").write_text("training 110")
    assert here.start(*words).finish(200).code == -signal.SIGKILL
    here.run("sync")
    assert forget(here, "kind = 'epoch' and json_extract(data, '$.epoch') > 2") == 3
    resumed = here.run(*words, "--resume", "--json").json
    assert (resumed["state"], resumed["epochs"], epochs_in_ledger(here.folder)) == ("finished", 6, 6)
    [run] = here.recorded()
    assert sorted(row.step for row in here.client().get_metric_history(run.info.run_id, "val_loss")) == [1, 2, 3, 4, 5, 6]


def test_a_trial_that_the_ledger_has_lost_begins_anew_with_a_run_of_its_own(here: Here) -> None:
    words = ("sweep", "killed.yaml", "sweep.trials=2", "training.epochs=4", "sweep.scheduler=none", EACH_EPOCH, ALONE)
    (with_killer(here).folder / "moment").write_text("training 130")
    assert here.start(*words).finish(200).code == -signal.SIGKILL
    here.run("sync")
    lost = {run.info.run_id for run in here.recorded() if run.data.tags["orchestrator.trial"] == "1"}
    assert forget(here, "trial = 1") > 2
    done = here.run(*words, "--resume", "--json").json
    check_complete(here, done, 2)
    assert [trial["epochs"] for trial in done["trials"]] == [4, 4]
    assert len(lost) == 1
    assert not lost & {trial["run_id"] for trial in done["trials"]}


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_of_its_own_goes_on_from_the_step_where_it_was(shell: Shell, sent: signal.Signals) -> None:
    words = ("train", EXPERIMENT, "training.epochs=400", "training.precision=fp32")
    command = shell.start(*words, "--json")
    wait_for("epochs", lambda: epochs_in_ledger(shell.folder) >= 3 or command.process.poll() is not None)
    os.kill(command.process.pid, sent)
    said = command.finish(60)
    assert (said.code, said.json["state"]) == (130, "interrupted")
    assert "To go on: orchestrator train" in said.errors[0]
    [folder] = (shell.folder / ".orchestrator" / "checkpoints").iterdir()
    state = checkpoint.load(str(folder))
    assert state is not None
    assert len(state["history"]) == said.json["epochs"], "the checkpoint is older than the interrupt"


def test_a_finished_sweep_can_be_extended_and_its_test_is_evaluated_once_a_run(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    first = here.run("sweep", EXPERIMENT, *SOME, "--json").json
    longer = here.run("sweep", EXPERIMENT, "sweep.trials=9", "training.epochs=3", "--resume", "--json").json
    assert longer["sweep"] == first["sweep"]
    check_complete(here, longer, 9)
    assert longer["trials"][:6] == first["trials"]
    ledger = ledger_of(here)
    kept = [entry.trial for entry in ledger.entries(first["sweep"]) if entry.kind == "kept"]
    ledger.close()
    assert len(kept) == len(set(kept))
    tested = here.client().get_metric_history(longer["best"]["run_id"], "test_accuracy")
    assert [row.value for row in tested] == [longer["best"]["test"]["test_accuracy"]]

    def starts(*given: object) -> None:
        raise AssertionError("Ray was started for nothing")

    monkeypatch.setattr("orchestrator.launch._connected", starts)
    again = here.run("sweep", EXPERIMENT, "sweep.trials=9", "training.epochs=3", "--resume", "--json")
    assert "no trial is left to run" in again.err
    assert (again.json["trials"], again.json["best"]) == (longer["trials"], longer["best"])


def test_a_changed_space_keeps_what_fits_as_evidence(here: Here) -> None:
    here.run("sweep", EXPERIMENT, *SOME)
    narrow = "sweep.space={optimizer.lr: {loguniform: [3e-3, 1e-2]}}"
    said = here.run("sweep", EXPERIMENT, "sweep.trials=8", "training.epochs=3", narrow, "--resume", "--json")
    assert "the search begins afresh" in said.err
    check_complete(here, said.json, 8)
    assert [list(trial["params"]) for trial in said.json["trials"][6:]] == [["optimizer.lr"]] * 2
    assert all(3e-3 <= trial["params"]["optimizer.lr"] <= 1e-2 for trial in said.json["trials"][6:])


def test_what_may_not_differ_is_refused_by_its_key(here: Here) -> None:
    nothing = here.run("sweep", EXPERIMENT, *SOME, "--resume", code=2)
    assert "there is no sweep of 'digits-cnn'" in nothing.errors[0]
    sweep = here.run("sweep", EXPERIMENT, "sweep.trials=1", "training.epochs=1", "--json").json["sweep"]
    refused = here.run("sweep", EXPERIMENT, "sweep.trials=2", "training.epochs=2", "model.dropout=0.1", "--resume", sweep, code=2)
    assert [line.split(":")[1].strip() for line in refused.errors] == ["model.dropout", "training.epochs"]
    assert f"it was 1 in sweep {sweep}, and is 2 now" in refused.errors[1]
    unknown = here.run("sweep", EXPERIMENT, "sweep.trials=2", "training.epochs=1", "--resume", "20200101-000000-abcd", code=2)
    assert sweep in unknown.errors[0]
    data = here.run("sweep", EXPERIMENT, "sweep.trials=2", "training.epochs=1", "data.split.seed=3", "--resume", code=2)
    assert "the data are no longer those" in data.errors[0]


def test_ctrl_c_before_a_launch_goes_on_says_how_to_go_on_too(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("train", EXPERIMENT, "training.epochs=1")
    here.run(*words)

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.resuming.reopen", interrupted)
    said = here.run(*words, "--resume", code=130)
    assert said.errors[0].startswith(f"error: interrupted; to go on: orchestrator {' '.join(words)} --resume 2")


def test_two_commands_dont_drive_one_sweep(shell: Shell) -> None:
    sweep = shell.start("sweep", EXPERIMENT, "sweep.trials=4", "training.epochs=300", "sweep.scheduler=none")
    try:
        wait_for("an epoch", lambda: epochs_in_ledger(shell.folder) >= 1 or sweep.process.poll() is not None)
        again = shell.run("sweep", EXPERIMENT, "sweep.trials=4", "training.epochs=300", "sweep.scheduler=none", "--resume", code=2)
        assert "another command is running" in again.errors[0]
    finally:
        os.killpg(sweep.process.pid, signal.SIGKILL)
        sweep.process.wait()


STUCK = """
import time
from pathlib import Path
from models.cnn import CNN

HERE = Path(__file__).parent


class Net(CNN):
    def forward(self, *inputs):
        if self.training and (HERE / "stuck").exists():
            (HERE / "asleep").touch()
            time.sleep(300)
        return super().forward(*inputs)
"""
EXPERIMENT_OF_IT = """
name: digits-cnn
data: {source: digits}
model: {family: "stuck_net:Net", channels: [4, 6], pool_after: [1, 2]}
training: {epochs: 3}
sweep: {trials: 4, scheduler: none, space: {optimizer.lr: {loguniform: [1e-3, 1e-2]}}}
"""


def test_a_second_ctrl_c_kills_at_once_and_what_was_done_is_resumable(shell: Shell) -> None:
    """Of runs that reach no further step, and would be waited for."""
    (shell.folder / "stuck_net.py").write_text(STUCK)
    (shell.folder / "stuck.yaml").write_text(EXPERIMENT_OF_IT)
    words = ("sweep", "stuck.yaml")
    sweep = shell.start(*words)
    try:
        wait_for("an epoch", lambda: epochs_in_ledger(shell.folder) >= 1 or sweep.process.poll() is not None)
        (shell.folder / "stuck").touch()
        wait_for("a run that sleeps", lambda: (shell.folder / "asleep").exists() or sweep.process.poll() is not None)
        os.kill(sweep.process.pid, signal.SIGINT)
        wait_for("the first one's note", lambda: "note: interrupted: " in (sweep.said / "err").read_text())
        ours = below(sweep.process.pid)
        asked = time.monotonic()
        os.kill(sweep.process.pid, signal.SIGINT)
        said = sweep.finish(60)
        took_s = time.monotonic() - asked
    finally:
        if sweep.process.poll() is None:
            os.killpg(sweep.process.pid, signal.SIGKILL)
    assert said.code == 130
    assert took_s < GRACE_S - 2, "it waited for runs that were to be killed"
    wait_for("the end of every process", lambda: not alive(ours), 15)
    (shell.folder / "stuck").unlink()
    check_complete(shell, shell.run(*words, "--resume", "--json").json, 4)
