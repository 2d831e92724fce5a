"""The looks at what trials run on, without Ray: sockets and clocks."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.errors import Lost, Note
from orchestrator.execution import watch
from orchestrator.execution.watch import Head, Stall


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "HEAD_EVERY_S", 0)
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0)
    monkeypatch.setattr(watch, "HEAD_SILENT_S", 0.5)


@pytest.fixture
def raylet() -> Iterator[socket.socket]:
    with tempfile.TemporaryDirectory(prefix="w", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/raylet")
        server.listen()
        yield server


@pytest.fixture
def gcs() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def head(gcs: socket.socket, raylet: socket.socket) -> Head:
    return Head(f"127.0.0.1:{gcs.getsockname()[1]}", raylet.getsockname())


def test_a_head_that_answers_is_there(gcs: socket.socket, raylet: socket.socket) -> None:
    looked = head(gcs, raylet)
    looked.answered_at -= 60
    looked.check()
    assert time.monotonic() - looked.answered_at < 30


def test_a_head_that_does_not_answer_for_a_while_is_lost(gcs: socket.socket, raylet: socket.socket) -> None:
    looked = head(gcs, raylet)
    gcs.close()
    looked.check()  # it may come back
    looked.answered_at -= 1
    with pytest.raises(Lost, match=r"Ray's head at 127\.0\.0\.1:\d+ died: it hasn't answered for 1 s"):
        looked.check()


def test_a_raylet_whose_queue_is_full_is_busy_and_not_lost(gcs: socket.socket, raylet: socket.socket) -> None:
    raylet.listen(0)
    looked = head(gcs, raylet)
    looked.answered_at -= 60
    for _ in range(5):
        looked.check()
    assert time.monotonic() - looked.answered_at < 30


def test_a_raylet_whose_socket_is_closed_is_lost_at_once(gcs: socket.socket, raylet: socket.socket) -> None:
    looked = head(gcs, raylet)
    raylet.close()
    assert Path(looked.raylet).exists()
    with pytest.raises(Lost, match="Ray's node on this machine died"):
        looked.check()


def test_a_client_has_nothing_to_look_at() -> None:
    looked = Head("", "")
    looked.answered_at -= 60
    looked.check()
    assert time.monotonic() - looked.answered_at < 30


def test_no_progress_is_said_again_and_again_and_progress_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "shortage", lambda *asked: f"{asked[0]} workers wait for {asked[1]}")
    stall = Stall(every_s=0)
    for _ in range(2):
        with pytest.warns(Note, match=r"no progress for 0 s: 2 workers wait for \{'CPU': 1\}") as said:
            stall.check(2, {"CPU": 1}, lambda: True)
        assert len(said) == 1
    stall.every_s = 60
    stall.progress()
    stall.check(2, {"CPU": 1}, lambda: True)


def test_a_worker_that_ray_still_starts_is_no_shortage_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "shortage", lambda *asked: None)
    stall = Stall(every_s=0.05)
    stall.said_at -= 1
    stall.check(1, {"CPU": 1}, lambda: True)
    stall.since -= 1
    stall.said_at -= 1
    with pytest.warns(Note, match="Ray has room for the workers, and still starts them") as said:
        stall.check(1, {"CPU": 1}, lambda: True)
    assert len(said) == 1, "only after a while"


class TestShortage:
    """What is said of nodes with so many CPUs, of which so many are free."""

    @pytest.fixture
    def of(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
        def said(total: list[float], free: list[float], workers: int, each: float = 1, least: int = 1, waits: bool = True) -> str | None:
            nodes = {
                "total_resources_per_node": {str(n): {"CPU": cpus} for n, cpus in enumerate(total)},
                "available_resources_per_node": {str(n): {"CPU": cpus} for n, cpus in enumerate(free) if cpus},
            }
            monkeypatch.setattr(watch, "_per_node", nodes.__getitem__)
            monkeypatch.setattr(watch, "_holders", lambda: "somebody")
            return watch.shortage(workers, {"CPU": each}, lambda: waits, least)

        return said

    def test_a_group_waits_for_all_its_places_at_once(self, of: Callable[..., str | None]) -> None:
        assert of([2, 2], [1, 0], 2, least=2) == "2 workers wait for 1 CPU each; 1 of 4 CPU free; held by somebody"
        assert of([2, 2], [1, 1], 2, least=2) is None
        assert of([2, 2], [2, 0], 2, least=2) is None

    def test_one_worker_of_several_may_go_on_alone(self, of: Callable[..., str | None]) -> None:
        assert of([2], [1], 2) is None
        assert of([2], [0.5], 2) == "2 workers wait for 1 CPU each; 0.5 of 2 CPU free; held by somebody"

    def test_workers_that_have_their_place_are_not_short_of_one(self, of: Callable[..., str | None]) -> None:
        assert of([2], [0], 2, waits=False) is None

    def test_a_worker_that_no_node_can_hold_is_said_so(self, of: Callable[..., str | None]) -> None:
        assert of([1, 2], [1, 2], 1, each=3) == "1 worker waits for 3 CPU; no node is large enough: 1 CPU; 2 CPU"
