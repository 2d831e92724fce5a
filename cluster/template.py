"""A complete file for a cluster (Ray's launcher on AWS or GCP, KubeRay, Slurm), filled in from what an experiment needs."""

from __future__ import annotations

import math
import re
import shlex
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .connect import ClusterError

FILES = {"aws": "aws.yaml", "gcp": "gcp.yaml", "kuberay": "kuberay.yaml", "slurm": "slurm.sh"}
FOLDER = Path(__file__).parent / "templates"
MOST_AT_ONCE = 8  # trials, where the experiment doesn't say
MEMORY_GIB = 4  # of a pod, for each CPU
HINT = {"tracking": "http://TRACKING-SERVER:5000", "storage": "s3://BUCKET/FOLDER"}  # what is to be filled in by hand
Size = tuple[str, int, int]  # a machine type: its name, CPUs, GPUs
GPU_SIZES: dict[str, Sequence[Size]] = {
    "aws": (("g5.xlarge", 4, 1), ("g5.8xlarge", 32, 1), ("g5.12xlarge", 48, 4), ("g5.48xlarge", 192, 8)),
    "gcp": (("g2-standard-4", 4, 1), ("g2-standard-32", 32, 1), ("g2-standard-48", 48, 4), ("g2-standard-96", 96, 8)),
}
CPU_SIZES: dict[str, Sequence[Size]] = {
    "aws": (("m6i.2xlarge", 8, 0), ("m6i.8xlarge", 32, 0), ("m6i.32xlarge", 128, 0)),
    "gcp": (("n2-standard-8", 8, 0), ("n2-standard-32", 32, 0), ("n2-standard-128", 128, 0)),
}


class _Template(string.Template):
    """`@@{name}`: a shell's $ stays as it is."""

    delimiter = "@@"


@dataclass(frozen=True)
class Needs:
    """What an experiment needs of a cluster. `gpus`: a worker's, None where it takes what there is; `at_once`: trials, None likewise."""

    name: str
    file: str
    text: str
    overrides: Sequence[str]
    command: str
    trials: int
    at_once: int | None
    workers: int
    cpus: float | None
    gpus: float | None
    storage: str | None
    tracking: str | None

    @property
    def concurrent(self) -> int:
        return min(self.trials, self.at_once or MOST_AT_ONCE)

    @property
    def total(self) -> int:
        """Workers at the same time."""
        return self.concurrent * self.workers


@dataclass(frozen=True)
class Versions:
    """Of this machine. `requirements`: what the toolkit depends on, as `name==version`."""

    toolkit: str
    ray: str
    python: tuple[int, int]
    requirements: Sequence[str]


def render(kind: str, needs: Needs, versions: Versions, output: str) -> str:
    """The file's text; `output`: the name it will have. Raises ClusterError for an unknown kind, or a worker that no machine type holds."""
    if kind not in FILES:
        raise ClusterError(f"no template '{kind}'; there is: {', '.join(sorted(FILES))}")
    # under Slurm the folder itself is shared
    storage = [] if needs.storage or kind == "slurm" else [f"storage.path={HINT['storage']}"]
    values = _common(needs, versions, storage, output)
    if kind in GPU_SIZES:
        values |= _machines(kind, needs)
    elif kind == "kuberay":
        values |= _pods(needs)
    else:
        values |= _slurm(needs)
    return _Template((FOLDER / FILES[kind]).read_text()).substitute(values)


def to_edit(text: str) -> list[str]:
    """The lines of a file that are still to be filled in by hand, without their comments' marks."""
    words = ("EDIT", *HINT.values())
    return [line.strip() for line in text.splitlines() if any(word in line for word in words)]


def _common(needs: Needs, versions: Versions, storage: Sequence[str], output: str) -> dict[str, Any]:
    gpus = "1 where there are" if needs.gpus is None else f"{needs.gpus:g}"
    said = "all that there are" if needs.cpus is None and needs.command == "train" else f"{needs.cpus or 1:g}"
    once = f"{needs.concurrent} trial{'' if needs.concurrent == 1 else 's'} at a time"
    return {
        "name": needs.name,
        "slug": re.sub(r"[^a-z0-9]+", "-", needs.name.lower()).strip("-")[:40] or "experiment",
        "file": shlex.quote(needs.file),
        "basename": re.sub(r"[^A-Za-z0-9._-]+", "-", Path(needs.file).name),  # what a ConfigMap's key may be
        "output": output,
        "command": needs.command,
        "trials": f"a sweep of {needs.trials} trials" if needs.command == "sweep" else "one run",
        "needs": f"workers: {needs.workers}, each with CPUs: {said}, GPUs: {gpus}",
        "concurrency": f"{once}{'' if needs.at_once else ' (sweep.max_concurrent sets it)' if needs.command == 'sweep' else ''}",
        "arguments": "".join(f" {shlex.quote(word)}" for word in (*needs.overrides, *storage)),
        "tracking": needs.tracking or HINT["tracking"],
        "version": versions.toolkit,
        "ray": versions.ray,
        "python": "py{}{}".format(*versions.python),
        "flavour": "cpu" if needs.gpus == 0 else "gpu",
        "requirements": "\n".join(f"    '{each}'" for each in versions.requirements),
        "experiment": "\n".join(f"    {line}".rstrip() for line in needs.text.splitlines()),
    }


