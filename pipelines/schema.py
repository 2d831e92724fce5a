"""What a model needs to know of the data: columns, shapes, classes. Frozen, and plain data when stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = 2


class DataError(ValueError):
    """The data can't be used as it is; the message names the file, column or row and what to do. `key`: the option to blame."""

    def __init__(self, message: str, key: str = "data") -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Column:
    """A column. `kind`: image, class, number ...; `shape`: of one row's tensor ([C, H, W] of an image, () of a class).

    `dtype`: of the stored values. `resize`: encoded images of another size are brought to this one. `vocabulary`: the codes that a
    text or an id can have, padding and the unknown included. `mean`, `std`: of a number's training rows.
    `rate`: of recordings, samples a second.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    resize: bool = False
    vocabulary: int = 0
    mean: float = 0.0
    std: float = 1.0
    rate: int = 0


@dataclass(frozen=True)
class Schema:
    """Input columns in order, the target, and the classes' names in the order of their indices (empty if the target is no class).

    `counts`: training rows (pixels of masks) of each class. `features`: what is known of an input's ids, by the input's name.
    """

    inputs: tuple[Column, ...]
    target: Column
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    features: Mapping[str, tuple[Column, ...]] = field(default_factory=dict, hash=False)

    def to_plain(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Schema:
        """From what `to_plain` gave; unknown fields are ignored."""
        features = {name: tuple(_column(c) for c in columns) for name, columns in data.get("features", {}).items()}
        inputs, counts = tuple(_column(c) for c in data["inputs"]), tuple(data.get("counts", ()))
        return cls(inputs, _column(data["target"]), tuple(data["classes"]), counts, features)


def _column(data: dict[str, Any]) -> Column:
    known = {k: v for k, v in data.items() if k in Column.__dataclass_fields__}
    return Column(**{**known, "shape": tuple(data.get("shape", ()))})
