"""Looking after what runs left: their output, live and afterwards; and removing what is no longer needed."""

from __future__ import annotations

import hmac
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import EXPERIMENT, Here, Shell, Typed, open_shell, wait_for
from tests.receiver import Receiver

pytestmark = pytest.mark.slow
OWN = '''
import os
import pathlib
import time

from models.cnn import CNN


class Net(CNN):
    """Says that it was made; waits for a file, where the dropout says so; raises, where it says that."""

    def __init__(self, config, schema):
        super().__init__(config, schema)
        if config.dropout:
            print("made with dropout", config.dropout)
            os.write(2, b"a library's own words\\n")
        while config.dropout == 0.25 and not pathlib.Path(__file__).with_name("go on").exists():
            time.sleep(0.05)
        if config.dropout == 0.5:
            raise ValueError("no such luck")
'''
TALKS = """
name: talks
data: {source: digits}
model: {class: own_net:Net, channels: [4], pool_after: [1], norm: none}
optimizer: {name: sgd, lr: 0.05}
training: {epochs: 2, batch_size: 128}
registry: {require: {}}
sweep:
  search: grid
  scheduler: none
  space: {model.dropout: {choice: [0.0, 0.25, 0.5]}}
"""
SAID = ["made with dropout 0.25", "a library's own words"]


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, Any, list[str]]:
    """A folder in which a sweep of three trials ran, what it said, and what `logs -f` showed of one meanwhile."""
    shell = open_shell(tmp_path_factory.mktemp("talks"))
    (shell.folder / "own_net.py").write_text(OWN)
    (shell.folder / "talks.yaml").write_text(TALKS)
    sweep = shell.start("sweep", "talks.yaml", "sweep.executor=inline", "--json")
    started = [sweep]
    try:
        kept = shell.folder / ".orchestrator" / "logs"
        [trial] = wait_for("its output", lambda: [p.parent.name for p in kept.glob("*/rank-0.log") if "0.25" in p.read_text()], 180)
        following = shell.start("logs", "talks", "--trial", trial.rpartition("-")[2], "-f")
        started.append(following)
        wait_for("its lines", lambda: len((following.said / "out").read_text().splitlines()) == 2)
        assert [one.process.poll() for one in started] == [None, None]
        (shell.folder / "go on").write_text("")
        followed = following.finish(120)
        assert followed.code == 0
        return shell, sweep.finish(180), followed.out.splitlines()
    finally:
        for one in started:
            if one.process.poll() is None:
                os.killpg(one.process.pid, signal.SIGKILL)


def number_of(swept: Any, dropout: float) -> str:
    return str(next(trial["trial"] for trial in swept.json["trials"] if trial["params"]["model.dropout"] == dropout))


def test_a_trial_s_output_is_followed_while_it_runs_until_it_has_ended(talked: tuple[Shell, Any, list[str]]) -> None:
    _, swept, followed = talked
    assert followed == SAID
    assert swept.code == 0
    [failed] = [line for line in swept.err.splitlines() if "no such luck" in line and line.startswith("trial")]
    assert "no such luck" in Path(failed.partition("; the whole trace: ")[2]).read_text()


def test_a_trial_s_output_is_there_afterwards_and_of_a_failed_one_the_file_of_its_trace_is_named(
    talked: tuple[Shell, Any, list[str]], typed: Typed
) -> None:
    shell, swept, _ = talked
    done = typed("logs", "talks", "--trial", number_of(swept, 0.25), "--json", folder=shell.folder).json
    [file] = done["files"]
    assert (done["experiment"], done["sweep"], file["rank"], file["lines"]) == ("talks", swept.json["sweep"], 0, SAID)
    assert Path(file["path"]).read_text().splitlines() == SAID
    failed = typed("logs", "talks", "--trial", number_of(swept, 0.5), folder=shell.folder)
    assert failed.out.splitlines() == ["made with dropout 0.5", SAID[1]]
    trace = failed.err.strip().removeprefix("it failed; the whole trace: ")
    assert "no such luck" in Path(trace).read_text()


def test_output_is_kept_by_mlflow_for_who_has_no_files(talked: tuple[Shell, Any, list[str]], typed: Typed) -> None:
    shell, swept, _ = talked
    assert typed("sync", "--json", folder=shell.folder).json["left"] == 0  # a machine under load may not have got that far
    here, away = shell.folder / ".orchestrator", shell.folder / "away"
    here.rename(away)
    try:
        done = typed("logs", "talks", "--trial", number_of(swept, 0.25), "--json", folder=shell.folder).json
    finally:
        away.rename(here)
    assert done["files"][0]["lines"] == SAID
    assert done["files"][0]["path"].endswith("/artifacts/logs/rank-0.log")


def test_a_run_that_is_not_there_is_refused_with_what_is(talked: tuple[Shell, Any, list[str]], typed: Typed) -> None:
    shell, swept, _ = talked
    for words, says in {
        ("talks",): f"error: --trial: a sweep's output is kept by trial: sweep {swept.json['sweep']} has trials 0-2",
        ("talks", "--trial", "9"): f"error: --trial: no such run of 'talks': sweep {swept.json['sweep']} has trials 0-2",
        ("talks", "--trial", "0", "--sweep", "x"): f"error: --sweep: no sweep 'x' of 'talks'; the newest are: {swept.json['sweep']}",
        ("talk", "--trial", "0"): "error: no experiment 'talk' at sqlite:///",
    }.items():
        said = typed("logs", *words, folder=shell.folder)
        assert (said.code, said.err.startswith(says)) == (2, True), said.err


