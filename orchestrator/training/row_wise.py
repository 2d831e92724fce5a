"""Updates of embedding tables by row: a step reads and writes only the rows that the batch named, however large the table is.

The rule is one for all optimizers: each row takes exactly the steps that the optimizer would take, with moments (and, in Adam, a count of
steps) of its own, in those steps in which the row has a gradient; meanwhile it waits, with no momentum and no weight decay. Where every
row is in every batch that is the dense optimizer. torch.optim.SparseAdam differs in one point: it counts the steps of the whole table, so
that a row's first step grows with its age (https://docs.pytorch.org/docs/stable/generated/torch.optim.SparseAdam.html).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

Rows = dict[str, Tensor]  # the state of n rows: moments [n, D], `step` [n, 1]; float32
EPS = 1e-8  # of torch.optim's Adam and RMSprop


class Rule(Protocol):
    """How rows move. `moments`: names of state like the weights; `counted`: whether each row's steps are counted in `step`."""

    @property
    def moments(self) -> tuple[str, ...]: ...
    @property
    def counted(self) -> bool: ...

    def update(self, weights: Tensor, gradient: Tensor, state: Rows, lr: float, weight_decay: float) -> None:
        """Change n rows ([n, D]) and their state, in place; the gradient may be changed too."""
        ...


