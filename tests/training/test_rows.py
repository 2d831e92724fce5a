"""Prepared data on their way: put once, fetched once a machine, never half."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.storage import StorageError
from orchestrator.training import rows
from orchestrator.training.rows import LIST, local_copy, publish


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "prepared" / "f1n9e7"
    folder.mkdir(parents=True)
    (folder / "train.parquet").write_bytes(b"rows" * 1000)
    (folder / "data.json").write_text("{}")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_put_is_fetched_as_it_was(source: Path, cache: Path, tmp_path: Path) -> None:
    uri = publish(source, f"file://{tmp_path}/storage", "data")
    assert uri == f"file://{tmp_path}/storage/data/f1n9e7"
    assert files_of(local_copy(uri, cache)) == files_of(source)


def test_it_is_put_once_and_fetched_once(source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = publish(source, f"file://{tmp_path}/storage", "data")
    fetched = []
    fetch = rows._fetch
    monkeypatch.setattr(rows, "_fetch", lambda uri, folder: fetched.append(uri) or fetch(uri, folder))
    with ThreadPoolExecutor(8) as ranks:
        folders = set(ranks.map(lambda _: local_copy(uri, cache), range(8)))
    assert len(folders) == len(fetched) == 1
    (source / "train.parquet").unlink()  # so that another copy would be another one
    publish(source, f"file://{tmp_path}/storage", "data")
    assert (tmp_path / "storage/data/f1n9e7/train.parquet").exists()


def test_one_file_is_put_below_its_name(tmp_path: Path, cache: Path) -> None:
    weights = tmp_path / "abc123.safetensors"
    weights.write_bytes(b"tensors")
    uri = publish(weights, f"file://{tmp_path}/storage", "weights")
    assert files_of(local_copy(uri, cache)) == {"abc123.safetensors": b"tensors"}


def test_without_the_list_that_is_written_last_there_is_nothing(source: Path, cache: Path, tmp_path: Path) -> None:
    uri = publish(source, f"file://{tmp_path}/storage", "data")
    (tmp_path / "storage/data/f1n9e7" / LIST).unlink()
    with pytest.raises(StorageError, match="aren't at"):
        local_copy(uri, cache)
    assert list(cache.glob("f1n9e7")) == []


@pytest.mark.parametrize("damage", [b"rows" * 999, b"rowS" * 1000, None])
def test_what_does_not_fit_the_list_is_not_used(source: Path, cache: Path, tmp_path: Path, damage: bytes | None) -> None:
    uri = publish(source, f"file://{tmp_path}/storage", "data")
    stored = tmp_path / "storage/data/f1n9e7/train.parquet"
    stored.unlink() if damage is None else stored.write_bytes(damage)
    with pytest.raises(StorageError, match=r"'train\.parquet'.*delete 'files\.json' there"):
        local_copy(uri, cache)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


def test_an_upload_that_broke_off_is_made_anew(source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = rows.write_file

    def full(uri: str, name: str, content: object) -> None:
        if name == "train.parquet":
            raise StorageError("no space left on device")
        write(uri, name, content)  # type: ignore[arg-type]

    monkeypatch.setattr(rows, "write_file", full)
    with pytest.raises(StorageError, match="no space"):
        publish(source, f"file://{tmp_path}/storage", "data")
    monkeypatch.setattr(rows, "write_file", write)
    uri = publish(source, f"file://{tmp_path}/storage", "data")
    assert files_of(local_copy(uri, cache)) == files_of(source)
    assert set(json.loads((tmp_path / "storage/data/f1n9e7" / LIST).read_text())["files"]) == {"train.parquet", "data.json"}
