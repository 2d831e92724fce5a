"""Checkpoints and prepared data in an S3 bucket: a real server, credentials from the environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from orchestrator.storage import StorageError, write_file
from orchestrator.training import checkpoint
from orchestrator.training.checkpoint import Writer
from orchestrator.training.rows import local_copy, publish
from tests.s3 import Bucket, bucket


@pytest.fixture(scope="module")
def server() -> Iterator[Bucket]:
    with bucket() as made:
        yield made


@pytest.fixture
def s3(server: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return server


def uri_of(s3: Bucket, run: str) -> str:
    return checkpoint.folder_of(s3.uri, Path("/nowhere"), run, None)


def state(step: int) -> dict[str, object]:
    return {"weights": torch.full((1000,), float(step)), "step": step}


def saved(s3: Bucket, run: str, *steps: int) -> str:
    """A run with a checkpoint of each of these steps."""
    uri = uri_of(s3, run)
    writer = Writer(uri)
    for step in steps:
        writer.save(state(step))
    writer.flush()
    return uri


def test_what_is_read_is_what_was_saved(s3: Bucket) -> None:
    found = checkpoint.load(saved(s3, "one", 3))
    assert found["step"] == 3
    assert torch.equal(found["weights"], torch.full((1000,), 3.0))
    assert checkpoint.load(uri_of(s3, "none")) is None


def test_the_newest_two_are_kept(s3: Bucket) -> None:
    saved(s3, "many", 1, 2, 3, 4)
    kept = [name for name in s3.names() if name.startswith("checkpoints/many/")]
    assert len(kept) == checkpoint.KEPT == 2
    assert checkpoint.load(uri_of(s3, "many"))["step"] == 4


@pytest.mark.filterwarnings("ignore::orchestrator.errors.Note")
def test_of_a_damaged_one_the_one_before_is_used(s3: Bucket) -> None:
    uri = saved(s3, "damaged", 1, 2)
    newest = max(name for name in s3.names() if name.startswith("checkpoints/damaged/"))
    s3.put(newest, s3.content(newest)[:-10])
    assert checkpoint.load(uri)["step"] == 1


def test_a_bucket_that_is_not_there_is_told_before_anything_is_trained(s3: Bucket) -> None:
    with pytest.raises(StorageError, match=r"can't write 's3://none/x/\.probe\?.*bucket"):
        checkpoint.probe(s3.uri.replace(f"{s3.name}/checkpoints", "none/x"))


def test_a_server_that_is_gone_is_told_without_the_credentials(s3: Bucket) -> None:
    with pytest.raises(StorageError, match=r"can't write") as told:
        checkpoint.probe(s3.uri.replace(f":{s3.port}", ":1") + "&connect_timeout=1&request_timeout=1")
    assert s3.secret not in str(told.value)


def test_prepared_data_are_put_there_and_fetched(s3: Bucket, tmp_path: Path) -> None:
    folder = tmp_path / "f1n9"
    folder.mkdir()
    (folder / "train.parquet").write_bytes(b"x" * 20_000_000)  # several pieces
    (tmp_path / "cache").mkdir()
    uri = publish(folder, s3.uri, "data")
    assert [name for name in s3.names() if "f1n9" in name] == ["checkpoints/data/f1n9/files.json", "checkpoints/data/f1n9/train.parquet"]
    assert (local_copy(uri, tmp_path / "cache") / "train.parquet").read_bytes() == b"x" * 20_000_000


def test_an_upload_that_breaks_off_leaves_no_part_behind(s3: Bucket) -> None:
    def buffers() -> Iterator[bytes]:
        yield b"x" * 20_000_000
        raise OSError("the disk that it is read from is gone")

    with pytest.raises(StorageError, match=r"can't write 's3://.*is gone"):
        write_file(uri_of(s3, "cut"), "a", buffers())
    assert [name for name in s3.names() if "/cut/" in name] == []
