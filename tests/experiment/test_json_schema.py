"""JSON Schema of the experiment file: valid, takes what `read` takes, and refuses what an editor should underline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from models import FAMILIES
from orchestrator.catalog import config_tables
from orchestrator.experiment.file import parse_file
from orchestrator.experiment.json_schema import json_schema
from orchestrator.training.optim import OPTIMIZERS
from pipelines import SOURCES

SMALL: dict[str, Any] = {"name": "a", "data": {"source": "digits"}, "model": {"family": "cnn"}}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema(*config_tables())


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_is_a_valid_schema(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["required"] == ["name", "data", "model"]


def test_it_takes_every_shipped_file(validator: jsonschema.Draft202012Validator) -> None:
    files = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    assert files
    assert [validator.is_valid(parse_file(path)[0]) for path in files] == [True] * len(files)


@pytest.mark.parametrize(
    "more",
    [
        {"sweep": {"scheduler": "asha"}},
        {"sweep": {"scheduler": {"name": "asha", "grace_period": 2}}},
        {"model": {"class": "nets:Net", "anything": 1}},
        {"model": {"family": "cnn", "channels": [8, 16]}},
        {"model": {"family": "cnn", "init_from": "models:/a@champion", "freeze": ["features"]}},
        {"training": {"augment": {"shift": 0.1, "flip": "both", "crop": 0.8}}},
        {"optimizer": {"lr": 0.1}},
        {"optimizer": {"name": "sgd", "momentum": 0.9}},
        {"data": {"source": "digits", "split": {"by": "group", "column": "speaker"}}},
        {"data": {"source": "mine:load", "anything": 1}},
        {"registry": {"require": {"test_accuracy": {"min": 0.9}}}},
    ],
)
def test_it_takes_what_may_be_written(more: dict[str, Any], validator: jsonschema.Draft202012Validator) -> None:
    assert validator.is_valid(SMALL | more)


@pytest.mark.parametrize(
    "more",
    [
        {"trainig": {}},
        {"training": {"epoch": 3}},
        {"training": {"epochs": 0}},
        {"model": {"family": "cnn", "dropot": 0.1}},
        {"model": {"family": "cnn", "dropout": 2}},
        {"model": {"family": "cnn", "init_from": 3}},
        {"training": {"augment": {"shift": 0.9}}},
        {"training": {"augment": {"shfit": 0.1}}},
        {"optimizer": {"name": "adam", "momentum": 0.9}},
        {"optimizer": {"name": "adm"}},
        {"data": {"source": "digits", "split": {"trian": 0.8}}},
        {"sweep": {"scheduler": 3}},
        {"metric": "val_loss"},
    ],
)
def test_it_refuses_what_read_refuses(more: dict[str, Any], validator: jsonschema.Draft202012Validator) -> None:
    assert not validator.is_valid(SMALL | more)


def test_every_part_of_ours_is_offered_by_its_name(schema: dict[str, Any]) -> None:
    for section, key, table in (
        ("DataConfig", "source", SOURCES),
        ("ModelConfig", "family", FAMILIES),
        ("OptimizerConfig", "name", OPTIMIZERS),
    ):
        offered = [
            part["properties"][key]["const"] for part in schema["$defs"][section]["anyOf"] if "const" in part["properties"].get(key, {})
        ]
        assert offered == list(table)


def test_every_option_says_what_it_is(schema: dict[str, Any]) -> None:
    definitions = schema["$defs"]
    silent = [
        f"{section}.{key}"
        for section in ("DataConfig", "ModelConfig", "OptimizerConfig")
        for part in definitions[section]["anyOf"][:-1]  # the last is a part of one's own
        for key, said in part["properties"].items()
        if not (said.get("description") or "const" in said)
    ]
    sections = [(name, section.get("properties", {})) for name, section in definitions.items()]
    silent += [f"{name}.{key}" for name, options in sections for key, said in options.items() if not said.get("description")]
    assert silent == []
