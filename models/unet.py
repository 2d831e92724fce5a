"""U-Net: a class for each pixel of an image of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Len, Lt, doc
from torch import Tensor, nn

from . import classify, segmentation
from .family import Batch, Family, FamilyConfig, Schema
from .norm import Norm, norm2d

Positive = Annotated[int, Gt(0)]


class UNet(Family):
    """Convolutions that halve the image level by level, and back up, beside what each level held (https://arxiv.org/abs/1505.04597).

    Convolutions pad with zeros, so that a mask is as large as its image. A side that can't be halved is rounded up, and cut again on
    the way back. In a batch of different sizes all that lies beyond a row's own size is kept at zero on every level, and normalisation
    doesn't count it: a row sees at its borders what it would see alone.
    """

    @dataclass(frozen=True)
    class Config(FamilyConfig):
        """The levels, and what they are trained for."""

        channels: Annotated[
            tuple[Positive, ...], Len(1), doc("of each level, from full resolution down; every further level halves it")
        ] = (16, 32, 64)
        convolutions: Annotated[Positive, doc("of each level, on the way down and on the way up")] = 2
        norm: Annotated[Norm, doc("batch, sync (over all workers), none")] = "batch"
        dropout: Annotated[float, Ge(0), Lt(1), doc("of whole channels at the lowest level")] = 0.0
        loss: Annotated[segmentation.Loss, doc("cross_entropy, dice, or their sum")] = "cross_entropy"
        class_weights: Annotated[
            classify.ClassWeights, doc("balanced: pixels count by the inverse of their class's frequency, in training")
        ] = "none"

    task = "segmentation"
    metrics = ("iou", "dice", "pixel_accuracy")
    channels_last = True
    any_size = True
    baseline_name = classify.BASELINE

    class_weights: Tensor | None

    def __init__(self, config: Config, schema: Schema) -> None:
        super().__init__(config, schema)
        image = schema.inputs[0]
        self.input, self.target = image.name, schema.target.name
        given = (image.shape[0], *config.channels)
        self.down = nn.ModuleList(_Block(below, channels, config) for below, channels in zip(given[:-1], config.channels, strict=True))
        pairs = list(zip(config.channels[1:], config.channels[:-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, channels, 2, stride=2) for below, channels in pairs)
        self.merge = nn.ModuleList(_Block(2 * channels, channels, config) for _, channels in pairs)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(config.channels[0], len(schema.classes), 1)
        self.register_buffer("class_weights", classify.weights(config.class_weights, schema.counts), persistent=False)

    @classmethod
    def misfit(cls, schema: Schema) -> str | None:
        if [column.kind for column in schema.inputs] != ["image"]:
            return "it takes one image column"
        if schema.target.kind != "mask":
            return "its target is a mask"
        return None

    def forward(self, batch: Batch) -> Tensor:
        # [B, C, H, W] float32 -> [B, classes, H, W]
        x = batch[self.input]
        inside = self._inside(x, batch.get(f"{self.input}.sizes"))
        held: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(_halved(x) if level else x, inside[level])
            held.append(x)
        x = self.dropout(held.pop())
        for level in reversed(range(len(held))):
            beside = held[level]
            x = self.up[level](x)[:, :, : beside.shape[2], : beside.shape[3]]
            x = self.merge[level](torch.cat([beside, _within(x, inside[level])], 1), inside[level])
        logits: Tensor = self.classifier(x)
        return logits

    def _inside(self, x: Tensor, sizes: Tensor | None) -> Sequence[Tensor | None]:
        """1 where a pixel is a row's own, else 0, on each level: [B, 1, h, w]; None where no row is padded."""
        if sizes is None:
            return [None] * len(self.down)
        rows = torch.arange(x.shape[2], device=x.device) < sizes[:, :1]
        columns = torch.arange(x.shape[3], device=x.device) < sizes[:, 1:]
        whole = (rows[:, :, None] & columns[:, None, :])[:, None]
        if self.training and bool(whole.all()):  # rows of one size: not in evaluation, where an export follows one path
            return [None] * len(self.down)
        found = [whole.to(x.dtype)]
        for _ in range(1, len(self.down)):
            found.append(_halved(found[-1]))
        return found

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return segmentation.loss(outputs, batch[self.target], self.config.loss, self.class_weights, self.training)

    def decode(self, outputs: Tensor, batch: Batch) -> dict[str, Any]:
        """`prediction`: each row's classes, uint8, at its own size: [B, H, W], or a list of [h, w] where sizes differ."""
        best = outputs.argmax(1).to(torch.uint8)
        sizes = batch.get(f"{self.input}.sizes")
        if sizes is None:
            return {"prediction": best}
        return {"prediction": [mask[:height, :width] for mask, (height, width) in zip(best, sizes.tolist(), strict=True)]}

    def baseline(self, batch: Batch) -> Tensor:
        image = batch[self.input]
        shares = classify.majority(self.schema, image)
        return shares[:, :, None, None].expand(-1, -1, *image.shape[2:])


class _Block(nn.Module):
    """Convolution 3x3, normalisation, ReLU, some times; what is not inside stays zero."""

    def __init__(self, channels_in: int, channels: int, config: Any) -> None:
        super().__init__()
        given = [channels_in] + [channels] * (config.convolutions - 1)
        self.convolutions = nn.ModuleList(nn.Conv2d(into, channels, 3, padding=1, bias=config.norm == "none") for into in given)
        self.norms = nn.ModuleList(nn.Sequential(*norm2d(config.norm, channels)) for _ in given)

    def forward(self, x: Tensor, inside: Tensor | None) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(_normalised(norm, convolution(x), inside))
        return x


def _normalised(norm: nn.Module, x: Tensor, inside: Tensor | None) -> Tensor:
    """x normalised, zero outside; in training by the statistics of the pixels inside alone, laid out as one row of them."""
    if inside is None:
        plain: Tensor = norm(x)
        return plain
    if not norm.training or len(norm) == 0:  # type: ignore[arg-type]
        return _within(norm(x), inside)
    cells = x.permute(0, 2, 3, 1).flatten(0, 2)
    own = inside.flatten().nonzero()[:, 0]
    normal = norm(cells.index_select(0, own).t()[None, :, :, None])[0, :, :, 0].t()
    whole: Tensor = normal.new_zeros(cells.shape).index_copy(0, own, normal)
    return whole.view(x.shape[0], *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)


def _halved(x: Tensor) -> Tensor:
    """The largest of each 2x2 cells, of what there is of them at the border."""
    return F.max_pool2d(x, 2, ceil_mode=True)


def _within(x: Tensor, inside: Tensor | None) -> Tensor:
    return x if inside is None else x * inside
