"""What works on this machine, what does not, and what to do."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from cluster.resources import this_machine
from orchestrator.errors import OrchestratorError
from orchestrator.records.tracking import check_store, destination, shown_destination

Check = dict[str, Any]
ROOM_BYTES = 2_000_000_000


def check(home: Path) -> list[Check]:
    """Every check, each `{name, state: ok | warning | error, says, do}`."""
    checks: list[Callable[[], Check]] = [_python, _packages, _cpus, _gpus, lambda: _folder(home), _room, _sockets, _store, _server]
    return [one() for one in checks]


def _ok(name: str, says: str) -> Check:
    return {"name": name, "state": "ok", "says": says, "do": None}


def _bad(name: str, state: str, says: str, do: str) -> Check:
    return {"name": name, "state": state, "says": says, "do": do}


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return _ok("python", version) if sys.version_info >= (3, 11) else _bad("python", "error", version, "install Python 3.11 or newer")


def _packages() -> Check:
    found, missing = [], []
    for name in ("torch", "ray", "mlflow", "pyarrow", "optuna"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return _bad("packages", "error", f"missing: {', '.join(missing)}", "make setup, or pip install .")
    return _ok("packages", ", ".join(found))


def _cpus() -> Check:
    found = this_machine()
    return _ok("cpus", f"{found.cpus:g} CPUs, {found.memory_bytes / 1e9:.1f} GB memory" + (", bfloat16" if found.bf16 else ""))


def _gpus() -> Check:
    import torch

    found = this_machine().gpus
    if not found:
        return _ok("gpus", "none: everything runs on CPUs")
    if not torch.cuda.is_available():
        return _bad("gpus", "warning", f"{found:g} GPUs, but torch {torch.__version__} can't use them", "install torch's CUDA build")
    return _ok("gpus", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))


def _folder(home: Path) -> Check:
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home):
            return _ok("working folder", str(home.parent))
    except OSError as error:
        return _bad("working folder", "error", f"can't write in '{home}': {error.strerror}", "run it in a folder that you may write to")


def _room() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    says = f"{free / 1e9:.1f} GB free"
    return _ok("disk", says) if free > ROOM_BYTES else _bad("disk", "warning", says, "checkpoints, bundles and MLflow need room: free some")


def _sockets() -> Check:
    """Ray's sockets lie below a temporary folder, and a socket's path is limited to about 100 characters."""
    folder = "/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir()
    if not os.access(folder, os.W_OK):
        return _bad("ray", "error", f"can't write in '{folder}', where Ray keeps its sockets", "make it writable")
    return _ok("ray", f"temporary folder '{folder}'")


def _store() -> Check:
    try:
        check_store(destination())
    except OrchestratorError as error:
        return _bad("mlflow store", "error", str(error), "see what it says")
    return _ok("mlflow store", shown_destination())


def _server() -> Check:
    """Whether a tracking server answers; a local store needs none."""
    import urllib.error
    import urllib.request

    uri = destination()
    if not uri.startswith("http"):
        return _ok("mlflow server", "none needed: the store is a local file")
    try:
        with urllib.request.urlopen(f"{shown_destination().rstrip('/')}/health", timeout=5) as answer:
            return _ok("mlflow server", f"{shown_destination()} answers {answer.status}")
    except (urllib.error.URLError, OSError, ValueError) as error:
        return _bad(
            "mlflow server",
            "error",
            f"{shown_destination()} doesn't answer: {error}",
            "start it, or unset MLFLOW_TRACKING_URI; runs are kept until then",
        )
