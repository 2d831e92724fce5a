"""Metrics: exact counts, whatever the batches."""

from __future__ import annotations

import math

import pytest
import torch

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
