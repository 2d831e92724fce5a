"""Starting from another model's weights: what fits is loaded, what doesn't is named; parts of a network may be frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from models.family import Family
from orchestrator import names
from orchestrator.training.job import Origin

Shape = tuple[int, ...]
SHOWN = 4  # tensors that a sentence names, of each kind


class TransferError(ValueError):
    """These weights, or these parts to freeze, can't be had; the message is a sentence."""


@dataclass(frozen=True)
class Match:
    """What two sets of tensors have in common. `left`: (name, why) of those that keep their first values; `unused`: only there."""

    matched: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]

    @property
    def tensors(self) -> int:
        """The tensors of the network that starts."""
        return len(self.matched) + len(self.left)

    def __str__(self) -> str:
        said = f"{len(self.matched)} of {self.tensors} tensors matched"
        if self.left:
            said += f"; left as they start: {_list(f'{name} ({why})' for name, why in self.left)}"
        return said + (f"; not taken: {_list(self.unused)}" if self.unused else "")

    def tags(self, origin: Origin) -> dict[str, object]:
        """What a run's record says of its start."""
        counts = {"init.source": origin.said, "init.matched": len(self.matched), "init.unmatched": len(self.left)}
        lists = {
            "init.loaded": list(self.matched),
            "init.left": [f"{name} ({why})" for name, why in self.left],
            "init.unused": list(self.unused),
        }
        return counts | {key: _list(value, 20) for key, value in lists.items() if value}


def _list(items: Iterable[str], most: int = SHOWN) -> str:
    found = list(items)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def match(own: Mapping[str, Shape], there: Mapping[str, Shape], recoded: Mapping[str, str] | None = None) -> Match:
    """Tensors of the same name and shape. `recoded`: tensor -> column, of those whose rows are codes that mean something else there."""
    matched, left = [], []
    for name, shape in own.items():
        if name not in there:
            left.append((name, "not there"))
        elif there[name] != shape:
            left.append((name, f"{_size(shape)}, there {_size(there[name])}"))
        elif recoded and name in recoded:
            left.append((name, f"its rows are the codes of '{recoded[name]}', which mean something else there"))
        else:
            matched.append(name)
    return Match(tuple(matched), tuple(left), tuple(name for name in there if name not in own))


def coded_by(family: Family, column: str) -> set[str]:
    """The tensors of a network whose shape follows from how many codes a column (the target: classes) has."""
    with torch.random.fork_rng(devices=[]):
        longer = type(family)(family.config, _longer(family.schema, column))
    shapes = {name: tensor.shape for name, tensor in family.state_dict().items()}
    return {name for name, tensor in longer.state_dict().items() if tensor.shape != shapes.get(name)}


def _longer(schema: Any, column: str) -> Any:
    """The schema with one code more of a column."""

    def one(found: Any) -> Any:
        return replace(found, vocabulary=found.vocabulary + 1) if found.name == column else found

    if column == schema.target.name:
        return replace(schema, classes=(*schema.classes, ""), counts=(*schema.counts, 1))
    features = {name: tuple(map(one, columns)) for name, columns in schema.features.items()}
    return replace(schema, inputs=tuple(map(one, schema.inputs)), features=features)


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a number"


def match_with(family: Family, origin: Origin) -> Match:
    """What of the weights fits a network. Raises TransferError if no parameter does, or the file can't be read."""
    own = {name: tuple(tensor.shape) for name, tensor in family.state_dict().items()}
    try:
        with safe_open(origin.weights, "pt") as file:
            there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except (OSError, SafetensorError) as error:
        raise TransferError(f"can't read the weights '{origin.weights}' of {origin.said}: {error}") from None
    found = match(own, there, {name: column for column in origin.recoded for name in coded_by(family, column)})
    if not {name for name, _ in family.named_parameters()} & set(found.matched):
        raise TransferError(f"nothing of {origin.said} fits this network: {found}")
    return found


@torch.no_grad()
def load(family: Family, origin: Origin) -> Match:
    """Copy the weights that fit into a network. Raises TransferError if none does."""
    found, own = match_with(family, origin), family.state_dict()
    with safe_open(origin.weights, "pt") as file:
        for name in found.matched:
            own[name].copy_(file.get_tensor(name))
    return found


def freeze(family: nn.Module, parts: Iterable[str]) -> tuple[nn.Module, ...]:
    """Take parts (`features`, `features.0`, `features.0.weight`) out of training; the frozen modules, which must stay in eval mode.

    In eval mode the running statistics of norms stay as they are, and dropout passes everything. Raises TransferError for a part that
    the network doesn't have, or if nothing is left to train.
    """
    modules, parameters = dict(family.named_modules()), dict(family.named_parameters())
    frozen = []
    for part in parts:
        if part not in modules and part not in parameters:
            raise TransferError(names.unknown("part of the network", part, _beside(part, modules, parameters)))
        frozen += [modules[part]] if part in modules else []
        for name, parameter in parameters.items():
            if name == part or name.startswith(f"{part}."):
                parameter.requires_grad_(False)
    if frozen and not any(parameter.requires_grad for parameter in parameters.values()):
        raise TransferError("nothing is left to train")
    return tuple(frozen)


def _beside(part: str, modules: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """What there is where an unknown part was looked for: below the longest piece of its path that exists."""
    while part and part not in modules:
        part = part.rpartition(".")[0]
    prefix = f"{part}." if part else ""
    children = [name for name, _ in modules[part].named_children()]
    return [prefix + name for name in children] or [name for name in parameters if name.startswith(prefix)]
