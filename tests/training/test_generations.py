"""Generations: the newest two whole states are kept, and one that is damaged or missing costs nothing but the steps since the other."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import torch

from orchestrator import storage
from orchestrator.errors import Note
from orchestrator.storage import StorageError
from orchestrator.training import checkpoint
from orchestrator.training.checkpoint import Found, Writer, folder_of, load, newest

NOTHING = Found()


def write(uri: str, *epochs: int, after: Found = NOTHING) -> Writer:
    """A state for each epoch, one after the other."""
    writer = Writer(uri, after.number, after.damaged)
    for epoch in epochs:
        writer.save({"epoch": epoch})
        writer.flush()
    return writer


@pytest.fixture(params=["folder", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A URI for checkpoints, and the folder in which they lie: named as one, or behind a filesystem of pyarrow."""
    if request.param == "folder":
        return str(tmp_path / "run"), tmp_path / "run"

    class Filesystem:
        @staticmethod
        def from_uri(uri: str) -> tuple[Any, str]:
            return pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem()), uri.removeprefix("mem://")

    monkeypatch.setattr(pyarrow.fs, "FileSystem", Filesystem)
    return "mem://bucket/run", tmp_path / "bucket" / "run"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_two_are_kept_and_the_newest_is_loaded(place: tuple[str, Path]) -> None:
    uri, folder = place
    write(uri, *range(1, 12))
    assert files(folder) == ["checkpoint-10.safetensors", "checkpoint-11.safetensors"]
    assert load(uri) == {"epoch": 11}


def test_what_another_driver_writes_meanwhile_stays(place: tuple[str, Path]) -> None:
    """Of two that write one run, the one that was given up for dead writes its last state late."""
    uri, folder = place
    late = write(uri, 1, 2)
    write(uri, 3, 4, 5, after=newest(uri))
    (folder / ".checkpoint-6.safetensors.abcd").touch()  # the other one's, half written
    late.save({"epoch": 3})
    late.flush()
    assert files(folder) == [".checkpoint-6.safetensors.abcd", *(f"checkpoint-{number}.safetensors" for number in (3, 4, 5))]
    assert load(uri) == {"epoch": 5}


def test_it_stays_too_where_the_one_that_was_given_up_for_dead_had_written_nothing_yet(place: tuple[str, Path]) -> None:
    uri, folder = place
    late = Writer(uri)
    write(uri, 1, 2)
    late.save({"epoch": 1})
    late.flush()
    assert files(folder) == ["checkpoint-1.safetensors", "checkpoint-2.safetensors"]
    assert load(uri) == {"epoch": 2}


def test_where_nothing_was_written_there_is_nothing_to_say(place: tuple[str, Path]) -> None:
    assert newest(place[0]) == Found(None, 0, ())
    write(place[0], 1)
    assert newest(place[0]) == Found({"epoch": 1}, 1, ())


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_of_a_damaged_file_the_one_before_is_used_and_that_is_said(damage: str, place: tuple[str, Path]) -> None:
    uri, folder = place
    write(uri, 1, 2, 3)
    spoil(folder / "checkpoint-3.safetensors", damage)
    found = newest(uri)
    assert (found.state, found.number) == ({"epoch": 2}, 2)
    [says] = found.notes
    assert says.startswith(f"checkpoint '{uri}/checkpoint-3.safetensors' is damaged: ")
    assert says.endswith(": 'checkpoint-2.safetensors' is used")
    with pytest.warns(Note, match="is damaged"):
        assert load(uri) == {"epoch": 2}


def test_of_a_missing_file_the_other_one_is_used_and_that_is_said(place: tuple[str, Path]) -> None:
    uri, folder = place
    write(uri, 1, 2, 3)
    (folder / "checkpoint-3.safetensors").unlink()
    assert newest(uri) == Found({"epoch": 2}, 2, (f"one of the two checkpoints in '{uri}' is missing: 'checkpoint-2.safetensors' is used",))


