"""Removing runs, with all that is kept of them, from a real MLflow store and from the folder."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from orchestrator import collecting
from orchestrator.collecting import Collected, gc, sized
from orchestrator.errors import Failed, Note, Refused
from orchestrator.events import RunStarted
from orchestrator.experiment.config import Experiment
from orchestrator.records import tracking
from orchestrator.records.ledger import Launch, Ledger
from orchestrator.records.mirror import mirror, mirror_of, restore
from orchestrator.records.tracking.send import Sender
from orchestrator.training.rows import publish
from tests.records.conftest import Record, events

FINGERPRINT = "f" * 40
Sweep = Callable[..., Launch]


@pytest.fixture
def sweep(begin: Record, ledger: Ledger) -> Sweep:
    """Record a sweep of three trials (0 is the best), and all that is kept of them here; send it."""

    def made(name: str = "s1", at_days: float = 1, closed: str | None = "finished", **more: Any) -> Launch:
        launch = begin(name, at_ms=int(time.time() * 1000 - at_days * 86_400_000), **more)
        home = ledger.path.parent
        for trial in range(3):
            ledger.append(launch.id, events(trial, ("finished", None, None)))
            for kind in ("checkpoints", "bundles", "figures", "logs"):
                (home / kind / f"{name}-{trial}").mkdir(parents=True)
                (home / kind / f"{name}-{trial}" / "file").write_bytes(b"x" * 1000)
        bundle = home / "bundles" / f"{name}-0"
        (bundle / "MLmodel").write_text("flavors: {}\n")
        ledger.note(launch.id, 0, "kept", {"bundle": str(bundle), "epoch": 2, "test": {"test_accuracy": 0.65}})
        if closed is not None:
            ledger.note(launch.id, None, "closed", {"state": closed, "tags": {"state": closed}, "metrics": {}, "note": ""})
            with contextlib.closing(sqlite3.connect(ledger.path)) as db, db:  # when its last trial ended
                ended = "(select max(at_ms) from entries where launch = e.launch and kind = 'ended')"
                db.execute(f"update entries as e set at_ms = {ended} where kind = 'closed' and launch = ?", (launch.id,))
        (home / "data" / FINGERPRINT).mkdir(parents=True, exist_ok=True)
        (home / "data" / FINGERPRINT / "train.parquet").write_bytes(b"y" * 5000)
        tracking.sync(home)
        return launch

    return made


def there(home: Path) -> dict[str, list[str]]:
    """What is kept in the folder, by kind."""
    return {kind: sorted(path.name for path in (home / kind).iterdir()) for kind in ("checkpoints", "bundles", "figures", "logs", "data")}


def trials(experiment: str = "corners") -> list[int | None]:
    """The runs that MLflow has: of a sweep's own, None."""
    return sorted((run.result.trial for run in tracking.recorded(tracking.client(), experiment)), key=lambda t: -1 if t is None else t)


def artifacts(folder: Path) -> int:
    """How many files MLflow keeps."""
    return sum(path.is_file() for path in (folder / "mlruns").rglob("*"))


def removed(done: Collected) -> list[int | None]:
    return [run["trial"] for run in done.removed]


def test_all_but_the_best_go_with_all_that_is_kept_of_them(sweep: Sweep, folder: Path) -> None:
    sweep()
    done = gc("corners", keep="top:1")
    assert (removed(done), done.kept, done.dry_run, done.failed, done.data) == ([1, 2], 2, False, [], [])
    assert all(run["sweep"] == "s1" and run["bytes"] == 4000 for run in done.removed)
    assert done.bytes == 8000
    assert trials() == [None, 0]
    assert there(folder / ".orchestrator") == {
        "checkpoints": ["s1-0"], "bundles": ["s1-0"], "figures": ["s1-0"], "logs": ["s1-0"], "data": [FINGERPRINT],
    }  # fmt: skip


def test_with_the_last_trial_goes_the_sweep_its_artifacts_and_models_its_data_and_its_place_in_the_ledger(
    sweep: Sweep, folder: Path, ledger: Ledger
) -> None:
    sweep()
    assert artifacts(folder) >= 3  # the experiment file, the diff, the model
    done = gc("corners", keep="top:0")
    assert (removed(done), done.kept) == ([0, 1, 2, None], 0)
    assert done.data == [{"fingerprint": FINGERPRINT, "bytes": 5000}]
    assert artifacts(folder) == 0
    assert done.bytes == sum(run["bytes"] for run in done.removed) + 5000
    assert set(map(tuple, there(folder / ".orchestrator").values())) == {()}
    assert (ledger.launches(), ledger.entries()) == ([], [])
    client = tracking.client()
    owner = [client.get_experiment_by_name("corners").experiment_id]
    assert list(client.search_runs(owner, run_view_type=3)) == []  # deleted ones too
    assert list(client.search_logged_models(owner)) == []


