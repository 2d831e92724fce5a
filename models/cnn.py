"""Convolutional network for image classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Len, Lt, doc
from torch import Tensor, nn

from . import classify
from .family import Batch, Family, FamilyConfig, Schema
from .norm import Norm, norm2d

Positive = Annotated[int, Gt(0)]


class CNN(Family):
    """Convolution, (pooling,) normalisation, ReLU, once for each entry of `channels`; then a linear classifier.

    Pooling comes before the normalisation: the result is as good and three quarters of the work are saved.
    """

    @dataclass(frozen=True)
    class Config(FamilyConfig):
        """The convolutions, and what follows them."""

        channels: Annotated[tuple[Positive, ...], Len(1), doc("filters of each convolution")] = (32, 64, 64)
        kernels: Annotated[tuple[Positive, ...], Len(1), doc("sides of the kernels; a short list repeats its last")] = (3,)
        strides: Annotated[tuple[Positive, ...], Len(1), doc("of the convolutions, from the first on; the others have 1")] = (1,)
        pool_after: Annotated[tuple[Positive, ...], doc("places of convolutions, from 1, that 2x2 max pooling follows")] = (2, 3)
        padding: Annotated[Literal["same", "valid"], doc("same: images keep their size; valid: they lose a border")] = "same"
        hidden: Annotated[tuple[Positive, ...], doc("sizes of fully connected layers before the classifier")] = ()
        head: Annotated[Literal["auto", "flatten", "average"], doc("auto: flatten a last map of up to 64 cells, average a larger one")] = (
            "auto"
        )
        norm: Annotated[Norm, doc("batch, sync (over all workers), none")] = "batch"
        dropout: Annotated[float, Ge(0), Lt(1), doc("before the classifier")] = 0.0
        hidden_dropout: Annotated[float, Ge(0), Lt(1), doc("after each hidden layer")] = 0.0
        label_smoothing: Annotated[float, Ge(0), Lt(1), doc("share of the target that is spread over all classes, in training")] = 0.0
        class_weights: Annotated[
            classify.ClassWeights, doc("balanced: rows count by the inverse of their class's frequency, in training")
        ] = "none"

        def __post_init__(self) -> None:
            for name in ("kernels", "strides"):
                if len(getattr(self, name)) > len(self.channels):
                    raise ValueError(f"{name} has more entries than channels ({len(self.channels)})")
            if self.pool_after and max(self.pool_after) > len(self.channels):
                raise ValueError(f"pool_after names convolution {max(self.pool_after)}, but channels has {len(self.channels)}")

    task = "classification"
    metrics = ("accuracy",)
    channels_last = True
    baseline_name = classify.BASELINE

    class_weights: Tensor | None

    def __init__(self, config: Config, schema: Schema) -> None:
        super().__init__(config, schema)
        image = schema.inputs[0]
        self.input, self.target = image.name, schema.target.name
        self.features, channels, height, width = _features(config, image.shape)
        if height < 1 or width < 1:
            raise ValueError(f"model: an image of {image.shape[1]}x{image.shape[2]} is too small for so many poolings and strides")
        flat = config.head == "flatten" or (config.head == "auto" and height * width <= 64)
        layers: list[nn.Module] = [nn.Flatten()] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        layers.append(nn.Dropout(config.dropout))
        size = channels * height * width if flat else channels
        for hidden in config.hidden:
            layers += [nn.Linear(size, hidden), nn.ReLU(), nn.Dropout(config.hidden_dropout)]
            size = hidden
        layers.append(nn.Linear(size, len(schema.classes)))
        self.classifier = nn.Sequential(*layers)
        self.register_buffer("class_weights", classify.weights(config.class_weights, schema.counts), persistent=False)

    @classmethod
    def misfit(cls, schema: Schema) -> str | None:
        kinds = [column.kind for column in schema.inputs]
        if kinds != ["image"]:
            return "it takes one image column"
        if 0 in schema.inputs[0].shape:
            return "it takes images of one size: set data.size: [H, W] to bring them to one"
        if schema.target.kind != "class":
            return "its target is a class"
        return None

    def forward(self, batch: Batch) -> Tensor:
        # [B, C, H, W] float32 -> [B, classes]
        logits: Tensor = self.classifier(self.features(batch[self.input]))
        return logits

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return classify.loss(outputs, batch[self.target], self.class_weights, self.config.label_smoothing, self.training)

    def decode(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return classify.decode(outputs)

    def baseline(self, batch: Batch) -> Tensor:
        return classify.majority(self.schema, batch[self.input])


def _features(config: Any, shape: tuple[int, ...]) -> tuple[nn.Sequential, int, int, int]:
    """The convolutions, and the channels, height and width of what comes out of them; size 0 where the image is too small."""
    channels, height, width = shape
    layers: list[nn.Module] = []
    for place, out in enumerate(config.channels, start=1):
        kernel = config.kernels[min(place, len(config.kernels)) - 1]
        stride = config.strides[place - 1] if place <= len(config.strides) else 1
        padding = kernel // 2 if config.padding == "same" else 0
        layers.append(nn.Conv2d(channels, out, kernel, stride, padding, bias=config.norm == "none"))
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
        if place in config.pool_after:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        layers += [*norm2d(config.norm, out), nn.ReLU(inplace=True)]
        channels = out
    return nn.Sequential(*layers), channels, max(height, 0), max(width, 0)
