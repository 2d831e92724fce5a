"""Who answers at an address, before Ray is asked to connect: Ray itself tries for minutes, and says no more than that it failed.

One call to the head's control store (or to the Ray Client's server) tells a wrong token, another service, another version, at once. Ray
has no public form of it, so the messages are Ray's own (`ray.core.generated`); tests/cluster/test_handshake.py tells when they change.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from .versions import Versions, of_this_process, unlike

ANSWER_S = 10.0  # to a first connection
CLIENT = "ray://"


class ClusterError(ValueError):
    """A cluster that can't be reached or used."""


def resolved(address: str) -> str:
    """HOST:PORT or ray://HOST:PORT of an address, `auto` looked up. Raises ClusterError for what a command can't connect to."""
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"'{address}' takes jobs: send it the experiment with `orchestrator cluster submit EXPERIMENT.yaml --address {address}`, "
            "or give the address of the cluster itself (HOST:6379, or ray://HOST:10001)"
        )
    if address == "auto":
        return _running_here()
    host, colon, port = address.removeprefix(CLIENT).rpartition(":")
    if not (host and colon and port.isdigit()) or "://" in host:
        raise ClusterError(f"'{address}' is no address of a cluster: give HOST:PORT, ray://HOST:PORT or auto")
    return address


def use_token() -> None:
    """Have Ray send this machine's token, if there is one: by itself it does where it starts a cluster, or where RAY_AUTH_MODE says so."""
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)  # it says so each time
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def greet(address: str) -> None:
    """Raises ClusterError unless a Ray of these versions answers at HOST:PORT or ray://HOST:PORT, and takes this machine's token."""
    where = address.removeprefix(CLIENT)
    _refuse_silence(address, where)
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # with certificates, which Ray has to present
    import grpc

    with grpc.insecure_channel(where) as channel:
        call = _ping if address.startswith(CLIENT) else _head_versions
        try:
            found = call(channel, _credentials(address))
        except grpc.RpcError as error:
            raise ClusterError(_refusal(address, error)) from None
    here = of_this_process()
    if found is not None and (differences := unlike(here, found)):
        raise ClusterError(f"the cluster at '{address}' has {differences}: use the same versions on both")


def _head_versions(channel: Any, credentials: list[tuple[str, str]]) -> Versions | None:
    """What the head was started with, as it wrote it down."""
    from ray.core.generated import gcs_service_pb2 as messages
    from ray.core.generated import gcs_service_pb2_grpc as services

    request = messages.InternalKVGetRequest(namespace=b"cluster", key=b"CLUSTER_METADATA")
    answer = services.InternalKVGcsServiceStub(channel).InternalKVGet(request, timeout=ANSWER_S, metadata=credentials)
    if not answer.value:
        return None
    said = json.loads(answer.value)
    return Versions(said["python_version"], said["ray_version"], None)


def _ping(channel: Any, credentials: list[tuple[str, str]]) -> None:
    """The Ray Client's server; it compares the versions itself."""
    from ray.core.generated import ray_client_pb2 as messages
    from ray.core.generated import ray_client_pb2_grpc as services

    request = messages.ClusterInfoRequest(type=messages.ClusterInfoType.PING)
    services.RayletDriverStub(channel).ClusterInfo(request, timeout=ANSWER_S, metadata=[*credentials, ("client_id", "greeting")])


def _credentials(address: str) -> list[tuple[str, str]]:
    token = _token(address)
    return [("authorization", f"Bearer {token}")] if token else []


def _token(address: str) -> str:
    """This machine's token, where Ray looks for it; empty if there is none, or RAY_AUTH_MODE says that none is used."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return ""
    import ray
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    try:
        return str(AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True))
    except ray.exceptions.RayError as error:
        first = str(error).partition(". ")[0]
        if os.environ.get("RAY_AUTH_TOKEN_PATH"):
            raise ClusterError(f"no token for '{address}': {first}") from None
        return ""


def _refusal(address: str, error: Any) -> str:
    """One line for a call that failed."""
    import grpc

    code, said = error.code(), " ".join(str(error.details()).split())[:200]
    if code == grpc.StatusCode.UNAUTHENTICATED:
        if not _token(address):
            off = " (RAY_AUTH_MODE is set to send none)" if os.environ.get("RAY_AUTH_MODE") else ""
            return (
                f"the cluster at '{address}' asks for a token, and there is none here{off}: copy ~/.ray/auth_token of its head to here, "
                "or name the file in RAY_AUTH_TOKEN_PATH (with RAY_AUTH_MODE=token)"
            )
        return (
            f"the cluster at '{address}' doesn't take this machine's token: it must be the one of its head, "
            "in ~/.ray/auth_token or in the file that RAY_AUTH_TOKEN_PATH names"
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no Ray cluster answers at '{address}' within {ANSWER_S:.0f} s; is its head overloaded, and is the address right?"
    return f"something else than a Ray cluster answers at '{address}' ({said}); the port is the head's, 6379 unless given (ray://: 10001)"


def nodes_here() -> bool:
    """Whether a Ray node runs on this machine, of whichever cluster: Ray looks for one for a minute."""
    from ray._private import services

    return bool(services.find_node_ids())


def _running_here() -> str:
    """The cluster that a node on this machine belongs to. Raises ClusterError if there is none."""
    from ray._private import services

    said = _tried(lambda: services.get_ray_address_from_environment("auto", None))
    if not said:
        raise ClusterError("no Ray node runs on this machine, which 'auto' means; give the head's address, HOST:PORT")
    return said


def _tried(find: Callable[[], Any]) -> str | None:
    try:
        return str(find() or "") or None
    except ConnectionError:
        return None


def _refuse_silence(address: str, where: str) -> None:
    """Raises ClusterError if nothing listens at HOST:PORT."""
    host, _, port = where.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster answers at '{address}' ({error}); is it running, and is the address right?") from None
