"""Who holds what on a cluster's nodes, from Ray's State API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MOST = 10_000  # actors and placement groups that are looked at


@dataclass(frozen=True)
class Holding:
    """What one actor or placement group holds on a node. `by`: a job's id, or the command line of the program that made it."""

    by: str
    what: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Node:
    """A node of a cluster. `free`: of its CPUs and GPUs."""

    id: str
    address: str
    alive: bool
    head: bool
    cpus: float
    gpus: float
    free: dict[str, float]
    held: tuple[Holding, ...]


def usage(dashboard: str, status: Mapping[str, Any], owners: Mapping[str, str]) -> list[Node]:
    """The nodes, the head first. `status`: what /api/cluster_status says; `owners`: Ray's job ids and who they are."""
    from ray.util.state import list_actors, list_nodes, list_placement_groups

    options = {"address": dashboard, "detail": True, "limit": MOST, "raise_on_missing_output": False}
    holdings: dict[str, list[Holding]] = {}
    for node, holding in _holdings(
        list_actors(filters=[("state", "=", "ALIVE")], **options), list_placement_groups(filters=[("state", "=", "CREATED")], **options)
    ):
        by, what = holding.by, holding.what
        holdings.setdefault(node, []).append(Holding(owners.get(by, f"Ray's job {by}"), what, holding.cpus, holding.gpus))
    used = _used(status)
    nodes = [_node(found, holdings.get(found.node_id, []), used.get(found.node_id)) for found in list_nodes(**options)]
    return sorted(nodes, key=lambda node: (not node.head, not node.alive, node.address, node.id))


def _holdings(actors: list[Any], groups: list[Any]) -> Iterator[tuple[str, Holding]]:
    """Each thing that holds a CPU or GPU, with its node; what is in a placement group is held by the group."""
    for actor in actors:
        cpus, gpus = _amounts(actor.required_resources)
        if cpus or gpus:
            yield actor.node_id, Holding(actor.job_id, actor.class_name, cpus, gpus)
    for group in groups:
        for bundle in group.bundles:
            cpus, gpus = _amounts(bundle["unit_resources"])
            if cpus or gpus:
                yield bundle["node_id"], Holding(group.creator_job_id, group.name or "placement group", cpus, gpus)


def _amounts(resources: Mapping[str, float] | None) -> tuple[float, float]:
    return (resources or {}).get("CPU", 0.0), (resources or {}).get("GPU", 0.0)


def _used(status: Mapping[str, Any]) -> dict[str, Mapping[str, list[float]]]:
    """By node: resource -> [used, total]; empty where the cluster's autoscaler keeps no such report."""
    report = ((status.get("data") or {}).get("clusterStatus") or {}).get("loadMetricsReport") or {}
    return report.get("usageByNode") or {}


def _node(found: Any, held: list[Holding], used: Mapping[str, list[float]] | None) -> Node:
    cpus, gpus = _amounts(found.resources_total)
    alive = found.state == "ALIVE"
    if used is None:  # then tasks that hold something aren't seen
        busy = {"CPU": sum(h.cpus for h in held), "GPU": sum(h.gpus for h in held)}
    else:
        busy = {name: used.get(name, [0.0])[0] for name in ("CPU", "GPU")}
    free = {"CPU": round(cpus - busy["CPU"], 4), "GPU": round(gpus - busy["GPU"], 4)} if alive else {"CPU": 0.0, "GPU": 0.0}
    return Node(found.node_id, found.node_ip, alive, bool(found.is_head_node), cpus, gpus, free, tuple(held))
