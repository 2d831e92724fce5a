"""A run's bundle as MLflow's logged model, and its scores on test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.records.ledger import Entry, Launch
from orchestrator.records.tracking.rows import dataset
from orchestrator.records.tracking.store import asked_once


def send_kept(client: Any, launch: Launch, run_id: str, entry: Entry) -> None:
    """The bundle as a logged model of the run, and its test scores, linked to model and data; once."""
    from mlflow.entities import LoggedModelOutput, Metric

    run = client.get_run(run_id)
    model_id = run.data.tags.get("orchestrator.model_id")
    bundle = Path(entry.data["bundle"])
    if model_id is None and bundle.exists():
        model_id = log_model(client, run_id, launch.name, bundle)
        client.log_outputs(run_id, [LoggedModelOutput(model_id, entry.data["epoch"])])
    data = dataset(launch).dataset
    metrics = [
        Metric(
            key,
            value,
            entry.at_ms,
            entry.data["epoch"],
            model_id=model_id,
            dataset_name=data.name,
            dataset_digest=data.digest,
            run_id=run_id,
        )
        for key, value in entry.data["test"].items()
    ]
    client.log_batch(run_id, metrics=metrics, tags=test_tags(entry.data.get("baseline", {}), entry.data.get("margin")))
    figures = Path(entry.data.get("figures", ""))
    if entry.data.get("figures") and figures.is_dir():
        client.log_artifacts(run_id, str(figures), "test")


def log_model(client: Any, run_id: str, name: str, bundle: Path) -> str:
    """Log a bundle as a model of a run, or go on with one that was begun; its id, which the run keeps as a tag once it is whole."""
    run = client.get_run(run_id)
    tags = {"orchestrator.key": run.data.tags["orchestrator.key"]}
    begun = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'", max_results=1)
    if begun:
        model_id = str(begun[0].model_id)
    else:
        with asked_once():
            model_id = str(client.create_logged_model(run.info.experiment_id, name, run_id, tags, None, "bundle").model_id)
    client.log_model_artifacts(model_id, str(bundle))
    client.finalize_logged_model(model_id, "READY")
    client.set_tag(run_id, "orchestrator.model_id", model_id)
    return model_id


def test_tags(baseline: dict[str, float], margin: Sequence[float] | None) -> list[Any]:
    """The tags of a run's test: its baseline's scores, and the interval by which it beats that."""
    from mlflow.entities import RunTag

    said = {"orchestrator.baseline.test": baseline or None, "orchestrator.margin": margin}
    return [RunTag(key, json.dumps(value)) for key, value in said.items() if value is not None]
