"""A name in a table, or a dotted path, and the object behind it; the nearest valid name where there is none.

Every table of the project (families, sources, optimizers ...) has one form, `{"cnn": "models.cnn:CNN"}`, and a user's own part is
written the same way: `my_pkg.nets:MyNet`. A user's module is looked for below the experiment's folder first, and is loaded
under a private name, so that a `models/` of theirs can't be mistaken for ours.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class UnknownName(LookupError):
    """No such name; the message says what there is."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `name`, or None if none is."""
    lower = {one.lower(): one for one in known}
    return next((lower[found] for found in difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.6)), None)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that isn't there: the nearest one and all of them."""
    known = sorted(known)
    guess = nearest(name, known)
    hint = f"; did you mean '{guess}'?" if guess else ";"
    return f"no {what} '{name}'{hint} there is: {', '.join(known)}"


def load(name: str, table: Mapping[str, str], what: str, folder: Path | None = None) -> Any:
    """The object behind a table's name or a dotted path (`package.module:attribute`).

    Raises UnknownName if the table has no such name, or the path leads nowhere.
    """
    if name in table:
        return _attribute(importlib.import_module(table[name].partition(":")[0]), table[name])
    if ":" not in name:
        raise UnknownName(unknown(what, name, table) + f" (or a path of your own, 'module:{what.capitalize()}')")
    module = name.partition(":")[0]
    if folder is not None and _has_module(folder, module):
        return _attribute(_imported(f"{private_package(folder)}.{module}", name, what), name)
    try:
        return _attribute(_imported(module, name, what), name)
    except ModuleNotFoundError as error:
        raise UnknownName(f"no {what} '{name}': {error}; looked in '{folder}' and among the installed packages") from None


def _imported(module: str, name: str, what: str) -> types.ModuleType:
    """A user's module. Raises ModuleNotFoundError if there is none, UnknownName for what goes wrong inside it."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a module does while it is imported
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise
        said = " ".join(str(error).split())
        raise UnknownName(f"{what} '{name}' can't be imported: {type(error).__name__}: {said}") from error


def private_package(folder: Path) -> str:
    """A package name of its own whose modules are those below `folder`."""
    folder = folder.resolve()
    name = f"_user_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


def _has_module(folder: Path, module: str) -> bool:
    path = folder.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _attribute(module: types.ModuleType, path: str) -> Any:
    attribute = path.partition(":")[2]
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise UnknownName(
            unknown(f"attribute in {module.__name__}", attribute, [n for n in dir(module) if not n.startswith("_")])
        ) from None
