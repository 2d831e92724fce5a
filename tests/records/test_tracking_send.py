"""Sending to MLflow, against a real store: all of it, once however often; who sends, and what may go wrong."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from orchestrator.errors import Failed
from orchestrator.events import best_first
from orchestrator.records import tracking
from orchestrator.records.ledger import Ledger
from orchestrator.records.tracking import BackgroundSender, client, destination, recorded, sending_lock, sync
from tests.records.conftest import AT, ENDS, HOME, Record, events, everything, runs, unused_port

# all of it, once ------------------------------------------------------------------------------------------------------------


def test_everything_of_the_ledger_is_sent_and_nothing_is_left(record: Record, ledger: Ledger) -> None:
    record()
    entries = len(ledger.entries())
    assert sync(HOME) == (entries, 0)
    assert sync(HOME) == (0, 0)


def test_a_folder_without_a_ledger_has_nothing_to_send(folder: Path) -> None:
    assert sync(HOME) == (0, 0)
    assert not HOME.exists()


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


def test_epochs_that_were_trained_again_after_a_ledger_was_lost_are_there_once(
    begin: Record, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, first = begin(), events(0, ("finished", None, None))
    ledger.append(launch.id, first[:3])  # two epochs
    sync(HOME)
    with sqlite3.connect(ledger.path) as db:  # an older copy of the ledger, which has one of them
        db.execute("delete from entries where kind = 'epoch' and json_extract(data, '$.epoch') = 2")
    ledger.forget_sent(destination())
    later = [replace(event, at_ms=event.at_ms + 60_000) for event in first[2:]]
    ledger.append(launch.id, later)
    sync(HOME)
    history = client().get_metric_history(runs()["sweep-1/0"].info.run_id, "val_loss")
    assert sorted(row.step for row in history) == [1, 2, 3]
    assert runs()["sweep-1/0"].info.status == "FINISHED"


def test_an_end_is_waited_for_as_long_as_mlflow_answers_up_to_twice_the_patience_from_when_it_was_there(
    record: Record, ledger: Ledger
) -> None:
    record()
    answers: list[None] = []
    tracking.Sender(ledger, lambda: answers.append(None)).send()
    assert len(answers) > 2 * len(ENDS), "each run that is made, and each that gets its rows"
    background: Any = BackgroundSender.__new__(BackgroundSender)
    for ready_at, heard_at, until in [(40, 50, 120), (40, 105, 125), (40, 139, 140), (130, 131, 151), (130, 169, 170)]:
        background._ready_at, background._heard_at = ready_at, heard_at
        assert background._until(100, 20) == until


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


# who sends ------------------------------------------------------------------------------------------------------------------


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


def test_nothing_is_sent_of_a_launch_that_another_command_took_while_the_sender_was_cut_off(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look, at the beginning, and its first rows."""
    record()
    looks = iter([True])
    monkeypatch.setattr(tracking.background, "STALE_S", 0.0)
    sender = BackgroundSender(HOME, lambda: next(looks, False))
    assert sender.finish(30) > 0
    assert sender.problem is not None
    assert "another command goes on with this launch" in sender.problem
    assert [run.data.metrics for run in runs().values() if run.data.metrics] == []


# what goes wrong ------------------------------------------------------------------------------------------------------------


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
