"""A part's options against its Config: pydantic checks types and bounds, what it would convert silently is refused."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

WORDS = {  # pydantic's -> those of this file's reader
    "a valid tuple": "a list, such as [32]",
    "a valid dictionary": "a mapping, such as {key: value}",
    "a valid integer, got a number with a fractional part": "a whole number",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "a text",
}


def conversions(key: str, given: Any, made: Any) -> Iterator[tuple[str, str]]:
    """Where pydantic took a word or a switch for a number, or the other way round, or an infinity: (key, sentence)."""
    if isinstance(given, Mapping) and isinstance(made, Mapping):
        for name in given.keys() & made.keys():
            yield from conversions(f"{key}.{name}", given[name], made[name])
    elif isinstance(given, list | tuple) and isinstance(made, list | tuple):
        for place, (one, other) in enumerate(zip(given, made, strict=False)):
            yield from conversions(f"{key}.{place}", one, other)
    elif isinstance(made, bool) and not isinstance(given, bool):
        yield key, f"it must be true or false, not {given!r}"
    elif isinstance(made, int | float) and isinstance(given, str | bool) and not isinstance(made, bool):
        yield key, f"it must be a number, not {given!r}"
    elif isinstance(made, float) and not math.isfinite(made):
        yield key, f"it must be a finite number, not {made}"


@functools.cache
def adapter(cls: type) -> TypeAdapter[Any]:
    """Making one costs more than validating with it, and every trial is validated."""
    return TypeAdapter(cls)


def sentence(message: str) -> str:
    """A message of pydantic's as ours begin."""
    said = message.removeprefix("Value error, ").replace("Input should be", "it must be")
    said = re.sub(r", unable to parse string as an? \w+| or instance of \w+|, unable to interpret input", "", said)
    for theirs, ours in WORDS.items():
        said = said.replace(theirs, ours)
    return said


def jsonable(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, Mapping):
        return {k: jsonable(v) for k, v in value.items()}
    return [jsonable(v) for v in value] if isinstance(value, list | tuple) else value
