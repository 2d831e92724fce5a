"""Someone is told how a launch goes: one signed HTTP POST for each thing asked for, in order, from a thread of its own.

The body is JSON; its HMAC-SHA256 with the secret of ORCHESTRATOR_NOTIFY_SECRET is in the header X-Orchestrator-Signature, as
`sha256=<hex>` (the form of https://docs.github.com/webhooks). Nothing that goes wrong with it touches the launch: it is said at the end.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from orchestrator.errors import ExperimentError, Problem, shown
from orchestrator.events import EpochEnded, better
from orchestrator.experiment.config import NotifyConfig
from orchestrator.records.ledger import Launch

URL, SECRET = "ORCHESTRATOR_NOTIFY_URL", "ORCHESTRATOR_NOTIFY_SECRET"
SIGNATURE = "X-Orchestrator-Signature"
ANSWER_S = 5.0
WAITS_S = (1.0, 3.0)  # before the second and the third try


def destination(config: NotifyConfig, env: Mapping[str, str] = os.environ) -> tuple[str, bytes] | None:
    """(URL, secret) of the receiver; None if nobody is to be told. Raises ExperimentError if there is no secret to sign with."""
    url = config.url or env.get(URL)
    if not url:
        return None
    if not env.get(SECRET):
        says = f"the messages are signed: set {SECRET} in the environment to a secret that the receiver knows"
        raise ExperimentError([Problem("notify.url", None, says)])
    if urlsplit(url).scheme not in ("http", "https"):
        raise ExperimentError([Problem("notify.url", None, f"{URL} in the environment must begin with https:// or http://")])
    return url, env[SECRET].encode()


def sign(body: bytes, secret: bytes) -> str:
    """The value of the signature's header."""
    return f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"


class Notifier:
    """Call it with every event of a launch; `finish` tells the end. Without a destination it does nothing.

    `best`: the best value of the metric before, in a launch that goes on: only better ones are told.
    """

    def __init__(self, config: NotifyConfig, launch: Launch, to: tuple[str, bytes] | None, best: float | None = None) -> None:
        self.config, self.launch, self.to, self.best = config, launch, to, best
        self.problem: str | None = None
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._seen, self._alarmed = time.monotonic(), False
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
        if to is not None:
            self._thread.start()

    def __call__(self, event: object) -> None:
        """Take note of an event; one that isn't an epoch's only shows that something happens."""
        self._seen, self._alarmed = time.monotonic(), False
        if isinstance(event, EpochEnded):
            value = event.metrics.get(self.launch.metric)
            if value is not None and (self.best is None or better(value, self.best, self.launch.mode)):
                self.best = value
                self._tell("best", trial=event.trial, epoch=event.epoch, value=value)

    def end(self, state: str, trial: int | None = None, error: str | None = None) -> None:
        """Tell the end: `finished`, or `failed` for whatever else. `trial`: the winner."""
        said = {"error": shown(error)} if error else {}
        self._tell("finished" if state == "finished" else "failed", state=state, trial=trial, value=self.best, **said)
        self._messages.put(None)

    def finish(self, timeout_s: float) -> str | None:
        """Wait for what isn't sent; what is wrong, if anything."""
        if self.to is None:
            return None
        self._thread.join(timeout_s)
        self._hurry.set()
        if self._thread.is_alive() and self.problem is None:
            self.problem = "it doesn't answer in time"
        return None if self.problem is None else f"notify: not everything was taken by {_host(self.to[0])}: {self.problem}"

    def _tell(self, event: str, **said: Any) -> None:
        if event in self.config.on:
            launch = self.launch
            about = {"event": event, "experiment": launch.name, "launch": launch.id, "command": launch.command, "metric": launch.metric}
            self._messages.put({**about, **said, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})

    def _work(self) -> None:
        """The thread: what is to be told, in order; between, whether it is quiet for too long."""
        stall_s = self.config.stall_minutes * 60
        while True:
            try:
                message = self._messages.get(timeout=max(0.01, self._seen + stall_s - time.monotonic()) if not self._alarmed else stall_s)
            except queue.Empty:
                if not self._alarmed and time.monotonic() - self._seen >= stall_s:
                    self._alarmed = True
                    self._tell("stalled", minutes=self.config.stall_minutes)
                continue
            if message is None:
                return
            self._send(message)

    def _send(self, message: dict[str, Any]) -> None:
        assert self.to is not None
        for wait_s in (*WAITS_S, None):
            problem = post(*self.to, message)
            if problem is None or wait_s is None:
                break
            if self._hurry.wait(wait_s):
                break
        self.problem = problem or self.problem


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A POST that is sent elsewhere would arrive as a GET."""

    def redirect_request(self, *_: Any) -> None:
        return None


def post(url: str, secret: bytes, message: Mapping[str, Any]) -> str | None:
    """One try; what is wrong, or None."""
    body = json.dumps(message).encode()
    headers = {"Content-Type": "application/json", SIGNATURE: sign(body, secret), "User-Agent": "orchestrator"}
    try:
        request = urllib.request.Request(url, body, headers, method="POST")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=ANSWER_S):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code}"
    except Exception as error:  # a name that isn't known, a reset, a certificate, a damaged answer: all the same to the launch
        return " ".join(str(getattr(error, "reason", None) or error).split())[:200] or type(error).__name__


def _host(url: str) -> str:
    """Of a URL what may be said: its path may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}"
