"""Metrics: exact counts, whatever the batches."""

from __future__ import annotations

import math

import pytest
import torch
import torchmetrics
from torchmetrics.classification import MulticlassAccuracy

from models.metrics import METRICS, Accuracy, Metric, TopFive
from orchestrator import names
from pipelines.schema import Column, Schema

OF_CLASSES = ("accuracy", "top5")
SCHEMA = Schema((), Column("label", "class"), tuple("abcdefgh"))


def test_accuracy_counts_the_rows_whose_largest_logit_is_the_label_s() -> None:
    logits = torch.tensor([[3.0, 1, 0], [0, 2, 1], [0, 0, 1], [5, 4, 3]])
    sums = Accuracy().sums(logits, {"label": torch.tensor([0, 1, 0, 2])}, SCHEMA)
    assert sums.tolist() == [2, 4]
    assert Accuracy().value(sums) == 0.5


def test_top_five_counts_the_rows_whose_label_is_among_the_five_largest() -> None:
    logits = torch.arange(8.0).repeat(4, 1)
    sums = TopFive().sums(logits, {"label": torch.tensor([7, 3, 2, 0])}, SCHEMA)
    assert sums.tolist() == [2, 4]


def test_top_five_of_fewer_classes_is_always_right() -> None:
    assert TopFive().sums(torch.randn(3, 4), {"label": torch.tensor([0, 1, 3])}, SCHEMA).tolist() == [3, 3]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "k"), [("accuracy", 1), ("top5", 5)])
def test_metrics_of_classes_are_those_of_torchmetrics(name: str, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, label = torch.randn(503, 8, generator=generator), torch.randint(0, 8, (503,), generator=generator)
    theirs = MulticlassAccuracy(num_classes=8, top_k=k, average="micro")
    metric: Metric = names.load(METRICS[name], {}, "metric")()
    totals = torch.zeros(2, dtype=torch.float64)
    for a, b in zip(logits.split(100), label.split(100), strict=True):
        theirs.update(a, b)
        totals += metric.sums(a, {"label": b}, SCHEMA)
    assert metric.value(totals) == pytest.approx(float(theirs.compute()), abs=1e-7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "theirs"), [("rmse", torchmetrics.MeanSquaredError(squared=False)), ("mae", torchmetrics.MeanAbsoluteError())]
)
def test_metrics_of_numbers_are_those_of_torchmetrics_in_the_target_s_units(name: str, theirs: torchmetrics.Metric, seed: int) -> None:
    """A network answers standardised numbers; the target isn't."""
    generator = torch.Generator().manual_seed(seed)
    schema = Schema((), Column("target", "number", mean=40.0, std=7.0))
    outputs, target = torch.randn(503, generator=generator), 40 + 9 * torch.randn(503, dtype=torch.float64, generator=generator)
    metric: Metric = names.load(METRICS[name], {}, "metric")()
    theirs.reset()
    totals = torch.zeros(2, dtype=torch.float64)
    for a, b in zip(outputs.split(100), target.split(100), strict=True):
        theirs.update(40 + 7 * a.double(), b)
        totals += metric.sums(a, {"target": b}, schema)
    assert metric.value(totals) == pytest.approx(float(theirs.compute()), rel=1e-6)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_the_sums_of_any_batches_add_up_to_those_of_all_rows(name: str) -> None:
    metric: Metric = names.load(METRICS[name], {}, "metric")()
    torch.manual_seed(0)
    logits, label = torch.randn(1001, 8), torch.randint(0, 8, (1001,))
    whole = metric.sums(logits, {"label": label}, SCHEMA)
    pieces = sum(metric.sums(a, {"label": b}, SCHEMA) for a, b in zip(logits.split(7), label.split(7), strict=True))
    assert torch.equal(pieces, whole)
    assert whole.dtype == torch.float64


@pytest.mark.parametrize("name", OF_CLASSES)
def test_a_metric_of_no_rows_is_no_number(name: str) -> None:
    assert math.isnan(names.load(METRICS[name], {}, "metric")().value(torch.zeros(2, dtype=torch.float64)))


def test_counts_beyond_float32_stay_exact() -> None:
    assert Accuracy().value(torch.tensor([2.0**25 + 1, 2.0**26], dtype=torch.float64)) == (2**25 + 1) / 2**26
