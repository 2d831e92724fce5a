"""The parts that an experiment may name, as look-ups; handed in, since `experiment` imports none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.experiment.config import Mode


@dataclass(frozen=True)
class FamilyFacts:
    """What the file's check must know of a family: its options and its metrics with their directions, the default first."""

    config: type
    metrics: Mapping[str, Mode]


@dataclass(frozen=True)
class Catalog:
    """The names that there are, as look-ups that raise names.UnknownName."""

    family: Callable[[str], FamilyFacts]
    source: Callable[[str], type]
    optimizer: Callable[[str], type]
    searcher: Callable[[str], bool]  # whether it understands `when:`
    scheduler: Callable[[str], None]
    split: type
