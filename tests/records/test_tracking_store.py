"""The store: one that can't be used is refused, one that isn't there is made whole, and what it raises is one line."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from orchestrator.errors import Failed, Refused
from orchestrator.records import tracking
from orchestrator.records.tracking import check_store, client, destination, recorded_run
from orchestrator.storage import put_new
from tests.records.conftest import unused_port


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
    connect, question = sqlite3.connect, "select version_num from alembic_version"
    with contextlib.closing(connect("mlflow.db", isolation_level=None)) as db, contextlib.closing(connect("mlflow.db", timeout=0)) as other:
        db.execute("begin exclusive")
        monkeypatch.setattr(sqlite3, "connect", lambda *words, **more: connect(*words, **more, timeout=0))
        check_store(destination())
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            other.execute(question)
    assert client().get_experiment("0").name == "Default"


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
        put_new(made, path)
        assert path.read_bytes() == b"first"


def no_links(*_: Path) -> None:
    raise PermissionError("no links here")


def test_a_place_where_no_store_can_be_made_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"can't make the MLflow store '.*/none/mlflow.db': .*No such file or directory"):
        tracking.make_store(f"sqlite:///{tmp_path}/none/mlflow.db")


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
