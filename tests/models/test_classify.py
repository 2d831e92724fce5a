"""What classifiers share: class weights keep the mean of the loss, and a class that training hasn't seen weighs nothing."""

from __future__ import annotations

import pytest
import torch

from models import classify


@pytest.mark.parametrize("counts", [(10, 90, 20), (10, 0, 90), (0, 7, 0)])
def test_balanced_weights_have_a_mean_of_one_over_the_training_rows(counts: tuple[int, ...]) -> None:
    weight, rows = classify.weights("balanced", counts), torch.tensor(counts)
    assert weight is not None
    assert (weight * rows).sum().item() == pytest.approx(rows.sum().item())
    there = (weight * rows)[rows > 0]
    assert torch.allclose(there, there[0].expand_as(there)), "each class that is there counts as much as the others"


def test_a_class_without_training_rows_weighs_nothing_and_changes_no_other() -> None:
    weight, without = classify.weights("balanced", (10, 0, 90)), classify.weights("balanced", (10, 90))
    assert weight is not None
    assert without is not None
    assert weight.tolist() == [without[0].item(), 0.0, without[1].item()]


@pytest.mark.parametrize(("kind", "counts"), [("none", (1, 2)), ("balanced", ()), ("balanced", (0, 0))])
def test_there_are_no_weights_where_none_are_asked_for_or_no_rows_are_known(kind: classify.ClassWeights, counts: tuple[int, ...]) -> None:
    assert classify.weights(kind, counts) is None


def test_weights_count_in_training_only() -> None:
    torch.manual_seed(0)
    outputs, label, weight = torch.randn(4, 3), torch.tensor([0, 2, 2, 0]), torch.tensor([2.0, 0.0, 0.5])
    plain = classify.loss(outputs, label, None, 0.0, training=True)
    assert torch.equal(classify.loss(outputs, label, weight, 0.0, training=False), plain)
    assert torch.allclose(classify.loss(outputs, label, weight, 0.0, training=True), plain * torch.tensor([2, 0.5, 0.5, 2]))
