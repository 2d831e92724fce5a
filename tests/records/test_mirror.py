"""The ledger's copy beside the checkpoints: one consistent state, replaced as a whole, from which a driver elsewhere goes on."""

from __future__ import annotations

import dataclasses
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import Failed
from orchestrator.records.ledger import Launch, Ledger
from orchestrator.records.mirror import NAME, Mirror, forget, has_more, mirror, mirror_of, mirrored, restore
from tests.s3 import bucket

LAUNCH = Launch("20260101-000000-aaaa", "sweep", "digits", {}, "val_loss", "min", "f" * 16, "/nowhere")
LATER = dataclasses.replace(LAUNCH, id="20260102-000000-aaaa")
COPY = f"{LAUNCH.id}.sqlite"


def wait_until(there: Callable[[], object], otherwise: str) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def pairs(path: Path) -> tuple[int, int]:
    with sqlite3.connect(path) as db:
        assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
        return db.execute("select count(*) from left_hand").fetchone()[0], db.execute("select count(*) from right_hand").fetchone()[0]


def test_a_copy_taken_while_another_connection_writes_is_one_consistent_state(tmp_path: Path) -> None:
    ledger = tmp_path / NAME
    with sqlite3.connect(ledger) as db:
        db.execute("pragma journal_mode = wal")
        db.execute("create table left_hand (x)")
        db.execute("create table right_hand (x)")
    ended = threading.Event()

    def write() -> None:
        own = sqlite3.connect(ledger, timeout=30, isolation_level=None)
        while not ended.is_set():  # both rows or none
            own.execute("begin immediate")
            own.execute("insert into left_hand values (?)", ("a" * 500,))
            own.execute("insert into right_hand values (?)", ("b" * 500,))
            own.execute("commit")
        own.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        counts = []
        for place in range(20):
            mirror(ledger, str(tmp_path / f"copy{place}"), LAUNCH.id)
            counts.append(pairs(tmp_path / f"copy{place}" / COPY))
    finally:
        ended.set()
        writer.join()
    assert all(left == right for left, right in counts)
    assert counts == sorted(counts)
    assert counts[-1][0] > counts[0][0], "nothing was written meanwhile"


def test_a_restored_ledger_says_what_the_first_one_said(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "here")
    first.launch(LAUNCH)
    uri = mirror_of(f"file://{tmp_path}/shared/", "digits", "sweep")
    mirror(first.path, uri, LAUNCH.id)
    assert (tmp_path / "shared" / "ledgers" / "digits" / "sweep" / COPY).is_file()
    assert restore(uri, tmp_path / "there", LAUNCH.id) is True
    second = Ledger(tmp_path / "there")
    assert second.find(LAUNCH.id) == LAUNCH
    assert second.entries() == first.entries()


def test_a_launch_of_the_same_name_from_another_folder_leaves_the_copies_of_the_others(tmp_path: Path) -> None:
    uri = mirror_of(str(tmp_path / "shared"), "digits", "sweep")
    for folder, launch in (("second", LATER), ("first", LAUNCH)):
        ledger = Ledger(tmp_path / folder)
        ledger.launch(launch)
        mirror(ledger.path, uri, launch.id)
    assert mirrored(uri) == [LAUNCH.id, LATER.id]
    assert restore(uri, tmp_path / "there", LAUNCH.id) is True
    assert Ledger(tmp_path / "there").launches() == [LAUNCH.id]
    forget(uri, LAUNCH.id)
    assert mirrored(uri) == [LATER.id]


def test_a_copy_holds_its_launch_and_no_other_of_the_folder(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "here")
    for launch in (LAUNCH, LATER):
        ledger.launch(launch)
    ledger.note(LATER.id, None, "closed", {"note": "long " * 100_000})
    ledger.identify("http://mlflow", LAUNCH.id, {None: "r"})
    mirror(ledger.path, str(tmp_path / "shared"), LAUNCH.id)
    assert (tmp_path / "shared" / COPY).stat().st_size < 100_000
    restore(str(tmp_path / "shared"), tmp_path / "there", LAUNCH.id)
    there = Ledger(tmp_path / "there")
    assert (there.launches(), there.unsent("http://mlflow")) == ([LAUNCH.id], [LAUNCH.id])
    assert there.entries() == ledger.entries(LAUNCH.id)
    assert there.identities("http://mlflow", LAUNCH.id) == {None: "r"}


def test_a_ledger_that_is_there_is_never_replaced_by_the_mirror(tmp_path: Path) -> None:
    old = Ledger(tmp_path / "old")
    mirror(old.path, str(tmp_path / "shared"), LAUNCH.id)
    new = Ledger(tmp_path / "new")
    new.launch(LAUNCH)
    assert restore(str(tmp_path / "shared"), tmp_path / "new", LAUNCH.id) is False
    assert new.launches() == [LAUNCH.id]


