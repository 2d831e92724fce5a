"""JSON Schema of the experiment file, for editors: the sections' own, with the options of every known part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

from annotated_types import DocInfo
from pydantic import TypeAdapter

from orchestrator.experiment.config import Experiment, ModelConfig, OptimizerConfig


def json_schema(sources: Mapping[str, type], families: Mapping[str, type], optimizers: Mapping[str, type], split: type) -> dict[str, Any]:
    """The schema: each part's options appear beside its name, as they do in the file."""
    schema = Experiment.model_json_schema()
    schema["title"] = "orchestrator experiment"
    definitions = schema["$defs"]
    scheduler = definitions["SweepConfig"]["properties"]["scheduler"]
    scheduler["anyOf"] = [{"type": "string"}, {"$ref": scheduler.pop("$ref")}]  # a name alone will do
    for key in ("metric", "mode"):
        schema["properties"].pop(key, None)
    for section, name, table, more in (
        ("DataConfig", "source", sources, {"split": _inline(split)}),
        ("ModelConfig", "family", families, _of_every_family()),
        ("OptimizerConfig", "name", optimizers, {}),
    ):
        definitions[section] = {
            "type": "object",
            "required": [name] if section != "OptimizerConfig" else [],
            "anyOf": [_part(name, part, cls, more) for part, cls in table.items()] + [_own(name)],
        }
    definitions["ModelConfig"]["anyOf"][-1] = _own("class")
    definitions["ModelConfig"]["required"] = []
    return schema


def _of_every_family() -> dict[str, Any]:
    properties = ModelConfig.model_json_schema()["properties"]
    return {key: properties[key] for key in ("init_from", "freeze")}


def _inline(cls: type) -> dict[str, Any]:
    return {**_options(cls), "additionalProperties": False}


def _options(cls: type) -> dict[str, Any]:
    """The schema of a part's Config, each option with what its annotation says of it (annotated_types.doc)."""
    schema = TypeAdapter(cls).json_schema()
    for name, hint in get_type_hints(cls, include_extras=True).items():
        said = [note.documentation for note in getattr(hint, "__metadata__", ()) if isinstance(note, DocInfo)]
        if said and name in schema.get("properties", {}):
            schema["properties"][name]["description"] = said[-1]
    return schema


def _part(key: str, name: str, cls: type, more: Mapping[str, Any]) -> dict[str, Any]:
    options = _options(cls)
    properties = {key: {"const": name}, **more, **options.get("properties", {})}
    required = [] if name == OptimizerConfig().name else [key]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _own(key: str) -> dict[str, Any]:
    """A part of one's own: a path, and options that only its Config knows."""
    return {"type": "object", "properties": {key: {"type": "string", "pattern": ":"}}, "required": [key]}
