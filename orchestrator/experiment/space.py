"""The search space as plain data: ranges and conditions.

A domain is `{kind: arguments}`, with the names of Ray Tune: uniform, loguniform, quniform, randint, lograndint, choice. `when:` says
for which values of other keys a key is searched at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator import names

KINDS = {"uniform": 2, "loguniform": 2, "quniform": 3, "randint": 2, "lograndint": 2, "choice": None}


class SpaceError(ValueError):
    """A domain that can't be searched."""


@dataclass(frozen=True)
class Domain:
    """The values of one key. `args`: [low, high] (randint: high excluded, as in Ray Tune), [low, high, q], or the choices."""

    key: str
    kind: str
    args: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def contains(self, value: Any) -> bool:
        """Whether the value lies in the domain."""
        if self.kind == "choice":
            return any(same(value, choice) for choice in self.args)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.kind in ("randint", "lograndint"):
            return float(value).is_integer() and bool(self.args[0] <= value < self.args[1])
        if self.kind == "quniform" and abs((steps := (value - self.args[0]) / self.args[2]) - round(steps)) > 1e-9:
            return False
        return bool(self.args[0] <= value <= self.args[1])

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether the key is searched at all beside these values of other keys."""
        return all(key in values and any(same(values[key], v) for v in allowed) for key, allowed in self.when.items())

    def examples(self) -> list[Any]:
        """The values by which a domain is checked: its ends, or all choices."""
        if self.kind == "choice":
            return list(self.args)
        return [self.args[0], self.args[1] - 1 if self.kind in ("randint", "lograndint") else self.args[1]]


@dataclass(frozen=True)
class Space:
    """Domains, each after those that its `when:` names."""

    domains: tuple[Domain, ...] = ()

    def __iter__(self) -> Any:
        return iter(self.domains)

    def __len__(self) -> int:
        return len(self.domains)

    def point(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """The part of `values` that this space searches; None if one of them is missing or lies outside."""
        chosen: dict[str, Any] = {}
        for domain in self.domains:
            if domain.active({**values, **chosen}):
                if domain.key not in values or not domain.contains(values[domain.key]):
                    return None
                chosen[domain.key] = values[domain.key]
        return chosen

    def size(self) -> int:
        """The number of grid points of a space of choices."""
        return math.prod(len(domain.args) for domain in self.domains)


def same(a: Any, b: Any) -> bool:
    """Equal, and not True == 1."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def parse(key: str, data: Mapping[str, Any]) -> Domain:
    """A domain of the file; raises SpaceError with a sentence."""
    kinds = [name for name in data if name != "when"]
    if len(kinds) != 1:
        raise SpaceError(f"give one of {', '.join(KINDS)}, e.g. {{uniform: [0.0, 0.5]}}")
    kind = kinds[0]
    if kind not in KINDS:
        raise SpaceError(names.unknown("kind of range", kind, KINDS))
    args = data[kind]
    if not isinstance(args, list | tuple):
        raise SpaceError(f"{kind} takes a list, not {args!r}")
    _check_args(kind, list(args))
    when = data.get("when") or {}
    if not isinstance(when, Mapping):
        raise SpaceError("when: takes a mapping of key to values, e.g. {optimizer.name: [sgd, rmsprop]}")
    conditions = {str(k): tuple(v) if isinstance(v, list | tuple) else (v,) for k, v in when.items()}
    return Domain(key, kind, tuple(args), conditions)


def _check_args(kind: str, args: list[Any]) -> None:
    if kind == "choice":
        if not args:
            raise SpaceError("choice is empty; give it at least one value")
        return
    if len(args) != KINDS[kind]:
        raise SpaceError(f"{kind} takes {KINDS[kind]} numbers, not {len(args)}")
    if any(isinstance(a, bool) or not isinstance(a, int | float) or not math.isfinite(a) for a in args):
        raise SpaceError(f"{kind} takes numbers, not {args}")
    low, high = args[:2]
    if kind in ("randint", "lograndint") and not all(isinstance(a, int) for a in args):
        raise SpaceError(f"{kind} takes whole numbers, not {args}")
    if low >= high:
        raise SpaceError(f"{kind}: the range [{low}, {high}] is {'empty' if low == high else 'reversed'}; the lower end comes first")
    if kind.startswith("log") and low <= 0:
        raise SpaceError(f"{kind}: the lower end is {low}; it must be above 0")
    if kind == "quniform" and args[2] <= 0:
        raise SpaceError(f"quniform: the step is {args[2]}; it must be above 0")


def in_order(domains: list[Domain]) -> Space:
    """Each domain after those that its condition names; raises SpaceError on a circle or an unknown key in `when:`."""
    known = {domain.key for domain in domains}
    for domain in domains:
        for key in domain.when:
            if key not in known:
                raise SpaceError(f"{domain.key}: when: names '{key}', which is not in the space")
    ordered: list[Domain] = []
    while len(ordered) < len(domains):
        done = {domain.key for domain in ordered}
        ready = [d for d in domains if d.key not in done and set(d.when) <= done]
        if not ready:
            raise SpaceError("when: conditions that wait for each other")
        ordered += ready
    return Space(tuple(ordered))
