"""What of MLflow's store may be removed, and its removal: a run, its model and their artifacts, for good where the store allows it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import Failed
from orchestrator.records.tracking import RecordedRun, destination, said_by_mlflow


@dataclass(frozen=True)
class Needed:
    """What the versions of every registered model are made of: an alias may point to one, or go back to it."""

    versions: Sequence[Any]

    def why(self, run: RecordedRun) -> str | None:
        """The version that is made of a run, if there is one."""
        marks = [mark for mark in (run.result.run_id, run.model_id) if mark]
        for version in self.versions:
            said = (version.run_id, getattr(version, "model_id", None))
            if any(mark in said or mark in (version.source or "") for mark in marks):
                return f"it is version {version.version} of model {version.name}"
        return None

    @property
    def fingerprints(self) -> set[str]:
        """The data of all versions."""
        return {version.tags.get("orchestrator.fingerprint", "") for version in self.versions}


def needed(client: Any, only: str = "") -> Needed:
    """Every version of every registered model; `only`: those that a filter finds."""
    versions: list[Any] = []
    token = None
    with said_by_mlflow():
        while True:
            page = client.search_model_versions(only or None, page_token=token)
            versions += page
            token = page.token
            if not token:
                return Needed(versions)


def is_used(client: Any, fingerprint: str, without: Collection[str]) -> bool:
    """Whether a run of any experiment, other than those `without`, is of that data."""
    with said_by_mlflow():
        owners = [experiment.experiment_id for experiment in client.search_experiments()]
        token = None
        while True:
            page = client.search_runs(owners, f"tags.`orchestrator.fingerprint` = '{fingerprint}'", max_results=1000, page_token=token)
            if any(run.info.run_id not in without for run in page):
                return True
            token = page.token
            if not token:
                return False


def size_bytes(client: Any, run_id: str) -> int:
    """The bytes of a run's artifacts and of its models'."""
    with said_by_mlflow():
        run = client.get_run(run_id)
        return sum(_size(uri) for uri in (run.info.artifact_uri, *(model.artifact_location for model in _models(client, run))))


def check(client: Any, run_id: str) -> None:
    """Raises Failed if a version is made of a run by now."""
    fresh = needed(client, f"run_id='{run_id}'").versions
    if fresh:
        raise Failed(f"it has just become version {fresh[0].version} of model {fresh[0].name}")


def remove(client: Any, run_id: str, for_good: bool) -> None:
    """Remove a run's models, its artifacts, then the run. Raises Failed where something can't be removed; the run itself is there then.

    `for_good`: from the store too, not only marked as deleted (a server allows only that; `mlflow gc` on its machine does the rest).
    """
    with said_by_mlflow():
        run = client.get_run(run_id)
        models, store = _models(client, run), client._tracking_client.store
        for uri in (*(model.artifact_location for model in models), run.info.artifact_uri):
            _delete(uri)
        for model in models:
            client.delete_logged_model(model.model_id)
            if for_good and hasattr(store, "_hard_delete_logged_model"):
                store._hard_delete_logged_model(model.model_id)
        client.delete_run(run_id)
        if for_good and hasattr(store, "_hard_delete_run"):  # what `mlflow gc` calls
            store._hard_delete_run(run_id)


def _models(client: Any, run: Any) -> list[Any]:
    return list(client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"))


def _repository(uri: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri, tracking_uri=destination())


def _local(uri: str) -> Path | None:
    """The folder that an artifact location is, if it is one on this machine."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    return Path(local_file_uri_to_path(uri)) if uri.startswith(("/", "file:")) else None


def _size(uri: str) -> int:
    folder = _local(uri)
    if folder is not None:
        return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
    return sum(item.file_size or 0 for item in _listed(_repository(uri)))


def _listed(repository: Any, below: str | None = None) -> Iterator[Any]:
    for item in repository.list_artifacts(below):
        if item.is_dir:
            yield from _listed(repository, item.path)
        else:
            yield item


def _delete(uri: str) -> None:
    """Delete all that is at an artifact location, and the folder around it that MLflow made for it. Raises Failed."""
    from mlflow.exceptions import MlflowException

    try:
        _repository(uri).delete_artifacts()
    except (OSError, MlflowException, NotImplementedError) as error:
        raise Failed(f"can't remove '{uri}': {' '.join(str(error).split())}") from None
    folder = _local(uri)
    if folder is not None:
        with contextlib.suppress(OSError):  # not empty
            folder.parent.rmdir()
