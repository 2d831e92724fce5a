"""Tracking against a real store: what is sent, once however often it is sent, and what is read back."""

from __future__ import annotations

import contextlib
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from orchestrator.errors import Failed, Refused
from orchestrator.events import best_first
from orchestrator.records import tracking
from orchestrator.records.ledger import Ledger
from orchestrator.records.tracking import BackgroundSender, check_store, client, destination, recorded, recorded_run, sending_lock, sync
from tests.records.conftest import AT, ENDS, Record, events

HOME = Path(".orchestrator")


def runs(of: Any = None) -> dict[str, Any]:
    """MLflow's runs by their key."""
    of = of or client()
    experiment = of.get_experiment_by_name("corners")
    found = of.search_runs([experiment.experiment_id]) if experiment else []
    return {run.data.tags["orchestrator.key"]: run for run in found}


def everything() -> dict[str, Any]:
    """All that MLflow has of the experiment, without the ids that a store gives."""
    of, seen = client(), {}
    keys = {run.info.run_id: key for key, run in runs(of).items()}
    for key, run in runs(of).items():
        tags = {k: v for k, v in run.data.tags.items() if k != "orchestrator.model_id"}
        if "mlflow.parentRunId" in tags:
            tags["mlflow.parentRunId"] = keys[tags["mlflow.parentRunId"]]
        history = {
            name: [(m.value, m.timestamp, m.step) for m in of.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
        }
        inputs = [(d.dataset.name, d.dataset.digest, d.tags[0].value) for d in run.inputs.dataset_inputs]
        seen[key] = {
            "name": run.info.run_name,
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time),
            "params": run.data.params,
            "tags": tags,
            "history": history,
            "inputs": inputs,
            "models": len(run.outputs.model_outputs) if run.outputs else 0,
            "files": sorted(f.path for f in of.list_artifacts(run.info.run_id)),
        }
    return seen


# what is sent ---------------------------------------------------------------------------------------------------------------


def test_everything_of_the_ledger_is_sent_and_nothing_is_left(record: Record, ledger: Ledger) -> None:
    record()
    entries = len(ledger.entries())
    assert sync(HOME) == (entries, 0)
    assert sync(HOME) == (0, 0)


def test_a_folder_without_a_ledger_has_nothing_to_send(folder: Path) -> None:
    assert sync(HOME) == (0, 0)
    assert not HOME.exists()


def test_each_trial_is_a_run_below_the_sweep_s(record: Record) -> None:
    record()
    sync(HOME)
    found = runs()
    assert set(found) == {"sweep-1/parent", *(f"sweep-1/{trial}" for trial in ENDS)}
    parent = found.pop("sweep-1/parent")
    assert "mlflow.parentRunId" not in parent.data.tags
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert {run.data.tags["orchestrator.kind"] for run in found.values()} == {"trial"}


def test_the_status_says_how_a_run_ended(record: Record) -> None:
    record()
    sync(HOME)
    found = runs()
    assert {trial: found[f"sweep-1/{trial}"].info.status for trial in ENDS} == {0: "FINISHED", 1: "FINISHED", 2: "FAILED", 3: "KILLED"}
    assert {trial: found[f"sweep-1/{trial}"].data.tags["orchestrator.state"] for trial in ENDS} == {t: e[0] for t, e in ENDS.items()}
    assert found["sweep-1/1"].data.tags["orchestrator.stopped_by"] == "asha"
    assert found["sweep-1/2"].data.tags["orchestrator.error"] == "ValueError: no (nets.py:6)"
    assert found["sweep-1/parent"].info.status == "FINISHED"


def test_times_are_the_ledger_s(record: Record) -> None:
    record()
    sync(HOME)
    found = runs()
    assert (found["sweep-1/0"].info.start_time, found["sweep-1/0"].info.end_time) == (AT + 1000, AT + 1100)
    assert found["sweep-1/parent"].info.start_time == AT


