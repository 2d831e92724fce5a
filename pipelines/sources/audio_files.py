"""WAV files below a folder, and what their places and names say of them: part, class, speaker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..encode.audio import SUFFIX
from ..schema import DataError
from ..splits import part_name

FOREIGN = (".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma", ".amr", ".sph")  # recordings, but none that we read


@dataclass(frozen=True)
class Found:
    """A WAV file. `name`: relative to the folder; `part`: '' where the data has none; `groups`: of the pattern, but for the label."""

    name: str
    path: Path
    part: str
    label: str
    groups: Mapping[str, str | None]


def recordings(folder: Path, label: Literal["folder", "name"], pattern: re.Pattern[str] | None) -> list[Found]:
    """Every WAV file below a folder, sorted. Raises DataError naming the file or folder that is wrong."""
    if not folder.is_dir():
        raise DataError(f"'{folder}' is a file; give the folder that holds the recordings", "data.path")
    paths = _wavs(folder)
    in_parts = _has_parts(folder, paths, label)
    found = [_found(folder, path, in_parts, label, pattern) for path in paths]
    known = {each.label for each in found if each.part in ("train", "")}
    for each in found:
        if each.label not in known:
            raise DataError(
                f"class '{each.label}' is in {each.part}/ ('{each.name}') but not in train/; add it there or take it out", "data.path"
            )
    return found


def _wavs(folder: Path) -> list[Path]:
    """At any depth, without hidden ones; raises DataError for a kind of recording that can't be read, or if there is none."""
    found = []
    for path in sorted(folder.rglob("*")):
        if any(name.startswith((".", "__MACOSX")) for name in path.relative_to(folder).parts):
            continue
        if path.name.lower().endswith(FOREIGN):
            raise DataError(f"'{path}' can't be read; convert it to WAV, or take it out", "data.path")
        if path.name.lower().endswith(SUFFIX) and path.is_file():
            found.append(path)
    if not found:
        there = ", ".join(entry.name for entry in sorted(folder.iterdir())[:6]) or "nothing"
        raise DataError(f"'{folder}' holds no WAV file but: {there}; set data.path to where they are", "data.path")
    return found


def _has_parts(folder: Path, paths: list[Path], label: str) -> bool:
    """Whether the folders on top are train/, test/ ...; not where they are classes, one of which happens to be called 'train'."""
    tops = sorted({path.relative_to(folder).parts[0] if path.parent != folder else "" for path in paths})
    named = [top for top in tops if part_name(top)]
    deeper = label == "name" or any(len(path.relative_to(folder).parts) > 2 for path in paths if path.relative_to(folder).parts[0] in named)
    if not named or not deeper:
        return False
    if "train" not in map(part_name, named):
        raise DataError(f"'{folder}' has {', '.join(top + '/' for top in named)} but no train/; add it", "data.path")
    if len({part_name(top) for top in named}) < len(named):
        raise DataError(f"'{folder}' has two folders of one part among {', '.join(top + '/' for top in named)}", "data.path")
    for top in tops:
        if not part_name(top):
            where = f"'{folder / top}' lies" if top else "recordings lie"
            raise DataError(f"{where} beside train/; move what it holds into a part, or out of '{folder}'", "data.path")
    return True


def _found(folder: Path, path: Path, in_parts: bool, label: str, pattern: re.Pattern[str] | None) -> Found:
    name = path.relative_to(folder).as_posix()
    part, *below = path.relative_to(folder).parts if in_parts else ("", *path.relative_to(folder).parts)
    match = pattern.search(path.stem) if pattern else None
    if pattern and match is None:
        raise DataError(f"'{name}': the pattern '{pattern.pattern}' is not in its name; rename it or set data.pattern", "data.pattern")
    groups = match.groupdict() if match else {}
    if label == "folder":
        if len(below) < 2:
            raise DataError(
                f"'{name}' lies in no folder of a class; move it into one, or set data.label: name, if its name says the class",
                "data.label",
            )
        found: str | None = below[0]
    else:
        if match is None or not match.groups():
            raise DataError(
                f"the pattern '{pattern.pattern if pattern else ''}' has no group for the class, as in '^([a-z]+)'", "data.pattern"
            )
        found = groups.get("label", match.group(1))
    if not found:
        raise DataError(f"'{name}': the class in its name is empty; rename it or set data.pattern", "data.pattern")
    return Found(name, path, part_name(part) or "", found, {key: value for key, value in groups.items() if key != "label"})
