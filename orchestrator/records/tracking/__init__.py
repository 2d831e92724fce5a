"""Ledger -> MLflow, in the background; and reading runs back. MLflow itself is imported where it is needed."""

from orchestrator.records.tracking.background import BackgroundSender, sending_lock, sync
from orchestrator.records.tracking.models import log_model, test_tags
from orchestrator.records.tracking.read import RecordedRun, experiment_file, recorded, recorded_run, so_far
from orchestrator.records.tracking.rows import to_yaml
from orchestrator.records.tracking.send import Sender
from orchestrator.records.tracking.store import (
    check_store,
    client,
    destination,
    make_store,
    quiet_mlflow,
    reachable_client,
    said_by_mlflow,
    shown_destination,
)

__all__ = [
    "BackgroundSender",
    "RecordedRun",
    "Sender",
    "check_store",
    "client",
    "destination",
    "experiment_file",
    "log_model",
    "make_store",
    "quiet_mlflow",
    "reachable_client",
    "recorded",
    "recorded_run",
    "said_by_mlflow",
    "sending_lock",
    "shown_destination",
    "so_far",
    "sync",
    "test_tags",
    "to_yaml",
]
