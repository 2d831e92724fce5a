"""LSTMs for texts and sequences of any length: one answer a row, a class or a number.

https://www.bioinf.jku.at/publications/older/2604.pdf; both directions: https://doi.org/10.1109/78.650093. The pass from the end is a
one-way LSTM over rows that are reversed inside their own lengths: as exact as packing, faster, and made of operations that export.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt, doc
from torch import Tensor, nn

from . import classify
from .family import Batch, Family, FamilyConfig, Schema

EMBEDDED = ("text", "symbols")  # kinds of columns that come as codes [B, T] int64: 0 is padding, 1 what training hasn't seen
UNKNOWN = 1

Positive = Annotated[int, Gt(0)]
Share = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class RecurrentConfig(FamilyConfig):
    """What both families have. Every dropout is off in evaluation."""

    embedding: Annotated[Positive, doc("size of a word's or symbol's vector; sequences of numbers have none")] = 100
    hidden: Annotated[Positive, doc("size of each layer's state, in each direction")] = 128
    layers: Annotated[Positive, doc("LSTMs on top of each other")] = 1
    bidirectional: Annotated[bool, doc("a second pass from the end")] = False
    pooling: Annotated[Literal["last", "mean", "max"], doc("of a row's steps; last: the states that have seen all of it")] = "last"
    dropout: Annotated[Share, doc("between layers and before the answer")] = 0.0
    word_dropout: Annotated[Share, doc("share of words that count as unknown, of steps that count as the mean, in training")] = 0.0
    feature_dropout: Annotated[Share, doc("share of features that are off in all steps of a row, in training")] = 0.0
    max_length: Annotated[Positive | None, doc("steps after so many are left out")] = None


class Recurrent(Family):
    """Stacked LSTMs from a batch to one vector a row: [B, hidden * directions], zeros for a row without steps."""

    takes = (*EMBEDDED, "sequence", "audio")

    def __init__(self, config: Any, schema: Schema, answers: int) -> None:
        super().__init__(config, schema)
        column = schema.inputs[0]
        self.input, self.target = column.name, schema.target.name
        self.embedding = _embedding(column.vocabulary, config.embedding) if column.kind in EMBEDDED else None
        size = config.embedding if column.kind in EMBEDDED else column.shape[0]
        self.forwards, self.backwards = nn.ModuleList(), nn.ModuleList()
        for _ in range(config.layers):
            self.forwards.append(nn.LSTM(size, config.hidden, batch_first=True))
            if config.bidirectional:
                self.backwards.append(nn.LSTM(size, config.hidden, batch_first=True))
            size = config.hidden * (1 + config.bidirectional)
        self.head = nn.Linear(size, answers)

    @classmethod
    def misfit(cls, schema: Schema) -> str | None:
        kinds = [column.kind for column in schema.inputs]
        if len(kinds) != 1 or kinds[0] not in cls.takes:
            return "it takes one column of texts, symbols or sequences"
        return cls.target_misfit(schema)

    @classmethod
    @abstractmethod
    def target_misfit(cls, schema: Schema) -> str | None:
        """Why it can't learn this target; None if it can."""

    def forward(self, batch: Batch) -> Tensor:
        # [B, T] int64 or [B, T, F] float32 -> [B, answers]
        values, lengths = batch[self.input][:, : self.config.max_length], batch[f"{self.input}.sizes"][:, 0]
        lengths = lengths if self.config.max_length is None else lengths.clamp_max(self.config.max_length)
        places = torch.arange(values.shape[1], device=values.device)[None]
        inside = (places < lengths[:, None])[..., None]  # [B, T, 1]
        reverse = torch.where(inside[..., 0], lengths[:, None] - 1 - places, places)[..., None]  # [B, T, 1]
        steps = self._dropped(values)
        for place, forwards in enumerate(self.forwards):
            if place:
                steps = nn.functional.dropout(steps, self.config.dropout, self.training)
            ahead = forwards(steps)[0]
            if self.config.bidirectional:
                back = self.backwards[place](_flip(steps, reverse))[0]
                if place == len(self.forwards) - 1 and self.config.pooling == "last":
                    ahead = torch.cat([ahead, back], -1)  # the last state of each direction lies at a row's last step
                else:
                    ahead = torch.cat([ahead, _flip(back, reverse)], -1)
            steps = ahead
        pooled = _pool(steps, inside, lengths, self.config.pooling)
        answers: Tensor = self.head(nn.functional.dropout(pooled, self.config.dropout, self.training))
        return answers

    def _dropped(self, values: Tensor) -> Tensor:
        """[B, T, E] of codes or steps, after the dropout of words and of features."""
        if self.training and self.config.word_dropout:
            gone = torch.rand(values.shape[:2], device=values.device) < self.config.word_dropout
            if self.embedding is None:
                values = values.masked_fill(gone[..., None], 0.0)
            else:
                values = values.masked_fill(gone & (values != 0), UNKNOWN)
        steps: Tensor = values if self.embedding is None else self.embedding(values)
        if self.training and self.config.feature_dropout:
            kept = nn.functional.dropout(steps.new_ones(len(steps), 1, steps.shape[2]), self.config.feature_dropout)
            steps = steps * kept
        return steps


