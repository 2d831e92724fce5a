"""Files at a URI: whole or not at all, in a folder and on other filesystems; test_s3.py has those of an object store."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from orchestrator import storage
from orchestrator.storage import StorageError, below, names, read_file, write_file


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder behind `mem://`, a filesystem of pyarrow that is neither this machine's nor an object store."""
    local = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(
        pyarrow.fs, "FileSystem", type("F", (), {"from_uri": staticmethod(lambda uri: (local, uri.removeprefix("mem://")))})
    )
    return tmp_path


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_options_of_a_uri_stay_at_its_end() -> None:
    assert below("s3://bucket/x/?scheme=http", "data", "f") == "s3://bucket/x/data/f?scheme=http"
    assert below("/a?b", "data") == "/a?b/data"


def test_a_message_names_the_file_before_the_options_of_its_uri() -> None:
    for work in (lambda: write_file("nosuch://bucket/x?scheme=http", "f", b""), lambda: read_file("nosuch://bucket/x?scheme=http", "f")):
        with pytest.raises(StorageError, match=r"^can't (write|read) 'nosuch://bucket/x/f\?scheme=http': "):
            work()


def test_a_file_uri_is_a_folder(tmp_path: Path) -> None:
    write_file(f"file://{tmp_path}/deep/er", "a", b"content")
    assert (tmp_path / "deep" / "er" / "a").read_bytes() == b"content"
    assert read_file(f"file://{tmp_path}/deep/er", "a") == b"content"


@pytest.mark.parametrize("written", ["a b", "a%20b"])
def test_a_file_uri_may_be_encoded_or_not(written: str, tmp_path: Path) -> None:
    write_file(f"file://{tmp_path}/{written}", "a", b"content")
    assert (tmp_path / "a b" / "a").read_bytes() == b"content"


def test_a_file_is_seen_when_it_is_whole_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(str(tmp_path), "a", b"old")
    seen: list[bytes] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (fsync(descriptor), seen.append((tmp_path / "a").read_bytes())))
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(StorageError, match="No space left"):
        write_file(str(tmp_path), "a", b"new")
    assert seen == [b"old"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_place_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"can't write '.*/file/run/a': Not a directory"):
        write_file(str(tmp_path / "file" / "run"), "a", b"")


def test_a_file_that_can_t_be_read_now_is_said_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match=r"can't read '.*/a': Is a directory") as told:
        read_file(str(tmp_path), "a")
    assert told.value.reason == "Is a directory"


def test_elsewhere_too_a_file_is_replaced_when_the_new_one_is_whole(elsewhere: Path) -> None:
    write_file("mem://bucket", "a", b"old")
    seen = []

    def buffers() -> Iterator[bytes]:
        yield b"ne"
        seen.append(read_file("mem://bucket", "a"))
        yield b"w"

    write_file("mem://bucket", "a", buffers())
    assert seen == [b"old"]
    assert read_file("mem://bucket", "a") == b"new"
    assert names("mem://bucket") == ["a"]


def test_elsewhere_too_a_write_that_breaks_off_leaves_what_was_there_and_nothing_beside_it(elsewhere: Path) -> None:
    write_file("mem://bucket", "a", b"old")

    def buffers() -> Iterator[bytes]:
        yield b"a part"
        raise OSError("the connection was cut")

    with pytest.raises(StorageError, match="can't write 'mem://bucket/a': the connection was cut"):
        write_file("mem://bucket", "a", buffers())
    assert {path.name: path.read_bytes() for path in (elsewhere / "bucket").iterdir()} == {"a": b"old"}


class Stream:
    """An upload to an object store: what it has is put when it is closed, and not before."""

    def __init__(self, store: dict[str, bytes], name: str, breaks: bool) -> None:
        self.store, self.name, self.breaks, self.held = store, name, breaks, b""

    def write(self, content: bytes) -> None:
        self.held += content
        if self.breaks:
            raise OSError("the connection was cut")

    def close(self) -> None:
        if self.breaks:
            raise OSError("the connection is gone")
        self.store[self.name] = self.held


class Store:
    """An object store's filesystem."""

    type_name = "s3"

    def __init__(self, breaks: bool) -> None:
        self.objects, self.breaks = {"bucket/a": b"old"}, breaks

    def open_output_stream(self, name: str) -> Stream:
        return Stream(self.objects, name, self.breaks)

    def delete_file(self, name: str) -> None:
        del self.objects[name]


def test_an_object_whose_new_content_did_not_arrive_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(breaks=True)
    monkeypatch.setattr(storage, "_filesystem", lambda uri: (store, uri.removeprefix("s3://")))
    with pytest.raises(StorageError, match="can't write 's3://bucket/a': the connection was cut"):
        write_file("s3://bucket", "a", b"new")
    assert store.objects == {"bucket/a": b"old"}


def test_of_a_file_the_end_is_read_and_what_is_before_it_counted(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"0123456789")
    assert storage.read_end(str(tmp_path), "log", 4) == (b"6789", 6)
    assert storage.read_end(tmp_path.as_uri(), "log", None) == (b"0123456789", 0)
    assert storage.read_end(str(tmp_path), "nothing", 4) == (b"", 0)


def test_a_file_that_breaks_off_while_it_is_read_is_an_error_of_the_storage() -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(storage.StorageError, match=r"can't read 's3://bucket/data/x\?region=r': Input/output error"):
        list(storage.pieces(Broken(), "s3://bucket/data?region=r", "x", 10))


def test_all_that_lies_below_a_place_is_counted_and_deleted(tmp_path: Path) -> None:
    (tmp_path / "run" / "inner").mkdir(parents=True)
    (tmp_path / "run" / "inner" / "x").write_bytes(b"12345")
    (tmp_path / "run" / "y").write_bytes(b"123")
    assert (storage.size_bytes(str(tmp_path / "run")), storage.size_bytes(str(tmp_path / "nowhere"))) == (8, 0)
    storage.delete_all(str(tmp_path / "run"))
    storage.delete_all(str(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_no_message_shows_credentials() -> None:
    with pytest.raises(storage.StorageError) as said:
        storage.names("nosuch://user:secret@bucket/run")
    assert "secret" not in str(said.value) + said.value.reason
