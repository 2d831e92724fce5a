"""Who answers at an address: told in one line, before Ray is asked. The head is a server of the same messages, with the test's versions."""

from __future__ import annotations

import http.server
import json
import platform
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from cluster import handshake
from cluster.handshake import ClusterError, greet, resolved
from cluster.versions import of_this_process


@contextmanager
def head(ray: str, python: str, token: str | None = None, asked: list[tuple[bytes, bytes]] | None = None) -> Iterator[str]:
    """The address of what says of itself what a head with these versions says. `asked`: gets what it is asked for."""
    from ray.core.generated import gcs_service_pb2 as messages
    from ray.core.generated import gcs_service_pb2_grpc as services

    class Store(services.InternalKVGcsServiceServicer):  # type: ignore[misc]
        def InternalKVGet(self, request: messages.InternalKVGetRequest, context: grpc.ServicerContext) -> object:
            if asked is not None:
                asked.append((request.namespace, request.key))
            if token is not None and ("authorization", f"Bearer {token}") not in context.invocation_metadata():
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return messages.InternalKVGetReply(value=json.dumps({"ray_version": ray, "python_version": python}).encode())

    server = grpc.server(ThreadPoolExecutor(1))
    services.add_InternalKVGcsServiceServicer_to_server(Store(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait(10)


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(handshake, "_token", lambda address: "")


def test_a_head_of_the_same_versions_is_greeted() -> None:
    asked: list[tuple[bytes, bytes]] = []
    with head(of_this_process().ray, platform.python_version(), asked=asked) as address:
        greet(address)
    assert asked == [(b"cluster", b"CLUSTER_METADATA")]


@pytest.mark.parametrize(
    ("ray", "python", "says"),
    [
        ("2.59.1", platform.python_version(), rf"has Ray 2\.59\.1 \(here {of_this_process().ray}\): use the same versions on both"),
        (of_this_process().ray, "3.12.9", rf"has Python 3\.12\.9 \(here {platform.python_version()}\)"),
    ],
)
def test_a_head_of_other_versions_is_refused_with_both(ray: str, python: str, says: str) -> None:
    with head(ray, python) as address, pytest.raises(ClusterError, match=rf"the cluster at '{address}' {says}"):
        greet(address)


def test_a_missing_token_and_a_wrong_one_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with head("2", "3", token="right") as address:
        with pytest.raises(ClusterError, match=f"'{address}' asks for a token, and there is none here: copy ~/.ray/auth_token"):
            greet(address)
        monkeypatch.setattr(handshake, "_token", lambda address: "wrong")
        with pytest.raises(ClusterError, match=f"'{address}' doesn't take this machine's token: it must be the one of its head"):
            greet(address)
        monkeypatch.setattr(handshake, "_token", lambda address: "right")
        with pytest.raises(ClusterError, match="has Python 3"):
            greet(address)


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_another_service_is_refused_at_once(form: str) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    began = time.monotonic()
    try:
        with pytest.raises(ClusterError, match="something else than a Ray cluster answers"):
            greet(form.format(f"127.0.0.1:{server.server_port}"))
    finally:
        server.shutdown()
        server.server_close()
    assert time.monotonic() - began < handshake.ANSWER_S


def test_a_service_that_takes_connections_and_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ClusterError, match="answers at '127"):
        greet(f"127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (
            "http://head:8265",
            r"takes jobs: send it the experiment with `orchestrator cluster submit EXPERIMENT\.yaml --address http://head:8265`",
        ),
        ("https://head", "takes jobs"),
        ("head", "'head' is no address of a cluster: give HOST:PORT, ray://HOST:PORT or auto"),
        ("ray://head", "is no address of a cluster"),
        ("anyscale://my:1", "is no address of a cluster"),
        ("head:ssh", "is no address of a cluster"),
    ],
)
def test_what_a_command_can_not_connect_to_is_refused_with_what_to_use(address: str, says: str) -> None:
    with pytest.raises(ClusterError, match=says):
        resolved(address)


def test_auto_is_the_cluster_of_this_machine_or_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "get_ray_address_from_environment", lambda address, folder: "10.0.0.1:6379")
    assert resolved("auto") == "10.0.0.1:6379"
    monkeypatch.setattr(services, "get_ray_address_from_environment", lambda address, folder: None)
    with pytest.raises(ClusterError, match="no Ray node runs on this machine"):
        resolved("auto")
