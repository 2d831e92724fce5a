"""Tracking against a real MLflow server over HTTP, artifacts through it; it is down at first, or loses its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import Failed
from orchestrator.events import best_first
from orchestrator.records import tracking
from orchestrator.records.ledger import Ledger
from orchestrator.records.tracking import client, destination, recorded, sync
from tests.mlflow_server import Proxy, server
from tests.records.conftest import HOME, Record


@pytest.fixture(scope="module")
def port(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    there = tmp_path_factory.mktemp("server")
    (there / "mlflow.db").write_bytes(empty_store.read_bytes())
    with server(there) as port:
        yield port


@pytest.fixture
def proxy(port: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """In front of the server, and what MLFLOW_TRACKING_URI names."""
    (folder / "mlflow.db").unlink()
    made = Proxy(port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
    yield made
    made.becomes("well")
    made.close()


def test_a_server_that_was_down_gets_everything_once_it_is_up_artifacts_through_it(proxy: Proxy, record: Record, ledger: Ledger) -> None:
    launch, entries = record(), len(ledger.entries())
    proxy.becomes("refuses")
    with pytest.raises(Failed, match="took not everything"):
        sync(HOME)
    assert ledger.left(destination()) == entries
    proxy.becomes("well")
    assert sync(HOME) == (entries, 0)
    of = tracking.reachable_client()
    before = recorded(of, "corners")
    trials = best_first([run.result for run in before if run.kind == "trial"], "val_accuracy", "max")
    assert [(trial.trial, trial.state) for trial in trials] == [(0, "finished"), (1, "stopped"), (2, "failed"), (3, "interrupted")]
    winner = next(run for run in before if run.result.trial == 0)
    assert tracking.experiment_file(of, winner) == tracking.to_yaml(launch.experiment)
    assert winner.model_id is not None
    model = of.get_logged_model(winner.model_id)
    assert model.artifact_location.startswith("mlflow-artifacts:/")
    assert sorted(path.name for path in HOME.parent.iterdir()) == [".orchestrator"]  # no mlruns/ here: the server has the files
    assert sync(HOME, again=True) == (0, 0)
    assert recorded(client(), "corners") == before
    history = of.get_metric_history(winner.result.run_id, "val_accuracy")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.7), (3, 0.6)]


@pytest.mark.parametrize("retries", ["0", "2"])
def test_what_was_done_though_its_answer_was_lost_is_not_done_twice(
    retries: str, proxy: Proxy, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    launch = record(f"lost-{retries}", experiment_name=f"lost-{retries}")
    proxy.becomes("loses answers")
    for _ in range(100):
        try:
            sync(HOME)
            break
        except Failed:
            continue
    proxy.becomes("well")
    assert sync(HOME, again=True)[1] == 0
    of = client()
    experiment = of.get_experiment_by_name(launch.name).experiment_id
    keys = Counter(run.data.tags["orchestrator.key"] for run in of.search_runs([experiment]))
    assert keys == Counter({f"{launch.id}/{trial}": 1 for trial in ("parent", 0, 1, 2, 3)})
    assert len(of.search_logged_models([experiment])) == 1
