"""How many ranks an elastic gang starts with: what is free, on nodes that live and stay, and what its own ranks hold."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

from orchestrator.execution import elastic
from orchestrator.execution.elastic import LivePolicy

HAS = {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}}


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> LivePolicy:
    monkeypatch.setattr(elastic, "NOTHING_S", 0)
    return LivePolicy(ScalingConfig(num_workers=(2, 4), resources_per_worker={"CPU": 1}))


def nodes(monkeypatch: pytest.MonkeyPatch, free: dict[str, float], dead: str = "", leaves: str = "", silent: str = "") -> None:
    class State:
        def get_draining_nodes(self) -> dict[str, int]:
            return {leaves: 0} if leaves else {}

    known = [{"NodeID": node, "Alive": node != dead, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": node} for node in HAS]
    monkeypatch.setattr(ray, "nodes", lambda: known)
    monkeypatch.setattr(elastic, "refused", lambda address: address[1] == silent)
    monkeypatch.setattr(ray._private.state, "state", State())
    monkeypatch.setattr(ray._private.state, "available_resources_per_node", lambda: {n: {"CPU": cpus} for n, cpus in free.items()})


@pytest.mark.parametrize(
    ("free", "held", "gone", "ranks"),
    [
        ({"a": 2, "b": 2}, {}, {}, 4),
        ({"a": 2, "b": 1}, {}, {}, 3),  # another job holds one
        ({"a": 2}, {}, {}, 2),  # a node on which nothing is free isn't named
        ({"a": 1}, {"a": 1, "b": 2}, {}, 4),  # its own ranks make room for themselves
        ({"a": 0.5}, {"a": 1, "b": 1}, {}, 2),
        ({"a": 2, "b": 2}, {"b": 2}, {"dead": "b"}, 2),
        ({"a": 2, "b": 2}, {}, {"leaves": "a"}, 2),
        ({"a": 2, "b": 2}, {"b": 1}, {"silent": "b"}, 2),  # dead, and Ray doesn't know it yet
    ],
)
def test_there_is_room_for_what_is_free_and_what_its_own_ranks_hold_on_nodes_that_stay(
    monkeypatch: pytest.MonkeyPatch, policy: LivePolicy, free: Any, held: Any, gone: Any, ranks: int
) -> None:
    nodes(monkeypatch, free, **gone)
    policy.held = Counter(held)
    assert policy._count_possible_workers(HAS) == ranks


def test_what_ranks_that_died_held_is_let_go_while_others_wait_for_room(monkeypatch: pytest.MonkeyPatch, policy: LivePolicy) -> None:
    ended = []
    nodes(monkeypatch, {"a": 0, "b": 0})
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: HAS)
    policy.group, policy.held = SimpleNamespace(shutdown=lambda: ended.append("group")), Counter({"a": 1})
    for _ in range(2):
        assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision)
    assert (ended, policy.held) == (["group"], Counter())


def test_ended_ranks_count_no_more_once_others_are_to_start(monkeypatch: pytest.MonkeyPatch, policy: LivePolicy) -> None:
    nodes(monkeypatch, {"a": 1, "b": 0})
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: HAS)
    policy.held = Counter({"a": 1, "b": 2})
    decision = policy.make_decision_for_non_running_worker_group()
    assert isinstance(decision, ResizeDecision)
    assert decision.num_workers == 4
    assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision), "one is free, and two are the fewest"