def test_with_the_last_trial_goes_the_copy_of_the_ledger_in_the_storage_and_no_other_launch_s(sweep: Sweep, folder: Path) -> None:
    copies = folder / "shared" / "ledgers" / "corners" / "sweep"
    copies.mkdir(parents=True)
    for name in ("s1", "s2"):
        (copies / f"{name}.sqlite").write_bytes(b"")
    sweep("s1", storage=str(folder / "shared"))
    gc("corners", keep="top:1")
    assert len(list(copies.iterdir())) == 2
    gc("corners", keep="top:0")
    assert [path.name for path in copies.iterdir()] == ["s2.sqlite"]


def test_a_dry_run_shows_the_same_list_and_removes_nothing(sweep: Sweep, folder: Path, ledger: Ledger) -> None:
    sweep()
    before = (there(folder / ".orchestrator"), artifacts(folder), ledger.entries())
    tried = gc("corners", keep="top:0", dry_run=True)
    assert (there(folder / ".orchestrator"), artifacts(folder), ledger.entries()) == before
    assert trials() == [None, 0, 1, 2]
    done = gc("corners", keep="top:0")
    assert (tried.removed, tried.kept, tried.bytes, tried.data, tried.dry_run) == (done.removed, done.kept, done.bytes, done.data, True)
    assert tried.summary() == f"would be removed: 4 runs, {sized(done.bytes)}; kept: 0 (a sweep's own run counts)"
    assert [row["what"] for row in done.rows()] == ["trial 0", "trial 1", "trial 2", "the sweep itself", "prepared data"]


def test_what_a_registered_version_is_made_of_stays_whatever_its_score_in_any_model(sweep: Sweep, folder: Path) -> None:
    sweep()
    client = tracking.client()
    worst = next(run for run in tracking.recorded(client, "corners") if run.result.trial == 2)
    client.create_registered_model("another")
    client.create_model_version("another", "file:///somewhere", worst.result.run_id)
    client.set_registered_model_alias("another", "staging", "1")
    with pytest.warns(Note, match="1 run not removed: it is version 1 of model another"):
        done = gc("corners", keep="top:0")
    assert removed(done) == [0, 1]
    assert trials() == [None, 2]
    assert there(folder / ".orchestrator")["checkpoints"] == ["s1-2"]
    assert there(folder / ".orchestrator")["data"] == [FINGERPRINT]
    assert int(client.get_model_version_by_alias("another", "staging").version) == 1


def test_a_version_that_names_only_the_model_keeps_its_run_too(sweep: Sweep) -> None:
    sweep()
    client = tracking.client()
    best = next(run for run in tracking.recorded(client, "corners") if run.result.trial == 0)
    client.create_registered_model("m")
    client.create_model_version("m", client.get_logged_model(best.model_id).artifact_location)
    with pytest.warns(Note, match="it is version 1 of model m"):
        assert removed(gc("corners", keep="top:0")) == [1, 2]


