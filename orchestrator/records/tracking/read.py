"""Runs as MLflow has them, read back."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import Refused
from orchestrator.events import Best, TrialResult, better
from orchestrator.records.tracking.send import EXPERIMENT_FILE
from orchestrator.records.tracking.store import said_by_mlflow, shown_destination


@dataclass(frozen=True)
class RecordedRun:
    """A run as MLflow has it."""

    result: TrialResult
    kind: str  # sweep, trial, train
    launch: str
    fingerprint: str
    metric: str
    mode: str
    started_ms: int
    metrics: dict[str, float]  # the last value of each, test scores among them
    params: dict[str, str]
    model_id: str | None
    tags: dict[str, str]
    ended_ms: int | None = None  # when it ended last; a resumed run took longer than its `wall_s`

    def about(self, name: str) -> dict[str, Any]:
        """What was recorded of the data: `baseline`, `optimum`; empty where nothing was."""
        said: dict[str, Any] = json.loads(self.tags.get(f"orchestrator.{name}") or "{}")
        return said


def recorded(client: Any, experiment: str) -> list[RecordedRun]:
    """Every run of an experiment that this toolkit recorded. Raises Refused if there is no such experiment."""
    with said_by_mlflow():
        found = client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage == "deleted":
            known = [e.name for e in client.search_experiments() if e.name != "Default"]
            there = f"; there is: {', '.join(sorted(known)[:12])}" if known else "; nothing has been recorded here yet"
            raise Refused(f"no experiment '{experiment}' at {shown_destination()}{there}")
        runs: list[Any] = []
        token = None
        while True:
            page = client.search_runs([found.experiment_id], max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                break
    return [_recorded(run) for run in runs if "orchestrator.key" in run.data.tags]


def recorded_run(client: Any, run_id: str) -> RecordedRun:
    """One run by its id. Raises Refused if there is none, or it isn't one of this toolkit's."""
    from mlflow.exceptions import MlflowException

    with said_by_mlflow():
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise  # no answer, or an error: that says nothing of the run
            raise Refused(f"no run '{run_id}' at {shown_destination()}", key="--run") from None
    if "orchestrator.key" not in run.data.tags:
        raise Refused(f"run '{run_id}' was not recorded by orchestrator", key="--run")
    return _recorded(run)


def _recorded(run: Any) -> RecordedRun:
    tags = run.data.tags

    def tag(name: str) -> str:
        return str(tags.get(f"orchestrator.{name}", ""))

    best = json.loads(tag("best")) if tag("best") else None
    result = TrialResult(
        trial=int(tag("trial")) if tag("trial") else None,
        run_id=run.info.run_id,
        state=tag("state") or "running",  # type: ignore[arg-type]
        stopped_by=tag("stopped_by") or None,
        params=json.loads(tag("values")) if tag("values") else {},
        epochs=int(tag("epochs") or 0),
        best=Best(best["epoch"], best["metrics"]) if best else None,
        error=tag("error") or None,
        wall_s=float(tag("wall_s") or 0),
        sweep=tag("launch") if tag("kind") == "trial" else None,
    )
    return RecordedRun(
        result, tag("kind"), tag("launch"), tag("fingerprint"), tag("metric"), tag("mode"), run.info.start_time,
        dict(run.data.metrics), dict(run.data.params), tags.get("orchestrator.model_id"), dict(tags), run.info.end_time,
    )  # fmt: skip


def so_far(client: Any, run: RecordedRun) -> TrialResult:
    """The result of a run that hasn't ended, or whose end nobody recorded, by the epochs that MLflow has."""
    with said_by_mlflow():
        history = {name: client.get_metric_history(run.result.run_id, name) for name in dict.fromkeys((run.metric, "val_loss"))}
    values = {name: {row.step: row.value for row in rows} for name, rows in history.items()}
    best: Best | None = None
    for epoch, value in sorted(values[run.metric].items()):
        if best is None or better(value, best.metrics[run.metric], run.mode):
            best = Best(epoch, {name: of[epoch] for name, of in values.items() if epoch in of})
    return replace(run.result, epochs=max(values[run.metric], default=0), best=best)


def experiment_file(client: Any, run: RecordedRun) -> str:
    """The text of the resolved experiment file that a run, or a trial's sweep, recorded."""
    owner = run.tags.get("mlflow.parentRunId", run.result.run_id)
    with said_by_mlflow(), tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(owner, EXPERIMENT_FILE, folder)).read_text()
