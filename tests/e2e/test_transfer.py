"""A registered model as the start of the next experiment, from the command line; and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Shell, Typed, open_shell

EXPERIMENT = "configs/digits-cnn.yaml"
CHAMPION = "model.init_from=models:/digits-cnn@champion"


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, Any]:
    """A folder with a champion, and what its training said."""
    shell = open_shell(tmp_path_factory.mktemp("promoted"))
    trained = shell.run("train", EXPERIMENT, "training.epochs=2", "--json").json
    shell.run("promote", "digits-cnn", "registry.require={}")
    return shell, trained


def test_a_run_starts_from_the_champion_and_its_record_says_so(promoted: tuple[Shell, Any]) -> None:
    shell, before = promoted
    short = ("training.epochs=1", "training.seed=9", "--json")
    cold = shell.run("train", EXPERIMENT, "name=cold", *short).json
    said = shell.run("train", EXPERIMENT, "name=warm", CHAMPION, "model.freeze=[features]", *short)
    warm = said.json
    assert warm["best"]["metrics"]["val_loss"] < cold["best"]["metrics"]["val_loss"]
    assert f"note: init_from models:/digits-cnn@champion (version 1, run {before['run_id']}): 20 of 20 tensors matched" in said.err
    assert "note: frozen: features; 2,570 of 58,474 parameters are trained" in said.err
    run = shell.client().get_run(warm["run_id"]).data
    assert run.params["model.init_from"] == "models:/digits-cnn@champion"
    assert json.loads(run.params["model.freeze"].replace("'", '"')) == ["features"]
    assert run.tags["orchestrator.init.source"] == f"models:/digits-cnn@champion (version 1, run {before['run_id']})"
    assert (run.tags["orchestrator.init.matched"], run.tags["orchestrator.init.unmatched"]) == ("20", "0")
    assert "features.0.weight" in run.tags["orchestrator.init.loaded"]


def test_a_run_or_a_bundle_s_folder_will_do_too(promoted: tuple[Shell, Any]) -> None:
    shell, before = promoted
    for source in (f"runs:/{before['run_id']}", before["bundle"]):
        notes = shell.run("plan", EXPERIMENT, f"model.init_from={source}", "model.channels=[32, 48, 64]", "--json").json["notes"]
        assert notes[0].startswith(f"init_from {source}")
        assert "14 of 20 tensors matched; left as they start: features.3.weight (48 x 32 x 3 x 3, there 64 x 32 x 3 x 3)" in notes[0]


def test_a_sweep_may_search_whether_to_start_from_it_and_how_to_augment(promoted: tuple[Shell, Any]) -> None:
    shell, _ = promoted
    space = (
        "sweep={trials: 4, search: grid, executor: inline, space: {model.init_from: {choice: [null, 'models:/digits-cnn@champion']}, "
        "training.augment.shift: {choice: [0.0, 0.1]}}}"
    )
    swept = shell.run("sweep", EXPERIMENT, "name=searched", space, "training.epochs=1", "--json").json
    assert swept["state"] == "finished"
    scores = {
        (t["params"]["model.init_from"] is None, t["params"]["training.augment.shift"]): t["best"]["metrics"] for t in swept["trials"]
    }
    assert len(scores) == 4
    assert swept["best"]["params"]["model.init_from"] == "models:/digits-cnn@champion"
    for shift in (0.0, 0.1):
        assert scores[False, shift]["val_loss"] < scores[True, shift]["val_loss"]
    assert scores[True, 0.0]["train_loss"] != scores[True, 0.1]["train_loss"]
    sources = {run.data.tags.get("orchestrator.init.source", "") for run in shell.recorded("searched")}
    assert {source.partition(" ")[0] for source in sources} == {"", "models:/digits-cnn@champion"}
    assert shell.run("promote", "searched", "registry.require={}", "--json").json["decision"] == "promoted"


def test_two_workers_start_from_it_with_frozen_parts_and_augmented_images(promoted: tuple[Shell, Any]) -> None:
    shell, _ = promoted
    more = ("scaling.workers=2", "model.freeze=[features]", "training.augment={shift: 0.1, rotate: 10}", "training.epochs=1", "--json")
    trained = shell.run("train", EXPERIMENT, "name=both", CHAMPION, *more).json
    assert (trained["state"], trained["workers"]) == ("finished", 2)
    assert trained["best"]["metrics"]["val_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.init_from=nowhere", "error: model.init_from: 'nowhere' is no folder here: give models:/NAME@alias, models:/NAME/VERSION, "),
        ("model.init_from=models:/nothing@champion", "error: model.init_from: no model 'nothing' in the registry at sqlite:"),
        ("model.init_from=runs:/abc", "error: model.init_from: no run 'abc' at sqlite:"),
        ("model.freeze=[feature]", "error: model.freeze: no part of the network 'feature'; did you mean 'features'?"),
        ("model.freeze=[features, classifier]", "error: model.freeze: nothing is left to train"),
    ],
)
def test_what_can_t_be_started_from_or_frozen_is_refused(override: str, says: str, typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("name: e\ndata: {source: digits}\nmodel: {family: cnn}\n")
    said = typed("plan", "e.yaml", override)
    assert said.code == 2
    assert len(said.errors) == 1
    assert said.errors[0].startswith(says)


def test_augmenting_data_without_images_is_refused_for_a_run_and_for_a_search(typed: Typed, tmp_path: Path) -> None:
    rows = "".join(f"{i},{i % 2}\n" for i in range(60))
    (tmp_path / "t.csv").write_text(f"x,label\n{rows}")
    (tmp_path / "nets.py").write_text(OWN)
    (tmp_path / "e.yaml").write_text(
        "name: e\ndata: {source: table, path: t.csv, target: label, kinds: {label: class}}\nmodel: {class: 'nets:Net'}\n"
    )
    for override in ("training.augment.shift=0.1", "sweep.space={training.augment.shift: {uniform: [0, 0.1]}}"):
        said = typed("plan", "e.yaml", override)
        assert said.errors == ["error: training.augment: it changes images, and the inputs are x (number)"]


OWN = """
import torch
from models import classify
from models.family import Family, FamilyConfig

class Net(Family):
    Config, task, metrics = FamilyConfig, "classification", ("accuracy",)

    def __init__(self, config, schema):
        super().__init__(config, schema)
        self.out = torch.nn.Linear(1, len(schema.classes))

    @classmethod
    def misfit(cls, schema):
        return None

    def forward(self, batch):
        return self.out(batch["x"][:, None])

    def loss(self, outputs, batch):
        return classify.loss(outputs, batch["label"], None, 0.0, False)

    def decode(self, outputs, batch):
        return classify.decode(outputs)
"""
