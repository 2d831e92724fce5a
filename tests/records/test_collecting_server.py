"""Removing runs from a tracking server: what it lets go over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.collecting import gc
from orchestrator.records import tracking
from orchestrator.records.ledger import Ledger
from tests.mlflow_server import server
from tests.records.conftest import Record


@pytest.mark.slow
def test_a_server_deletes_artifacts_and_marks_runs_as_deleted(
    folder: Path, record: Record, ledger: Ledger, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, home = tmp_path_factory.mktemp("server"), Path(".orchestrator")
    (folder / "mlflow.db").rename(there / "mlflow.db")
    record()
    with server(there) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        tracking.sync(home)
        tried = gc("corners", older="0s", dry_run=True)
        assert sum(run["bytes"] for run in tried.removed) > 100
        done = gc("corners", older="0s")
        assert (done.removed, done.kept, done.failed) == (tried.removed, 0, [])
        assert [run["trial"] for run in done.removed] == [0, 1, 2, 3, None]
        client = tracking.client()
        owner = [client.get_experiment_by_name("corners").experiment_id]
        runs = client.search_runs(owner, run_view_type=3)
        assert [run.info.lifecycle_stage for run in runs] == ["deleted"] * 5
        assert [item for run in runs for item in client.list_artifacts(run.info.run_id)] == []
        assert list(client.search_logged_models(owner)) == []
        assert tracking.sync(home, again=True) == (0, 0)
        assert list(client.search_runs(owner)) == []
