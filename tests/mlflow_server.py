"""A real MLflow server behind a proxy that misbehaves when it is told to."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

Mood = Literal["well", "refuses", "hangs", "500", "429", "slow", "loses answers"]
SLOW_S = 5.0
HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


class Proxy:
    """Loopback HTTP in front of a server. `answered`: requests that got the server's own answer; `asked`: all that came in."""

    def __init__(self, upstream: int) -> None:
        self.upstream, self.asked, self.answered = upstream, 0, 0
        self.mood: Mood = "well"
        self._lost: set[tuple[str, bytes]] = set()
        self._changed = threading.Condition()
        self._listener: ThreadingHTTPServer | None = None
        self.port = 0
        self._listen()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def becomes(self, mood: Mood) -> None:
        """From now on; what hangs goes on to the server, late, whether its sender still waits or not."""
        with self._changed:
            before, self.mood = self.mood, mood
            self._changed.notify_all()
        if mood == "refuses":
            self.close()
        elif before == "refuses":
            self._listen()

    def close(self) -> None:
        """Refuse connections; those that are open end with their next request."""
        if self._listener is not None:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener = None

    def wait_until_asked(self, more: int, timeout_s: float = 90) -> None:
        """Until so many further requests have come in."""
        with self._changed:
            wanted = self.asked + more
            assert self._changed.wait_for(lambda: self.asked >= wanted, timeout_s), f"{self.asked} of {wanted} requests"

    def treat(self, handler: BaseHTTPRequestHandler) -> None:
        """One request, as the mood is."""
        body = _body(handler)
        with self._changed:
            self.asked += 1
            mood = self.mood
            self._changed.notify_all()
            if mood == "hangs":
                self._changed.wait_for(lambda: self.mood != "hangs")
        if mood == "refuses":
            handler.close_connection = True
            return
        if mood in ("500", "429"):
            _answer(handler, int(mood), {"Retry-After": "600"} if mood == "429" else {}, b'{"message": "no"}')
            return
        if mood == "slow":
            time.sleep(SLOW_S)  # what it is: slow
        status, headers, content = self._forward(handler, body)
        if mood == "loses answers" and handler.command == "POST" and (handler.path, body) not in self._lost:
            self._lost.add((handler.path, body))  # each of them once
            handler.close_connection = True
            return
        self.answered += 1
        _answer(handler, status, headers, content)

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        to = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        try:
            headers = {name: value for name, value in handler.headers.items() if name.lower() not in HOP - {"content-length"}}
            to.request(handler.command, handler.path, body, headers)
            answer = to.getresponse()
            return answer.status, {k: v for k, v in answer.getheaders() if k.lower() not in HOP}, answer.read()
        finally:
            to.close()

    def _listen(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                with contextlib.suppress(OSError):  # nobody waits any more
                    proxy.treat(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _any

            def log_message(self, *said: Any) -> None:
                """Nothing."""

        self._listener = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._listener.daemon_threads = True
        self.port = self._listener.server_address[1]
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    """All of a request's body: an empty file is sent in chunks, none of which may be taken for the next request."""
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    chunks = []
    while size := int(handler.rfile.readline(), 16):
        chunks.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(chunks)


def _answer(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


@contextlib.contextmanager
def server(folder: Path, timeout_s: float = 300) -> Iterator[int]:
    """A real MLflow server on loopback with its store below a folder; its port."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = int(held.getsockname()[1])
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", "sqlite:///mlflow.db"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    env |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "mlflow", *words, "--artifacts-destination", str(folder / "artifacts")]
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, timeout_s)
            yield port
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    deadline, pause = time.monotonic() + timeout_s, threading.Event()
    while True:
        assert process.poll() is None, "mlflow server ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert time.monotonic() < deadline, f"{url} did not answer in {timeout_s} s"
            pause.wait(0.1)
