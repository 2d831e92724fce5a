"""What a run's ranks printed, as artifacts of its MLflow run; lines that name a secret are left out, and all but the end of a long file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import Failed
from orchestrator.records.logs import NAME, LogFile, files
from orchestrator.records.provenance import without_secrets
from orchestrator.records.tracking.store import said_by_mlflow

FOLDER = "logs"
LARGEST = 5_000_000  # bytes of a file


def send_logs(client: Any, run_id: str, places: Sequence[str]) -> None:
    """Keep what lies at `records.logs.places`. May be repeated: a longer file replaces the one before."""
    found: list[LogFile] = []
    with contextlib.suppress(Failed):  # a storage that doesn't answer must hold no metric up
        found = files(places, LARGEST)
    for file in found:
        client.log_text(run_id, without_secrets(file.content.decode(errors="replace")), f"{FOLDER}/rank-{file.rank}.log")


def stored_logs(client: Any, run_id: str) -> list[LogFile]:
    """What is kept of a run, by rank."""
    with said_by_mlflow(), tempfile.TemporaryDirectory(prefix="orchestrator-logs-") as folder:
        run = client.get_run(run_id)
        found = [
            (int(match[1]), item.path) for item in client.list_artifacts(run_id, FOLDER) if (match := NAME.fullmatch(Path(item.path).name))
        ]
        return [
            LogFile(rank, f"{run.info.artifact_uri}/{path}", Path(client.download_artifacts(run_id, path, folder)).read_bytes())
            for rank, path in sorted(found)
        ]
