"""(Experiment, Resources, DataFacts) -> Plan, and why: pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from orchestrator.errors import ExperimentError, Problem
from orchestrator.experiment.config import Experiment, ScalingConfig
from orchestrator.experiment.read import space_of

ExecutorName = Literal["inline", "pool", "ddp"]
Command = Literal["train", "sweep"]


@dataclass(frozen=True)
class Resources:
    """What there is: of this machine, or of a cluster. `per_node`: (CPUs, GPUs) of each node. `bf16`: CPUs that multiply bfloat16.

    `accelerators`: the accelerator types that the cluster's nodes have, as Ray names them.
    """

    cpus: float
    gpus: float = 0
    per_node: tuple[tuple[float, float], ...] = ()
    cluster: bool = False
    bf16: bool = False
    gpu_bf16: bool = True
    memory_bytes: int = 0
    accelerators: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataFacts:
    """What the plan needs to know of prepared data. `size_bytes`: encoded, in memory; `row_values`: numbers in one row's input."""

    rows: int
    train_rows: int
    size_bytes: int
    row_values: int = 1


@dataclass(frozen=True)
class Plan:
    """How a command runs. `workers`: of a run, at most, and with `fewest` it goes on too; `slots`: trials at once.

    `threads`: intra-op threads of a worker; `cpus`, `gpus`: of a worker.
    """

    executor: ExecutorName
    why: str
    trials: int
    epochs: int
    workers: int
    fewest: int
    slots: int
    cpus: float
    gpus: float
    threads: int
    precision: str
    precision_why: str
    steps_per_epoch: int
    fits_in_memory: bool
    disk_bytes: int
    accelerator: str | None = None
    notes: tuple[str, ...] = ()
    streamed: bool = False  # rows are read from disk while a trial trains


def make_plan(
    command: Command, experiment: Experiment, resources: Resources, data: DataFacts, mixed_precision: bool, parameters: int
) -> Plan:
    """The plan of a command. Raises ExperimentError if the workers can never be placed."""
    _check_accelerator(experiment, resources)
    trials = trial_count(experiment) if command == "sweep" else 1
    executor, why = _executor(command, experiment, resources)
    cpus, gpus = _per_worker(command, executor, experiment, resources)
    at_once = _at_once(experiment, resources, cpus, gpus, executor)
    slots = max(1, min(at_once, trials, experiment.sweep.max_concurrent or trials)) if command == "sweep" else 1
    steps = math.ceil(data.train_rows / experiment.training.batch_size)
    epochs = epochs_of(experiment, data.train_rows)
    precision, precision_why = _precision(experiment, resources, gpus, data, mixed_precision)
    fits, streamed, notes = _memory(experiment, resources, data, slots)
    if command == "sweep" and experiment.sweep.scheduler.name == "asha" and experiment.sweep.scheduler.grace_period > epochs:
        notes.append(
            f"sweep.scheduler.grace_period lowered from {experiment.sweep.scheduler.grace_period} to the {epochs} epochs that a trial has"
        )
    return Plan(
        executor=executor,
        why=why,
        trials=trials,
        epochs=epochs,
        workers=experiment.scaling.most,
        fewest=experiment.scaling.fewest,
        slots=slots,
        cpus=cpus,
        gpus=gpus,
        threads=max(1, int(cpus)),
        precision=precision,
        precision_why=precision_why,
        steps_per_epoch=steps,
        fits_in_memory=fits,
        disk_bytes=_disk(parameters, experiment.scaling.most, epochs) * (2 * trials + slots),  # two of each, one more while it writes
        accelerator=experiment.scaling.accelerator,
        notes=tuple(notes),
        streamed=streamed,
    )


def _disk(parameters: int, workers: int, epochs: int) -> int:
    """The bytes of a checkpoint, at most: weights, the best weights and two moments in float32, random generators, names, history."""
    return parameters * 4 * 4 + 24_000 * workers + 48_000 + 512 * epochs


def epochs_of(experiment: Experiment, train_rows: int) -> int:
    """The epochs of a run: as asked, or as many as `max_steps` fill."""
    training = experiment.training
    if training.max_steps is None:
        return training.epochs
    return min(training.epochs, math.ceil(training.max_steps / math.ceil(train_rows / training.batch_size)))


def _memory(experiment: Experiment, resources: Resources, data: DataFacts, slots: int) -> tuple[bool, bool, list[str]]:
    """(whether a copy of the data for each worker of a node fits in half of its memory, whether they are streamed, why if so)."""
    copies = math.ceil(slots * experiment.scaling.most / max(1, len(resources.per_node)))
    fits = not resources.memory_bytes or data.size_bytes * copies < resources.memory_bytes / 2
    asked = experiment.training.streaming
    if asked == "always":
        return fits, True, ["rows are read from disk while training: training.streaming says so"]
    times = f"{copies} times " if copies > 1 else ""
    size = f"{times}{_gb(data.size_bytes)} of data don't fit in half of the {_gb(resources.memory_bytes)} of memory"
    if fits or asked == "never":
        return fits, False, [] if fits else [f"{size}, and training.streaming says never: it may run out of memory"]
    return fits, True, [f"{size}: rows are read from disk while training (training.streaming)"]


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.3g} GB"


