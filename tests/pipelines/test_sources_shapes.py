"""Generated shapes: the same every time, each class there, images of one size or of many."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.prepare import prepare
from pipelines.raw import Load
from pipelines.sources.shapes import CLASSES, SIDE, Config, load
from pipelines.splits import SplitConfig
from tests.contracts.source_contract import SourceContract


class TestShapes(SourceContract):
    @pytest.fixture
    def load(self) -> Load:
        return load

    @pytest.fixture
    def config(self) -> Any:
        return Config(rows=40)


def test_every_class_has_its_pixels(tmp_path: Path) -> None:
    schema = prepare("shapes", load, Config(rows=100), SplitConfig(), tmp_path).schema
    assert schema.classes == CLASSES
    assert schema.inputs[0].shape == (3, SIDE, SIDE)
    assert (schema.target.kind, schema.target.shape) == ("mask", (SIDE, SIDE))
    shares = np.array(schema.counts) / sum(schema.counts)
    assert shares[0] > 0.6
    assert shares[1:].min() > 0.03
    assert sum(schema.counts) == 80 * SIDE * SIDE


def test_another_seed_gives_other_images_and_more_rows_do_not_need_files() -> None:
    one, two = (load(Config(rows=10, seed=seed)).table for seed in (0, 1))
    assert not one["image"].equals(two["image"])
    assert one.num_rows == 10


def test_sizes_that_differ_are_those_of_the_masks() -> None:
    raw = load(Config(rows=30, any_size=True))
    assert raw.inputs[0].shape == (3, 0, 0)
    assert raw.target.shape == (0, 0)
    sizes = [[Image.open(io.BytesIO(png)).size for png in raw.table[name].to_pylist()] for name in ("image", "mask")]
    assert sizes[0] == sizes[1]
    assert len(set(sizes[0])) > 10
    assert any(width % 2 for width, _ in sizes[0])