def test_what_a_model_prints_in_this_process_goes_to_stderr_and_the_document_stays_whole(
    talked: tuple[Shell, Any, list[str]],
) -> None:
    shell, _, _ = talked
    done = shell.run("train", "talks.yaml", "model.dropout=0.3", "training.epochs=1", "--json")
    assert done.json["state"] == "finished"
    assert "made with dropout 0.3\n" in done.err
    assert "a library's own words\n" in done.err
    assert shell.run("logs", "talks").out.splitlines()[:2] == ["made with dropout 0.3", SAID[1]]


def test_gc_leaves_the_champion_and_nothing_that_it_removed_comes_back(talked: tuple[Shell, Any, list[str]], typed: Typed) -> None:
    shell, swept, _ = talked
    kept = shell.folder / ".orchestrator"
    promoted = shell.run("promote", "talks", "--json").json
    tried = typed("gc", "talks", "--keep", "top:1", "--dry-run", "--json", folder=shell.folder).json
    done = shell.run("gc", "talks", "--keep", "top:1", "--json").json
    assert (done["removed"], done["bytes"]) == (tried["removed"], tried["bytes"])
    assert promoted["run_id"] not in [run["run_id"] for run in done["removed"]]
    assert {run["trial"] for run in done["removed"]} >= {int(number_of(swept, 0.5))}
    before = typed("runs", "talks", "--json", folder=shell.folder).json
    assert promoted["run_id"] in [run["run_id"] for run in before["runs"]]
    [data] = (kept / "data").iterdir()
    predicted = shell.run("predict", "models:/talks@champion", str(data / "test.parquet"), "out.parquet", "--json").json
    assert (predicted["rows"], predicted["failed"]) == (180, 0)
    assert shell.run("sync", "--json").json["left"] == 0
    assert typed("runs", "talks", "--json", folder=shell.folder).json["runs"] == before["runs"]
    (shell.folder / "mlflow.db").unlink()  # the store is lost, and made again from the ledger
    shell.run("sync")
    again = typed("runs", "talks", "--json", folder=shell.folder).json
    assert [run["trial"] for run in again["runs"]] == [run["trial"] for run in before["runs"]]


def test_a_sweep_whose_best_run_was_removed_can_be_extended_and_has_another_best(here: Here) -> None:
    words = ("sweep", EXPERIMENT, "training.epochs=1", "sweep.executor=inline")
    first = here.run(*words, "sweep.trials=3", "--json").json
    other = next(trial for trial in first["trials"] if trial["trial"] != first["best"]["trial"])
    here.run("promote", "digits-cnn", "--run", other["run_id"], "--force")
    removed = here.run("gc", "digits-cnn", "--keep", "top:0", "--json").json["removed"]
    assert first["best"]["run_id"] in [run["run_id"] for run in removed]
    longer = here.run(*words, "sweep.trials=4", "--resume", "--json").json
    assert longer["state"] == "finished"
    left = [trial for trial in longer["trials"] if trial["trial"] in (other["trial"], 3)]
    best = min(left, key=lambda trial: trial["best"]["metrics"]["val_loss"])
    assert (longer["best"]["trial"], longer["best"]["run_id"]) == (best["trial"], best["run_id"])


def test_gc_without_a_policy_is_refused_with_the_two_forms(typed: Typed, tmp_path: Path) -> None:
    said = typed("gc", "talks", folder=tmp_path)
    assert (said.code, said.errors[0].startswith("error: give --keep top:3 ")) == (2, True)


BROKEN = """
from models.cnn import CNN


class Net(CNN):
    def forward(self, batch):
        raise ValueError("a broken network")
"""


def test_who_asked_for_it_is_told_of_the_best_and_of_the_end_with_a_signature(shell: Shell, receiver: Receiver) -> None:
    shell.env["ORCHESTRATOR_NOTIFY_SECRET"] = "a secret of both"
    told = f"notify={{url: {receiver.url}, on: [best, finished, failed]}}"
    shell.run("sweep", EXPERIMENT, "sweep.trials=2", "training.epochs=2", "sweep.executor=inline", told)
    *best, finished = receiver.messages
    assert {message["event"] for message in best} == {"best"}
    values = [message["value"] for message in best]
    assert values == sorted(set(values)), "each is better than the one before"
    assert (finished["event"], finished["experiment"], finished["value"]) == ("finished", "digits-cnn", values[-1])
    signed = [f"sha256={hmac.new(b'a secret of both', body, 'sha256').hexdigest()}" for body in receiver.bodies]
    assert receiver.signatures == signed
    (shell.folder / "broken.py").write_text(BROKEN)
    (shell.folder / "broken.yaml").write_text((shell.folder / EXPERIMENT).read_text().replace("family: cnn", "class: broken:Net"))
    shell.run("train", "broken.yaml", told, code=1)
    assert receiver.messages[-1]["event"] == "failed"
    assert "a broken network" in receiver.messages[-1]["error"]
