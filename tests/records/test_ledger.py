"""The ledger: on disk before it counts, in order, and one line where it can't be written."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import Lost, Refused
from orchestrator.events import EpochEnded, Event, RunEnded, RunStarted
from orchestrator.records.ledger import Launch, Ledger, by_run, new_id, shown

PLACE = "sqlite:///somewhere"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path)
    yield made
    made.close()


def launch(name: str = "one", command: str = "sweep", **more: Any) -> Launch:
    return Launch(name, command, "digits", {"training": {"seed": 0}}, "score", "max", "abc", "/folder", **more)


def started(trial: int | None) -> RunStarted:
    return RunStarted(trial, 10, {"lr": trial}, {"lr": trial, "seed": 0})


def epoch(trial: int | None, number: int, score: float) -> EpochEnded:
    return EpochEnded(trial, number, {"score": score}, 20 + number, False, "continue")


# writing --------------------------------------------------------------------------------------------------------------------


def test_events_come_back_as_they_were_in_the_order_in_which_they_were_appended(ledger: Ledger) -> None:
    events: list[Event] = [started(1), started(0), epoch(0, 1, 0.1 + 0.2), epoch(1, 1, float("inf")), RunEnded(0, "stopped", 30, "asha")]
    ledger.launch(launch())
    ledger.append("one", events[:2])
    ledger.append("one", events[2:])
    assert ledger.events("one") == events


def test_what_was_appended_is_there_for_another_process_at_once(ledger: Ledger, tmp_path: Path) -> None:
    ledger.append("one", [started(0)])
    other = sqlite3.connect(tmp_path / "ledger.sqlite")
    assert other.execute("select kind, trial from entries").fetchall() == [("started", 0)]
    other.close()


def test_ctrl_c_at_the_beginning_of_a_step_hinders_no_later_one(ledger: Ledger, tmp_path: Path) -> None:
    ledger._db.execute("begin immediate")  # where it may come: before the step knows that it has begun
    ledger._db.execute("insert into entries (launch, kind, data, at_ms) values ('one', 'started', '{}', 0)")
    ledger.note("one", None, "closed", {"state": "interrupted"})
    assert [entry.kind for entry in Ledger(tmp_path).entries()] == ["closed"]


def test_a_launch_that_was_taken_is_sent_by_the_other_one_until_it_is_resumed_here(ledger: Ledger) -> None:
    ledger.launch(launch())
    assert ledger.unsent(PLACE) == ["one"]
    ledger.note("one", None, "taken", {"by": "elsewhere"})
    assert (ledger.unsent(PLACE), ledger.left(PLACE)) == ([], 0)
    ledger.reopen(launch(), 9)
    assert (ledger.unsent(PLACE), ledger.left(PLACE)) == (["one"], 3)
    ledger.note("one", None, "taken", {"by": "elsewhere"})
    assert (ledger.unsent(PLACE), ledger.left(PLACE)) == ([], 0)


def test_events_are_appended_all_or_none(ledger: Ledger) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        ledger.append("one", [started(0), RunStarted(1, 10, {"path": Path()}, {})])
    assert ledger.entries() == []
    ledger.append("one", [started(0)])
    assert len(ledger.entries()) == 1


def test_a_write_that_fails_is_one_line_and_leaves_nothing(ledger: Ledger) -> None:
    ledger._db.execute(
        "create trigger full before insert on entries when new.kind = 'epoch' begin select raise(abort, 'disk is full'); end"
    )
    with pytest.raises(Lost, match=r"^can't write '.*ledger.sqlite': disk is full; nothing of this step was recorded$"):
        ledger.append("one", [started(0), epoch(0, 1, 0.5)])
    assert ledger.entries() == []


def test_every_write_is_synced_to_the_disk_in_a_write_ahead_log(ledger: Ledger) -> None:
    assert ledger._db.execute("pragma journal_mode").fetchone() == ("wal",)
    assert ledger._db.execute("pragma synchronous").fetchone() == (2,)


def test_a_ledger_that_is_opened_again_has_everything(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    first.launch(launch())
    first.append("one", [started(0)])
    first.close()
    second = Ledger(tmp_path)
    assert second.find("one") == launch()
    assert second.events("one") == [started(0)]
    second.close()


def test_two_ledgers_in_one_file_write_at_the_same_time(tmp_path: Path) -> None:
    def write(name: str) -> None:
        mine = Ledger(tmp_path)
        for number in range(30):
            mine.append(name, [epoch(0, number, 0.5), epoch(1, number, 0.5)])
        mine.close()

    threads = [threading.Thread(target=write, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = Ledger(tmp_path)
    for name in ("one", "two"):
        assert ledger.events(name) == [epoch(trial, number, 0.5) for number in range(30) for trial in (0, 1)]
    assert [entry.seq for entry in ledger.entries()] == list(range(1, 121))
    ledger.close()


def test_a_folder_that_can_t_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "odd" / "ledger.sqlite").mkdir(parents=True)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "ledger.sqlite").write_text("no database at all, but long enough to be taken for one" * 50)
    for folder in (tmp_path / "file", tmp_path / "odd", tmp_path / "text", Path("/proc/ledger")):
        with pytest.raises(Refused) as caught:
            Ledger(folder)
        assert str(caught.value).startswith(f"can't write '{folder}/ledger.sqlite': ")
        assert "\n" not in str(caught.value)


# launches -------------------------------------------------------------------------------------------------------------------


def test_launches_are_listed_oldest_first_and_found_by_their_id(ledger: Ledger) -> None:
    for name, at in (("new", 9), ("old", 1), ("mid", 5)):
        ledger.launch(launch(name, at_ms=at, about={"commit": name}))
    assert ledger.launches() == ["old", "mid", "new"]
    assert ledger.find("mid").about == {"commit": "mid"}


def test_fields_of_a_later_version_are_left_out(ledger: Ledger) -> None:
    ledger.launch(launch())
    ledger._db.execute("update launches set data = json_set(data, '$.colour', 'blue')")
    assert ledger.find("one") == launch()


def test_ids_are_unique_and_sort_by_time() -> None:
    ids = [new_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert [i[:15] for i in ids] == sorted(i[:15] for i in ids)


# entries --------------------------------------------------------------------------------------------------------------------


def test_entries_are_those_of_a_launch_after_a_number_up_to_a_limit(ledger: Ledger) -> None:
    ledger.launch(launch("one"))
    ledger.launch(launch("two"))
    ledger.append("one", [epoch(0, 1, 0.1), epoch(0, 2, 0.2)])
    ledger.note("two", None, "closed", {"state": "finished"})
    assert [(e.seq, e.launch, e.kind) for e in ledger.entries()] == [
        (1, "one", "launched"), (2, "two", "launched"), (3, "one", "epoch"), (4, "one", "epoch"), (5, "two", "closed"),
    ]  # fmt: skip
    assert [e.seq for e in ledger.entries("one", after=1)] == [3, 4]
    assert [e.seq for e in ledger.entries(after=2, limit=2)] == [3, 4]
    assert ledger.entries("two", after=2)[0].data == {"state": "finished"}


def test_a_run_s_entries_are_its_own_and_the_parent_s_are_those_without_a_trial(ledger: Ledger) -> None:
    ledger.launch(launch())
    ledger.append("one", [started(0), started(1), epoch(0, 1, 0.5)])
    ledger.note("one", 0, "kept", {"bundle": "b"})
    assert [e.kind for e in ledger.run_entries("one", 0)] == ["started", "epoch", "kept"]
    assert [e.kind for e in ledger.run_entries("one", None)] == ["launched"]


def test_entries_are_grouped_by_run_in_order(ledger: Ledger) -> None:
    ledger.append("one", [started(0), started(1), epoch(0, 1, 0.5)])
    groups = by_run(ledger.entries())
    assert {key: [e.kind for e in group] for key, group in groups.items()} == {
        ("one", 0): ["started", "epoch"],
        ("one", 1): ["started"],
    }


# results --------------------------------------------------------------------------------------------------------------------


def test_results_are_the_runs_by_their_number_with_what_mlflow_calls_them(ledger: Ledger) -> None:
    ledger.launch(launch())
    ledger.append("one", [started(10), started(2), epoch(10, 1, 0.3), epoch(2, 1, 0.7), epoch(2, 2, 0.5)])
    ledger.append("one", [RunEnded(2, "stopped", 40, "asha", wall_s=1.5), RunEnded(10, "failed", 41, error="ValueError: no")])
    ledger.identify(PLACE, "one", {2: "run-of-2"})
    first, second = ledger.results("one", PLACE)
    assert (first.trial, first.state, first.stopped_by, first.epochs, first.wall_s) == (2, "stopped", "asha", 2, 1.5)
    assert first.best is not None
    assert (first.best.epoch, first.best.metrics, first.params) == (1, {"score": 0.7}, {"lr": 2})
    assert (first.run_id, first.sweep) == ("run-of-2", "one")
    assert (second.trial, second.state, second.error, second.run_id) == (10, "failed", "ValueError: no", None)


def test_a_run_of_train_has_neither_trial_nor_sweep(ledger: Ledger) -> None:
    ledger.launch(launch(command="train"))
    ledger.append("one", [started(None), epoch(None, 1, 0.3)])
    ledger.identify(PLACE, "one", {None: "the-run"})
    (result,) = ledger.results("one", PLACE)
    assert (result.trial, result.sweep, result.run_id, result.state) == (None, None, "the-run", "running")


# what was sent --------------------------------------------------------------------------------------------------------------


def test_what_is_left_is_counted_for_each_destination(ledger: Ledger) -> None:
    ledger.append("one", [epoch(0, number, 0.5) for number in (1, 2, 3)])
    assert (ledger.sent(PLACE, "one"), ledger.left(PLACE)) == (0, 3)
    ledger.mark_sent(PLACE, "one", 2)
    assert (ledger.sent(PLACE, "one"), ledger.left(PLACE), ledger.left("another")) == (2, 1, 3)
    ledger.mark_sent(PLACE, "one", 3)
    assert ledger.left(PLACE) == 0


def test_forgetting_what_was_sent_forgets_the_identities_of_that_destination_only(ledger: Ledger) -> None:
    ledger.append("one", [epoch(0, 1, 0.5)])
    for place in (PLACE, "another"):
        ledger.mark_sent(place, "one", 1)
        ledger.identify(place, "one", {None: "parent"})
        ledger.identify(place, "one", {0: "trial"})
    ledger.forget_sent(PLACE)
    assert (ledger.left(PLACE), ledger.identities(PLACE, "one")) == (1, {})
    assert (ledger.left("another"), ledger.identities("another", "one")) == (0, {None: "parent", 0: "trial"})


def test_an_identity_is_replaced_by_a_newer_one(ledger: Ledger) -> None:
    ledger.identify(PLACE, "one", {None: "first"})
    ledger.identify(PLACE, "one", {None: "second"})
    assert ledger.identities(PLACE, "one") == {None: "second"}


def test_what_was_sent_is_marked_for_each_launch(ledger: Ledger) -> None:
    for name, at_ms in (("new", 2), ("old", 1)):
        ledger.launch(launch(name, at_ms=at_ms))
    ledger.append("new", [epoch(0, 1, 0.5)])
    assert (ledger.unsent(PLACE), ledger.left(PLACE)) == (["old", "new"], 3)
    ledger.mark_sent(PLACE, "new", 3)
    assert (ledger.unsent(PLACE), ledger.left(PLACE), ledger.sent(PLACE, "old")) == (["old"], 1, 0)
    ledger.mark_sent(PLACE, "old", 2)
    assert (ledger.unsent(PLACE), ledger.left(PLACE)) == ([], 0)


def test_identities_that_are_known_are_not_written_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.identify(PLACE, "one", {None: "parent", 0: "trial"})
    monkeypatch.setattr(ledger, "_transaction", lambda: pytest.fail("it writes"))
    ledger.identify(PLACE, "one", {})
    ledger.identify(PLACE, "one", {0: "trial"})
    assert ledger.identities(PLACE, "one") == {None: "parent", 0: "trial"}


@pytest.mark.parametrize(
    ("uri", "without"),
    [
        ("https://me:secret@host:5000/path", "https://host:5000/path"),
        ("postgresql+psycopg2://me:sec/r@t@host/runs", "postgresql+psycopg2://host/runs"),
        ("https://token@host", "https://host"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("no answer from http://me:secret@host/api (a@b: refused)", "no answer from http://host/api (a@b: refused)"),
    ],
)
def test_a_password_is_not_shown(uri: str, without: str) -> None:
    assert shown(uri) == without


def test_a_password_is_not_kept(ledger: Ledger) -> None:
    ledger.launch(launch())
    ledger.mark_sent("http://me:secret@host", "one", 1)
    ledger.identify("http://me:secret@host", "one", {None: "run"})
    assert (ledger.left("http://me:new@host"), ledger.identities("http://host", "one")) == (0, {None: "run"})
    ledger.close()
    assert not [path for path in ledger.path.parent.iterdir() if b"secret" in path.read_bytes()]


def test_a_run_ends_once_the_first_end_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append("one", [RunEnded(0, "finished", 1), RunEnded(1, "failed", 1)])
    ledger.append("one", [RunEnded(0, "interrupted", 2)])
    assert [(event.trial, event.state) for event in ledger.events("one") if isinstance(event, RunEnded)] == [(0, "finished"), (1, "failed")]
    ledger.close()