def _embedding(codes: int, size: int) -> nn.Embedding:
    """Begun near zero: a word that comes but a few times in training must be able to leave where it began."""
    made = nn.Embedding(codes, size, padding_idx=0)
    with torch.no_grad():
        made.weight.mul_(0.1)
    return made


def _flip(steps: Tensor, reverse: Tensor) -> Tensor:
    """Each row's steps in reverse order, its padding left where it is. steps: [B, T, E], reverse: [B, T, 1] int64."""
    return steps.gather(1, reverse.expand(-1, -1, steps.shape[2]))


def _pool(steps: Tensor, inside: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """[B, T, E] -> [B, E]; zeros where a row has no steps."""
    some = (lengths > 0)[:, None]
    if pooling == "last":
        last = (lengths - 1).clamp_min(0)[:, None, None].expand(-1, 1, steps.shape[2])
        return steps.gather(1, last)[:, 0] * some
    if pooling == "mean":
        return (steps * inside).sum(1) / lengths.clamp_min(1)[:, None]
    return steps.masked_fill(~inside, torch.finfo(steps.dtype).min).amax(1) * some


class LSTM(Recurrent):
    """A class for each row."""

    @dataclass(frozen=True)
    class Config(RecurrentConfig):
        """And what classifiers have."""

        label_smoothing: Annotated[Share, doc("share of the target that is spread over all classes, in training")] = 0.0
        class_weights: Annotated[
            classify.ClassWeights, doc("balanced: rows count by the inverse of their class's frequency, in training")
        ] = "none"

    task = "classification"
    metrics = ("accuracy",)
    baseline_name = classify.BASELINE
    class_weights: Tensor | None

    def __init__(self, config: Config, schema: Schema) -> None:
        super().__init__(config, schema, len(schema.classes))
        self.register_buffer("class_weights", classify.weights(config.class_weights, schema.counts), persistent=False)

    @classmethod
    def target_misfit(cls, schema: Schema) -> str | None:
        if schema.target.kind == "number":
            return "its target is a class; for a number take lstm-regression"
        return None if schema.target.kind == "class" else "its target is a class"

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return classify.loss(outputs, batch[self.target], self.class_weights, self.config.label_smoothing, self.training)

    def decode(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return classify.decode(outputs)

    def baseline(self, batch: Batch) -> Tensor:
        return classify.majority(self.schema, batch[self.input])


class LSTMRegression(Recurrent):
    """A number for each row. Outputs are standardised by the training rows' mean and deviation: [B]."""

    Config = RecurrentConfig
    task = "regression"
    metrics = ("rmse", "mae")
    baseline_name = "mean"

    def __init__(self, config: Any, schema: Schema) -> None:
        super().__init__(config, schema, 1)

    @classmethod
    def target_misfit(cls, schema: Schema) -> str | None:
        if schema.target.kind == "class":
            return "its target is a number; for a class take lstm"
        return None if schema.target.kind == "number" else "its target is a number"

    def forward(self, batch: Batch) -> Tensor:
        return super().forward(batch)[:, 0]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The squared error of the standardised target: [B]."""
        target = self.schema.target
        return (outputs.float() - ((batch[self.target] - target.mean) / target.std).float()).square()

    def decode(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`prediction`: in the target's own units, [B] float64."""
        return {"prediction": outputs.double() * self.schema.target.std + self.schema.target.mean}

    def baseline(self, batch: Batch) -> Tensor:
        return torch.zeros(len(batch[self.input]), device=batch[self.input].device)
