"""The experiment file as frozen models; unknown keys are refused.

`data`, `model` and `optimizer` name a part and carry its options; which options there are, and their defaults, is said by the part's
own Config, handed to `read` in the catalog.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Mode = Literal["max", "min"]


class Section(BaseModel):
    """A section of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """`source`: a name or a path of one's own; `split`: how rows are parted; `options`: the source's own keys."""

    source: str
    split: dict[str, Any] = {}
    options: dict[str, Any] = {}


class ModelConfig(Section):
    """`family`: a name, or the path of a class of one's own; `options`: the family's own keys. The others are every family's."""

    family: str
    init_from: str | None = Field(
        None,
        min_length=1,
        description="weights to start from, where name and shape are the same: models:/NAME@alias, runs:/ID, a bundle's folder",
    )
    freeze: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="parts of the network that aren't trained, e.g. [features]"
    )
    options: dict[str, Any] = {}

    @field_validator("freeze", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        if not isinstance(value, str | list | tuple):
            raise ValueError(f"it must be a list of parts, such as [features], not {value!r}")
        return (value,) if isinstance(value, str) else value


class OptimizerConfig(Section):
    """`name`: a name or a path of one's own; `options`: lr, schedule and the optimizer's own keys."""

    name: str = "adam"
    options: dict[str, Any] = {}


class AugmentConfig(Section):
    """Random changes of the training images, drawn anew for every image of every batch. Nothing is changed in evaluation."""

    shift: float = Field(0.0, ge=0, le=0.5, description="moves up to this share of the sides, by whole pixels; 0: off")
    flip: Literal["none", "horizontal", "vertical", "both"] = Field("none", description="mirrors half of the images, along each named axis")
    rotate: float = Field(0.0, ge=0, le=180, description="turns by up to so many degrees; 0: off")
    crop: float = Field(1.0, gt=0, le=1, description="cuts out at least this share of the area, and scales it to the whole; 1: off")
    cutout: float = Field(0.0, ge=0, lt=1, description="blanks a square of this share of the shorter side; 0: off")


class CheckpointConfig(Section):
    """How often a run's whole state is kept, inside epochs too: one of these keys; none: at epochs' ends, seconds apart."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra={"maxProperties": 1})

    minutes: PositiveFloat | None = Field(None, description="after so many minutes, in the middle of an epoch too")
    steps: PositiveInt | None = Field(None, description="after each so many optimizer steps")
    epochs: PositiveInt | None = Field(None, description="at the end of each so many epochs")

    @model_validator(mode="after")
    def _one(self) -> CheckpointConfig:
        if sum(value is not None for value in (self.minutes, self.steps, self.epochs)) > 1:
            raise ValueError("give one of minutes, steps and epochs, such as {minutes: 10}")
        return self


class TrainingConfig(Section):
    """How a run trains. `batch_size` is the global batch, whatever the number of workers; `accumulate` splits it into pieces."""

    epochs: PositiveInt = Field(10, description="passes over the training rows")
    batch_size: PositiveInt = Field(64, description="rows of one optimizer step, over all workers together")
    max_steps: PositiveInt | None = Field(None, description="end after so many optimizer steps")
    seed: int = Field(0, ge=0, lt=2**31, description="seeds initial weights, order of the data, dropout")
    precision: Precision = Field("auto", description="auto: bf16 or fp16 where the machine is faster with it")
    clip_norm: PositiveFloat | None = Field(None, description="largest norm of the gradient")
    accumulate: PositiveInt = Field(1, description="pieces in which a worker works through its rows of a batch, to save memory")
    patience: PositiveInt | None = Field(None, description="stop after so many epochs without a better value of the metric")
    augment: AugmentConfig = Field(AugmentConfig(), description="random changes of the training images")
    checkpoint_every: CheckpointConfig = Field(
        CheckpointConfig(), description="how often its whole state is kept: {minutes: 10}, {steps: N} or {epochs: N}"
    )
    executor: Literal["auto", "inline", "pool", "ddp"] = Field("auto", description="where `train` runs; auto: the plan decides")
    streaming: Literal["auto", "always", "never"] = Field(
        "auto", description="always: read rows from disk while training; never: hold them in memory; auto: hold them where they fit"
    )


class ScalingConfig(Section):
    """How many workers a run has, and what each of them holds."""

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        1, description="processes of a run; more than one: DDP; [fewest, most]: as many as there is room for, at any time"
    )
    cpus_per_worker: PositiveFloat | None = Field(None, description="default: 1 in a sweep, all that there are in a run of its own")
    gpus_per_worker: float | None = Field(None, ge=0, description="default: 1 where there are GPUs; 0.25: four trials share one")
    accelerator: str | None = Field(None, description="an accelerator type as Ray names it")
    timeout_s: PositiveFloat = Field(600.0, description="seconds after which a worker that doesn't answer the others is ended")
    resize_s: PositiveFloat = Field(60.0, description="with [fewest, most] workers: seconds between looks for room for more")

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_range(cls, value: Any) -> Any:
        numbers = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError(f"it must be a whole number from 1, or the fewest and the most of them, such as [1, 4], not {value!r}")
        if list(numbers) != sorted(numbers):
            raise ValueError(f"the fewest come first: {sorted(numbers)}, not {value!r}")
        return value

    @property
    def fewest(self) -> int:
        """The workers without which a run doesn't go on."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        """The workers that a run has where there is room."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class SchedulerConfig(Section):
    """Which scheduler stops trials early, and its settings."""

    name: str = Field("asha", description="none, asha, or the path of one of Ray Tune's or your own, 'module:Class', that goes on or stops")
    grace_period: PositiveInt = Field(1, description="epochs before a trial may be stopped")
    reduction_factor: int = Field(4, ge=2, description="one of so many trials goes on at each rung")


class SweepConfig(Section):
    """The search."""

    trials: PositiveInt = Field(16, description="runs of the search; a grid ends when it is exhausted")
    search: str = Field("tpe", description="random, grid, tpe, a searcher of Ray Tune by name, or a path")
    scheduler: SchedulerConfig = Field(SchedulerConfig(), description="none, asha, or a mapping with its settings")
    max_concurrent: PositiveInt | None = Field(None, description="trials at the same time, at most")
    seed: int | None = Field(None, ge=0, lt=2**31, description="seeds the searcher; default: training.seed")
    metric: str | None = Field(None, description="what is best; default: the family's own. Also for train, patience and promote")
    executor: Literal["auto", "inline", "pool", "ddp"] = Field("auto", description="where trials run; auto: the plan decides")
    space: dict[str, dict[str, Any]] = Field({}, description="dotted key -> {kind: arguments, when: {key: values}}")

    @field_validator("scheduler", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Bound(Section):
    """What a metric must reach."""

    min: float | None = Field(None, description="at least this")
    max: float | None = Field(None, description="at most this")


class RegistryConfig(Section):
    """Which registered model a promotion is for, and what it must reach."""

    model: str | None = Field(None, pattern=r"^[^/:\"'%]+$", description="default: the experiment's name")
    require: dict[str, Bound] = Field(
        {}, description="metric -> {min, max} that a promotion must reach, such as test_accuracy: {min: 0.97}"
    )


class StorageConfig(Section):
    """Where checkpoints are kept."""

    path: str | None = Field(None, description="a folder or any URI of pyarrow.fs; default: .orchestrator/checkpoints")


class NotifyConfig(Section):
    """Who is told how a launch goes, by a signed HTTP POST. Off unless there is a URL, here or in ORCHESTRATOR_NOTIFY_URL."""

    url: str | None = Field(
        None,
        description="where to; one with a secret in it belongs into ORCHESTRATOR_NOTIFY_URL. Signed with ORCHESTRATOR_NOTIFY_SECRET",
    )
    on: tuple[Literal["finished", "failed", "best", "stalled"], ...] = Field(
        ("finished", "failed"), description="best: each better value of the metric; stalled: nothing happens for stall_minutes"
    )
    stall_minutes: PositiveFloat = Field(30.0, description="minutes without an epoch, a start or an end of a run")

    @field_validator("url")
    @classmethod
    def _open(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#@\s]*)?", value):
            raise ValueError(
                "it must be http(s)://HOST/PATH, without user, query or fragment, since this file is recorded: "
                "another one belongs into the environment, ORCHESTRATOR_NOTIFY_URL"
            )
        return value


class BudgetConfig(Section):
    """What a launch may use in all, over retries and resumes. When it is used up runs under way end at their next step, and none begins."""

    gpu_hours: PositiveFloat | None = Field(None, description="hours of GPUs held by runs")
    cpu_hours: PositiveFloat | None = Field(None, description="hours of CPUs held by runs")
    wall_s: PositiveFloat | None = Field(None, description="seconds that its commands take")
    trials: PositiveInt | None = Field(None, description="runs that begin")


class Experiment(Section):
    """A whole experiment, resolved: every default filled in, every name known."""

    name: str
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    scaling: ScalingConfig = ScalingConfig()
    sweep: SweepConfig = SweepConfig()
    registry: RegistryConfig = RegistryConfig()
    storage: StorageConfig = StorageConfig()
    budget: BudgetConfig = BudgetConfig()
    notify: NotifyConfig = NotifyConfig()
    metric: str = Field("", exclude=True)  # sweep.metric, or the family's own
    mode: Mode = Field("max", exclude=True)

    @property
    def registered_model(self) -> str:
        return self.registry.model or self.name

    def plain(self) -> dict[str, Any]:
        """As nested plain data in the form of the file, so that reading it gives the same experiment."""
        data = self.model_dump(mode="json")
        for section in ("data", "model", "optimizer"):
            data[section] |= data[section].pop("options")
        return data

    def flat(self) -> dict[str, Any]:
        """Flat dotted parameters of what a run trains with, without what is unset."""
        trained = {k: v for k, v in self.plain().items() if k in TRAINED}
        return {k: v for k, v in flatten(trained).items() if v is not None}


TRAINED = ("data", "model", "optimizer", "training", "scaling")
OFF = {
    "model.freeze": [],
    **{f"scaling.{key}": ScalingConfig.model_fields[key].default for key in ("timeout_s", "resize_s")},
    **{f"training.augment.{key}": field.default for key, field in AugmentConfig.model_fields.items()},
}


def parameters(plain: dict[str, Any]) -> dict[str, Any]:
    """The flat dotted parameters of a plain experiment that are recorded: without the search, the registry, what is unset or off."""
    flat = flatten({k: v for k, v in plain.items() if k in TRAINED})
    return {k: v for k, v in flat.items() if v is not None and (k not in OFF or v != OFF[k])}


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