def test_a_metric_has_a_value_an_epoch_with_the_epoch_as_step(record: Record) -> None:
    record()
    sync(HOME)
    history = everything()["sweep-1/1"]["history"]
    assert history["val_accuracy"] == [(0.49, AT + 2001, 1), (0.69, AT + 2002, 2), (0.59, AT + 2003, 3)]
    assert [(value, step) for value, _, step in everything()["sweep-1/0"]["history"]["test_accuracy"]] == [(0.65, 2)]


def test_parameters_are_flat_and_those_that_the_trial_trained_with(record: Record) -> None:
    record()
    sync(HOME)
    params = runs()["sweep-1/1"].data.params
    assert (params["optimizer.lr"], params["optimizer.name"], params["model.channels"]) == ("0.02", "adam", "[4, 6]")


def test_tags_say_where_a_run_came_from(record: Record) -> None:
    record()
    sync(HOME)
    tags = runs()["sweep-1/0"].data.tags
    expected = {
        "mlflow.source.git.commit": "c0ffee",
        "mlflow.source.name": "orchestrator sweep corners.yaml",
        "mlflow.user": "somebody",
        "orchestrator.dirty": "true",
        "orchestrator.executor": "inline",
        "orchestrator.world_size": "1",
        "orchestrator.fingerprint": "f" * 40,
        "orchestrator.metric": "val_accuracy",
        "orchestrator.mode": "max",
        "orchestrator.seed": "0",
        "orchestrator.versions": '{"torch": "2"}',
        "orchestrator.nodes": '["here"]',
    }
    assert {name: tags.get(name) for name in expected} == expected


def test_every_run_names_its_data_set_once(record: Record) -> None:
    record()
    sync(HOME)
    assert {key: run["inputs"] for key, run in everything().items()} == {
        key: [("corners", "f" * 36, "training")] for key in ["sweep-1/parent", *(f"sweep-1/{trial}" for trial in ENDS)]
    }


def test_the_parent_carries_the_experiment_file_the_diff_and_the_leaderboard(record: Record, make_experiment: Any) -> None:
    launch = record()
    sync(HOME)
    parent = everything()["sweep-1/parent"]
    assert parent["files"] == ["experiment.yaml", "uncommitted.diff"]
    assert parent["tags"]["mlflow.note.content"] == "| table |"
    assert parent["tags"]["orchestrator.best_trial"] == "0"
    assert parent["history"]["val_accuracy"][-1][0] == 0.7
    winner = next(run for run in recorded(client(), "corners") if run.result.trial == 0)
    assert tracking.experiment_file(client(), winner) == tracking.to_yaml(launch.experiment)


def test_the_kept_bundle_is_a_model_of_its_run_with_the_test_scores(record: Record) -> None:
    record()
    sync(HOME)
    run, of = runs()["sweep-1/0"], client()
    model = of.get_logged_model(run.data.tags["orchestrator.model_id"])
    assert model.source_run_id == run.info.run_id
    assert str(model.status) == "READY"
    assert {metric.key: metric.value for metric in model.metrics} == {"test_accuracy": 0.65, "test_loss": 0.4}
    assert {metric.dataset_digest for metric in model.metrics} == {"f" * 36}
    stored = Path(model.artifact_location.removeprefix("file://"))
    assert sorted(path.name for path in stored.iterdir()) == ["MLmodel", "weights.safetensors"]


def test_a_run_of_train_is_one_run_without_a_parent(begin: Record, ledger: Ledger) -> None:
    launch = begin("train-1", "train")
    ledger.append(launch.id, events(None, ("finished", None, None)))
    ledger.note(launch.id, None, "closed", {"state": "finished", "tags": {"state": "finished"}, "metrics": {}, "note": ""})
    sync(HOME)
    ((key, run),) = runs().items()
    assert (key, run.info.status, run.data.tags["orchestrator.kind"]) == ("train-1/parent", "FINISHED", "train")
    (found,) = recorded(client(), "corners")
    assert (found.result.trial, found.result.sweep, found.kind) == (None, None, "train")