def _check_accelerator(experiment: Experiment, resources: Resources) -> None:
    asked = experiment.scaling.accelerator
    if asked is not None and asked not in resources.accelerators:
        there = (
            f"the nodes have: {', '.join(resources.accelerators) or 'none'}"
            if resources.cluster
            else "it chooses among a cluster's nodes (--address)"
        )
        raise _refuse("scaling.accelerator", f"no accelerator '{asked}': {there}")


def trial_count(experiment: Experiment) -> int:
    """The trials of a sweep: a grid ends when it is exhausted."""
    if experiment.sweep.search == "grid":
        return min(experiment.sweep.trials, space_of(experiment).size())
    return experiment.sweep.trials


def _executor(command: Command, experiment: Experiment, resources: Resources) -> tuple[ExecutorName, str]:
    asked = experiment.sweep.executor if command == "sweep" else experiment.training.executor
    scaling = experiment.scaling
    key = "sweep.executor" if command == "sweep" else "training.executor"
    if asked != "auto":
        if scaling.most > 1 and asked != "ddp":
            raise _refuse(key, f"'{asked}' runs trials of one worker, and scaling.workers is {_said(scaling)}; take ddp")
        if asked == "inline" and resources.cluster:
            raise _refuse(key, "'inline' runs in this process, not on a cluster; take pool")
        return asked, f"{key} says so"
    if scaling.most > 1:
        return "ddp", f"each run has {_said(scaling)} workers: a gang of processes with DDP inside"
    if command == "sweep":
        return "pool", "each trial has one worker: warm processes take one trial after the other"
    if resources.cluster:
        return "pool", "one worker, on the cluster"
    return "inline", "one worker and no cluster: in this process, nothing to start"


def _per_worker(command: Command, executor: ExecutorName, experiment: Experiment, resources: Resources) -> tuple[float, float]:
    """CPUs and GPUs of each worker, from the file or as many as there are; refused if they can never be had."""
    scaling = experiment.scaling
    nodes = resources.per_node or ((resources.cpus, resources.gpus),)
    gpus = scaling.gpus_per_worker if scaling.gpus_per_worker is not None else (1.0 if resources.gpus >= scaling.fewest else 0.0)
    if scaling.cpus_per_worker is not None:
        cpus = scaling.cpus_per_worker
    elif command == "sweep":
        cpus = 1.0
    else:
        largest = max(node[0] for node in nodes)
        cpus = float(max(1, min(int(largest), int(resources.cpus // scaling.most))))
    if 0 < resources.cpus < 1 and scaling.cpus_per_worker is None:
        cpus = resources.cpus
    what = "the cluster has" if resources.cluster else "this machine has"
    if _places(nodes, cpus, gpus) < scaling.fewest:
        need = f"{scaling.fewest} workers of {cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        have = f"{resources.cpus:g} CPUs" + (f" and {resources.gpus:g} GPUs" if gpus or resources.gpus else "")
        key = "scaling.gpus_per_worker" if gpus and _places(nodes, cpus, 0) >= scaling.fewest else "scaling.workers"
        raise _refuse(
            key, f"{need} don't fit: {what} {have}; lower {key}" + (" or scaling.cpus_per_worker" if key == "scaling.workers" else "")
        )
    return cpus, gpus


def _said(scaling: ScalingConfig) -> str:
    return f"{scaling.fewest} to {scaling.most}" if scaling.fewest < scaling.most else str(scaling.most)


def _places(nodes: tuple[tuple[float, float], ...], cpus: float, gpus: float) -> int:
    """How many workers fit on the nodes."""

    def on(node: tuple[float, float]) -> int:
        by_cpu = math.floor(node[0] / cpus + 1e-9)
        return min(by_cpu, math.floor(node[1] / gpus + 1e-9)) if gpus else by_cpu

    return sum(on(node) for node in nodes)


def _at_once(experiment: Experiment, resources: Resources, cpus: float, gpus: float, executor: ExecutorName) -> int:
    if executor == "inline":
        return 1
    nodes = resources.per_node or ((resources.cpus, resources.gpus),)
    return max(1, _places(nodes, cpus, gpus) // experiment.scaling.most)


def _precision(experiment: Experiment, resources: Resources, gpus: float, data: DataFacts, mixed: bool) -> tuple[str, str]:
    """Mixed precision pays on GPUs, and on CPUs that multiply bfloat16 where rows are large enough to cover its casts."""
    asked = experiment.training.precision
    if asked != "auto":
        return asked, "training.precision says so"
    if not mixed:
        return "fp32", "the family gains nothing from less"
    if gpus:
        return ("bf16", "a GPU") if resources.gpu_bf16 else ("fp16", "a GPU without bfloat16")
    if resources.bf16 and data.row_values >= 512:
        return "bf16", "this CPU multiplies bfloat16"
    return "fp32", "small rows: the casts would cost more than they save" if resources.bf16 else "a CPU without bfloat16"


def _refuse(key: str, message: str) -> ExperimentError:
    return ExperimentError([Problem(key, None, message)])