def test_a_copy_that_another_machine_has_gone_on_with_is_told_from_an_older_one_of_this_ledger(tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    ledger = Ledger(tmp_path / "here")
    ledger.launch(LAUNCH)
    assert not has_more(shared, LAUNCH.id, ledger)
    mirror(ledger.path, shared, LAUNCH.id)
    restore(shared, tmp_path / "there", LAUNCH.id)
    other = Ledger(tmp_path / "there")
    ledger.note(LAUNCH.id, None, "closed", {"of": "this one"})
    assert not has_more(shared, LAUNCH.id, ledger)
    for _ in range(2):
        other.note(LAUNCH.id, None, "closed", {"of": "the other one"})
        mirror(other.path, shared, LAUNCH.id)
        assert has_more(shared, LAUNCH.id, ledger), "as long, or longer"
        assert not has_more(shared, LAUNCH.id, other)
    (tmp_path / "shared" / COPY).write_bytes(b"no database")
    assert not has_more(shared, LAUNCH.id, ledger)


def test_who_began_last_drives_and_who_finds_that_writes_no_copy_any_more(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    ledger = Ledger(tmp_path / "here")
    ledger.launch(LAUNCH)
    first = Mirror(tmp_path / "here", str(shared), LAUNCH.id, every_s=0.05)
    first.start()
    wait_until(lambda: (shared / COPY).exists(), "nothing was mirrored")
    restore(str(shared), tmp_path / "there", LAUNCH.id)
    second = Mirror(tmp_path / "there", str(shared), LAUNCH.id, every_s=3600)
    second.start()
    wait_until(lambda: first.taken, "the first one goes on")
    ledger.note(LAUNCH.id, None, "closed", {})
    assert first.finish(60) is None
    assert (first.taken, second.taken) == (socket.gethostname(), None)
    other = Ledger(tmp_path / "there")
    assert not has_more(str(shared), LAUNCH.id, other)
    other.note(LAUNCH.id, None, "closed", {})
    assert second.finish(60) is None
    assert has_more(str(shared), LAUNCH.id, ledger)
    forget(str(shared), LAUNCH.id)
    assert list(shared.iterdir()) == []


def test_without_a_mirror_nothing_is_restored_and_nothing_is_made(tmp_path: Path) -> None:
    assert mirrored(str(tmp_path / "nowhere")) == []
    assert restore(str(tmp_path / "nowhere"), tmp_path / "here", LAUNCH.id) is False
    assert not (tmp_path / "here").exists()


def test_a_mirror_that_fails_leaves_the_one_before_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "here")
    shared = tmp_path / "shared"
    mirror(ledger.path, str(shared), LAUNCH.id)
    before = (shared / COPY).read_bytes()
    ledger.launch(LAUNCH)

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Failed, match=f"^the ledger can't be mirrored to '{shared}': No space left on device$"):
        mirror(ledger.path, str(shared), LAUNCH.id)
    assert (shared / COPY).read_bytes() == before
    assert [path.name for path in shared.iterdir()] == [COPY]


def test_a_damaged_mirror_is_noticed_and_not_taken(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    mirror(Ledger(tmp_path / "here").path, str(shared), LAUNCH.id)
    content = (shared / COPY).read_bytes()
    (shared / COPY).write_bytes(content[: len(content) // 2])
    with pytest.raises(Failed, match="can't be restored"):
        restore(str(shared), tmp_path / "there", LAUNCH.id)
    assert list((tmp_path / "there").iterdir()) == []


def test_the_background_mirror_follows_the_ledger_and_sends_the_rest_when_it_ends(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "here")
    copy = tmp_path / "shared" / COPY
    background = Mirror(tmp_path / "here", str(tmp_path / "shared"), LAUNCH.id, every_s=0.05)
    background.start()
    wait_until(copy.exists, "nothing was mirrored")
    ledger.launch(LAUNCH)
    assert background.finish(60) is None
    restore(str(tmp_path / "shared"), tmp_path / "there", LAUNCH.id)
    assert Ledger(tmp_path / "there").launches() == [LAUNCH.id]


def test_what_is_not_to_be_lost_is_mirrored_at_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "here")
    ledger.launch(LAUNCH)
    background = Mirror(tmp_path / "here", str(tmp_path / "shared"), LAUNCH.id, every_s=3600)
    background.start()
    wait_until((tmp_path / "shared" / COPY).exists, "nothing was mirrored")
    first = (tmp_path / "shared" / COPY).read_bytes()
    ledger.note(LAUNCH.id, None, "closed", {})
    background.wake()
    wait_until(lambda: (tmp_path / "shared" / COPY).read_bytes() != first, "it was not mirrored again")
    assert background.finish(60) is None


def test_a_place_that_takes_nothing_is_said_and_does_not_end_the_command(tmp_path: Path) -> None:
    Ledger(tmp_path / "here")
    (tmp_path / "file").write_text("")
    background = Mirror(tmp_path / "here", str(tmp_path / "file" / "below"), LAUNCH.id, every_s=0.05)
    background.start()
    assert "can't be mirrored" in str(background.finish(60))


def test_a_bucket_named_with_options_holds_a_copy_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "here")
    ledger.launch(LAUNCH)
    with bucket() as s3:
        for name, value in s3.env.items():
            monkeypatch.setenv(name, value)
        uri = mirror_of(s3.uri, "digits", "sweep")
        assert restore(uri, tmp_path / "there", LAUNCH.id) is False
        mirror(ledger.path, uri, LAUNCH.id)
        assert s3.names() == [f"checkpoints/ledgers/digits/sweep/{COPY}"]
        assert mirrored(uri) == [LAUNCH.id]
        assert restore(uri, tmp_path / "there", LAUNCH.id) is True
    assert Ledger(tmp_path / "there").launches() == [LAUNCH.id]


def test_the_copy_lies_below_the_place_of_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert mirror_of("~/kept/", "digits", "train") == f"{tmp_path}/kept/ledgers/digits/train"
    assert mirror_of("s3://bucket/kept/?scheme=http", "digits", "sweep") == "s3://bucket/kept/ledgers/digits/sweep?scheme=http"