def test_a_launch_that_failed_before_any_run_is_recorded_as_failed(begin: Record, ledger: Ledger) -> None:
    for name, command in (("sweep-1", "sweep"), ("train-1", "train")):
        launch = begin(name, command)
        closing = {"state": "failed", "tags": {"state": "failed", "error": "no"}, "metrics": {}, "note": "failed: no"}
        ledger.note(launch.id, None, "closed", closing)
    sync(HOME)
    assert {key: run.info.status for key, run in runs().items()} == {"sweep-1/parent": "FAILED", "train-1/parent": "FAILED"}


def test_more_parameters_and_metrics_than_fit_in_one_request_all_arrive(begin: Record, ledger: Ledger) -> None:
    launch = begin()
    started, _, ended = events(0, ("finished", None, None), (0.5,))
    params = {f"model.p{number}": number for number in range(250)}
    many = [
        type(e)(e.trial, number, {f"m{k}": float(number) for k in range(30)} | e.metrics, e.at_ms + number)
        for number in range(1, 51)
        for e in events(0, ("finished", None, None), (0.5,))[1:2]
    ]
    ledger.append(launch.id, [type(started)(0, started.at_ms, {}, params, {}), *many, ended])
    sync(HOME)
    run = runs()["sweep-1/0"]
    assert {k: v for k, v in run.data.params.items() if k in params} == {k: str(v) for k, v in params.items()}
    assert [m.value for m in client().get_metric_history(run.info.run_id, "m29")] == [float(n) for n in range(1, 51)]


def test_a_run_that_is_started_again_on_other_hardware_keeps_its_first_parameters_and_loses_no_metric(
    begin: Record, ledger: Ledger
) -> None:
    launch, (started, *epochs) = begin(), events(0, ("finished", None, None))
    ledger.append(launch.id, [started, epochs[0]])
    sync(HOME)
    again = type(started)(0, started.at_ms + 50, {}, {"optimizer.lr": 0.01, "scaling.workers": 1, "optimizer.name": "sgd"}, {})
    ledger.append(launch.id, [again, *epochs[1:]])
    assert sync(HOME)[1] == 0
    run = runs()["sweep-1/0"]
    assert (run.data.params["optimizer.name"], run.data.params["scaling.workers"]) == ("adam", "1")
    assert len(everything()["sweep-1/0"]["history"]["val_accuracy"]) == 3


# once, however often --------------------------------------------------------------------------------------------------------


def test_sending_everything_again_changes_nothing(record: Record) -> None:
    record()
    sync(HOME)
    before = everything()
    assert sync(HOME, again=True) == (0, 0)
    assert everything() == before


