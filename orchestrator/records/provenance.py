"""Where a run came from: git commit and diff, versions, user, machine. Nothing that looks like a secret."""

from __future__ import annotations

import getpass
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("orchestrator", "torch", "ray", "mlflow", "pyarrow", "optuna", "numpy")
SECRET = re.compile(
    r"(?i)password|passwd|secret|token|(api|access|private)[_ -]?key|credential|authorization|bearer|://[^/\s:@]+:[^/\s@]+@"
)
KEY_BLOCK = re.compile(r"^[^\n]*-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", re.M | re.S)
LEFT_OUT = "(left out: it names a secret)"


def collect(folder: Path) -> dict[str, Any]:
    """The provenance of a run started in a folder."""
    commit = _git(folder, "rev-parse", "HEAD")
    diff = _git(folder, "diff", "HEAD") if commit else None
    return {
        "commit": commit,
        "dirty": bool(diff),
        "diff": without_secrets(diff[:500_000]) if diff else None,
        "versions": {name: version for name in PACKAGES if (version := _version(name))} | {"python": platform.python_version()},
        "user": _user(),
        "machine": f"{platform.node()} ({os.cpu_count()} CPUs, {platform.machine()})",
    }


def without_secrets(text: str) -> str:
    """The text without the lines that name a secret, and without private keys."""
    lines = KEY_BLOCK.sub(LEFT_OUT, text).splitlines()
    return "\n".join(LEFT_OUT if line != LEFT_OUT and SECRET.search(line) else line for line in lines) + "\n"


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
