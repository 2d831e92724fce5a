"""The U-Net keeps the contract at any size, padding changes nothing, and its loss and metrics are those of torchmetrics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_f1_score, multiclass_jaccard_index

from models import classify, segmentation
from models.metrics import Metric
from models.segmentation import IGNORE, Dice, MeanIoU, PixelAccuracy
from models.unet import UNet
from pipelines.encode import masks
from pipelines.schema import Column, Schema
from tests.contracts.family_contract import Batch, FamilyContract

METRICS: list[type[Metric]] = [MeanIoU, Dice, PixelAccuracy]


def schema_of(*shape: int, classes: int = 3, counts: tuple[int, ...] = ()) -> Schema:
    return Schema(
        (Column("image", "image", shape, "uint8"),), Column("mask", "mask", shape[1:], "uint8"), tuple("abcdefgh"[:classes]),
        counts or tuple(range(50, 50 + classes)),
    )  # fmt: skip


def masked(rows: int, height: int, width: int, classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, classes, (rows, height, width), generator=generator)


def padded(sizes: list[list[int]], channels: int, classes: int, more: int = 0) -> Batch:
    """Rows of these sizes, padded to the largest and `more` beyond it, as the encoders pad: zeros and IGNORE."""
    height, width = (max(size[axis] for size in sizes) + more for axis in (0, 1))
    generator = torch.Generator().manual_seed(1)
    image = torch.zeros(len(sizes), channels, height, width)
    mask = torch.full((len(sizes), height, width), IGNORE)
    for row, (h, w) in enumerate(sizes):
        mask[row, :h, :w] = torch.randint(0, classes, (h, w), generator=generator)
        image[row, :, :h, :w] = 2.0 * mask[row, :h, :w] - classes + 1 + torch.randn(channels, h, w, generator=generator)
    return {"image": image, "image.sizes": torch.tensor(sizes), "mask": mask, "mask.sizes": torch.tensor(sizes)}


class UNetContract(FamilyContract):
    family = UNet
    shape: tuple[int, int, int] = (3, 16, 16)
    classes = 3

    @pytest.fixture
    def config(self) -> Any:
        return UNet.Config(channels=(4, 6, 8))

    @pytest.fixture
    def schema(self) -> Schema:
        return schema_of(*self.shape, classes=self.classes)

    @pytest.fixture
    def batch(self) -> Batch:
        generator = torch.Generator().manual_seed(0)
        return {"image": torch.randn(6, *self.shape, generator=generator), "mask": masked(6, *self.shape[1:], self.classes)}


class TestDefault(UNetContract):
    shape = (1, 8, 8)

    @pytest.fixture
    def config(self) -> Any:
        return UNet.Config()


class TestGreyOfOddSizes(UNetContract):
    shape = (1, 13, 7)

    @pytest.fixture
    def config(self) -> Any:
        return UNet.Config(channels=(4, 6, 8, 8), convolutions=1, dropout=0.2, loss="both", class_weights="balanced")


class TestSmallerThanItsLevels(UNetContract):
    shape = (1, 2, 3)

    @pytest.fixture
    def config(self) -> Any:
        return UNet.Config(channels=(4, 4, 4, 4), loss="dice", norm="sync")


class TestAnySize(UNetContract):
    @pytest.fixture
    def config(self) -> Any:
        return UNet.Config(channels=(8, 16))

    @pytest.fixture
    def schema(self) -> Schema:
        return schema_of(3, 0, 0)

    @pytest.fixture
    def batch(self) -> Batch:
        return padded([[9, 14], [16, 5], [7, 7], [2, 3], [16, 14], [3, 11]], 3, 3)


class TestAnySizeWithoutNormalisation(TestAnySize):
    @pytest.fixture
    def config(self) -> Any:
        return UNet.Config(channels=(8, 16), norm="none")


SIZES = [[9, 14], [17, 5], [7, 7], [1, 1], [16, 15]]


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_padded_row_is_answered_as_it_would_be_alone(norm: Any) -> None:
    torch.manual_seed(0)
    net = UNet(UNet.Config(channels=(4, 6, 8, 8), norm=norm), schema_of(2, 0, 0))
    batch = padded(SIZES, 2, 3, more=6)
    net.train()(batch)  # running statistics other than 0 and 1
    net.eval()
    with torch.inference_mode():
        together = net(batch)
        masks_of = net.decode(together, batch)["prediction"]
        for row, (h, w) in enumerate(SIZES):
            alone = net({"image": batch["image"][row : row + 1, :, :h, :w]})
            assert torch.allclose(together[row, :, :h, :w], alone[0], atol=1e-5), (h, w)
            assert torch.equal(masks_of[row], alone[0].argmax(0).to(torch.uint8))


def test_what_lies_in_the_padding_changes_neither_gradients_nor_running_statistics() -> None:
    """Of one row alone, of the same row padded far, and beside nothing else."""
    results = []
    for more in (0, 1, 9):
        torch.manual_seed(0)
        net = UNet(UNet.Config(channels=(4, 6, 8)), schema_of(2, 0, 0)).train()
        batch = padded([[9, 14], [6, 6]], 2, 3, more=more)
        net.loss(net(batch), batch).sum().backward()
        statistics = [buffer for name, buffer in net.named_buffers() if "running" in name]
        results.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None] + [s.flatten() for s in statistics]))
    assert torch.allclose(results[0], results[1], atol=1e-5)
    assert torch.allclose(results[0], results[2], atol=1e-5)


def test_normalisation_of_padded_rows_counts_their_own_pixels_only() -> None:
    torch.manual_seed(0)
    net = UNet(UNet.Config(channels=(4,), convolutions=1), schema_of(1, 0, 0)).train()
    batch = padded([[4, 6], [9, 3]], 1, 3)
    seen: list[Tensor] = []
    net.down[0].convolutions[0].register_forward_hook(lambda module, given, out: seen.append(out))
    net(batch)
    own = torch.cat([seen[0][row, :, :h, :w].flatten(1) for row, (h, w) in enumerate([[4, 6], [9, 3]])], 1)
    norm = net.down[0].norms[0][0]
    assert torch.allclose(norm.running_mean, 0.1 * own.mean(1), atol=1e-6)
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * own.var(1), atol=1e-5)


def test_rows_of_one_size_train_as_if_they_had_no_sizes() -> None:
    batch, grads = padded([[8, 6]] * 4, 1, 3), []
    for given in (batch, {name: values for name, values in batch.items() if not name.endswith(".sizes")}):
        torch.manual_seed(0)
        net = UNet(UNet.Config(channels=(4, 6)), schema_of(1, 0, 0)).train()
        net.loss(net(given), given).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert torch.allclose(*grads, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": []}, "at least 1 item"),
        ({"channels": [8, 0]}, "greater than 0"),
        ({"convolutions": 0}, "greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
        ({"loss": "hinge"}, "'cross_entropy', 'dice' or 'both'"),
    ],
)
def test_options_that_make_no_network_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TypeAdapter(UNet.Config).validate_python(options)


def test_it_fits_one_image_column_and_a_mask() -> None:
    whole = schema_of(3, 0, 0)
    assert UNet.misfit(whole) is None
    assert UNet.misfit(Schema(whole.inputs * 2, whole.target, whole.classes)) == "it takes one image column"
    assert UNet.misfit(Schema(whole.inputs, Column("label", "class"), whole.classes)) == "its target is a mask"


def test_encoder_and_network_agree_on_what_is_not_counted() -> None:
    assert segmentation.IGNORE == masks.IGNORE


def ignored(rows: int = 5, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Logits and a mask, a fifth of which isn't counted; the last class is neither true nor predicted."""
    torch.manual_seed(0)
    logits, mask = torch.randn(rows, classes, 9, 11), masked(rows, 9, 11, classes - 1)
    logits[:, -1] = -99
    mask[torch.rand(mask.shape) < 0.2] = IGNORE
    return logits, mask


