"""What is asked: an experiment, read and checked against its data, and the plan for what there is to run it on."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster import shared
from cluster.resources import Found
from models import FAMILIES
from models.family import Family
from orchestrator import names
from orchestrator.catalog import catalog
from orchestrator.deployment.initial import Starts
from orchestrator.errors import ExperimentError, Note, Problem, Refused, shown
from orchestrator.events import EpochEnded
from orchestrator.experiment.config import AugmentConfig, Experiment
from orchestrator.experiment.plan import Command, DataFacts, Plan, Resources, make_plan
from orchestrator.experiment.read import read
from orchestrator.records.ledger import Ledger
from orchestrator.storage import StorageError
from orchestrator.training.arrival import Sent
from orchestrator.training.augment import AugmentError, images_of
from orchestrator.training.checkpoint import probe
from orchestrator.training.device import gpu_bf16, usable_gpus
from orchestrator.training.rows import publish
from orchestrator.training.trial import build_family
from orchestrator.training.user_code import names_of, pack
from pipelines import SOURCES
from pipelines.prepare import Prepared, prepare
from pipelines.schema import DataError
from pipelines.splits import SplitConfig


@dataclass(frozen=True)
class Asked:
    """An experiment, read and checked against its data, and where it was asked. `network`: untrained, while it is needed."""

    path: Path
    experiment: Experiment
    prepared: Prepared
    folder: Path  # of the experiment file: a user's own modules lie below it
    overrides: tuple[str, ...] = ()
    parameters: int = 0
    starts: Starts | None = None
    network: Family | None = None
    sent: Sent = field(default_factory=Sent)  # what jobs take along to a cluster

    @property
    def family(self) -> type[Family]:
        cls: type[Family] = names.load(self.experiment.model.family, FAMILIES, "family", self.folder)
        return cls


def home() -> Path:
    """Where this folder's ledger, prepared data, checkpoints and bundles are kept."""
    return Path.cwd() / ".orchestrator"


def ask(path: Path, overrides: Sequence[str], writes: bool = False) -> Asked:
    """Read an experiment, prepare its data, check that they fit; first, if it `writes` checkpoints, that it may. Raises Refused."""
    folder = path.resolve().parent
    experiment = read(path, overrides, catalog(folder))
    if writes:
        _check_storage(experiment)
    prepared = prepare_data(experiment, folder)
    cls = names.load(experiment.model.family, FAMILIES, "family", folder)
    misfit = cls.misfit(prepared.schema)
    if misfit is not None:
        raise ExperimentError(
            [Problem("model.family", None, f"{experiment.model.family} doesn't fit this data: {misfit}; {_fitting(prepared)}")]
        )
    try:
        family = build_family(experiment, prepared.schema, str(folder))
        family.bind(prepared.tables())
    except ValueError as error:
        raise ExperimentError([Problem("model", None, str(error))]) from None
    _check_augment(experiment, prepared)
    parameters = sum(p.numel() for p in family.parameters())
    starts = Starts(experiment, prepared.encoder, family, folder, home())
    return Asked(path, experiment, prepared, folder, tuple(overrides), parameters, starts, family)


def _check_augment(experiment: Experiment, prepared: Prepared) -> None:
    """Whether there is something to augment, if that is asked or searched."""
    searched = any(key.startswith("training.augment.") for key in experiment.sweep.space)
    if searched or experiment.training.augment != AugmentConfig():
        try:
            images_of(prepared.schema)
        except AugmentError as error:
            raise ExperimentError([Problem("training.augment", None, str(error))]) from None


def prepare_data(experiment: Experiment, folder: Path) -> Prepared:
    """The experiment's data, prepared. Raises Refused with what is wrong with it."""
    load = names.load(experiment.data.source, SOURCES, "source", folder)
    config = catalog(folder).source(experiment.data.source)
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in experiment.data.options.items()}
    try:
        return prepare(experiment.data.source, load, config(**tuples), SplitConfig(**experiment.data.split), home() / "data")
    except DataError as error:
        raise ExperimentError([Problem(error.key, None, str(error))]) from None
    except OSError as error:
        raise Refused(f"data: {error.strerror or error} ('{error.filename}')") from None