def test_sending_in_pieces_gives_what_sending_at_once_gives(
    record: Record, ledger: Ledger, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record()
    sync(HOME)
    at_once = everything()
    Path("mlflow.db").rename("old.db")
    Path("mlflow.db").write_bytes(empty_store.read_bytes())
    ledger.forget_sent(destination())
    entries, calls = ledger.entries, []

    def one(launch: str | None = None, after: int = 0, limit: int = 1) -> Any:
        calls.append(after)
        return entries(launch, after, 1)

    monkeypatch.setattr(ledger, "entries", one)
    tracking.Sender(ledger).send()
    assert len(calls) == len(entries()) + 1
    assert everything() == at_once


def test_a_sender_that_died_between_sending_and_remembering_sends_the_same_again(record: Record, ledger: Ledger) -> None:
    record()
    sync(HOME)
    before = everything()
    for seen in (0, 3, 10):
        ledger.mark_sent(destination(), "sweep-1", seen)
        assert sync(HOME)[1] == 0
    assert everything() == before


def test_runs_are_found_again_by_their_tag_when_the_ledger_forgot_them(record: Record, ledger: Ledger) -> None:
    record()
    sync(HOME)
    ids = ledger.identities(destination(), "sweep-1")
    ledger.forget_sent(destination())
    sync(HOME)
    assert ledger.identities(destination(), "sweep-1") == ids
    assert set(ids) == {None, 0, 1, 2, 3}


def test_a_lost_store_is_filled_again_to_the_same_leaderboard_bundles_included(record: Record, ledger: Ledger, empty_store: Path) -> None:
    record()
    sync(HOME)
    before, board = everything(), leaderboard()
    with contextlib.closing(sqlite3.connect(empty_store)) as empty, contextlib.closing(sqlite3.connect("mlflow.db")) as db:
        empty.backup(db)  # in place: this process has the file open
    assert runs() == {}
    Path("mlruns").rename("lost")
    assert sync(HOME, again=True) == (len(ledger.entries()), 0)
    assert everything() == before
    assert leaderboard() == board
    assert [row[0] for row in board] == [0, 1, 2, 3]


def leaderboard() -> list[Any]:
    trials = [run for run in recorded(client(), "corners") if run.kind == "trial"]
    ranked = best_first([run.result for run in trials], "val_accuracy", "max")
    return [(r.trial, r.best, r.state, r.stopped_by, r.params, r.error, r.epochs, r.wall_s, r.sweep) for r in ranked]


def test_what_is_appended_later_joins_the_same_run(begin: Record, ledger: Ledger) -> None:
    launch, of_trial = begin(), events(0, ("finished", None, None))
    ledger.append(launch.id, of_trial[:2])
    sync(HOME)
    running = runs()["sweep-1/0"]
    assert (running.info.status, running.data.metrics["val_accuracy"]) == ("RUNNING", 0.5)
    ledger.append(launch.id, of_trial[2:])
    sync(HOME)
    ended = runs()["sweep-1/0"]
    assert ended.info.run_id == running.info.run_id
    assert (ended.info.status, len(everything()["sweep-1/0"]["history"]["val_accuracy"])) == ("FINISHED", 3)


# reading back ---------------------------------------------------------------------------------------------------------------


def test_a_run_is_read_back_as_the_ledger_has_it(record: Record, ledger: Ledger) -> None:
    record()
    sync(HOME)
    found = {run.result.trial: run.result for run in recorded(client(), "corners") if run.kind == "trial"}
    assert [found[r.trial] for r in ledger.results("sweep-1", destination())] == ledger.results("sweep-1", destination())


def test_a_run_is_read_back_by_its_id(record: Record) -> None:
    record()
    sync(HOME)
    run = runs()["sweep-1/0"]
    found = recorded_run(client(), run.info.run_id)
    assert (found.launch, found.result.trial, found.metrics["test_accuracy"], found.model_id) == (
        "sweep-1", 0, 0.65, run.data.tags["orchestrator.model_id"],
    )  # fmt: skip


def test_an_unknown_experiment_names_those_that_there_are(record: Record) -> None:
    with pytest.raises(Refused, match=r"no experiment 'crners' at sqlite:.*; nothing has been recorded here yet"):
        recorded(client(), "crners")
    record()
    sync(HOME)
    with pytest.raises(Refused, match=r"no experiment 'crners' at sqlite:.*; there is: corners"):
        recorded(client(), "crners")


def test_a_run_that_is_unknown_or_somebody_else_s_is_refused(folder: Path) -> None:
    of = client()
    theirs = of.create_run("0").info.run_id
    with pytest.raises(Refused, match="--run: no run 'abc' at sqlite:"):
        recorded_run(of, "abc")
    with pytest.raises(Refused, match=f"--run: run '{theirs}' was not recorded by orchestrator"):
        recorded_run(of, theirs)


def test_runs_of_others_in_the_same_experiment_are_left_out(record: Record) -> None:
    record()
    sync(HOME)
    of = client()
    of.create_run(of.get_experiment_by_name("corners").experiment_id)
    assert len(recorded(of, "corners")) == 5


# what goes wrong ------------------------------------------------------------------------------------------------------------


def test_a_store_of_another_version_is_refused_with_what_to_do(folder: Path) -> None:
    db = sqlite3.connect("mlflow.db")
    db.execute("update alembic_version set version_num = 'abcdef012345'")
    db.commit()
    db.close()
    with pytest.raises(Refused) as caught:
        client()
    assert str(caught.value).startswith(f"the MLflow store '{folder}/mlflow.db' has schema abcdef012345, the installed MLflow needs ")
    assert f"`mlflow db upgrade sqlite:///{folder}/mlflow.db`" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no database" * 100])
def test_a_file_that_is_no_store_is_refused(content: bytes, folder: Path) -> None:
    Path("mlflow.db").write_bytes(content)
    with pytest.raises(Refused, match=r"'.*mlflow.db' is no MLflow store \(.*\); move it away, or set MLFLOW_TRACKING_URI to another one"):
        check_store(destination())


def test_a_store_of_this_version_and_no_store_are_fine(folder: Path) -> None:
    for uri in (destination(), "sqlite:///nowhere.db", "http://127.0.0.1:9"):
        check_store(uri)  # raises where it isn't
    assert not Path("nowhere.db").exists(), "looking must not make one"


def test_a_store_whose_writer_was_killed_in_the_middle_is_no_reason_to_refuse(folder: Path) -> None:
    writer = """
import os, signal, sqlite3
db = sqlite3.connect("mlflow.db", isolation_level=None)
db.execute("pragma cache_size = 5")  # so that the file has half of it
db.execute("begin immediate")
for number in range(2000):
    db.execute("insert into experiment_tags (key, value, experiment_id) values (?, ?, 0)", (str(number), "x" * 500))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", writer]).returncode == -signal.SIGKILL
    assert Path("mlflow.db-journal").stat().st_size > 0
    check_store(destination())
    assert client().get_experiment("0").tags == {}


def test_a_store_that_another_one_writes_to_is_no_reason_to_refuse(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    with contextlib.closing(connect("mlflow.db", isolation_level=None)) as db:
        db.execute("begin exclusive")
        monkeypatch.setattr(sqlite3, "connect", lambda *words, **more: connect(*words, **more, timeout=0))
        check_store(destination())


def test_a_store_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.tracking import sqlalchemy_store

    def killed(uri: str, artifacts: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_bytes(b"half a store")
        raise KeyboardInterrupt

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", killed)
    with pytest.raises(KeyboardInterrupt):
        tracking.make_store(f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_store_that_another_process_made_meanwhile_is_kept(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, made = tmp_path / "mlflow.db", tmp_path / "made.db"
    if not links:
        monkeypatch.setattr(tracking.store.os, "link", no_links)
    for content in (b"first", b"second"):
        made.unlink(missing_ok=True)
        made.write_bytes(content)
        tracking.store._put(made, path)
        assert path.read_bytes() == b"first"


def no_links(*_: Path) -> None:
    raise PermissionError("no links here")


def test_a_place_where_no_store_can_be_made_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"can't make the MLflow store '.*/none/mlflow.db': .*No such file or directory"):
        tracking.make_store(f"sqlite:///{tmp_path}/none/mlflow.db")


def test_a_deleted_experiment_is_said_with_what_to_do(record: Record, ledger: Ledger) -> None:
    of = client()
    of.delete_experiment(of.create_experiment("corners"))
    record()
    with pytest.raises(Failed, match=r"MLflow experiment 'corners' is deleted: restore it \(mlflow experiments restore\), or give the exp"):
        sync(HOME)
    assert ledger.left(destination()) == len(ledger.entries())


def test_a_launch_that_is_refused_holds_no_other_up(record: Record, begin: Record, ledger: Ledger) -> None:
    of = client()
    of.delete_experiment(of.create_experiment("gone"))
    of_gone = begin("refused", at_ms=AT - 1, experiment_name="gone")
    record()
    with pytest.raises(Failed, match="MLflow experiment 'gone' is deleted"):
        sync(HOME)
    assert len(runs()) == 5
    assert (ledger.unsent(destination()), ledger.left(destination())) == ([of_gone.id], 1)
    of.restore_experiment(of.get_experiment_by_name("gone").experiment_id)
    assert sync(HOME) == (1, 0)


def test_where_nobody_answers_no_other_launch_is_tried(record: Record, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def silent(self: tracking.Sender, launch: Any) -> int:
        tried.append(launch.id)
        raise requests.ConnectionError("no route to http://me:secret@host")

    record("sweep-1")
    record("sweep-2")
    monkeypatch.setattr(tracking.Sender, "_send_launch", silent)
    with pytest.raises(Failed, match=r"^MLflow at sqlite:.* took not everything: no route to http://host; run `orchestrator sync` again$"):
        sync(HOME)
    assert tried == ["sweep-1"]


@pytest.mark.parametrize("error", [requests.Timeout("too\nlate"), OSError("too late")])
def test_what_a_request_raises_is_one_line(error: OSError) -> None:
    with pytest.raises(Failed, match=r"^MLflow at sqlite:.*: too late$"), tracking.said_by_mlflow():
        raise error


def test_a_password_is_in_no_message(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{unused_port()}")
    assert "secret" in destination()
    assert "secret" not in tracking.shown_destination()
    with pytest.raises(Failed) as caught:
        tracking.reachable_client()
    assert str(caught.value).startswith("MLflow at http://127.0.0.1:")
    assert "secret" not in str(caught.value)


def test_runs_that_the_user_deleted_do_not_come_back(record: Record) -> None:
    record()
    sync(HOME)
    before = everything()
    client().delete_run(runs()["sweep-1/1"].info.run_id)
    assert sync(HOME, again=True) == (0, 0)
    assert everything() == {key: run for key, run in before.items() if key != "sweep-1/1"}


def test_a_run_that_was_deleted_while_it_ran_stops_nothing(begin: Record, ledger: Ledger) -> None:
    launch = begin()
    for trial in (0, 1):
        ledger.append(launch.id, events(trial, ENDS[0])[:2])
    sync(HOME)
    client().delete_run(runs()["sweep-1/0"].info.run_id)
    for trial in (0, 1):
        ledger.append(launch.id, events(trial, ENDS[0])[2:])
    assert sync(HOME)[1] == 0
    assert {key: run.info.status for key, run in runs().items()} == {"sweep-1/parent": "RUNNING", "sweep-1/1": "FINISHED"}


def test_a_run_that_a_late_answer_made_twice_is_deleted_but_for_the_one_in_use(begin: Record, ledger: Ledger) -> None:
    launch, of = begin(), client()
    ledger.append(launch.id, events(0, ENDS[0])[:2])
    sync(HOME)
    for run in runs().values():
        for _ in range(2):
            of.create_run(run.info.experiment_id, run.info.start_time, run.data.tags, run.info.run_name)
    assert len(of.search_runs([of.get_experiment_by_name("corners").experiment_id])) == 6
    ledger.append(launch.id, events(0, ENDS[0])[2:])
    identities = ledger.identities(destination(), launch.id)
    assert sync(HOME)[1] == 0
    left = of.search_runs([of.get_experiment_by_name("corners").experiment_id])
    assert {run.info.run_id for run in left} == set(identities.values())
    assert len(left) == 2
    assert len(everything()["sweep-1/0"]["history"]["val_accuracy"]) == 3


def test_what_a_database_says_is_one_line_without_its_statement(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    def full(self: tracking.Sender, launch: Any) -> int:
        raise OperationalError("INSERT INTO metrics VALUES (?)", (1,), sqlite3.OperationalError("database or disk is full"))

    record()
    monkeypatch.setattr(tracking.Sender, "_send_launch", full)
    with pytest.raises(Failed) as caught:
        sync(HOME)
    assert str(caught.value) == (
        f"MLflow at {destination()} took not everything: (sqlite3.OperationalError) database or disk is full; run `orchestrator sync` again"
    )


def test_the_cause_of_a_request_s_failure_is_what_is_said() -> None:
    said = (
        "API request to http://me:secret@host:5000/api/2.0/mlflow/runs/search failed with exception HTTPConnectionPool(host='host', "
        "port=5000): Max retries exceeded with url: /api/2.0/mlflow/runs/search (Caused by ResponseError('too many 500 error responses'))"
    )
    assert tracking.store.one_line(ValueError(said)) == (
        "API request to http://host:5000/api/2.0/mlflow/runs/search: ResponseError('too many 500 error responses')"
    )


def test_a_run_is_not_said_to_be_unknown_when_the_server_does_not_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{unused_port()}")
    with pytest.raises(Failed, match=r"^MLflow at http://127.0.0.1:\d+: .*Connection refused"):
        recorded_run(client(), "abc")


def test_a_poll_writes_no_identity_that_is_known(begin: Record, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = begin()
    ledger.append(launch.id, events(0, ENDS[0])[:2])
    sender, writes = tracking.Sender(ledger), []
    sender.send()
    begun = ledger._transaction
    ledger.append(launch.id, events(0, ENDS[0])[2:])
    monkeypatch.setattr(ledger, "_transaction", lambda: writes.append(1) or begun())
    sender.send()
    assert len(writes) == 1  # the mark


def test_a_lock_that_can_not_be_taken_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sending.lock").mkdir()
    with pytest.raises(Failed, match=r"^can't lock '.*sending.lock': "), sending_lock(tmp_path):
        pass


def test_the_last_sending_waits_for_another_command_s(record: Record) -> None:
    record()
    with sending_lock(HOME):
        sender = BackgroundSender(HOME)
        sender.stop()
        sender._thread.join(0.5)
        assert sender._thread.is_alive()
    assert sender.finish(30) == 0
    assert len(runs()) == 5


def test_only_who_holds_the_lock_sends(record: Record, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    record()
    monkeypatch.setattr(tracking.background, "LAST_WAIT_S", 0.1)
    with sending_lock(HOME):
        with pytest.raises(Failed, match="another command is sending from this folder's ledger to MLflow"), sending_lock(HOME):
            pass
        sender = BackgroundSender(HOME)
        assert sender.finish(20) == len(ledger.entries())
        assert sender.problem == "another command is sending from this folder's ledger to MLflow"
    assert sync(HOME)[1] == 0


def test_the_background_sender_sends_what_is_there_when_it_is_told_to_finish(record: Record) -> None:
    sender = BackgroundSender(HOME)
    record()
    assert sender.finish(30) == 0
    assert sender.problem is None
    assert len(runs()) == 5


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_server_that_does_not_answer_holds_nothing_up_and_nothing_is_lost(
    record: Record, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{unused_port()}")
    record()
    entries = len(ledger.entries())
    sender = BackgroundSender(HOME)
    assert sender.finish(20) == entries
    assert sender.problem is not None
    assert "\n" not in sender.problem
    with pytest.raises(Failed, match=r"^MLflow at http://127.0.0.1:\d+ took not everything: .*; run `orchestrator sync` again$"):
        sync(HOME)
    with pytest.raises(Failed, match=r"^MLflow at http://127.0.0.1:\d+: "):
        tracking.reachable_client()
    assert ledger.left(destination()) == entries
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync(HOME) == (entries, 0)
    assert len(runs()) == 5


def test_yaml_keeps_every_value_s_type() -> None:
    from orchestrator.experiment.file import parse_value

    data: dict[str, Any] = {
        "lr": 1e-05,
        "on": "on",
        "number": "1e-3",
        "yes": True,
        "none": None,
        "list": [1, 2.0, "x"],
        "deep": {"a": {"b": 1}},
    }
    assert parse_value(tracking.to_yaml(data)) == data
    assert list(parse_value(tracking.to_yaml(data))) == list(data)
