"""Transfer: what is loaded from another model and what isn't, and what frozen parts keep."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.lstm import LSTM
from orchestrator.events import RunEnded
from orchestrator.training import checkpoint
from orchestrator.training.job import Job, Origin
from orchestrator.training.transfer import TransferError, coded_by, freeze, load, match
from orchestrator.training.trial import build_family
from pipelines.prepare import Prepared
from pipelines.schema import Column, Schema
from tests.conftest import MakeExperiment, MakeJob, drive

STILL = ("optimizer={name: sgd, lr: 1e-30, momentum: 0}", "training.epochs=1")


def state(job: Job) -> Any:
    return checkpoint.load(job.checkpoints)["training"]


@pytest.fixture
def net(make_experiment: MakeExperiment, prepared: Prepared) -> nn.Module:
    torch.manual_seed(1)
    return build_family(make_experiment(), prepared.schema, ".")


@pytest.fixture
def origin(net: nn.Module, tmp_path: Path) -> Origin:
    """Weights of the small network, other than those that it starts with."""
    weights = {name: torch.full_like(value, 0.5) for name, value in net.state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    return Origin(str(tmp_path / "weights.safetensors"), "models:/other@champion (version 3)")


# what matches ---------------------------------------------------------------------------------------------------------------


def test_tensors_of_the_same_name_and_shape_match_and_the_others_say_why_not() -> None:
    own = {"a.weight": (4, 3), "b.weight": (10, 64), "b.count": (), "c.weight": (2,)}
    found = match(own, {"a.weight": (4, 3), "b.weight": (5, 64), "b.count": (1,), "d.weight": (7,)})
    assert found.matched == ("a.weight",)
    assert dict(found.left) == {"b.weight": "10 x 64, there 5 x 64", "b.count": "a number, there 1", "c.weight": "not there"}
    assert found.unused == ("d.weight",)
    assert str(found) == (
        "1 of 4 tensors matched; left as they start: b.weight (10 x 64, there 5 x 64), b.count (a number, there 1), c.weight (not there); "
        "not taken: d.weight"
    )


def test_a_sentence_names_a_few_tensors_and_counts_the_rest() -> None:
    assert str(match({f"w{i}": (1,) for i in range(9)}, {})).endswith("w3 (not there) and 5 more")
    assert str(match({"a": (1,)}, {"a": (1,)})) == "1 of 1 tensors matched"


def test_rows_that_mean_something_else_there_are_not_taken() -> None:
    shapes = {"embedding.weight": (500, 16), "bias": (500,), "cell.weight": (64, 16)}
    found = match(shapes, shapes, {"embedding.weight": "text", "bias": "text"})
    assert found.matched == ("cell.weight",)
    assert dict(found.left)["embedding.weight"] == "its rows are the codes of 'text', which mean something else there"


def test_only_what_grows_with_a_vocabulary_is_coded_by_it_not_what_happens_to_be_as_long() -> None:
    """512 words, and 4 gates of 128: the LSTM's own weights have 512 rows too."""
    schema = Schema((Column("text", "text", vocabulary=512),), Column("label", "class"), ("a", "b"), (1, 1))
    net = LSTM(LSTM.Config(embedding=8, hidden=128), schema)
    before = torch.get_rng_state()
    assert coded_by(net, "text") == {"embedding.weight"}
    assert coded_by(net, "label") == {"head.weight", "head.bias"}
    assert torch.equal(torch.get_rng_state(), before)


def test_the_head_of_other_classes_is_not_taken(net: nn.Module, origin: Origin) -> None:
    found = load(net, dataclasses.replace(origin, recoded=("label",)))
    assert {name for name, _ in found.left} == {"classifier.2.weight", "classifier.2.bias"}
    assert "features.0.weight" in found.matched


def test_a_run_s_record_has_the_source_the_counts_and_the_names() -> None:
    found = match({"a": (1,), "b": (2,)}, {"a": (1,), "b": (3,), "c": ()})
    assert found.tags(Origin("f", "models:/m@champion (version 1)")) == {
        "init.source": "models:/m@champion (version 1)",
        "init.matched": 1,
        "init.unmatched": 1,
        "init.loaded": "a",
        "init.left": "b (2, there 3)",
        "init.unused": "c",
    }


def test_what_fits_is_loaded_and_the_rest_keeps_its_first_values(
    make_experiment: MakeExperiment, prepared: Prepared, origin: Origin
) -> None:
    other = build_family(make_experiment("model.channels=[4, 5]"), prepared.schema, ".")
    before = {name: value.clone() for name, value in other.state_dict().items()}
    found = load(other, origin)
    assert "features.0.weight" in found.matched
    assert next(name for name, _ in found.left) == "features.4.weight"
    for name, value in other.state_dict().items():
        assert torch.equal(value, torch.full_like(value, 0.5) if name in found.matched else before[name]), name


