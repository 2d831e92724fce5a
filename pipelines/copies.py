"""Rows with the same inputs: inside a part, across parts (where a score on them proves nothing), and with different targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .row_hash import distinct, hash_rows, is_known
from .seen import RowNames, Seen

ACROSS = {  # (a part, the part that knows its rows already) -> what that does
    ("test", "train"): "the test score is too good",
    ("validation", "train"): "the validation score is too good, and a model that learned by heart is chosen",
    ("test", "validation"): "the test score is not independent of what was chosen on validation",
}
REMEDY = "take them out of one of the two, or keep copies together with data.split: {by: group, column: ...}"

Place = tuple[str, int]  # a part, and the place of a row in it


@dataclass(frozen=True)
class Copies:
    """`inside`: part -> rows beyond the first with the same inputs; `across`: (part, other) -> rows of a part that the other has too.

    `differing`: inputs that come with more than one target. `examples`: two rows of each of these, by the same keys. `rows`: by part.
    """

    rows: Mapping[str, int]
    inside: Mapping[str, int]
    across: Mapping[tuple[str, str], int]
    differing: int
    examples: Mapping[Any, tuple[Place, Place]]

    def plain(self) -> dict[str, Any]:
        """As JSON-ready data; `train/test`: the rows of test that are in train."""
        across = {f"{other}/{part}": count for (part, other), count in self.across.items()}
        return {"inside": dict(self.inside), "across": across, "differing_targets": self.differing}

    def leak(self, part: str, other: str, origin: RowNames) -> str | None:
        """What is to be said of the rows of a part that another has too; None if there are none."""
        count = self.across[part, other]
        if not count:
            return None
        share = count / self.rows[part]
        one, two = (origin.name(*place) for place in self.examples[part, other])
        rows = f"1 row ({share:.2%}) has" if count == 1 else f"{count} rows ({share:.2%}) have"
        return f"{part}: {rows} the same inputs as rows of {other}, as {one} and {two}: {ACROSS[part, other]}; {REMEDY}"

    def leaks(self, origin: RowNames) -> Iterator[str]:
        """Of every pair of parts, the sentence."""
        yield from (says for part, other in ACROSS if (says := self.leak(part, other, origin)))

    def repeats(self, origin: RowNames) -> Iterator[str]:
        """What is to be said of copies inside a part, and of inputs with different targets."""
        for part, count in self.inside.items():
            if count:
                one, two = (origin.name(*place) for place in self.examples[part])
                yield f"{part}: {_rows(count)} the inputs of an earlier one, as {two} of {one}; they count twice: drop the copies"
        if self.differing:
            one, two = (f"{origin.name(*place)} ({place[0]})" for place in self.examples["differing"])
            inputs = "one input comes" if self.differing == 1 else f"{self.differing} inputs come"
            yield f"{inputs} with different targets, as in {one} and {two}; no model can be right on both: correct one or drop it"


def _rows(count: int) -> str:
    return "a row repeats" if count == 1 else f"{count} rows repeat"


@dataclass(frozen=True)
class _Sorted:
    """The rows of all parts, copies side by side, in the order of the parts and of their rows.

    `hashes`: [N] of their inputs; `order`: [N] their rows, counted through all parts; `part`: [N] places in `parts`, int8; `same`: [N - 1]
    whether a row is a copy of the one before it; `starts`: the first row of each part.
    """

    parts: list[str]
    starts: np.ndarray
    order: np.ndarray
    part: np.ndarray
    hashes: np.ndarray
    same: np.ndarray

    def at(self, place: int) -> Place:
        part = int(self.part[place])
        return self.parts[part], int(self.order[place] - self.starts[part])

    def of(self, part: str) -> np.ndarray:
        """The places of a part's rows."""
        return np.flatnonzero(self.part == self.parts.index(part))


def find_copies(seen: Mapping[str, Mapping[str, Seen]], inputs: Sequence[str], target: str) -> Copies:
    """`seen`: part -> column -> what is kept of its rows. Rows without any input are no copies of each other."""
    rows = {part: len(of[inputs[0]]["hashes"]) for part, of in seen.items()}
    found = _sort(seen, inputs, rows)
    examples: dict[Any, tuple[Place, Place]] = {}
    inside, across = {}, {}
    for part in found.parts:
        inside[part], pair = _inside(found, part)
        examples |= {part: pair} if pair else {}
    for part, other in ACROSS:
        across[part, other], pair = _across(found, part, other)
        examples |= {(part, other): pair} if pair else {}
    differing, pair = _differing(found, [of[target]["hashes"] for of in seen.values() if target in of])
    examples |= {"differing": pair} if pair else {}
    return Copies(rows, inside, across, differing, examples)


def _sort(seen: Mapping[str, Mapping[str, Seen]], inputs: Sequence[str], rows: Mapping[str, int]) -> _Sorted:
    starts = np.concatenate([[0], np.cumsum(list(rows.values()))])
    hashes = np.concatenate([hash_rows([of[name]["hashes"] for name in inputs]) for of in seen.values()])
    missing = np.concatenate([np.logical_and.reduce([of[name]["missing"] for name in inputs]) for of in seen.values()])
    hashes[missing] = hash_rows([np.flatnonzero(missing).astype(np.uint64)])  # each its own
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    part = np.repeat(np.arange(len(rows), dtype=np.int8), list(rows.values()))[order]
    return _Sorted(list(rows), starts, order, part, hashes, hashes[1:] == hashes[:-1])


def _inside(found: _Sorted, part: str) -> tuple[int, tuple[Place, Place] | None]:
    """The rows of a part that are copies of one before, and the first of them with that one."""
    number = found.parts.index(part)
    again = np.flatnonzero(found.same & (found.part[1:] == number) & (found.part[:-1] == number))
    if not len(again):
        return 0, None
    pair = int(again[np.argmin(found.order[again + 1])])
    return len(again), (found.at(pair), found.at(pair + 1))


def _across(found: _Sorted, part: str, other: str) -> tuple[int, tuple[Place, Place] | None]:
    """The rows of a part that another has too, and the first of them with that of the other."""
    own, theirs = found.of(part), found.of(other)
    theirs_hashes = found.hashes[theirs]  # sorted
    both = own[is_known(found.hashes[own], theirs_hashes)]
    if not len(both):
        return 0, None
    one = int(both[np.argmin(found.order[both])])
    return len(both), (found.at(one), found.at(int(theirs[np.searchsorted(theirs_hashes, found.hashes[one])])))


def _differing(found: _Sorted, targets: list[np.ndarray]) -> tuple[int, tuple[Place, Place] | None]:
    """How many inputs come with more than one target, and two rows of one of them."""
    if len(targets) < len(found.parts):
        return 0, None
    sorted_targets = np.concatenate(targets)[found.order]
    differ = np.flatnonzero(found.same & (sorted_targets[1:] != sorted_targets[:-1]))
    if not len(differ):
        return 0, None
    return len(distinct(found.hashes[differ])), (found.at(int(differ[0])), found.at(int(differ[0]) + 1))
