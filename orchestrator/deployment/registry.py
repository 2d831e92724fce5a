"""The model registry: gate, register, alias, history, rollback.

MLflow moves an alias silently and keeps no history, so the history lives in version tags: one tag an action on the version that the alias
moved to, and the stack of champions is what the tags of all versions say, in order. The gate is a plain comparison with the bounds of
`registry.require`: MLflow's own `validate_evaluation_results` needs its evaluator's result objects and knows no upper and lower bound
in one.
"""

from __future__ import annotations

import getpass
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import Failed, Refused
from orchestrator.experiment.config import Bound, Mode
from orchestrator.records.tracking import destination, said_by_mlflow, shown_destination

HISTORY = "orchestrator.history."


@dataclass(frozen=True)
class Version:
    """A registered version: its number, its run, its test scores and the data that they are from."""

    number: int
    run_id: str
    source: str
    scores: dict[str, float]
    fingerprint: str


def gate(scores: Mapping[str, float], require: Mapping[str, Bound]) -> list[str]:
    """What `registry.require` asks and the scores don't reach, in sentences with both numbers."""
    missed = []
    for name, bound in require.items():
        value = scores.get(name)
        if value is None:
            missed.append(f"{name} was not measured")
        elif bound.min is not None and not value >= bound.min:
            missed.append(f"{name} is {value:.4f}, required is at least {bound.min:g}")
        elif bound.max is not None and not value <= bound.max:
            missed.append(f"{name} is {value:.4f}, required is at most {bound.max:g}")
    return missed


def compare(challenger: float, champion: float, metric: str, mode: Mode) -> str | None:
    """Why the champion stays, with both numbers; None if the challenger is better. A tie leaves the champion."""
    if (challenger > champion) if mode == "max" else (challenger < champion):
        return None
    word = "as good as" if challenger == champion else "better than"
    return f"the champion is {word} the challenger on the same test data: {metric} {champion:.4f} against {challenger:.4f}"


class Registry:
    """One registered model in MLflow's registry."""

    def __init__(self, client: Any, model: str) -> None:
        self.client, self.model = client, model

    def versions(self) -> list[Any]:
        """Every version, oldest first; empty if there is no such model."""
        with said_by_mlflow():
            found = self.client.search_model_versions(f"name='{self.model}'")
        return sorted(found, key=lambda v: int(v.version))

    def existing(self) -> list[Any]:
        """Every version. Raises Refused if there is no such model, with those that there are."""
        found = self.versions()
        if not found:
            with said_by_mlflow():
                known = [m.name for m in self.client.search_registered_models()]
            there = f"there is: {', '.join(sorted(known)[:12])}" if known else "nothing has been promoted yet"
            raise Refused(f"no model '{self.model}' in the registry at {shown_destination()}; {there}")
        return found

    def at(self, alias: str) -> Version | None:
        """The version that an alias points to."""
        from mlflow.exceptions import MlflowException

        with said_by_mlflow():
            try:
                return _version(self.client.get_model_version_by_alias(self.model, alias))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model; no such alias
                    return None
                raise

    def of_run(self, run_id: str) -> Version | None:
        """The version that was made from a run."""
        return next((_version(v) for v in self.versions() if v.run_id == run_id), None)

    def register(self, source: str, run_id: str, model_id: str | None, scores: Mapping[str, float], fingerprint: str) -> Version:
        """A new version of the model. The source must exist: MLflow itself doesn't look."""
        from mlflow.exceptions import MlflowException

        with said_by_mlflow():
            try:
                self.client.get_registered_model(self.model)
            except MlflowException:
                self.client.create_registered_model(self.model)
            tags = {"orchestrator.scores": json.dumps(dict(scores)), "orchestrator.fingerprint": fingerprint}
            made = self.client.create_model_version(self.model, source, run_id, tags, model_id=model_id)
        return _version(made)

    def move(self, alias: str, version: int, action: str, reason: str, before: int | None, scores: Mapping[str, Any]) -> None:
        """Point an alias to a version, and write who, when and why. Raises Failed if another one moved it at the same time."""
        entry = {
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "who": getpass.getuser(),
            "action": action,
            "alias": alias,
            "version": version,
            "from": before,
            "reason": reason,
            "scores": dict(scores),
        }
        with said_by_mlflow():
            self.client.set_registered_model_alias(self.model, alias, str(version))
            self.client.set_model_version_tag(self.model, str(version), f"{HISTORY}{time.time_ns()}", json.dumps(entry))
            now = int(self.client.get_model_version_by_alias(self.model, alias).version)
        if now != version:
            raise Failed(
                f"somebody else moved '{self.model}@{alias}' to version {now} at the same time; look at `orchestrator history {self.model}`"
            )

    def history(self) -> list[dict[str, Any]]:
        """Every action, oldest first."""
        tags = [
            (int(key.removeprefix(HISTORY)), value) for v in self.existing() for key, value in v.tags.items() if key.startswith(HISTORY)
        ]
        return [json.loads(value) for _, value in sorted(tags)]

    def earlier(self, alias: str) -> tuple[int, int]:
        """(the alias's version, the champion before it) by the history. Raises Failed if there was none before."""
        stack: list[int] = []
        there = {int(v.version) for v in self.existing()}
        for entry in self.history():
            if entry["alias"] != alias:
                continue
            if entry["action"] == "rollback":
                stack = stack[:-1]
            if not stack or stack[-1] != entry["version"]:
                stack.append(entry["version"])
        champion = self.at(alias)
        if champion is not None and stack[-1:] != [champion.number]:
            stack.append(champion.number)  # moved by other means than ours: the one before is the last of our history
        earlier = [number for number in stack[:-1] if number in there]
        if champion is None or not earlier:
            raise Failed(f"no earlier champion of '{self.model}': nothing to roll back to")
        return champion.number, earlier[-1]

    def download(self, version: Version, folder: Path) -> Path:
        """The bundle of a version, local."""
        from mlflow.artifacts import download_artifacts

        with said_by_mlflow():
            return Path(download_artifacts(f"models:/{self.model}/{version.number}", dst_path=str(folder), tracking_uri=destination()))


def _version(version: Any) -> Version:
    scores = json.loads(version.tags.get("orchestrator.scores", "{}"))
    return Version(int(version.version), version.run_id, version.source, scores, version.tags.get("orchestrator.fingerprint", ""))


def fetch(client: Any, uri: str) -> tuple[Path, str, int | None, tempfile.TemporaryDirectory[str]]:
    """(bundle folder, model, version, what to clean up) of models:/NAME@alias or models:/NAME/3. Raises Refused."""
    keep = tempfile.TemporaryDirectory(prefix="orchestrator-bundle-")
    if not uri.startswith("models:/"):
        raise Refused(f"'{uri}' is no model: give models:/NAME@alias or models:/NAME/VERSION, or the folder of a bundle")
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if not at:
        name, _, alias = name.partition("/")
    registry = Registry(client, name)
    versions = registry.existing()
    if at:
        found = registry.at(alias)
        if found is None:
            with said_by_mlflow():
                aliases = sorted(client.get_registered_model(name).aliases)  # a search for versions doesn't tell them
            raise Refused(f"model '{name}' has no alias '{alias}'; it has: {', '.join(aliases) or 'none'}")
    else:
        found = next((_version(v) for v in versions if str(v.version) == alias), None)
        if found is None:
            raise Refused(f"model '{name}' has no version '{alias}'; it has: {', '.join(str(v.version) for v in versions)}")
    return registry.download(found, Path(keep.name)), name, found.number, keep
