"""Optimizers and learning-rate schedules by name. An optimizer is a class with a Config and `build`, and one line in OPTIMIZERS.

One that also has `rows` (a rule of row_wise) can train embeddings with sparse gradients: see `build` below.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt, doc
from torch import nn

from orchestrator.training import row_wise

OPTIMIZERS = {
    "sgd": "orchestrator.training.optim:SGD",
    "adam": "orchestrator.training.optim:Adam",
    "adamw": "orchestrator.training.optim:AdamW",
    "rmsprop": "orchestrator.training.optim:RMSprop",
}

Beta = Annotated[float, Ge(0), Lt(1)]
Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class OptimizerConfig:
    """What every optimizer has."""

    lr: Annotated[float, Gt(0), doc("the largest learning rate")] = 1e-3
    weight_decay: Annotated[float, Ge(0), doc("on matrices and kernels only, not on biases and norms")] = 0.0
    schedule: Annotated[Literal["constant", "cosine", "linear", "onecycle"], doc("how the rate goes over all steps")] = "constant"
    warmup: Annotated[
        Annotated[float, Ge(0), Le(1)] | None, doc("share of the steps in which the rate rises; default: the schedule's own")
    ] = None


class SGD:
    """Stochastic gradient descent with momentum."""

    @dataclass(frozen=True)
    class Config(OptimizerConfig):
        lr: Annotated[float, Gt(0), doc("the largest learning rate")] = 1e-2
        momentum: Annotated[Beta, doc("share of the last step that is kept")] = 0.9
        nesterov: Annotated[bool, doc("look ahead by the momentum")] = False

    @staticmethod
    def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
        nesterov = config.nesterov and config.momentum > 0
        return _eager(torch.optim.SGD)(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)

    @staticmethod
    def rows(config: Config) -> row_wise.Rule:
        return row_wise.SGD(config.momentum, config.nesterov and config.momentum > 0)


class Adam:
    """https://arxiv.org/abs/1412.6980 (weight decay, if any, is added to the gradient)."""

    @dataclass(frozen=True)
    class Config(OptimizerConfig):
        betas: Annotated[tuple[Beta, Beta], doc("how slowly the means of the gradient and of its square move")] = (0.9, 0.999)

    @staticmethod
    def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
        return _eager(torch.optim.Adam)(groups, lr=config.lr, betas=config.betas, fused=True)

    @staticmethod
    def rows(config: Config) -> row_wise.Rule:
        return row_wise.Adam(config.betas)


class AdamW:
    """https://arxiv.org/abs/1711.05101 (decoupled weight decay)."""

    @dataclass(frozen=True)
    class Config(OptimizerConfig):
        weight_decay: Annotated[float, Ge(0), doc("decoupled, on matrices and kernels only")] = 1e-2
        betas: Annotated[tuple[Beta, Beta], doc("how slowly the means of the gradient and of its square move")] = (0.9, 0.999)

    @staticmethod
    def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
        return _eager(torch.optim.AdamW)(groups, lr=config.lr, betas=config.betas, fused=True)

    @staticmethod
    def rows(config: Config) -> row_wise.Rule:
        return row_wise.Adam(config.betas, decoupled=True)


class RMSprop:
    """Hinton's; torch has no fused form of it."""

    @dataclass(frozen=True)
    class Config(OptimizerConfig):
        momentum: Annotated[Beta, doc("share of the last step that is kept")] = 0.0
        alpha: Annotated[Beta, doc("how slowly the mean of the squared gradient moves")] = 0.99

    @staticmethod
    def build(groups: Groups, config: Config) -> torch.optim.Optimizer:
        return _eager(torch.optim.RMSprop)(groups, lr=config.lr, momentum=config.momentum, alpha=config.alpha, foreach=True)

    @staticmethod
    def rows(config: Config) -> row_wise.Rule:
        return row_wise.RMSprop(config.alpha, config.momentum)


@functools.cache
def _eager(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """torch's optimizer without the questions to torch.compile at each call: nothing is compiled here, and that takes seconds to import."""
    take_step = inspect.unwrap(kind.step)

    def step(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return take_step(self, closure)

    own = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict")}
    return type(kind.__name__, (kind,), {"step": step, **own})


def build(optimizer: Any, config: Any, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a module's parameters, weight decay on those of two dimensions and more.

    Embeddings with `sparse=True` are updated by row (see row_wise), beside the others, in the same object. Raises ValueError if the
    optimizer has no rule for rows.
    """
    tables = row_wise.tables_of(module)
    trained = [p for p in module.parameters() if p.requires_grad and all(p is not table for table in tables)]
    groups: Groups = [{"params": trained, "weight_decay": 0.0}]  # one group where one will do: each costs a call a step
    if config.weight_decay:
        matrices, others = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    parts: list[torch.optim.Optimizer] = [optimizer.build(groups, config)] if groups or not tables else []
    if tables:
        parts.append(row_wise.RowWise([{"params": tables, "weight_decay": config.weight_decay}], _rule(optimizer, config), config.lr))
    return parts[0] if len(parts) == 1 else row_wise.Together(parts)


def _rule(optimizer: Any, config: Any) -> row_wise.Rule:
    if not hasattr(optimizer, "rows"):
        known = ", ".join(OPTIMIZERS)
        raise ValueError(f"optimizer {optimizer.__name__} has no rule for rows of large tables: take {known}, or set model.sparse: never")
    rule: row_wise.Rule = optimizer.rows(config)
    return rule


def _constant(done: float, warmup: float) -> float:
    return done / warmup if done < warmup else 1.0


def _linear(done: float, warmup: float) -> float:
    """From 1/10 up to 1, then down to 1/100."""
    if done < warmup:
        return 0.1 + 0.9 * done / warmup
    return 1.0 - 0.99 * (done - warmup) / max(1 - warmup, 1e-9)


def _cosine(done: float, warmup: float) -> float:
    """https://arxiv.org/abs/1608.03983, without restarts."""
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(1 - warmup, 1e-9)))


def _onecycle(done: float, warmup: float) -> float:
    """https://arxiv.org/abs/1708.07120, with the factors of torch.optim.lr_scheduler.OneCycleLR."""
    if done < warmup:
        return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * done / warmup))
    return 4e-6 + (1 - 4e-6) * 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(1 - warmup, 1e-9)))


class Schedule:
    """The learning rate at each optimizer step, as a factor of `lr`: a pure function of the share of the steps that are done."""

    SHAPES: ClassVar[dict[str, tuple[Callable[[float, float], float], float]]] = {
        "constant": (_constant, 0.0),
        "cosine": (_cosine, 0.0),
        "linear": (_linear, 0.25),
        "onecycle": (_onecycle, 0.3),
    }

    def __init__(self, name: str, steps: int, warmup: float | None = None) -> None:
        self.shape, default = self.SHAPES[name]
        self.last_step = max(steps - 1, 1)
        self.warmup = default if warmup is None else warmup

    def factor(self, step: int) -> float:
        """The factor at a step, from 0."""
        return self.shape(min(step / self.last_step, 1.0), self.warmup)
