"""What there is: CPUs, GPUs, memory, of this machine or of a cluster's nodes. Plain values."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Found:
    """`per_node`: (CPUs, GPUs) of each node that is alive; `bf16`: this machine's CPU multiplies bfloat16.

    `accelerators`: the accelerator types that Ray found on the nodes.
    """

    per_node: tuple[tuple[float, float], ...]
    bf16: bool
    memory_bytes: int
    accelerators: tuple[str, ...] = ()

    @property
    def cpus(self) -> float:
        return sum(cpus for cpus, _ in self.per_node)

    @property
    def gpus(self) -> float:
        return sum(gpus for _, gpus in self.per_node)


def this_machine() -> Found:
    """The CPUs that this process may use, the GPUs that the driver shows, the memory; no torch, no Ray."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Found(((float(_cpus()), float(_gpus())),), _bf16(), min(memory, _limit("memory.max", memory)))


def _cpus() -> int:
    """Those that the process may use: its affinity, and the quota of a container (cgroup v2)."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, _limit("cpu.max", allowed)))


def _limit(name: str, otherwise: int) -> int:
    """A limit of this process's cgroup; `cpu.max` is quota and period."""
    try:
        words = (Path("/sys/fs/cgroup") / name).read_text().split()
        return int(words[0]) // int(words[1]) if len(words) > 1 else int(words[0])
    except (OSError, ValueError, IndexError):  # none, or the word `max`
        return otherwise


def of_cluster(nodes: list[dict[str, Any]]) -> Found:
    """Of what `ray.nodes()` gives."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    memory = int(min((node.get("memory", 0) for node in alive), default=0))
    kinds = {key.removeprefix("accelerator_type:") for node in alive for key in node if key.startswith("accelerator_type:")}
    return Found(tuple((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive), _bf16(), memory, tuple(sorted(kinds)))


def _gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [p for p in Path("/dev").glob("nvidia[0-9]*") if p.name.removeprefix("nvidia").isdigit()]
    if visible is not None:
        return min(len(devices), len([v for v in visible.split(",") if v.strip() not in ("", "-1")]))
    return len(devices)


def _bf16() -> bool:
    try:
        return "avx512_bf16" in (text := Path("/proc/cpuinfo").read_text()) or "amx_bf16" in text
    except OSError:
        return False
