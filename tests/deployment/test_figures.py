"""Figures show rows of the whole set, not its first ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.deployment.figures.regression import MOST_POINTS, Regression
from orchestrator.deployment.figures.sample import Sample
from orchestrator.deployment.figures.segmentation import EXAMPLES, Segmentation


def sampled(size: int, batches: list[int]) -> list[int]:
    """The numbers of the rows that are kept."""
    sample, kept, first = Sample(size), dict[int, int](), 0
    for rows in batches:
        kept |= {place: first + row for place, row in sample.chosen(rows).items()}
        first += rows
    assert list(kept) == list(range(min(size, first)))
    return list(kept.values())


def test_fewer_rows_than_the_sample_holds_are_all_kept() -> None:
    assert sampled(6, [2, 0, 3]) == [0, 1, 2, 3, 4]


def test_every_row_is_as_likely_as_any_other() -> None:
    kept = sampled(2000, [250] * 40)
    assert len(set(kept)) == 2000
    assert np.histogram(kept, 10, (0, 10_000))[0].tolist() == pytest.approx([200] * 10, abs=50)


def test_a_sample_is_the_same_each_time_and_of_any_batches() -> None:
    assert sampled(6, [100] * 5) == sampled(6, [100] * 5) == sampled(6, [7] * 71 + [3])


def family(**schema: Any) -> Any:
    return SimpleNamespace(schema=SimpleNamespace(**schema), decode=lambda outputs, batch: {"prediction": outputs})


def test_residuals_of_sorted_rows_are_those_of_all(tmp_path: Path) -> None:
    """Long rows come last, and here they are the worst."""
    figures, residual = Regression(family(target=SimpleNamespace(name="target"))), torch.linspace(0, 1, 5 * MOST_POINTS)
    for some in residual.split(1000):
        figures.add(some + 3, {"target": torch.full((len(some),), 3.0)})
    figures.write(tmp_path, {}, "test")
    said = json.loads((tmp_path / "residuals.json").read_text())
    assert (said["rows"], said["drawn"]) == (5 * MOST_POINTS, MOST_POINTS)
    assert list(said["residual_quantiles"].values()) == pytest.approx([0.05, 0.25, 0.5, 0.75, 0.95], abs=0.03)


def test_examples_of_sorted_images_are_of_all_sizes(tmp_path: Path) -> None:
    schema = {"inputs": [SimpleNamespace(name="image")], "target": SimpleNamespace(name="mask"), "classes": ("a", "b")}
    figures = Segmentation(family(**schema))
    for side in range(2, 42):
        masks = torch.zeros(5, side, side, dtype=torch.long)
        figures.add(masks.to(torch.uint8), {"image": torch.rand(5, 1, side, side), "mask": masks})
    sides = [len(truth) for _, truth, _ in figures.examples.values()]
    assert len(sides) == EXAMPLES
    assert max(sides) > 20
    assert len(set(sides)) > EXAMPLES // 2
    figures.write(tmp_path, {}, "test")
    assert json.loads((tmp_path / "examples.json").read_text())["shown"] == EXAMPLES
