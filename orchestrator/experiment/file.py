"""The experiment file as text: YAML 1.2 -> plain data and the line of each key; KEY=VALUE overrides."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from orchestrator.errors import ExperimentError, Problem, Refused

Lines = dict[str, int | None]  # a key's dotted path -> its line in the file; None: it is from the command line


def parse_file(path: Path) -> tuple[dict[str, Any], Lines]:
    """The file as plain data, and the line of each key's dotted path."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        beside = sorted(p.name for p in path.parent.glob("*.y*ml"))[:8] if path.parent.is_dir() else []
        hint = f"; in '{path.parent}' there is: {', '.join(beside)}" if beside else ""
        says = "no such file" if isinstance(error, FileNotFoundError) else f"it can't be read ({error})"
        raise Refused(f"experiment '{path}': {says}{hint}") from None
    try:
        loaded = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ExperimentError([Problem(str(path), line, f"no valid YAML: {error.problem or error.context}")]) from None
    except YAMLError as error:  # a character that YAML has no place for
        raise ExperimentError([Problem(str(path), None, f"no valid YAML: {' '.join(str(error).split())}")]) from None
    if not isinstance(loaded, dict):
        raise ExperimentError([Problem(str(path), None, "it must be a mapping that begins with name:, data: and model:")])
    lines: Lines = {}
    _note_lines(loaded, "", lines)
    return _to_plain(loaded), lines


def _note_lines(node: Any, prefix: str, lines: Lines) -> None:
    for key, value in node.items():
        if key in (node.lc.data or ()):  # merged keys (<<) have no line of their own
            lines[f"{prefix}{key}"] = node.lc.data[key][0] + 1
        if isinstance(value, dict) and hasattr(value, "lc"):
            _note_lines(value, f"{prefix}{key}.", lines)


def _to_plain(node: Any) -> Any:
    """ruamel's round-trip types -> Python's own."""
    if isinstance(node, dict):
        return {str(key): _to_plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_to_plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return bool(node) if type(node).__name__ == "ScalarBoolean" else str(node)


def parse_value(text: str) -> Any:
    """A YAML 1.2 value; raises ValueError."""
    try:
        return _to_plain(YAML(typ="rt").load(io.StringIO(text)))
    except MarkedYAMLError as error:
        raise ValueError(f"no valid YAML: {error.problem or error.context}") from None
    except YAMLError as error:
        raise ValueError(f"no valid YAML: {' '.join(str(error).split())}") from None


def apply_override(tree: dict[str, Any], lines: Lines, override: str) -> None:
    """Set KEY=VALUE in the tree; a mapping replaces the section. Raises Refused."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise Refused(f"'{override}' is no KEY=VALUE, such as training.epochs=3; nor is it the id of a launch, for --resume")
    try:
        value = parse_value(text)
    except ValueError as error:
        raise Refused(str(error), key=key) from None
    head = "sweep.space."
    parts = ["sweep", "space", key.removeprefix(head)] if key.startswith(head) else key.split(".")
    node = tree
    for part in parts[:-1]:
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    node[parts[-1]] = value
    for known in [k for k in lines if k == key or k.startswith(f"{key}.")]:
        del lines[known]
    lines[key] = None