@dataclass(frozen=True)
class SGD:
    """The formulas of torch.optim.SGD."""

    momentum: float = 0.0
    nesterov: bool = False
    counted = False

    @property
    def moments(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def update(self, weights: Tensor, gradient: Tensor, state: Rows, lr: float, weight_decay: float) -> None:
        """See Rule."""
        step = gradient.add(weights, alpha=weight_decay) if weight_decay else gradient
        if self.momentum:
            buffer = state["momentum_buffer"].mul_(self.momentum).add_(step)
            step = step.add(buffer, alpha=self.momentum) if self.nesterov else buffer
        weights.add_(step, alpha=-lr)


@dataclass(frozen=True)
class Adam:
    """https://arxiv.org/abs/1412.6980; `decoupled`: https://arxiv.org/abs/1711.05101, AdamW."""

    betas: tuple[float, float] = (0.9, 0.999)
    decoupled: bool = False
    counted = True
    moments = ("exp_avg", "exp_avg_sq")

    def update(self, weights: Tensor, gradient: Tensor, state: Rows, lr: float, weight_decay: float) -> None:
        """See Rule."""
        if weight_decay and self.decoupled:
            weights.mul_(1 - lr * weight_decay)
        elif weight_decay:
            gradient = gradient.add(weights, alpha=weight_decay)
        first, second = self.betas
        step = state["step"].add_(1).double()  # float32 would leave four digits of 1 - .999
        mean = state["exp_avg"].lerp_(gradient, 1 - first)
        square = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        spread = square.sqrt().div_((1 - second**step).sqrt_().to(square.dtype)).add_(EPS)
        weights.sub_((mean / spread).mul_((lr / (1 - first**step)).to(mean.dtype)))


@dataclass(frozen=True)
class RMSprop:
    """The formulas of torch.optim.RMSprop."""

    alpha: float = 0.99
    momentum: float = 0.0
    counted = False

    @property
    def moments(self) -> tuple[str, ...]:
        return ("square_avg", "momentum_buffer") if self.momentum else ("square_avg",)

    def update(self, weights: Tensor, gradient: Tensor, state: Rows, lr: float, weight_decay: float) -> None:
        """See Rule."""
        if weight_decay:
            gradient = gradient.add(weights, alpha=weight_decay)
        square = state["square_avg"].mul_(self.alpha).addcmul_(gradient, gradient, value=1 - self.alpha)
        step = gradient / square.sqrt().add_(EPS)
        if self.momentum:
            step = state["momentum_buffer"].mul_(self.momentum).add_(step)
        weights.add_(step, alpha=-lr)


class RowWise(torch.optim.Optimizer):
    """Tables with sparse gradients, by a rule. A gradient that comes dense after all moves every row: right, and as slow as that is."""

    def __init__(self, groups: list[dict[str, Any]], rule: Rule, lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.rule = rule

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step; a table whose gradient names no row stays as it is."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, group["lr"], group["weight_decay"])

    def _update(self, table: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[table]
        if not state:
            state.update(self._fresh(table))
        gradient = table.grad
        assert gradient is not None
        if not gradient.is_sparse:
            self.rule.update(table, gradient, state, lr, weight_decay)
            return
        gradient = gradient.coalesce()  # a row that a batch names twice has one gradient, the sum
        rows = gradient.indices()[0]
        weights, own = table.index_select(0, rows), {name: values.index_select(0, rows) for name, values in state.items()}
        self.rule.update(weights, gradient.values(), own, lr, weight_decay)
        table.index_copy_(0, rows, weights)
        for name, values in own.items():
            state[name].index_copy_(0, rows, values)

    def _fresh(self, table: Tensor) -> Rows:
        """Zeros that are written, once: pages that are only promised would be fetched one by one in the steps to come."""
        state = {name: torch.empty_like(table).zero_() for name in self.rule.moments}
        return state | ({"step": table.new_empty((len(table), 1)).zero_()} if self.rule.counted else {})


class Together(torch.optim.Optimizer):
    """Several optimizers as one: their groups in order, one state, which is saved and loaded as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """A step of each."""
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See torch.optim.Optimizer, which makes new groups and a new state."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """The parts work on this optimizer's own groups and state, so that a rate set here counts there."""
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last


def names_of(module: nn.Module) -> list[str]:
    """The parameters' names that are weights of embeddings made with `sparse=True`."""
    return [f"{name}.weight" for name, m in module.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse]


def tables_of(module: nn.Module) -> list[nn.Parameter]:
    """The trained weights among those, each once."""
    return [table for table in dict.fromkeys(module.get_parameter(name) for name in names_of(module)) if table.requires_grad]


def exchange(tables: Sequence[nn.Parameter], world_size: int) -> None:
    """Give every rank the mean over ranks of the tables' gradients, as DistributedDataParallel does for the others.

    Rows and values are gathered, padded to the rank with most of them, and put end to end in the ranks' order: every rank adds the same
    numbers in the same order. DDP's own way takes sparse gradients with gloo only; this one needs nothing but `all_gather`.
    """
    mine = [_rows_of(table) for table in tables]
    counts = _gather(torch.tensor([len(rows) for rows, _ in mine], device=tables[0].device), world_size)
    for place, (table, (rows, values)) in enumerate(zip(tables, mine, strict=True)):
        have = counts[:, place].tolist()
        padded = [values.new_zeros((max(have), *part.shape[1:]), dtype=part.dtype) for part in (rows, values)]
        for whole, part in zip(padded, (rows, values), strict=True):
            whole[: len(part)] = part
        rows, values = (torch.cat([of[:n] for of, n in zip(_gather(whole, world_size), have, strict=True)]) for whole in padded)
        table.grad = torch.sparse_coo_tensor(rows[None], values / world_size, table.shape, check_invariants=False)


def _rows_of(table: nn.Parameter) -> tuple[Tensor, Tensor]:
    """(rows [n] int64, their gradients [n, D]) of this rank; a rank without any takes part all the same."""
    if table.grad is None:
        return torch.empty(0, dtype=torch.int64, device=table.device), table.new_empty((0, table.shape[1]))
    gradient = table.grad.coalesce() if table.grad.is_sparse else table.grad.to_sparse(1)
    return gradient.indices()[0], gradient.values()


def _gather(mine: Tensor, world_size: int) -> Tensor:
    """[world_size, ...] of equal shapes."""
    everyone = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(everyone, mine)
    return torch.stack(everyone)


def clip_norm(parameters: Sequence[nn.Parameter], most: float) -> None:
    """torch.nn.utils.clip_grad_norm_ that also takes sparse gradients; of a table only the rows that have one are read."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # the norm of a row's sum isn't that of its parts
            gradients.append(parameter.grad.values())
        elif parameter.grad is not None:
            gradients.append(parameter.grad)
    if gradients:
        scale = (most / (nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)
