"""What a family of networks is: a Config, a network, its loss, its metrics, and the way back to answers.

A family is a `torch.nn.Module` made from a Config and a schema of the data. It knows neither files nor processes: the training loop
hands it batches, a mapping of column name to tensor, and so does prediction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

Batch = Mapping[str, Tensor]


class Column(Protocol):
    """A column of the data: its name, its kind (image, class, number ...) and the shape of one row's tensor, without the batch."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class Schema(Protocol):
    """What a network needs to know of the data: input columns, target, and the classes' names where the target is a class."""

    @property
    def inputs(self) -> Sequence[Column]: ...
    @property
    def target(self) -> Column: ...
    @property
    def classes(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class FamilyConfig:
    """A family's options. Subclasses add fields, each with its default and, in `Annotated`, its bounds (annotated_types)."""


class Family(nn.Module, ABC):
    """A network with its loss, metrics and decoding. Subclasses set the class variables and the three methods."""

    Config: ClassVar[type[FamilyConfig]]
    task: ClassVar[str]  # classification, regression, ranking, segmentation
    metrics: ClassVar[tuple[str, ...]]  # names in models.metrics.METRICS; the first is the family's default
    channels_last: ClassVar[bool] = False  # whether convolutions profit from NHWC memory
    mixed_precision: ClassVar[bool] = True  # whether `precision: auto` may choose bf16 or fp16

    def __init__(self, config: Any, schema: Schema) -> None:
        super().__init__()
        self.config, self.schema = config, schema

    @classmethod
    @abstractmethod
    def misfit(cls, schema: Schema) -> str | None:
        """Why this family can't learn data of this schema, in a sentence; None if it can."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Outputs of a batch, first dimension B (the rows)."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The loss of each row: [B] float32. The loop divides by the rows of the whole batch over all ranks.

        While `self.training` it may be regularised (label smoothing); in evaluation it is the plain loss.
        """

    @abstractmethod
    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """What to answer, as tensors with first dimension B; `prediction` is the target's encoded form (a class index, a number)."""
