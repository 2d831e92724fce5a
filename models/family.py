"""What a family of networks is: a Config, a network, its loss, its metrics, and the way back to answers.

A family is a `torch.nn.Module` made from a Config and a schema of the data. It knows neither files nor processes: the training loop
hands it batches, a mapping of column name to tensor, and so does prediction. Columns whose rows differ in size (texts, sequences, images
of any size) come padded, and beside them `NAME.sizes` ([B, 1] or [B, 2] int64): what lies beyond a row's size must change nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

Batch = Mapping[str, Tensor]
Outputs = Any  # a tensor with first dimension B, or a mapping of such tensors: what the family's own metrics take


class Column(Protocol):
    """A column of the data: its name, its kind (image, class, number ...) and the shape of one row's tensor, without the batch.

    `vocabulary`: the codes that a text or an id can have; `mean`, `std`: of a number's training rows.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def mean(self) -> float: ...
    @property
    def std(self) -> float: ...


class Schema(Protocol):
    """What a network needs to know of the data: input columns, target, and the classes' names where the target is a class.

    `counts`: training rows (of masks: pixels) of each class.
    """

    @property
    def inputs(self) -> Sequence[Column]: ...
    @property
    def target(self) -> Column: ...
    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def counts(self) -> Sequence[int]: ...


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
    any_size: ClassVar[bool] = False  # whether it answers images of other sizes than it was trained on: padded, with `NAME.sizes`

    protocol: ClassVar[str] = ""  # how its metrics are measured, where one name could mean two things: said wherever scores are
    baseline_name: ClassVar[str] = ""  # what `baseline` answers: majority class, mean, popularity

    def __init__(self, config: Any, schema: Schema) -> None:
        super().__init__()
        self.config, self.schema = config, schema

    def bind(self, tables: Mapping[str, Tensor]) -> None:
        """Take what the data knows beside its rows (features of ids, who has seen what); called once, after construction.

        The tables are no weights: they are kept as non-persistent buffers, and a bundle carries them beside the weights.
        """

    @classmethod
    @abstractmethod
    def misfit(cls, schema: Schema) -> str | None:
        """Why this family can't learn data of this schema, in a sentence; None if it can."""

    @abstractmethod
    def forward(self, batch: Batch) -> Outputs:
        """Outputs of a batch, first dimension B (the rows)."""

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The loss of each row: [B] float32. The loop divides by the rows of the whole batch over all ranks.

        While `self.training` it may be regularised (label smoothing, class weights); in evaluation it is the plain loss.
        """

    @abstractmethod
    def decode(self, outputs: Outputs, batch: Batch) -> dict[str, Any]:
        """What to answer, with first dimension B; `prediction` is the target's encoded form (a class index, a number)."""

    def baseline(self, batch: Batch) -> Outputs | None:
        """Outputs that know the training rows' targets (the schema's counts and means), but not this batch's inputs; None: it has none."""
        return None