def _machines(kind: str, needs: Needs) -> dict[str, Any]:
    """The machine types that hold a worker, and how many of them all workers take; the type that isn't used has none."""
    on_gpus = needs.gpus != 0
    gpu = _fitting(GPU_SIZES[kind], needs.cpus or 1, (1 if needs.gpus is None else needs.gpus) if on_gpus else 1)
    cpu = _fitting(CPU_SIZES[kind], needs.cpus or 1, 0)
    used, other = (gpu, "cpu") if on_gpus else (cpu, "gpu")
    nodes = math.ceil(needs.total / used[1])
    why = f"{needs.concurrent} x {needs.workers} workers, {used[1]} on a node"
    unused = f"not used; max_workers: {math.ceil(needs.total / cpu[1])} to train on CPUs (scaling.gpus_per_worker: 0)"
    values: dict[str, Any] = {"nodes": nodes, "why": why}
    for name, (size, _) in (("gpu", gpu), ("cpu", cpu)):
        values |= {f"{name}_type": size[0], f"{name}_cpus": size[1], f"{name}_gpus": size[2]}
        values |= {f"{name}_nodes": 0 if name == other else nodes}
        values |= {f"{name}_why": why if name != other else unused if name == "cpu" else "not used: the experiment asks for no GPU"}
    return values


def _fitting(sizes: Sequence[Size], cpus: float, gpus: float) -> tuple[Size, int]:
    """The smallest machine type that holds a worker, and how many workers it holds."""
    for size in sizes:
        if cpus <= size[1] and gpus <= size[2]:
            return size, int(min(size[1] / cpus, size[2] / gpus if gpus else size[1]))
    raise ClusterError(f"no machine type here holds a worker with {cpus:g} CPUs and {gpus:g} GPUs; the largest: {sizes[-1]}")


def _pods(needs: Needs) -> dict[str, Any]:
    """One pod a worker, several where they share a GPU."""
    gpus = 1 if needs.gpus is None else needs.gpus
    per_pod = max(1, int(1 / gpus)) if 0 < gpus < 1 else 1
    cpus = math.ceil((needs.cpus or (4 if gpus else 1)) * per_pod)
    pods = math.ceil(needs.total / per_pod)
    return {
        "pods": pods,
        "pods_why": f"{needs.concurrent} x {needs.workers} workers, {per_pod} in a pod",
        "pod_cpus": cpus,
        "pod_memory": max(MEMORY_GIB, MEMORY_GIB * cpus),
        "pod_gpus": f', nvidia.com/gpu: "{math.ceil(gpus)}"' if gpus else "",
    }


def _slurm(needs: Needs) -> dict[str, Any]:
    """One node a trial's worker, up to what a node is likely to hold: four GPUs, or sixteen CPUs."""
    gpus = 1 if needs.gpus is None else needs.gpus
    cpus = needs.cpus or (4 if gpus else 1)
    per_node = max(1, int(4 / gpus if gpus else 16 / cpus))
    there = min(per_node, needs.total)
    nodes = math.ceil(needs.total / per_node)
    return {
        "slurm_nodes": nodes,
        "slurm_cpus": max(1, math.ceil(cpus * there)),
        "slurm_gpus": f"#SBATCH --gpus-per-node={math.ceil(gpus * there)}" if gpus else "##SBATCH --gpus-per-node=1",
        "ray_gpus": f" --num-gpus={math.ceil(gpus * there)}" if gpus else "",
    }


def pinned(requirements: Sequence[str], installed: Mapping[str, str]) -> list[str]:
    """Requirements as `name[extras]==version` of what is installed; those of extras, and those that aren't installed, are left out."""
    found = []
    for requirement in requirements:
        name, _, marker = requirement.partition(";")
        match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(\[[^\]]*\])?", name)
        if match is None or "extra" in marker or match.group(1).lower() not in installed:
            continue
        version = installed[match.group(1).lower()].partition("+")[0]  # without the local part, which only its own index has
        found.append(f"{match.group(1)}{match.group(2) or ''}=={version}")
    return sorted(found)
