"""Ray Jobs at an address: list, submit, follow, stop. A job lives on the cluster's head; who follows it may come and go."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .connect import ANSWER_S, ClusterError
from .handshake import use_token
from .usage import Node, usage

GONE_AFTER_S = 60.0  # how long a follower waits for a cluster that no longer answers
SILENT_S = 30.0  # ... and for each answer
QUIET_S = 60.0  # without a line in a log: then it is asked whether the job runs still
POLL_S = 0.3
STOPPED_S = 180.0  # for a job that was asked to end; Ray kills it after a minute (submit.STOP_S)
OURS = "orchestrator"  # key of the metadata of our jobs: the version
REFUSAL = re.compile(r"unauthenticated|unauthorized|InvalidAuthToken|RAY_AUTH_|authentication (required|failed|token)", re.IGNORECASE)
TOKEN = "is its token set here (RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token as on the cluster's head)?"


class ClusterGone(ClusterError):
    """A cluster that answered before, and doesn't any more."""


@dataclass(frozen=True)
class Job:
    """A job of ours. `state`: pending, running, finished, failed, interrupted (exit code 130: resumable) or stopped; times in ms."""

    id: str
    experiment: str
    state: str
    started_ms: int
    exit_code: int | None
    message: str

    @property
    def ended(self) -> bool:
        return self.state not in ("pending", "running")


class Jobs:
    """The jobs of one cluster. Raises ClusterError if no cluster, or one that doesn't know this token, is at the address."""

    def __init__(self, address: str) -> None:
        self.given = address
        with _said_once(address):
            use_token()
            self.address = _dashboard_of(address)
            _refuse_silence(self.address)
            with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray prefers them to what it is given
                from ray.job_submission import JobSubmissionClient

                for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
                    logging.getLogger(name).setLevel(logging.ERROR)
                self._client: Any = JobSubmissionClient(self.address)
                self._client._do_request = functools.partial(self._client._do_request, timeout=SILENT_S)  # Ray's own waits without end
                self._client.list_jobs()  # the first thing that asks for the token

    def ours(self) -> list[Job]:
        """Our jobs, newest first."""
        with _said_once(self.given):
            found = [_job(details) for details in self._client.list_jobs() if details.submission_id and OURS in (details.metadata or {})]
        return sorted(found, key=lambda job: (job.started_ms, job.id), reverse=True)

    def find(self, id: str) -> Job:
        """A job by its id. Raises ClusterError, with the ids that there are."""
        jobs = self.ours()
        for job in jobs:
            if job.id == id:
                return job
        raise ClusterError(f"no job '{id}' at '{self.given}'; there is: {', '.join(job.id for job in jobs) or 'none'}")

    def submit(self, id: str, entrypoint: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]) -> Job:
        """Start a shell command on the head, in a process group of its own."""
        with _said_once(self.given):
            self._client.submit_job(entrypoint=entrypoint, submission_id=id, runtime_env=dict(runtime_env), metadata=dict(metadata))
        return self.find(id)

    def output_of(self, command: str, timeout_s: float = 120) -> str:
        """What a short shell command prints on the head; it isn't among our jobs."""
        with _said_once(self.given):
            id = self._client.submit_job(entrypoint=command, metadata={})
            deadline = time.monotonic() + timeout_s
            while not self._client.get_job_status(id).is_terminal():
                if time.monotonic() > deadline:
                    self._client.stop_job(id)
                    raise ClusterError(f"the cluster at '{self.given}' started no job within {timeout_s:.0f} s; is its head overloaded?")
                time.sleep(POLL_S)
            output: str = self._client.get_job_logs(id)
        return output

    def follow(self, id: str, show: Callable[[str], None]) -> Job:
        """Show a job's log from its beginning, until it has ended. Raises ClusterGone if the cluster goes first."""
        self.find(id)
        log = _Log(show)
        silent_since: float | None = None
        while True:
            try:
                with _said_once(self.given):
                    asyncio.run(self._tail(id, log))
                    silent_since = None
                    job = _job(self._client.get_job_info(id))
                    if job.ended:  # the tail may have ended just before the last lines
                        log.at(0, self._client.get_job_logs(id))
                        return job
            except ClusterError:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > GONE_AFTER_S:
                    raise ClusterGone(f"the cluster at '{self.given}' no longer answers, and a job ends with its head") from None
            time.sleep(POLL_S)

    async def _tail(self, id: str, log: _Log) -> None:
        """Until Ray ends it, or nothing has come for a while; it sends a log from its beginning each time."""
        place, texts = 0, self._client.tail_job_logs(id)
        with contextlib.suppress(StopAsyncIteration, TimeoutError):
            while True:
                text = await asyncio.wait_for(anext(texts), QUIET_S)
                log.at(place, text)
                place += len(text)

    def nodes(self) -> list[Node]:
        """The nodes, the head first: what is free on each, and who holds the rest."""
        with _said_once(self.given), _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            used = self._client._do_request("GET", "/api/cluster_status").json()  # there is no public way to what is used
            owners = {details.job_id: _owner(details) for details in self._client.list_jobs() if details.job_id}
            return usage(self.address, used, owners)

    def stop(self, id: str) -> Job:
        """Ask a job to end, as Ctrl-C does, and wait until it has; one that has ended is left as it is. Raises ClusterError."""
        job = self.find(id)
        if not job.ended:
            deadline = time.monotonic() + STOPPED_S
            with _said_once(self.given):
                self._client.stop_job(id)
                while not (job := _job(self._client.get_job_info(id))).ended:
                    if time.monotonic() > deadline:
                        raise ClusterError(f"job {id} was asked to end, and hasn't within {STOPPED_S:.0f} s; see `cluster jobs`")
                    time.sleep(POLL_S)
        return job