def _fitting(prepared: Prepared) -> str:
    kinds = ", ".join(f"{c.name} ({c.kind})" for c in prepared.schema.inputs)
    fits = [name for name in FAMILIES if names.load(name, FAMILIES, "family").misfit(prepared.schema) is None]
    families = f"families that take it: {', '.join(fits)}" if fits else "no family takes it as it is (data.inputs chooses columns)"
    return f"the inputs are {kinds}, the target is a {prepared.schema.target.kind}; {families}"


def plan_of(command: Command, asked: Asked, found: Found, on_cluster: bool) -> Plan:
    """The plan for what there is. Raises ExperimentError where it can't be had."""
    if command == "sweep" and not asked.experiment.sweep.space:
        raise ExperimentError([Problem("sweep.space", None, "there is nothing to search: name keys and ranges, or use train")])
    per_node, bf16_on_gpu = found.per_node, True
    if not on_cluster and found.gpus:
        bf16_on_gpu = gpu_bf16()
        if not usable_gpus():
            warnings.warn("the installed torch can't use this machine's GPUs: it trains on CPUs", Note, stacklevel=1)
            per_node = tuple((cpus, 0.0) for cpus, _ in per_node)
    gpus = sum(node[1] for node in per_node)
    resources = Resources(found.cpus, gpus, per_node, on_cluster, found.bf16, bf16_on_gpu, found.memory_bytes, found.accelerators)
    rows = dict(asked.prepared.rows)
    values = sum(_size(c.shape) for c in asked.prepared.schema.inputs)
    facts = DataFacts(sum(rows.values()), rows["train"], asked.prepared.size_bytes, values)
    made = make_plan(command, asked.experiment, resources, facts, asked.family.mixed_precision, asked.parameters)
    return dataclasses.replace(made, notes=(*made.notes, *(asked.starts.notes if asked.starts else ())))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _check_storage(experiment: Experiment) -> None:
    """Whether checkpoints can be written where the file says."""
    if experiment.storage.path is not None:
        try:
            probe(experiment.storage.path)
        except StorageError as error:
            raise ExperimentError([Problem("storage.path", None, str(error))]) from None


def sent_to_cluster(asked: Asked) -> Sent:
    """What jobs take along to the nodes of the cluster that is connected, which may not see this machine's folders.

    Raises ExperimentError where a node doesn't share the place of the checkpoints. Prepared data that a node lacks are put beside them.
    """
    base = asked.experiment.storage.path or str(home() / "checkpoints")
    base = base if "://" in base else str(Path(base).expanduser().resolve())
    try:
        apart = shared.not_sharing(base)
        if apart:
            node, says = next(iter(apart.items()))
            more = f" (and {len(apart) - 1} more)" if len(apart) > 1 else ""
            raise ExperimentError([Problem("storage.path", None, _apart(node + more, shown(base), says))])
        code = pack(asked.folder, names_of(asked.experiment))
        prepared = asked.prepared.folder
        data = publish(prepared, base, "data") if shared.without(prepared / "data.json") else None
        if data is None and (asked.experiment.storage.path is None or not shared.not_sharing(str(home()))):
            return Sent(code=code)
        return Sent(data, code, base)
    except (StorageError, *shared.FAILURES) as error:
        raise ExperimentError([Problem("storage.path", None, shown(" ".join(str(error).split())))]) from None


def _apart(node: str, place: str, says: str) -> str:
    if "://" in place and not place.startswith("file://"):
        todo = "start Ray there with the credentials for it in the environment, or set storage.path to a place that all nodes see"
    else:
        todo = "set storage.path to a place that all nodes see (a shared folder, s3://bucket/path)"
    return f"node {node} doesn't share '{place}' with this machine ({says}): {todo}"


def estimate(asked: Asked, plan: Plan) -> float | None:
    """Seconds that it takes, by the epochs of the newest launch of this experiment on this data; None if there was none."""
    if not (home() / "ledger.sqlite").exists():
        return None
    ledger = Ledger(home())
    try:
        for launch in map(ledger.find, reversed(ledger.launches())):
            if (launch.name, launch.fingerprint) == (asked.experiment.name, asked.prepared.fingerprint):
                seconds = sorted(e.metrics["epoch_s"] for e in ledger.events(launch.id) if isinstance(e, EpochEnded))
                if seconds:
                    return round(seconds[len(seconds) // 2] * plan.epochs * plan.trials / plan.slots, 1)
        return None
    finally:
        ledger.close()
