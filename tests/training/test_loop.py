"""The loop: one epoch at a time, exact sums, every row once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator import names
from orchestrator.training import evaluation, seeds
from orchestrator.training.evaluation import Evaluation
from orchestrator.training.loop import Diverged, Settings, Training
from orchestrator.training.optim import OPTIMIZERS
from orchestrator.training.trial import build_family, options
from pipelines import batches
from pipelines.batches import Batches, Step
from pipelines.prepare import Prepared
from tests.conftest import MakeExperiment

MakeTraining = Callable[..., Training]
PLAIN = ("model.norm=none", "optimizer={name: sgd, lr: 0.05, momentum: 0}")


@pytest.fixture
def training(make_experiment: MakeExperiment, prepared: Prepared) -> MakeTraining:
    """`training("training.epochs=3", precision="bf16")`: a Training of the small experiment on the corners."""

    def made(*overrides: str, precision: str = "fp32", kind: type[Batches] = Batches) -> Training:
        experiment = make_experiment(*overrides)
        t = experiment.training
        seeds.set_all(t.seed)
        family = build_family(experiment, prepared.schema, ".")
        optimizer = names.load(experiment.optimizer.name, OPTIMIZERS, "optimizer")
        settings = Settings(t.epochs, t.batch_size, t.seed, precision, t.max_steps, t.clip_norm, t.accumulate)
        train = kind(batches.load(prepared, "train"), t.batch_size, t.seed, accumulate=t.accumulate)
        config = options(optimizer.Config, experiment.optimizer.options)
        return Training(family, prepared.encoder, train, batches.load(prepared, "validation"), (optimizer, config), settings)

    return made


def weights(training: Training) -> Tensor:
    return torch.cat([p.detach().flatten() for p in training.family.parameters()])


def run(training: Training) -> list[dict[str, float]]:
    found = []
    while not training.finished:
        found.append(training.run_epoch())
    return found


def test_an_epoch_s_metrics_have_the_names_that_are_recorded(training: MakeTraining) -> None:
    metrics = training().run_epoch()
    assert list(metrics) == ["train_loss", "val_loss", "val_accuracy", "lr", "samples_per_s", "epoch_s"]
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())


def test_training_learns(training: MakeTraining) -> None:
    metrics = run(training("training.epochs=8"))
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"] / 2
    assert metrics[-1]["val_accuracy"] > 0.8


@pytest.mark.parametrize("size", [1, 7, 29, 1000])
def test_metrics_are_sums_over_all_rows_however_they_are_batched(
    size: int, training: MakeTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training()
    made.run_epoch()
    columns = made.validation
    with torch.inference_mode():
        made.family.eval()
        batch = made.encoder.tensors(columns.rows(slice(None)))
        outputs = made.family(batch)
        loss = torch.nn.functional.cross_entropy(outputs, batch["label"]).item()
        right = (outputs.argmax(1) == batch["label"]).sum().item()
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", size)
    metrics = made.evaluate(columns, "test")
    assert metrics["test_accuracy"] == right / 30
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-5)


def test_the_train_loss_is_the_mean_over_rows_not_over_batches(training: MakeTraining) -> None:
    made = training("model.norm=none", "optimizer={name: sgd, lr: 1e-30, momentum: 0}")
    metrics = made.run_epoch()
    assert metrics["train_loss"] == pytest.approx(made.evaluate(made.train.held, "train")["train_loss"], rel=1e-6)


def test_evaluating_changes_no_statistics_and_leaves_the_mode(training: MakeTraining) -> None:
    made = training()
    made.family.train()
    before = {name: value.clone() for name, value in made.family.state_dict().items()}
    made.evaluate(made.validation, "val")
    assert made.family.training
    assert all(torch.equal(value, before[name]) for name, value in made.family.state_dict().items())


def test_label_smoothing_is_for_training_only(training: MakeTraining) -> None:
    plain, smooth = training("model.label_smoothing=0"), training("model.label_smoothing=0.5")
    assert plain.evaluate(plain.validation, "val") == smooth.evaluate(smooth.validation, "val")
    assert plain.run_epoch()["train_loss"] != smooth.run_epoch()["train_loss"]


@pytest.mark.parametrize(("max_steps", "steps"), [(1, [1]), (3, [3]), (4, [3, 4]), (100, [3, 6])])
def test_training_ends_after_max_steps(max_steps: int, steps: list[int], training: MakeTraining) -> None:
    made = training(f"training.max_steps={max_steps}")
    reached = []
    while not made.finished:
        made.run_epoch()
        reached.append(made.step)
    assert reached == steps


def test_the_rate_of_each_step_is_the_schedule_s_over_all_steps(training: MakeTraining) -> None:
    made = training("optimizer={name: sgd, lr: 0.5, schedule: linear, warmup: 0}", "training={epochs: 10, batch_size: 32, max_steps: 4}")
    rates, step = [], made.optimizer.step
    made.optimizer.step = lambda *a: (rates.append(made.optimizer.param_groups[0]["lr"]), step(*a))[1]  # type: ignore[method-assign]
    run(made)
    assert rates == pytest.approx([0.5, 0.5 * 0.67, 0.5 * 0.34, 0.5 * 0.01])


def test_clip_norm_bounds_the_gradient_s_norm(training: MakeTraining) -> None:
    sgd = "optimizer={name: sgd, lr: 1.0, momentum: 0}"
    moved = []
    for clip in ("1e-3", "null"):
        made = training("model.norm=none", sgd, "training.max_steps=1", f"training.clip_norm={clip}")
        before = weights(made)
        made.run_epoch()
        moved.append(float((weights(made) - before).norm()))
    assert moved[0] == pytest.approx(1e-3, rel=1e-2)
    assert moved[1] > 1e-2


@pytest.mark.parametrize("accumulate", [3, 32, 100])
def test_accumulating_gives_the_weights_of_whole_batches(accumulate: int, training: MakeTraining) -> None:
    whole, cut = training(*PLAIN), training(*PLAIN, f"training.accumulate={accumulate}")
    losses = run(whole), run(cut)
    assert (weights(whole) - weights(cut)).abs().max() < 1e-6
    assert whole.step == cut.step == 6
    assert [m["train_loss"] for m in losses[0]] == pytest.approx([m["train_loss"] for m in losses[1]], rel=1e-5)


def test_the_same_seed_gives_the_same_weights_to_the_last_bit_and_another_one_others(training: MakeTraining) -> None:
    dropout = "model.dropout=0.3"
    first, second, other = training(dropout), training(dropout, "training.seed=0"), training(dropout, "training.seed=1")
    for made in (first, second, other):
        seeds.set_all(made.settings.seed)
        run(made)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


class _Leaky(Batches):
    """Loses one row of the first batch."""

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Step]:
        for place, step in enumerate(super().epoch(epoch, skip)):
            yield Step([{k: v[1:] for k, v in step.pieces[0].items()}], step.rows - 1, step.total) if place == 0 else step


def test_a_row_that_was_not_seen_is_noticed(training: MakeTraining) -> None:
    with pytest.raises(RuntimeError, match="epoch 1 saw 89 rows of 90"):
        training(kind=_Leaky).run_epoch()


@pytest.mark.parametrize("lr", ["1e30", "1e10"])
def test_a_loss_that_is_no_number_says_what_to_do(lr: str, training: MakeTraining) -> None:
    made = training("model.norm=none", f"optimizer={{name: sgd, lr: {lr}}}", "training.epochs=50")
    with pytest.raises(Diverged, match=r"^(train|val)_loss is (nan|inf) at epoch \d+: lower optimizer.lr or set training.clip_norm$"):
        run(made)


def test_convolutions_and_their_images_are_channels_last(training: MakeTraining) -> None:
    made = training()
    kernel = next(p for p in made.family.parameters() if p.ndim == 4 and min(p.shape) > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    run(made)
    assert kernel.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loaded_state_goes_on_to_the_same_bits_whatever_its_memory_format(name: str, training: MakeTraining) -> None:
    overrides = (f"optimizer={{name: {name}, lr: 0.01, schedule: onecycle}}", "training.epochs=4")
    whole, cut, resumed = (training(*overrides) for _ in range(3))
    run(whole)
    for _ in range(2):
        cut.run_epoch()
    plain = _contiguous(cut.state_dict())  # as a file gives it
    resumed.load_state_dict(plain)
    run(resumed)
    assert (resumed.epoch, resumed.step) == (4, 12)
    assert torch.equal(weights(resumed), weights(whole))


def _contiguous(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(state, dict):
        return {key: _contiguous(value) for key, value in state.items()}
    return [_contiguous(value) for value in state] if isinstance(state, list) else state


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_learns_with_weights_in_fp32(precision: str, training: MakeTraining) -> None:
    made = training("training.epochs=4", precision=precision)
    metrics = run(made)
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"]
    assert {p.dtype for p in made.family.parameters()} == {torch.float32}
    assert ("scaler" in made.state_dict()) is (precision == "fp16")


def test_evaluation_has_a_family_s_metrics_in_its_order(training: MakeTraining) -> None:
    made = training()
    made.family.metrics = ("top5", "accuracy")  # type: ignore[misc]
    assert list(Evaluation(made.family, made.encoder)(made.validation, "test")) == ["test_loss", "test_top5", "test_accuracy"]
