"""The CNN keeps the contract in every form, and refuses what can't be built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from models.cnn import CNN
from models.norm import BatchNorm2d, SyncBatchNorm2d
from pipelines.schema import Column, Schema
from tests.contracts.family_contract import Batch, FamilyContract

LABEL = Column("label", "class", dtype="int64")


def schema_of(*shape: int, classes: int = 4) -> Schema:
    return Schema((Column("image", "image", shape, "uint8"),), LABEL, tuple("abcdefghij"[:classes]), tuple(range(5, 5 + classes)))


class CNNContract(FamilyContract):
    family = CNN
    shape: tuple[int, int, int] = (1, 8, 8)
    classes = 4

    @pytest.fixture
    def schema(self) -> Schema:
        return schema_of(*self.shape, classes=self.classes)

    @pytest.fixture
    def batch(self) -> Batch:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(8, *self.shape, generator=generator)
        return {"image": images, "label": torch.arange(8) % self.classes}


class TestDefaultOnGreyDigits(CNNContract):
    pass


class TestColourOfOddSizes(CNNContract):
    shape = (3, 33, 31)

    @pytest.fixture
    def config(self) -> Any:
        return CNN.Config(
            channels=(4, 6, 8), kernels=(5, 3), strides=(2,), pool_after=(2,), padding="valid", hidden=(16,), hidden_dropout=0.2
        )


class TestAverageHead(CNNContract):
    shape = (3, 32, 32)

    @pytest.fixture
    def config(self) -> Any:
        return CNN.Config(channels=(4, 8), pool_after=(1,), head="average", dropout=0.1, label_smoothing=0.1)


class TestWithoutNormalisation(CNNContract):
    classes = 2

    @pytest.fixture
    def config(self) -> Any:
        return CNN.Config(channels=(4, 8), pool_after=(), norm="none")


class TestSyncNormalisation(CNNContract):
    @pytest.fixture
    def config(self) -> Any:
        return CNN.Config(channels=(4, 8), pool_after=(1, 2), norm="sync")


class TestLastMapOfOneCell(CNNContract):
    shape = (1, 4, 4)

    @pytest.fixture
    def config(self) -> Any:
        return CNN.Config(channels=(4, 8), pool_after=(1, 2))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pool_after": [4]}, "pool_after names convolution 4, but channels has 3"),
        ({"channels": [8], "pool_after": [2]}, "pool_after names convolution 2, but channels has 1"),
        ({"channels": [8], "pool_after": [], "kernels": [3, 3]}, r"kernels has more entries than channels \(1\)"),
        ({"channels": [8], "pool_after": [], "strides": [1, 2]}, r"strides has more entries than channels \(1\)"),
        ({"channels": []}, "at least 1 item"),
        ({"channels": [0]}, "greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
        ({"norm": "layer"}, "'batch', 'sync' or 'none'"),
    ],
)
def test_options_that_make_no_network_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TypeAdapter(CNN.Config).validate_python(options)


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ((1, 3, 3), CNN.Config()),
        ((1, 2, 8), CNN.Config(padding="valid", pool_after=())),
        ((3, 8, 1), CNN.Config(pool_after=(1,))),
    ],
)
def test_an_image_that_is_too_small_is_refused_with_its_size(shape: tuple[int, int, int], config: Any) -> None:
    with pytest.raises(ValueError, match=f"an image of {shape[1]}x{shape[2]} is too small for so many poolings and strides"):
        CNN(config, schema_of(*shape))


@pytest.mark.parametrize("height", range(4, 12))
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_the_classifier_has_the_size_of_what_the_convolutions_give(height: int, padding: Any) -> None:
    config = CNN.Config(
        channels=(2, 3), kernels=(3, 2), strides=(1, 2), pool_after=(2,) if height > 6 else (), padding=padding, head="flatten"
    )
    net = CNN(config, schema_of(1, height, height + 1))
    assert net.eval()({"image": torch.zeros(2, 1, height, height + 1)}).shape == (2, 4)


@pytest.mark.parametrize(("size", "head", "averages"), [(8, "auto", False), (9, "auto", True), (9, "flatten", False), (8, "average", True)])
def test_a_map_of_up_to_64_cells_is_flattened_and_a_larger_one_averaged(size: int, head: Any, averages: bool) -> None:
    net = CNN(CNN.Config(channels=(2,), pool_after=(), head=head), schema_of(1, size, size))
    assert any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in net.classifier) is averages


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (schema_of(1, 8, 8), None),
        (Schema((*schema_of(1, 8, 8).inputs, Column("more", "image", (1, 8, 8))), LABEL, ("a", "b")), "it takes one image column"),
        (Schema((Column("text", "text"),), LABEL, ("a", "b")), "it takes one image column"),
        (Schema(schema_of(1, 8, 8).inputs, Column("price", "number")), "its target is a class"),
    ],
)
def test_it_fits_one_image_column_and_a_class(schema: Schema, says: str | None) -> None:
    assert CNN.misfit(schema) == says


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_its_loss_is_the_cross_entropy_smoothed_in_training_only(smoothing: float) -> None:
    net = CNN(CNN.Config(channels=(2,), pool_after=(), label_smoothing=smoothing), schema_of(1, 8, 8))
    logits, batch = torch.randn(5, 4), {"label": torch.tensor([0, 1, 2, 3, 0])}
    plain = nn.functional.cross_entropy(logits, batch["label"], reduction="none")
    assert torch.equal(net.eval().loss(logits, batch), plain)
    assert torch.equal(net.train().loss(logits, batch), plain) is (smoothing == 0)


def test_low_precision_outputs_have_a_loss_in_fp32() -> None:
    net = CNN(CNN.Config(channels=(2,), pool_after=()), schema_of(1, 8, 8))
    assert net.loss(torch.randn(2, 4, dtype=torch.bfloat16), {"label": torch.tensor([0, 1])}).dtype == torch.float32


SYNC = nn.SyncBatchNorm if torch.cuda.is_available() else SyncBatchNorm2d


@pytest.mark.parametrize(("norm", "layer"), [("batch", BatchNorm2d), ("sync", SYNC), ("none", type(None))])
def test_each_convolution_has_the_normalisation_that_is_asked_for(norm: Any, layer: type) -> None:
    net = CNN(CNN.Config(channels=(2, 2), pool_after=(), norm=norm), schema_of(1, 8, 8))
    convolutions = [m for m in net.features if isinstance(m, nn.Conv2d)]
    assert sum(type(m) is layer for m in net.features) == (0 if norm == "none" else 2)
    assert [c.bias is not None for c in convolutions] == [norm == "none"] * 2