def test_weights_of_which_only_counters_fit_are_refused(tmp_path: Path) -> None:
    there, here = (nn.Sequential(nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels)) for channels in (4, 5))
    save_file(there.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(TransferError, match=r"^nothing of a model fits this network: 1 of 7 tensors matched; left as they start: 0.weight"):
        load(here, Origin(str(tmp_path / "weights.safetensors"), "a model"))


@pytest.mark.parametrize("content", [None, b"no safetensors"])
def test_weights_that_can_t_be_read_are_refused_by_their_file(content: bytes | None, net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "gone.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TransferError, match=r"^can't read the weights '.*gone.safetensors' of a model: "):
        load(net, Origin(str(path), "a model"))


# in a run -------------------------------------------------------------------------------------------------------------------


def test_a_run_starts_from_the_weights_that_it_is_given(make_job: MakeJob, origin: Origin) -> None:
    job = dataclasses.replace(make_job(*STILL), origin=origin)
    drive(job)
    kernel = state(job)["model"]["features.0.weight"]
    assert torch.equal(kernel, torch.full_like(kernel, 0.5))


def test_a_run_whose_network_nothing_fits_fails_with_a_sentence(make_job: MakeJob, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    end = drive(dataclasses.replace(make_job(), origin=Origin(str(tmp_path / "x.safetensors"), "a folder")))[-1]
    assert isinstance(end, RunEnded)
    assert end.state == "failed"
    assert "nothing of a folder fits this network: 0 of " in (end.error or "")


def test_a_resumed_run_goes_on_from_its_checkpoint_and_needs_the_weights_no_more(make_job: MakeJob, origin: Origin) -> None:
    whole, cut = (
        dataclasses.replace(make_job("training.epochs=3", "model.dropout=0.3", checkpoints=place), origin=origin) for place in ("a", "b")
    )
    drive(whole)
    drive(cut, 1)
    Path(origin.weights).unlink()
    assert drive(dataclasses.replace(cut, resume=True))[-1].state == "finished"
    ours, theirs = state(cut)["model"], state(whole)["model"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# freezing -------------------------------------------------------------------------------------------------------------------


def test_frozen_parts_keep_weights_and_statistics_and_have_no_optimizer_state(make_job: MakeJob, origin: Origin) -> None:
    job = dataclasses.replace(make_job("model.freeze=[features]"), origin=origin)
    drive(job)
    after = state(job)
    changed = {name for name, value in after["model"].items() if not torch.equal(value, torch.full_like(value, 0.5))}
    assert changed
    assert {name.partition(".")[0] for name in changed} == {"classifier"}
    assert "features.1.running_mean" in after["model"] or "features.2.running_mean" in after["model"]
    assert len(after["optimizer"]["state"]) == 2  # the classifier's weight and bias


def test_one_parameter_can_be_frozen_and_its_module_trains_on(net: nn.Module) -> None:
    assert freeze(net, ["features.0.weight"]) == ()
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["features.0.weight"]


def test_a_frozen_module_stays_in_eval_mode_while_the_others_train(make_job: MakeJob) -> None:
    seen: list[tuple[bool, bool]] = []
    job = make_job("model.freeze=[features]")

    def look(module: Any, args: Any, out: Any) -> None:
        if torch.is_grad_enabled():
            seen.append((module.features.training, module.classifier.training))

    with torch.nn.modules.module.register_module_forward_hook(  # type: ignore[no-untyped-call]
        lambda module, args, out: look(module, args, out) if hasattr(module, "features") else None
    ):
        drive(job)
    assert set(seen) == {(False, True)}


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("feature", "no part of the network 'feature'; did you mean 'features'? there is: classifier, features"),
        ("features.99", "no part of the network 'features.99'; did you mean 'features."),
        ("features.0.wait", "no part of the network 'features.0.wait'; did you mean 'features.0.weight'? there is: features.0.weight"),
    ],
)
def test_a_part_that_isn_t_there_is_refused_with_what_there_is(part: str, says: str, net: nn.Module) -> None:
    with pytest.raises(TransferError) as caught:
        freeze(net, [part])
    assert str(caught.value).startswith(says)


def test_freezing_everything_is_refused(net: nn.Module) -> None:
    with pytest.raises(TransferError, match=r"^nothing is left to train$"):
        freeze(net, ["features", "classifier"])
