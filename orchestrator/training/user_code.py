"""A user's own modules on their way to another machine: the files that are named or imported from there, and nothing else of the folder.

A user's module is loaded from the experiment's folder under a private name (see names.py), so it reaches its neighbours by relative
imports only: following these finds every file that it needs. The folder's data, however large, stays where it is.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from orchestrator.errors import Refused
from orchestrator.experiment.config import Experiment

LIMIT_BYTES = 50_000_000  # of all modules, unpacked
SEARCHED = ("optimizer.name", "model.family")  # whose values may be paths of a user's own, beside the file's


def names_of(experiment: Experiment) -> list[str]:
    """The dotted paths of a user's own parts that a trial of this experiment may load."""
    given = [experiment.model.family, experiment.optimizer.name]
    for key in SEARCHED:
        given += [value for value in experiment.sweep.space.get(key, {}).get("choice", ()) if isinstance(value, str)]
    return sorted({name for name in given if ":" in name})


def files_of(folder: Path, names: Iterable[str]) -> list[Path]:
    """The Python files below `folder` that dotted paths need: their whole top-level packages, those that these import, and so on."""
    found: set[Path] = set()
    waiting, seen = [name.partition(":")[0].partition(".")[0] for name in names], {""}
    while waiting:
        top = waiting.pop()
        if top in seen:
            continue
        seen.add(top)
        own = _files_of_top(folder, top)
        found |= own
        waiting += [name for path in own for name in _neighbours(folder, path)]
    return sorted(found)


def pack(folder: Path, names: Iterable[str]) -> bytes | None:
    """A zip of the modules below `folder` that the dotted paths name, and of what these import; None if none of them lies there.

    The same files give the same bytes. Raises Refused where they are too large.
    """
    folder = folder.resolve()
    files = files_of(folder, names)
    if not files:
        return None
    size = sum(path.stat().st_size for path in files)
    if size > LIMIT_BYTES:
        largest = max(files, key=lambda path: path.stat().st_size)
        raise Refused(
            f"the code in '{folder}' is too large to travel to the workers: {size / 1e6:.0f} MB of Python files, "
            f"{LIMIT_BYTES / 1e6:.0f} MB at most; the largest is '{largest.relative_to(folder)}': move what is no code out of it"
        )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            inside = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (2020, 1, 1, 0, 0, 0))
            archive.writestr(inside, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def unpack(code: bytes, cache: Path) -> Path:
    """The folder of the packed modules below `cache`, by their content: made once a machine, whole or not at all."""
    folder = cache / hashlib.sha256(code).hexdigest()[:24]
    if folder.is_dir():
        return folder
    beside = Path(tempfile.mkdtemp(prefix=".making-", dir=cache))
    try:
        with zipfile.ZipFile(io.BytesIO(code)) as archive:
            archive.extractall(beside)
        os.rename(beside, folder)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _files_of_top(folder: Path, top: str) -> set[Path]:
    """The Python files of a top-level module or package; a package wins over a module of its name, as in Python."""
    if (folder / f"{top}.py").is_file() and not (folder / top / "__init__.py").is_file():
        return {folder / f"{top}.py"}
    return {path for path in (folder / top).rglob("*.py") if path.is_file() and "__pycache__" not in path.parts}


def _neighbours(folder: Path, path: Path) -> Iterator[str]:
    """The top-level names beside a file's own that it imports relatively."""
    package = path.relative_to(folder).parent.parts
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # said where it is imported
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == len(package) + 1:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
