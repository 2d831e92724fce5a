"""What a ledger's entries say, as MLflow's rows and tags; nothing is sent here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.events import KINDS, from_plain, summarise
from orchestrator.experiment.config import parameters
from orchestrator.records.ledger import Entry, Launch, Ledger

STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


@dataclass
class Rows:
    """What some entries say of one run."""

    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)
    metrics: list[Any] = field(default_factory=list)
    status: tuple[str, int | None] | None = None  # of a run that ended: when it did


def rows_of(ledger: Ledger, launch: Launch, entries: Iterable[Entry]) -> Rows:
    """What entries of one run say; its result is that of all its entries in the ledger."""
    rows = Rows()
    for entry in entries:
        _collect(rows, ledger, launch, entry)
    return rows


def _collect(rows: Rows, ledger: Ledger, launch: Launch, entry: Entry) -> None:
    from mlflow.entities import Metric

    data = entry.data
    if entry.kind == "launched":
        rows.params |= parameters(launch.experiment)
    elif entry.kind == "started":
        rows.params |= data["params"]
        rows.tags |= {"orchestrator.values": data["values"]} | {f"orchestrator.{k}": v for k, v in data["env"].items()}
    elif entry.kind == "epoch":
        rows.metrics += [Metric(key, value, entry.at_ms, data["epoch"]) for key, value in data["metrics"].items()]
    elif entry.kind == "ended":
        rows.tags |= _result_tags(ledger, launch, entry.trial, data)
        if entry.trial is not None or launch.command == "train":
            rows.status = (STATUS[data["state"]], entry.at_ms)
    elif entry.kind in ("reopened", "resumed"):
        rows.tags |= {"orchestrator.state": "running", "orchestrator.error": "", "orchestrator.stopped_by": ""}
        rows.status = ("RUNNING", None)
    elif entry.kind == "closed":
        rows.tags |= {f"orchestrator.{key}": value for key, value in data["tags"].items()} | {"mlflow.note.content": data["note"]}
        rows.status = (STATUS[data["state"]], entry.at_ms)
        if launch.command == "sweep":
            rows.metrics += [Metric(key, value, entry.at_ms, data.get("step", 0)) for key, value in data["metrics"].items()]


def _result_tags(ledger: Ledger, launch: Launch, trial: int | None, data: dict[str, Any]) -> dict[str, str]:
    """What `runs` needs of a run beside its metrics; computed from all of its events, not from this batch's."""
    entries = ledger.run_entries(launch.id, trial)
    result = summarise((from_plain(e.kind, e.data) for e in entries if e.kind in KINDS), launch.metric, launch.mode)
    tags = {
        "orchestrator.state": data["state"],
        "orchestrator.stopped_by": data["stopped_by"] or "",
        "orchestrator.error": data["error"] or "",
        "orchestrator.trace": data["trace"] or "",
        "orchestrator.nodes": json.dumps(data["nodes"]),
        "orchestrator.world_size": str(len(data["nodes"]) or ""),  # what it had at its end; of a start, the most
        "orchestrator.wall_s": str(result.wall_s),
        "orchestrator.epochs": str(result.epochs),
        "orchestrator.best": json.dumps(result.best.__dict__) if result.best else "",
    }
    return {name: value for name, value in tags.items() if value}


def run_tags(launch: Launch, trial: int | None, key: str, kind: str, parent: str | None) -> dict[str, str]:
    """The tags that a run is made with: whose it is, what it is for, and where it came from."""
    about = launch.about
    tags = {
        "orchestrator.key": key,
        "orchestrator.kind": kind,
        "orchestrator.launch": launch.id,
        "orchestrator.trial": "" if trial is None else str(trial),
        "orchestrator.metric": launch.metric,
        "orchestrator.mode": launch.mode,
        "orchestrator.fingerprint": launch.fingerprint,
        "orchestrator.baseline": json.dumps(about.get("baseline") or {}),
        "orchestrator.protocol": str(about.get("protocol", "")),
        "orchestrator.optimum": json.dumps(about.get("data", {}).get("optimum") or {}),
        "orchestrator.state": "running",
        "orchestrator.seed": str(launch.experiment["training"]["seed"]),
        "orchestrator.dirty": str(about.get("dirty", False)).lower(),
        "orchestrator.versions": json.dumps(about.get("versions", {})),
        "orchestrator.machine": str(about.get("machine", "")),
        "mlflow.source.name": str(about.get("source", "orchestrator")),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": str(about.get("user", "")),
    }
    if about.get("commit"):
        tags["mlflow.source.git.commit"] = about["commit"]
    if parent is not None:
        tags["mlflow.parentRunId"] = parent
    return tags


def dataset(launch: Launch) -> Any:
    """The data set as MLflow shows it: name, digest, source, schema."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = launch.about.get("data", {})
    made = Dataset(
        name=str(data.get("source", "data")),
        digest=launch.fingerprint[:36],
        source_type="local",
        source=json.dumps({"uri": data.get("path") or data.get("source", "")}),
        schema=json.dumps({"mlflow_colspec": data.get("columns", [])}),
        profile=json.dumps(data.get("rows", {})),
    )
    return DatasetInput(made, [InputTag("mlflow.data.context", "training")])


def to_yaml(data: dict[str, Any]) -> str:
    """Plain data as YAML."""
    import io

    from ruamel.yaml import YAML

    out, yaml = io.StringIO(), YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(data, out)
    return out.getvalue()


def text(value: Any) -> str:
    """A tag's or a parameter's value: text as it is, else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
