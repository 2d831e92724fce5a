"""The same question to every node of a cluster: a task that holds nothing, on each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from .handshake import ClusterError

ANSWER_S = 120.0  # a first worker on a node installs the toolkit and starts


def ask(question: Callable[..., Any], *given: Any, answer_s: float = ANSWER_S) -> dict[str, Any]:
    """The answer of each node by its address (and id, where several have one). `question`: a function of a module of ours.

    A node that dies meanwhile has none. Raises ClusterError, with the node, where the question raises or isn't answered in time.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task, asked = ray.remote(question), {}
    for name, node in _named([node for node in ray.nodes() if node["Alive"]]).items():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[task.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(*given)] = name
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=answer_s)
    if late:
        names = ", ".join(asked[ref] for ref in late)
        raise ClusterError(f"node {names} started no worker within {answer_s:.0f} s; does it have room, and the toolkit's dependencies?")
    answers = {}
    for ref in ready:
        with contextlib.suppress(ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):  # it died meanwhile
            answers[asked[ref]] = _answer(ref, asked[ref])
    return answers


def _named(nodes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Nodes by their address; by address and the beginning of their id where several share one."""
    addresses = [node["NodeManagerAddress"] for node in nodes]
    return {
        f"{address} ({node['NodeID'][:8]})" if addresses.count(address) > 1 else address: node
        for address, node in zip(addresses, nodes, strict=True)
    }


def _answer(ref: Any, node: str) -> Any:
    import ray

    try:
        return ray.get(ref)
    except (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):
        raise
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise ClusterError(f"node {node}: {' '.join(str(cause).split())[-300:]}") from None
