"""Gangs of [fewest, most] ranks: Ray Train's elastic policy, on what is really free, and on no node that is dead or will be taken away."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision

from orchestrator.execution.watch import refused

NOTHING_S = 0.5


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer with our policy in the place of Ray's own, which can't be chosen otherwise."""

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        return super()._initialize_and_run_controller(**given | {"scaling_policy": LivePolicy(self.scaling_config)})


class LivePolicy(ElasticScalingPolicy):  # type: ignore[misc]
    """Ray's own counts what nodes have, whoever holds it, and looks every 20 s: it would wait for what others hold, or for a dead node."""

    def __init__(self, scaling_config: ray.train.ScalingConfig) -> None:
        super().__init__(scaling_config)
        self.group: Any = None  # the ranks that run, or ran last, and what is reserved for them
        self.held = Counter[str]()  # how many of them are on each node

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """More ranks, or fewer, or no change."""
        self.group, self.held = worker_group_state, Counter(worker.metadata.node_id for worker in worker_group_state.workers)
        return self._decided(super().make_decision_for_running_worker_group(worker_group_state, worker_group_status))

    def make_decision_for_non_running_worker_group(self) -> Any:
        """How many ranks to start, or to wait."""
        decision = self._decided(super().make_decision_for_non_running_worker_group())
        if isinstance(decision, NoopDecision):
            self._let_go()
            time.sleep(NOTHING_S)  # it is asked again at once
        return decision

    def _let_go(self) -> None:
        """End what is left of ranks that died. Their places would be reserved again: by Ray's head, which tries it without a pause."""
        if self.group is not None:
            self.group.shutdown()
            self.group, self.held = None, Counter()

    def _decided(self, decision: Any) -> Any:
        if not isinstance(decision, NoopDecision):
            self.group, self.held = None, Counter()  # they are ended before others start
        return decision

    def _count_possible_workers(self, reserved_resources: Mapping[str, Any]) -> int:
        free, each = ray._private.state.available_resources_per_node(), self.scaling_config._resources_per_worker_not_none
        there = _nodes_that_stay()
        room = {
            node: {name: min(amount, free.get(node, {}).get(name, 0) + self.held[node] * each.get(name, 0)) for name, amount in has.items()}
            for node, has in reserved_resources.items()
            if node in there
        }
        return int(super()._count_possible_workers(room))


def _nodes_that_stay() -> set[str]:
    """The nodes whose raylet answers, without those that will be taken away: Ray itself takes 15 s to see that a node is dead."""
    leaving = ray._private.state.state.get_draining_nodes()
    known = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    return {node["NodeID"] for node in known if not refused((node["NodeManagerAddress"], node["NodeManagerPort"]))}