def test_a_file_that_goes_while_it_is_looked_for_is_missing(place: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    uri, folder = place
    write(uri, 1, 2)
    there = storage.names(uri)
    (folder / "checkpoint-2.safetensors").unlink()
    monkeypatch.setattr(checkpoint, "names", lambda uri: there)
    found = newest(uri)
    assert (found.state, "checkpoint-2.safetensors' is missing" in found.notes[0]) == ({"epoch": 1}, True)


def test_if_all_are_damaged_the_run_starts_anew_and_that_is_said(place: tuple[str, Path]) -> None:
    uri, folder = place
    write(uri, 1, 2)
    for path in folder.iterdir():
        spoil(path, "flipped")
    found = newest(uri)
    assert (found.state, found.number) == (None, 0)
    [says] = found.notes
    assert says.startswith(f"checkpoint '{uri}/checkpoint-2.safetensors' is damaged: ")
    assert says.endswith(", and there is no other one: the run starts at its beginning")
    with pytest.raises(StorageError, match=r"checkpoint-2.safetensors' is damaged: [^,]*$"):
        load(uri)


def test_a_damaged_file_is_written_anew_and_never_one_of_the_two_that_are_kept(place: tuple[str, Path]) -> None:
    uri, folder = place
    write(uri, 1, 2, 3)
    spoil(folder / "checkpoint-3.safetensors", "flipped")
    write(uri, 33, after=newest(uri))
    assert files(folder) == ["checkpoint-2.safetensors", "checkpoint-3.safetensors"]
    assert newest(uri) == Found({"epoch": 33}, 3, ())


def test_a_run_that_starts_anew_leaves_none_of_the_damaged_files(place: tuple[str, Path]) -> None:
    uri, folder = place
    write(uri, *range(1, 10))
    for path in folder.iterdir():
        spoil(path, "cut")
    write(uri, 1, after=newest(uri))
    assert files(folder) == ["checkpoint-1.safetensors"]
    assert newest(uri) == Found({"epoch": 1}, 1, ())


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    write(str(tmp_path), 1)
    (tmp_path / ".checkpoint-2.safetensors.12345").write_bytes(b"half")
    (tmp_path / "error.txt").write_bytes(b"is no checkpoint")
    write(str(tmp_path), 2, after=newest(str(tmp_path)))
    assert files(tmp_path) == ["checkpoint-1.safetensors", "checkpoint-2.safetensors", "error.txt"]


@pytest.mark.parametrize("broken", ["names", "delete"])
def test_what_can_t_be_listed_or_deleted_fails_no_run(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*given: Any, **options: Any) -> Any:
        raise PermissionError("no")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir" if broken == "names" else "unlink", refuses)
        if broken == "delete":
            patched.setattr(storage, "_replace", lambda folder, name, buffers: _plainly(folder, name, buffers))
        write(str(tmp_path), 1, 2, 3)
    assert files(tmp_path) == [f"checkpoint-{number}.safetensors" for number in (1, 2, 3)]
    assert load(str(tmp_path)) == {"epoch": 3}


def _plainly(folder: Path, name: str, buffers: Any) -> None:
    (folder / name).write_bytes(b"".join(buffers))


def test_a_place_that_can_t_be_read_now_is_no_damage(place: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that started anew because the network was away would lose what it has."""
    uri, _ = place
    write(uri, 1, 2)
    monkeypatch.setattr(checkpoint, "open_file", lambda uri, name: Unreadable())
    with pytest.raises(StorageError, match=r"can't read '.*checkpoint-2.safetensors': the network is away"):
        newest(uri)


class Unreadable:
    """A file that opens and can't be read."""

    def __enter__(self) -> Unreadable:
        return self

    def __exit__(self, *given: object) -> None:
        pass

    def seek(self, *given: int) -> int:
        return 0

    def read(self, size: int) -> bytes:
        raise ConnectionError("the network is away")


def test_a_uri_s_options_stay_at_its_end(tmp_path: Path) -> None:
    assert folder_of("s3://bucket/kept/?scheme=http", tmp_path, "l1", 3) == "s3://bucket/kept/l1-3?scheme=http"


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes({"cut": content[:-3], "flipped": content, "empty": b""}[damage])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_said_and_the_last_good_checkpoint_is_intact(small_disk: Path) -> None:
    writer = write(str(small_disk / "run"), 1)
    (small_disk / "other").write_bytes(bytes(1_500_000))
    for _ in range(2):
        with pytest.raises(StorageError, match=r"can't write '.*/checkpoint-2.safetensors': No space left on device"):
            _save(writer, {"epoch": 2, "weights": torch.ones(250_000)})
        assert files(small_disk / "run") == ["checkpoint-1.safetensors"]
        assert load(str(small_disk / "run")) == {"epoch": 1}
    (small_disk / "other").unlink()
    _save(writer, {"epoch": 2, "weights": torch.ones(250_000)})
    assert load(str(small_disk / "run"))["epoch"] == 2


def _save(writer: Writer, state: Any) -> None:
    writer.save(state)
    writer.flush()