@dataclass
class _Log:
    """Shows each character of a log once, however often a part of it comes."""

    show: Callable[[str], None]
    shown: int = 0

    def at(self, place: int, text: str) -> None:
        new = text[max(0, self.shown - place) :]
        if new:
            self.show(new)
            self.shown = place + len(text)


def _job(details: Any) -> Job:
    status, code = str(details.status.value), details.driver_exit_code
    state = {"SUCCEEDED": "finished", "FAILED": "interrupted" if code == 130 else "failed"}.get(status, status.lower())
    said = " ".join((details.message or "").split())
    return Job(details.submission_id, (details.metadata or {}).get("experiment", ""), state, int(details.start_time or 0), code, said)


def _owner(details: Any) -> str:
    """A job of ours by its id, any other program by its command line."""
    return str(details.submission_id if OURS in (details.metadata or {}) else details.entrypoint)


def _dashboard_of(address: str) -> str:
    """The http address of a cluster's dashboard, which takes jobs; it asks the cluster where another address is given."""
    if address.startswith(("http://", "https://")):
        return address.rstrip("/")
    if address.startswith("ray://"):
        raise ClusterError(f"'{address}' is a Ray Client's address; jobs are sent to the head's http://HOST:8265, or its HOST:6379")
    _refuse_silence(address)
    with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        from ray.dashboard.utils import get_address_for_submission_client

        found: str = get_address_for_submission_client(None if address == "auto" else address)
    if not found.removeprefix("http://"):
        raise ClusterError(
            f"the cluster at '{address}' has no dashboard, which takes jobs: its head needs ray[default], and no --include-dashboard=false"
        )
    return found


def _refuse_silence(address: str) -> None:
    """Raises ClusterError if nothing answers at once, or something that is no Ray dashboard: Ray itself would try for minutes."""
    if not address.startswith("http"):
        host, colon, port = address.rpartition("://")[2].rpartition(":")
        if colon and port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
        return
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=ANSWER_S) as answer:
            if "ray_version" not in json.load(answer):
                raise ValueError
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):  # it wants a token, which the client has
            raise ClusterError(f"what answers at '{address}' is no Ray dashboard (HTTP {error.code}); is the port right?") from None
    except urllib.error.URLError as error:
        raise OSError(error.reason) from None
    except ValueError:
        raise ClusterError(f"what answers at '{address}' is no Ray dashboard; is the port right?") from None


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ |= kept


@contextlib.contextmanager
def _said_once(address: str) -> Iterator[None]:
    """Whatever Ray and what it talks through raise, as one ClusterError of one line."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what Ray's core says beside our sentence
    try:
        yield
    except ClusterError:
        raise
    except Exception as error:  # RayError, RuntimeError, requests', aiohttp's and grpc's own
        said = " ".join(str(error).split())
        if type(error).__name__ == "AuthenticationError" or REFUSAL.search(said):
            raise ClusterError(f"the cluster at '{address}' refuses the token ({said.partition('. ')[0][:150]}); {TOKEN}") from None
        if isinstance(error, OSError | ValueError):
            raise ClusterError(f"no Ray cluster answers at '{address}' ({said[:200]}); is it running, and is the address right?") from None
        raise ClusterError(f"the cluster at '{address}': {type(error).__name__}: {said[:300]}") from None