def test_cross_entropy_is_the_mean_over_a_row_s_counted_pixels() -> None:
    logits, mask = ignored()
    rows = segmentation.loss(logits, mask, "cross_entropy", None, True)
    for row in range(5):
        assert rows[row].item() == pytest.approx(
            F.cross_entropy(logits[row : row + 1], mask[row : row + 1], ignore_index=IGNORE).item(), rel=1e-5
        )


def test_dice_is_one_less_the_overlap_of_probabilities() -> None:
    logits, mask = ignored(rows=1)
    probabilities, counted = logits.softmax(1)[0], mask[0] != IGNORE
    expected = []
    for c in range(4):
        p, t = probabilities[c][counted], (mask[0][counted] == c).float()
        expected.append((2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    found = segmentation.loss(logits, mask, "dice", None, True)
    assert found.item() == pytest.approx(1 - float(torch.stack(expected).mean()), rel=1e-5)
    both = segmentation.loss(logits, mask, "both", None, True)
    assert both.item() == pytest.approx(found.item() + segmentation.loss(logits, mask, "cross_entropy", None, True).item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["cross_entropy", "dice", "both"])
def test_class_weights_count_in_training_only(kind: Any) -> None:
    logits, mask = ignored()
    weight = torch.tensor([0.1, 1.0, 3.0, 1.0])
    plain = segmentation.loss(logits, mask, kind, None, True)
    assert torch.equal(segmentation.loss(logits, mask, kind, weight, False), plain)
    assert not torch.allclose(segmentation.loss(logits, mask, kind, weight, True), plain)


@pytest.mark.parametrize("kind", ["cross_entropy", "dice", "both"])
def test_a_row_without_a_counted_pixel_has_a_loss_and_no_gradient(kind: Any) -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    mask = torch.full((2, 4, 4), IGNORE)
    mask[1] = 2
    loss = segmentation.loss(logits, mask, kind, None, True)
    loss.sum().backward()
    assert loss[0].item() == 0
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert logits.grad[1].any()


def test_a_perfect_answer_costs_nothing() -> None:
    mask = masked(2, 6, 6, 3)
    logits = F.one_hot(mask, 3).permute(0, 3, 1, 2).float() * 50
    assert segmentation.loss(logits, mask, "both", None, False).max() < 1e-4
    assert [kind().value(kind().sums(logits, {"mask": mask}, schema_of(1, 6, 6))) for kind in METRICS] == [1, 1, 1]


def test_the_metrics_are_those_of_torchmetrics_over_the_whole_set() -> None:
    logits, mask = ignored(rows=40)
    schema, batch = schema_of(1, 9, 11, classes=4), {"mask": mask}
    predicted = logits.argmax(1)
    iou = multiclass_jaccard_index(predicted, mask, 4, average="macro", ignore_index=IGNORE)
    assert MeanIoU().value(MeanIoU().sums(logits, batch, schema)) == pytest.approx(iou.item(), rel=1e-6)
    f1 = multiclass_f1_score(predicted.flatten(), mask.flatten(), 4, average="macro", ignore_index=IGNORE)
    assert Dice().value(Dice().sums(logits, batch, schema)) == pytest.approx(f1.item(), rel=1e-6)
    confusion = multiclass_confusion_matrix(predicted, mask, 4, ignore_index=IGNORE).double()
    right = confusion.trace() / confusion.sum()
    assert PixelAccuracy().value(PixelAccuracy().sums(logits, batch, schema)) == pytest.approx(right.item(), rel=1e-12)
    intersection, union = confusion.diag()[:3], (confusion.sum(0) + confusion.sum(1) - confusion.diag())[:3]
    assert MeanIoU().value(MeanIoU().sums(logits, batch, schema)) == pytest.approx((intersection / union).mean().item(), rel=1e-12)


@pytest.mark.parametrize("kind", METRICS)
def test_the_sums_of_any_batches_add_up_to_those_of_all_rows(kind: type[Metric]) -> None:
    logits, mask = ignored(rows=13)
    schema = schema_of(1, 9, 11, classes=4)
    whole = kind().rows(logits, {"mask": mask}, schema)
    pieces = [kind().rows(a, {"mask": b}, schema) for a, b in zip(logits.split(3), mask.split(3), strict=True)]
    assert whole.dtype == torch.float64
    assert torch.equal(torch.cat(pieces), whole)


def test_iou_is_no_mean_of_images() -> None:
    """One image is all wrong, one all right, three times as large: by pixels."""
    logits = torch.zeros(2, 2, 1, 3)
    logits[:, 1] = torch.tensor([[[-1.0, -1, -1]], [[1, 1, 1]]])
    mask = torch.tensor([[[1, IGNORE, IGNORE]], [[1, 1, 1]]])
    sums = MeanIoU().sums(logits, {"mask": mask}, schema_of(1, 1, 3, classes=2))
    assert MeanIoU().value(sums) == (0 / 1 + 3 / 4) / 2


@pytest.mark.parametrize("kind", METRICS)
def test_a_metric_of_no_counted_pixel_is_no_number(kind: type[Metric]) -> None:
    sums = kind().sums(torch.randn(2, 3, 4, 4), {"mask": torch.full((2, 4, 4), IGNORE)}, schema_of(1, 4, 4))
    assert math.isnan(kind().value(sums))


def test_the_baseline_answers_the_class_of_most_pixels_everywhere() -> None:
    net = UNet(UNet.Config(channels=(2,)), schema_of(1, 5, 4, counts=(10, 90, 20)))
    batch = {"image": torch.randn(2, 1, 5, 4)}
    answer = net.decode(net.baseline(batch), batch)["prediction"]
    assert torch.equal(answer, torch.ones(2, 5, 4, dtype=torch.uint8))


def test_balanced_weights_come_from_the_pixels_of_each_class() -> None:
    net = UNet(UNet.Config(channels=(2,), class_weights="balanced"), schema_of(1, 5, 4, counts=(10, 90, 20)))
    assert torch.allclose(torch.as_tensor(net.class_weights), torch.tensor([120 / 30, 120 / 270, 120 / 60]))


@pytest.mark.parametrize("kind", ["cross_entropy", "dice", "both"])
def test_a_class_without_training_pixels_changes_no_balanced_loss(kind: Any) -> None:
    """As if the class weren't among them, whose logits are so low that it takes nothing from the others."""
    logits, mask = ignored()
    with_it, without = (classify.weights("balanced", counts) for counts in ((10, 90, 20, 0), (10, 90, 20)))
    found = segmentation.loss(logits, mask, kind, with_it, True)
    assert torch.allclose(found, segmentation.loss(logits[:, :3], mask, kind, without, True), atol=1e-6)


@pytest.mark.parametrize(("norm", "bias"), [("batch", False), ("none", True)])
def test_convolutions_have_a_bias_where_nothing_normalises_them(norm: Any, bias: bool) -> None:
    net = UNet(UNet.Config(channels=(2, 3), norm=norm), schema_of(1, 4, 4))
    assert {m.bias is not None for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)} == {bias}
