"""Text files, one for each class, a text a line; below train/, validation/ and test/ where these exist."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from annotated_types import Gt, doc

from ..raw import Raw, existing
from ..schema import Column, DataError
from ..splits import part_name

ABOUT = ("readme", "license", "licence", "copying")  # files about the data; they are no class


@dataclass(frozen=True)
class Config:
    """`path`: a folder such as `pos.txt, neg.txt`, or `rt-polarity.pos, rt-polarity.neg`: what differs in the names is the class.

    `encoding` (default: UTF-8 where all of a file is, else Latin-1, in which any file can be read);
    `vocabulary`: the most words (default: 30,000).
    """

    path: Annotated[str, doc("folder with a file for each class, a text a line")] = ""
    encoding: Annotated[str | None, doc("default: UTF-8 where all of a file is, else Latin-1")] = None
    vocabulary: Annotated[Annotated[int, Gt(2)] | None, doc("the most words; default: 30,000")] = None

    def files(self) -> list[tuple[str, Path]]:
        folder = existing(self.path, "folder")
        return [(path.relative_to(folder).as_posix(), path) for _, _, path in _classes(folder)]


def load(config: Config) -> Raw:
    """`text` and `label`, the class of the text's file; empty lines are no texts. Raises DataError naming the file or folder."""
    _check_encoding(config.encoding)
    parts, labels, texts = [], [], []
    for part, label, path in _classes(existing(config.path, "folder")):
        lines = _lines(path, config.encoding)
        texts += lines
        labels += [label] * len(lines)
        parts += [part] * len(lines)
    table = pa.table({"text": pa.array(texts, pa.string()), "label": pa.array(labels, pa.string())})
    text = Column("text", "text", dtype="str", vocabulary=config.vocabulary or 0)
    return Raw(table, (text,), Column("label", "class", dtype="str"), np.array(parts) if all(parts) else None)


def _classes(folder: Path) -> list[tuple[str, str, Path]]:
    """(part, class, file), sorted; the part is '' where the data has none."""
    if not folder.is_dir():
        raise DataError(f"'{folder}' is a file; give the folder that holds a file for each class", "data.path")
    below = [(part, path) for path in sorted(folder.iterdir()) if path.is_dir() and (part := part_name(path.name))]
    if not below:
        return [("", label, path) for label, path in _named(folder)]
    parts = dict(below)
    if len(parts) < len(below) or "train" not in parts:
        there = ", ".join(path.name + "/" for _, path in below)
        raise DataError(f"'{folder}' holds {there}; it must hold one train/, and one of each other part at most", "data.path")
    found = [(part, label, path) for part, path in parts.items() for label, path in _named(path)]
    known = {label for part, label, _ in found if part == "train"}
    for part, label, path in found:
        if label not in known:
            raise DataError(f"class '{label}' is in {part}/ ('{path}') but not in train/; add it there or take it out", "data.path")
    return found


def _named(folder: Path) -> list[tuple[str, Path]]:
    """(class, file): by the endings where only these differ, else by the names before them."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    files = [path for path in files if not path.stem.lower().startswith(ABOUT)]
    if len(files) < 2:
        there = ", ".join(path.name for path in files) or "none"
        raise DataError(f"'{folder}' must hold a file for each class, two at least, a text a line; there is: {there}", "data.path")
    names = [path.suffix[1:] for path in files] if len({path.stem for path in files}) == 1 else [path.stem for path in files]
    if len(set(names)) < len(names) or not all(names):
        listed = ", ".join(path.name for path in files[:8])
        raise DataError(
            f"the names of the files in '{folder}' don't tell the classes: {listed}; name them by these, as pos.txt and neg.txt",
            "data.path",
        )
    return list(zip(names, files, strict=True))


def _check_encoding(encoding: str | None) -> None:
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError:
        raise DataError(f"there is no encoding '{encoding}'; usual ones are utf-8, latin-1, cp1252, utf-16", "data.encoding") from None


def _lines(path: Path, encoding: str | None) -> list[str]:
    """The texts of a file: its lines, without spaces around; those that are empty are left out."""
    data = path.read_bytes()
    try:
        whole = data.decode(encoding or "utf-8-sig")
    except UnicodeDecodeError as error:
        if encoding is not None:
            line = len(re.findall(rb"\r\n?|\n", data[: error.start]))
            raise DataError(
                f"'{path}', line {line}: it is not {encoding} ({error.reason}); set data.encoding to what it is", "data.encoding"
            ) from None
        whole = data.decode("latin-1")
    if "\0" in whole:
        raise DataError(f"'{path}' is no text, or of another encoding (it holds zeros); set data.encoding, or take it out", "data.path")
    found = [text for line in re.split("[\r\n]", whole) if (text := line.strip())]  # lines end as on any system, also an old Mac
    if not found:
        raise DataError(f"'{path}' holds no text; fill it or take it out", "data.path")
    return found
