"""Weights to start from: where they are looked for, what is kept of them, and whose words they mean."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.deployment.initial import Starts, find
from orchestrator.errors import ExperimentError
from orchestrator.training.trial import build_family
from pipelines.prepare import Prepared
from pipelines.schema import Column, Schema
from tests.conftest import MakeExperiment


@dataclass
class Words:
    """An encoder of one text column."""

    words: tuple[str, ...]
    schema: Schema = field(init=False)

    def __post_init__(self) -> None:
        self.schema = Schema((Column("text", "text", vocabulary=len(self.words)),), Column("label", "class"))

    def to_plain(self) -> dict[str, Any]:
        return {"columns": {"text": {"kind": "text", "words": self.words}, "label": {"kind": "class"}}}


def bundle(folder: Path, encoder: Any, weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps({"name": "other", "run": "20260101-1"}))
    (folder / "encoder.json").write_text(json.dumps(encoder.to_plain()))
    save_file(weights, folder / "weights.safetensors")
    return folder


def weights_of(make_experiment: MakeExperiment, prepared: Prepared, *overrides: str) -> dict[str, torch.Tensor]:
    return dict(build_family(make_experiment(*overrides), prepared.schema, ".").state_dict())


def test_a_bundle_s_weights_are_copied_once_by_their_content_and_outlive_it(tmp_path: Path) -> None:
    encoder = Words(("a", "b"))
    one, same, other = (
        bundle(tmp_path / name, encoder, {"w": torch.full((3,), value)}) for name, value in (("one", 1.0), ("same", 1.0), ("other", 2.0))
    )
    kept = [find(str(folder), encoder, tmp_path / "init") for folder in (one, same, other)]  # type: ignore[arg-type]
    assert kept[0].weights == kept[1].weights != kept[2].weights
    assert len(list((tmp_path / "init").iterdir())) == 2
    assert Path(kept[0].weights).read_bytes() == (one / "weights.safetensors").read_bytes()
    assert kept[0].said == f"{one} (other, run 20260101-1)"


def test_a_column_with_other_words_is_named(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "there", Words(("good", "bad", "film")), {"w": torch.zeros(1)})
    same, other = Words(("good", "bad", "film")), Words(("good", "bad", "book"))
    assert find(str(folder), same, tmp_path / "init").recoded == ()  # type: ignore[arg-type]
    assert find(str(folder), other, tmp_path / "init").recoded == ("text",)  # type: ignore[arg-type]


def test_features_with_other_words_are_named_and_a_number_has_none(tmp_path: Path) -> None:
    def encoder(genre: str, mean: float) -> Any:
        made = Words(())
        columns = (Column("genre", "words", vocabulary=5), Column("year", "measure", vocabulary=1))
        inputs = (Column("item", "id", vocabulary=9), Column("age", "measure", vocabulary=1))
        made.schema = Schema(inputs, Column("rating", "number"), features={"item": columns})
        plain = {"item": {}, "age": {"mean": mean}, "rating": {}, "genre": {"words": genre}, "year": {}}
        made.to_plain = lambda: {"columns": plain}  # type: ignore[method-assign]
        return made

    folder = bundle(tmp_path / "there", encoder("drama", 30.0), {"w": torch.zeros(1)})
    assert find(str(folder), encoder("drama", 40.0), tmp_path / "init").recoded == ()
    assert find(str(folder), encoder("comedy", 30.0), tmp_path / "init").recoded == ("genre",)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("nowhere", "'nowhere' is no folder here: give models:/NAME@alias, models:/NAME/VERSION, runs:/ID, or the folder of a bundle"),
        ("empty", "'empty' is a folder without model.json"),
        ("broken", "'broken' is no whole bundle of orchestrator: "),
        ("codeless", "'codeless' is no whole bundle of orchestrator: "),
    ],
)
def test_what_is_no_bundle_is_refused_by_its_key(given: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (bundle(tmp_path / "broken", Words(()), {}) / "model.json").write_text("{")
    (bundle(tmp_path / "codeless", Words(()), {}) / "encoder.json").unlink()
    with pytest.raises(ExperimentError) as caught:
        find(given, Words(()), tmp_path / "init")  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"model.init_from: {says}")


@pytest.fixture
def starts(make_experiment: MakeExperiment, prepared: Prepared, tmp_path: Path) -> Any:
    """`starts("KEY=VALUE", ...)`: what the small experiment starts from, with a bundle of its own network in the folder `there`."""
    bundle(tmp_path / "there", prepared.encoder, weights_of(make_experiment, prepared))

    def made(*overrides: str) -> Starts:
        experiment = make_experiment(*overrides)
        family = build_family(experiment, prepared.schema, ".")
        return Starts(experiment, prepared.encoder, family, tmp_path, tmp_path)

    return made


def test_the_plan_says_what_matched_and_what_is_trained(starts: Any, tmp_path: Path) -> None:
    made = starts(f"model.init_from={tmp_path / 'there'}", "model.freeze=[features]")
    first, frozen = made.notes
    assert first == f"init_from {tmp_path / 'there'} (other, run 20260101-1): 14 of 14 tensors matched"
    assert frozen == "frozen: features; 75 of 347 parameters are trained"


def test_freezing_first_values_is_said(starts: Any) -> None:
    assert "at random values: there is no model.init_from" in starts("model.freeze=[features.0]").notes[0]


def test_nothing_asked_says_nothing(starts: Any, make_experiment: MakeExperiment) -> None:
    assert starts().notes == ()
    assert starts().of(make_experiment()) == (None, {})


def test_a_trial_with_another_network_has_its_own_match_in_its_record(starts: Any, make_experiment: MakeExperiment, tmp_path: Path) -> None:
    init = f"model.init_from={tmp_path / 'there'}"
    made = starts(init)
    own, own_tags = made.of(make_experiment(init))
    other, other_tags = made.of(make_experiment(init, "model.channels=[4, 7]"))
    assert own == other
    assert (own_tags["init.matched"], own_tags["init.unmatched"]) == (14, 0)
    assert other_tags["init.unmatched"] == 6
    assert "features.4.weight (7 x 4 x 3 x 3, there 6 x 4 x 3 x 3)" in other_tags["init.left"]


def test_every_source_that_a_sweep_may_choose_is_found_before_the_start(starts: Any, tmp_path: Path) -> None:
    space = "sweep.space.model.init_from={{choice: [null, '{}']}}"
    assert starts(space.format(tmp_path / "there")).notes == (f"init_from may be {tmp_path / 'there'} (other, run 20260101-1)",)
    with pytest.raises(ExperimentError, match=r"model.init_from: 'nowhere' is no folder here"):
        starts(space.format("nowhere"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["model.init_from={}", "model={{family: cnn, channels: [3, 5], pool_after: [1], norm: none, init_from: '{}'}}"],
            "model.init_from: ",
        ),
        (["model.freeze=[classifer]"], "model.freeze: no part of the network 'classifer'; did you mean 'classifier'?"),
        (["model.freeze=[features, classifier]"], "model.freeze: nothing is left to train"),
    ],
)
def test_what_does_not_fit_the_network_is_refused_before_the_start(
    overrides: list[str], says: str, starts: Any, make_experiment: MakeExperiment, prepared: Prepared, tmp_path: Path
) -> None:
    folder = bundle(tmp_path / "unlike", prepared.encoder, {"features.0.weight": torch.zeros(9, 9)})
    with pytest.raises(ExperimentError) as caught:
        starts(*(one.format(folder) for one in overrides))
    assert str(caught.value).startswith(says)
