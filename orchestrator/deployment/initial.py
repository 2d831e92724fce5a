"""Where a run's first weights come from: a registered model, a run's bundle or a bundle's folder -> one file, beside the ledger.

Only weights and JSON are read: no code of a bundle is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.family import Family
from orchestrator.errors import ExperimentError, Problem, Refused
from orchestrator.experiment.config import Experiment
from orchestrator.records import tracking
from orchestrator.training.job import Origin
from orchestrator.training.transfer import Match, TransferError, freeze, match_with
from orchestrator.training.trial import build_family
from pipelines.encode import Encoder

from .registry import fetch

KEY = "model.init_from"


class Starts:
    """The first weights of an experiment's runs: each source found once, and what of it fits which network."""

    def __init__(self, experiment: Experiment, encoder: Encoder, family: Family, folder: Path, home: Path) -> None:
        """`family`: the file's own network; `folder`: of the file; `home`: of the ledger.

        Raises ExperimentError where weights can't be had, nothing of them fits, or the network lacks what is to be frozen.
        """
        self.experiment, self.encoder, self.folder = experiment, encoder, folder
        chosen = experiment.sweep.space.get(KEY, {}).get("choice", [])
        written = {one for one in (experiment.model.init_from, *chosen) if one is not None}
        self.origins = {one: find(one, encoder, home / "init") for one in sorted(written)}
        self._matches: dict[str, Match | None] = {}
        key = KEY
        try:
            if experiment.model.init_from is not None:
                self._matches[_key(experiment)] = match_with(family, self.origins[experiment.model.init_from])
            key = "model.freeze"
            freeze(family, experiment.model.freeze)
        except TransferError as error:
            raise ExperimentError([Problem(key, None, str(error))]) from None
        self.trained = sum(p.numel() for p in family.parameters() if p.requires_grad), sum(p.numel() for p in family.parameters())

    def of(self, experiment: Experiment) -> tuple[Origin | None, dict[str, Any]]:
        """The weights that a run starts from, and what its record says of them."""
        if experiment.model.init_from is None:
            return None, {}
        origin, key = self.origins[experiment.model.init_from], _key(experiment)
        if key not in self._matches:
            self._matches[key] = None
            with contextlib.suppress(ValueError):  # a network that can't be, or that nothing fits: the run itself will say so
                self._matches[key] = match_with(build_family(experiment, self.encoder.schema, str(self.folder)), origin)
        found = self._matches[key]
        return origin, found.tags(origin) if found is not None else {"init.source": origin.said}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the plan says of them."""
        model, notes = self.experiment.model, []
        if model.init_from is not None:
            notes.append(f"init_from {self.origins[model.init_from].said}: {self._matches[_key(self.experiment)]}")
        notes += [f"init_from may be {origin.said}" for written, origin in self.origins.items() if written != model.init_from]
        if model.freeze:
            trained, whole = self.trained
            values = self._at_random()
            notes.append(f"frozen: {', '.join(model.freeze)}{values}; {trained:,} of {whole:,} parameters are trained")
        return tuple(notes)

    def _at_random(self) -> str:
        """Of what is frozen, what no weights were loaded for."""
        found = self._matches.get(_key(self.experiment))
        if found is None:
            return "" if self.origins else ", at random values: there is no model.init_from"
        parts = self.experiment.model.freeze
        random = [name for name, _ in found.left if any(name == part or name.startswith(f"{part}.") for part in parts)]
        return f", of which at random values: {', '.join(random[:4])}{' ...' if len(random) > 4 else ''}" if random else ""


def _key(experiment: Experiment) -> str:
    """What decides what fits: the source and the network."""
    return json.dumps([experiment.model.init_from, experiment.model.family, experiment.model.options], default=str)


def find(given: str, encoder: Encoder, folder: Path) -> Origin:
    """The weights of `models:/NAME@alias`, `models:/NAME/VERSION`, `runs:/ID` or a bundle's folder, copied below `folder` by content.

    `encoder`: of the data that they are to be used on. Raises ExperimentError if there are none.
    """
    try:
        with _bundle(given) as (bundle, said):
            return Origin(str(_keep(bundle / "weights.safetensors", folder)), said, _recoded(bundle, encoder))
    except Refused as error:
        raise ExperimentError([Problem(KEY, None, error.problems[0].message)]) from None
    except (OSError, ValueError, LookupError) as error:
        raise ExperimentError([Problem(KEY, None, f"'{given}' is no whole bundle of orchestrator: {error}")]) from None


@contextlib.contextmanager
def _bundle(given: str) -> Iterator[tuple[Path, str]]:
    """A bundle's folder while it is needed, and what it is. Raises Refused."""
    if given.startswith("models:/"):
        client = tracking.reachable_client()
        folder, name, version, cleanup = fetch(client, given)
        with cleanup, tracking.said_by_mlflow():
            yield folder, f"{given} (version {version}, run {client.get_model_version(name, str(version)).run_id})"
    elif given.startswith("runs:/"):
        with tempfile.TemporaryDirectory(prefix="orchestrator-bundle-") as keep:
            yield _of_run(given.removeprefix("runs:/"), Path(keep)), given
    elif (Path(given).expanduser() / "model.json").is_file():
        about = json.loads((Path(given).expanduser() / "model.json").read_text())
        yield Path(given).expanduser(), f"{given} ({about.get('name', 'unnamed')}, run {about.get('run', 'unknown')})"
    else:
        what = "a folder without model.json" if Path(given).is_dir() else "no folder here"
        raise Refused(f"'{given}' is {what}: give models:/NAME@alias, models:/NAME/VERSION, runs:/ID, or the folder of a bundle")


def _of_run(run_id: str, keep: Path) -> Path:
    """The bundle that MLflow keeps for a run. Raises Refused if it keeps none."""
    client = tracking.reachable_client()
    model_id = tracking.recorded_run(client, run_id).model_id
    if model_id is None:
        raise Refused(
            f"run '{run_id}' has no bundle in MLflow: the best of each train and each sweep has one, others get theirs by promote --run"
        )
    from mlflow.artifacts import download_artifacts

    with tracking.said_by_mlflow():
        return Path(download_artifacts(f"models:/{model_id}", dst_path=str(keep), tracking_uri=tracking.destination()))


def _keep(weights: Path, folder: Path) -> Path:
    """A copy of the file below `folder`, named by its content; the one that is there, if it is."""
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    kept = folder / f"{digest}.safetensors"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made, path = tempfile.mkstemp(prefix=".making-", dir=folder)
        os.close(made)
        shutil.copyfile(weights, path)
        os.chmod(path, 0o644)  # mkstemp's 0600 would shut out another user's worker
        os.replace(path, kept)
    return kept


def _recoded(bundle: Path, encoder: Encoder) -> tuple[str, ...]:
    """The columns of texts, ids and classes whose codes the bundle gives to other words."""
    stored: dict[str, Any] = json.loads((bundle / "encoder.json").read_text())["columns"]
    own: dict[str, Any] = json.loads(json.dumps(encoder.to_plain()))["columns"]
    schema = encoder.schema
    features = [column for columns in schema.features.values() for column in columns]
    columns = [column for column in (*schema.inputs, *features) if column.vocabulary > 1]
    found = [column.name for column in columns if stored.get(column.name) != own.get(column.name)]
    classes = list(schema.classes)
    there = json.loads((bundle / "model.json").read_text()).get("schema", {}).get("classes", classes)
    return (*found, *([schema.target.name] if classes and there != classes else []))
