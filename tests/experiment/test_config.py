"""The experiment as frozen models: as nested plain data, as flat parameters, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.catalog import catalog
from orchestrator.experiment.config import ScalingConfig, flatten, parameters
from orchestrator.experiment.file import parse_file
from orchestrator.experiment.read import resolve
from orchestrator.records.tracking import to_yaml
from tests.conftest import MakeExperiment

EVERYTHING = (
    "optimizer={name: sgd, lr: 0.05, schedule: onecycle, warmup: 0.1, momentum: 0.8, nesterov: true}",
    "sweep={trials: 3, scheduler: {name: asha, reduction_factor: 2}, metric: val_loss, space: {optimizer.lr: {loguniform: [1e-3, 1]}}}",
    "registry={model: other, require: {test_loss: {max: 0.5}}}",
    "scaling={workers: 2, cpus_per_worker: 0.5}",
    "storage.path=file:///somewhere",
    "training.max_steps=7",
    "training.augment={shift: 0.1, flip: horizontal}",
    "model={family: cnn, init_from: 'models:/other@champion', freeze: [features.0, features.1]}",
)


def test_plain_data_resolve_to_the_same_experiment(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    experiment = make_experiment(*EVERYTHING)
    again = resolve(experiment.plain(), catalog(tmp_path))
    assert again == experiment
    assert (again.metric, again.mode) == ("val_loss", "min")


def test_plain_data_survive_json_and_a_yaml_file(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    experiment = make_experiment(*EVERYTHING)
    assert resolve(json.loads(json.dumps(experiment.plain())), catalog(tmp_path)) == experiment
    path = tmp_path / "experiment.yaml"
    path.write_text(to_yaml(experiment.plain()))
    assert resolve(parse_file(path)[0], catalog(tmp_path)) == experiment


def test_options_lie_beside_the_name_as_in_the_file(make_experiment: MakeExperiment) -> None:
    plain = make_experiment(*EVERYTHING).plain()
    assert plain["optimizer"] == {
        "name": "sgd", "lr": 0.05, "weight_decay": 0.0, "schedule": "onecycle", "warmup": 0.1, "momentum": 0.8, "nesterov": True,
    }  # fmt: skip
    assert not {"metric", "mode"} & set(plain)


def test_flat_parameters_are_what_a_run_trains_with(make_experiment: MakeExperiment) -> None:
    flat = make_experiment(*EVERYTHING).flat()
    assert (flat["optimizer.lr"], flat["model.dropout"], flat["data.source"], flat["training.max_steps"]) == (0.05, 0.0, "digits", 7)
    assert (flat["model.init_from"], flat["model.freeze"]) == ("models:/other@champion", ["features.0", "features.1"])
    assert (flat["training.augment.shift"], flat["training.augment.rotate"]) == (0.1, 0.0)
    assert not any(key.startswith(("sweep", "registry", "storage")) for key in flat)


def test_recorded_parameters_leave_out_what_is_off(make_experiment: MakeExperiment) -> None:
    plain, asked = make_experiment(), make_experiment("training.augment.shift=0.1", "model.freeze=[features]")
    assert {"model.freeze", "training.augment.shift"} <= set(plain.flat())  # a search begins with them
    assert not [key for key in parameters(plain.plain()) if "augment" in key or "freeze" in key or "init_from" in key]
    recorded = parameters(asked.plain())
    assert {k: v for k, v in recorded.items() if "augment" in k or "freeze" in k} == {
        "model.freeze": ["features"],
        "training.augment.shift": 0.1,
    }


def test_flat_parameters_leave_out_what_is_unset(make_experiment: MakeExperiment) -> None:
    flat = make_experiment().flat()
    assert None not in flat.values()
    assert "training.clip_norm" not in flat


def test_the_registered_model_is_the_experiment_s_name_unless_given(make_experiment: MakeExperiment) -> None:
    assert make_experiment().registered_model == "corners"
    assert make_experiment("registry.model=other").registered_model == "other"


def test_an_experiment_cannot_be_changed(make_experiment: MakeExperiment) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_experiment().training.epochs = 3


def test_an_unknown_key_of_a_section_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        ScalingConfig(wrokers=2)  # type: ignore[call-arg]


def test_nested_mappings_become_dotted_keys_and_empty_ones_stay() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": []}, "e": {}}) == {"a.b.c": 1, "a.d": [], "e": {}}
