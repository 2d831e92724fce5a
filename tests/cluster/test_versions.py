"""The same Python, Ray and torch on every node, or a sentence with both; asked of real workers."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import every_node, shared
from cluster.connect import connect
from cluster.handshake import ClusterError
from cluster.versions import Versions, of_this_process, refusal, unlike

HERE = Versions("3.11.7", "2.60.0", "2.13.0")


@pytest.mark.parametrize(
    ("there", "says"),
    [
        (HERE, ""),
        (Versions("3.11.7", "2.60.0", None), ""),
        (Versions("3.11.9", "2.60.0", "2.13.0"), "Python 3.11.9 (here 3.11.7)"),
        (Versions("3.12.1", "2.59.0", "2.12.0"), "Python 3.12.1 (here 3.11.7), Ray 2.59.0 (here 2.60.0), torch 2.12.0 (here 2.13.0)"),
        (Versions("3.11.7", "2.60.0", "none"), "torch none (here 2.13.0)"),
    ],
)
def test_a_difference_is_said_with_both_versions(there: Versions, says: str) -> None:
    assert unlike(HERE, there) == says


def test_another_patch_of_python_passes_where_ray_is_told_to_let_it_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
    assert unlike(HERE, Versions("3.11.9", "2.60.0", "2.13.0")) == ""
    assert unlike(HERE, Versions("3.12.7", "2.60.0", "2.13.0")) == "Python 3.12.7 (here 3.11.7)"


def test_every_node_with_other_versions_is_named() -> None:
    assert refusal(HERE, {"10.0.0.1": HERE}) is None
    other = Versions("3.11.7", "2.60.0", "2.12.1")
    assert refusal(HERE, {"10.0.0.1": HERE, "10.0.0.2": other}) == (
        "node 10.0.0.2 has torch 2.12.1 (here 2.13.0): use the same versions on every node"
    )


def test_this_process_says_what_is_installed_without_the_build() -> None:
    found = of_this_process()
    assert (found.python, found.ray) == (platform.python_version(), importlib.metadata.version("ray"))
    assert found.torch == importlib.metadata.version("torch").partition("+")[0]


def test_several_nodes_of_one_address_are_told_apart() -> None:
    nodes = [{"NodeManagerAddress": "a", "NodeID": "1" * 20}, {"NodeManagerAddress": "b", "NodeID": "2" * 20}]
    assert list(every_node._named(nodes)) == ["a", "b"]
    assert list(every_node._named([*nodes, {"NodeManagerAddress": "a", "NodeID": "3" * 20}])) == ["a (11111111)", "b", "a (33333333)"]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of one node: a process has one at most, so that of tests/execution where it still runs."""
    import ray

    if ray.is_initialized():
        yield
        return
    with connect(None, "orchestrator.execution.set_up_worker", {}, "0", {}, 1):
        yield


def fail() -> None:
    raise ValueError("this node has no such thing")


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
class TestOnARealNode:
    def test_a_worker_answers_with_its_versions(self) -> None:
        assert list(every_node.ask(of_this_process).values()) == [of_this_process()]

    def test_a_question_that_raises_names_the_node(self) -> None:
        with pytest.raises(ClusterError, match=r"node \d+\.\d+\.\d+\.\d+.*this node has no such thing"):
            every_node.ask(fail)

    def test_a_node_that_has_died_since_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import ray

        there = ray.nodes()
        gone = {**there[0], "NodeID": "ab" * 28, "NodeManagerAddress": "10.9.8.7"}
        monkeypatch.setattr(ray, "nodes", lambda: [*there, gone])
        assert list(every_node.ask(of_this_process)) == [there[0]["NodeManagerAddress"]]

    def test_a_place_that_the_node_shares_is_found_and_left_as_it_was(self, tmp_path: Path) -> None:
        assert shared.not_sharing(str(tmp_path / "new")) == {}
        assert shared.not_sharing(f"file://{tmp_path}/new") == {}
        assert list((tmp_path / "new").iterdir()) == []
        (tmp_path / "data.json").write_text("{}")
        assert shared.without(tmp_path / "data.json") == []

    def test_a_place_that_it_does_not_share_is_said_with_the_reason(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shared, "ask", lambda question, place, *given: every_node.ask(question, f"{place}/elsewhere", *given))
        apart = shared.not_sharing(str(tmp_path))
        assert list(apart.values()) == ["there is no such place, or another one of this name"]
        assert list(tmp_path.iterdir()) == []