def test_a_run_that_is_registered_meanwhile_is_not_removed(sweep: Sweep, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep()
    client = tracking.client()
    best = next(run for run in tracking.recorded(client, "corners") if run.result.trial == 0)

    def planned(*given: Any) -> Any:
        client.create_registered_model("m")
        client.create_model_version("m", "file:///somewhere", best.result.run_id)
        return sized_before(*given)

    sized_before = collecting._sized
    monkeypatch.setattr(collecting, "_sized", planned)
    with pytest.raises(Failed, match=r"trial 0 .*: it has just become version 1 of model m") as failed:
        gc("corners", keep="top:0")
    assert removed(failed.value.result) == [1, 2]
    assert trials() == [None, 0]
    assert there(folder / ".orchestrator")["checkpoints"] == ["s1-0"]


def test_data_that_another_experiment_s_runs_or_this_ledger_need_stay(sweep: Sweep, begin: Record, folder: Path, ledger: Ledger) -> None:
    sweep()
    sweep("s2", experiment_name="others")
    assert gc("corners", keep="top:0").data == []
    ledger.forget("s2")  # MLflow has it still
    sweep("s3")
    assert gc("corners", keep="top:0").data == []
    assert there(folder / ".orchestrator")["data"] == [FINGERPRINT]


def test_what_ended_long_ago_goes_and_what_is_neither_best_nor_young(sweep: Sweep) -> None:
    sweep("s1", at_days=40)
    assert removed(gc("corners", older="9999w")) == []
    assert removed(gc("corners", keep="top:2", older="30d")) == [2]
    assert removed(gc("corners", older="30d")) == [0, 1, None]


def test_a_launch_under_way_is_not_touched(sweep: Sweep, folder: Path) -> None:
    sweep("s1")
    sweep("s2", closed=None)
    home = folder / ".orchestrator"
    (home / "driving").mkdir()
    with filelock.FileLock(home / "driving" / "s2.lock"), pytest.warns(Note, match="3 runs not removed: s2 is running"):
        done = gc("corners", older="0s")
    assert {run["sweep"] for run in done.removed} == {"s1"}
    assert there(home)["checkpoints"] == ["s2-0", "s2-1", "s2-2"]
    assert (done.data, there(home)["data"]) == ([], [FINGERPRINT])


@pytest.mark.parametrize("closed", ["interrupted", None])
def test_what_can_be_resumed_stays_until_it_is_old(closed: str | None, sweep: Sweep, folder: Path) -> None:
    sweep(closed=closed)
    with pytest.warns(Note, match="3 runs not removed: s1 was interrupted and can be resumed"):
        assert removed(gc("corners", keep="top:0")) == []
    assert len(there(folder / ".orchestrator")["checkpoints"]) == 3
    assert removed(gc("corners", older="0s")) == [0, 1, 2, None]


def test_what_a_launch_that_failed_left_to_go_on_with_stays_too(begin: Record, sweep: Sweep, ledger: Ledger, folder: Path) -> None:
    """As one ends whose workers can't start any more."""
    launch = sweep(closed=None)
    ledger.append(launch.id, events(3, ("interrupted", None, None)))
    ledger.note(launch.id, None, "closed", {"state": "failed", "tags": {"state": "failed"}, "metrics": {}, "note": ""})
    tracking.sync(folder / ".orchestrator")
    with pytest.warns(Note, match="4 runs not removed: s1 was interrupted and can be resumed"):
        assert removed(gc("corners", keep="top:0")) == []


def test_what_another_machine_goes_on_with_stays_however_old_it_is_here(sweep: Sweep, ledger: Ledger, folder: Path, tmp_path: Path) -> None:
    launch = sweep(closed="interrupted", storage=str(tmp_path / "shared"))
    copies = mirror_of(str(tmp_path / "shared"), launch.name, launch.command)
    mirror(ledger.path, copies, launch.id)
    restore(copies, tmp_path / "there", launch.id)
    other = Ledger(tmp_path / "there")
    other.reopen(launch, int(time.time() * 1000))
    other.append(launch.id, [RunStarted(3, int(time.time() * 1000), {}, {})])
    mirror(other.path, copies, launch.id)
    Sender(other).send()
    with pytest.warns(Note, match="s1 is running elsewhere, as far as MLflow has it"):
        assert removed(gc("corners", older="0s")) == []
    assert len(there(folder / ".orchestrator")["checkpoints"]) == 3


def test_data_that_an_earlier_gc_began_to_remove_go_with_the_next(sweep: Sweep, folder: Path) -> None:
    sweep()
    left = folder / ".orchestrator" / "data" / ".removing-0"
    left.mkdir()
    (left / "train.parquet").write_bytes(b"y")
    gc("corners", keep="top:1", dry_run=True)
    assert left.exists()
    gc("corners", keep="top:1")
    assert not left.exists()


def test_what_mlflow_has_not_got_yet_is_sent_first_and_what_can_not_be_sent_stays(
    begin: Record, sweep: Sweep, ledger: Ledger, folder: Path
) -> None:
    launch = sweep()
    ledger.append(launch.id, events(3, ("finished", None, None)))
    with filelock.FileLock(folder / ".orchestrator" / "sending.lock"), pytest.warns(Note) as said:
        assert removed(gc("corners", keep="top:0", dry_run=True)) == []
    assert any("MLflow hasn't got all of s1 yet" in str(note.message) for note in said)


def test_what_can_not_be_removed_is_said_and_not_counted_and_the_rest_goes(
    sweep: Sweep, folder: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep()
    delete = collecting.delete_all

    def stuck(place: str) -> None:
        if place.endswith("figures/s1-1"):
            raise Failed(f"can't remove '{place}': Device or resource busy")
        delete(place)

    monkeypatch.setattr(collecting, "delete_all", stuck)
    with pytest.raises(Failed, match=r"not everything could be removed: trial 1 .*figures/s1-1': Device or resource busy") as failed:
        gc("corners", keep="top:0")
    done = failed.value.result
    assert (removed(done), done.kept, len(done.failed)) == ([0, 2], 2, 1)
    assert (trials(), done.data) == ([None, 1], [])
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert removed(gc("corners", keep="top:0")) == [1, None]
    assert ledger.launches() == []


def test_runs_of_another_ledger_stay_known_as_deleted_so_that_it_does_not_send_them_again(
    sweep: Sweep, folder: Path, ledger: Ledger
) -> None:
    launch = sweep()
    home = folder / ".orchestrator"
    home.rename(folder / "elsewhere")
    assert removed(gc("corners", keep="top:0")) == [0, 1, 2, None]
    assert (trials(), artifacts(folder)) == ([], 0)
    (folder / "elsewhere").rename(home)
    tracking.sync(home, again=True)
    assert (trials(), ledger.launches()) == ([], [launch.id])


def test_checkpoints_in_a_storage_of_their_own_go_too(
    sweep: Sweep, folder: Path, make_experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_experiment(f"storage.path={folder / 'stored'}").plain()
    monkeypatch.setattr("tests.records.conftest.Launch", lambda *given: Launch(*given[:3], plain, *given[4:]))
    for trial in range(3):
        (folder / "stored" / f"s1-{trial}").mkdir(parents=True)
        (folder / "stored" / f"s1-{trial}" / "checkpoint").write_bytes(b"z" * 10_000)
    sweep()
    done = gc("corners", keep="top:1")
    assert [run["bytes"] for run in done.removed] == [13_000, 13_000]
    assert [path.name for path in (folder / "stored").iterdir()] == ["s1-0"]


def test_the_copy_of_the_prepared_data_in_the_storage_goes_with_the_last_run_on_them(
    sweep: Sweep, folder: Path, ledger: Ledger, make_experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = folder / "stored"
    plain = make_experiment(f"storage.path={stored}").plain()
    monkeypatch.setattr("tests.records.conftest.Launch", lambda *given: Launch(*given[:3], plain, *given[4:]))
    sweep()
    copy = Path(publish(ledger.path.parent / "data" / FINGERPRINT, str(stored), "data"))
    assert gc("corners", keep="top:1").data == []
    assert (copy / "train.parquet").exists()
    tried = gc("corners", keep="top:0", dry_run=True).data
    assert tried[0]["bytes"] > 2 * 5000
    assert (copy / "train.parquet").exists()
    assert gc("corners", keep="top:0").data == tried
    assert not copy.exists()


def test_a_run_of_train_goes_as_a_whole(begin: Record, ledger: Ledger) -> None:
    for number in (1, 2):
        launch = begin(f"t{number}", command="train")
        ledger.append(launch.id, events(None, ("finished", None, None), (0.5, 0.1 * number)))
        ledger.note(launch.id, None, "closed", {"state": "finished", "tags": {"state": "finished"}, "metrics": {}, "note": ""})
    done = gc("corners", keep="top:1")
    assert [(run["trial"], run["sweep"]) for run in done.removed] == [(None, None)]
    assert done.rows()[0]["what"] == "train"
    assert len(ledger.launches()) == 1


def test_an_unknown_experiment_and_a_missing_policy_are_refused(sweep: Sweep) -> None:
    with pytest.raises(Refused, match="give --keep top:3"):
        gc("corners")
    sweep()
    with pytest.raises(Refused, match="no experiment 'cornes'"):
        gc("cornes", keep="top:1")


def test_what_was_removed_is_no_entry_in_time(sweep: Sweep, ledger: Ledger) -> None:
    """The seconds that a launch took are counted by its entries."""
    launch = sweep()
    ledger.append(launch.id, [RunStarted(7, 5, {}, {})])
    last = max(entry.at_ms for entry in ledger.entries(launch.id))
    ledger.remove(launch.id, 7)
    assert (ledger.removed(launch.id), ledger.entries(launch.id)[-1].at_ms) == ({7}, last)


@pytest.mark.parametrize(("count", "said"), [(0, "0 B"), (999, "999 B"), (12_345, "12.3 kB"), (7_000_000, "7 MB"), (3e15, "3000 TB")])
def test_sizes_are_short(count: int, said: str) -> None:
    assert sized(count) == said
