"""Python, Ray and torch of two processes that work together: they must be the same, or a sentence says how they differ."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Versions:
    """Of a process. `torch`: without the build (`+cpu`), since nodes may have other devices; None where it isn't known."""

    python: str
    ray: str
    torch: str | None


def of_this_process() -> Versions:
    """Read from the installed packages: nothing is imported for it."""
    return Versions(platform.python_version(), importlib.metadata.version("ray"), _torch())


def _torch() -> str | None:
    try:
        return importlib.metadata.version("torch").partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "none"


def unlike(here: Versions, there: Versions) -> str:
    """How they differ, as `Python 3.12.1 (here 3.11.7), torch 2.12.0 (here 2.13.0)`; empty if they don't."""
    pythons = (here.python, there.python)
    if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" and _minor(pythons[0]) == _minor(pythons[1]):
        pythons = (here.python, here.python)  # what Ray itself lets pass
    pairs = (("Python", *pythons), ("Ray", here.ray, there.ray), ("torch", here.torch, there.torch))
    return ", ".join(f"{name} {theirs} (here {own})" for name, own, theirs in pairs if None not in (own, theirs) and own != theirs)


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def refusal(here: Versions, nodes: Mapping[str, Versions]) -> str | None:
    """One line that names each node with other versions; None if there is none."""
    others = [f"node {node} has {differences}" for node, there in nodes.items() if (differences := unlike(here, there))]
    return f"{'; '.join(others)}: use the same versions on every node" if others else None
