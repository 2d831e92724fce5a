"""Optimizers and schedules: the names, the shapes, and what weight decay touches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator import names
from orchestrator.training.optim import OPTIMIZERS, Schedule, build


def kind(name: str) -> Any:
    return names.load(name, OPTIMIZERS, "optimizer")


def factors(name: str, steps: int, warmup: float | None = None) -> list[float]:
    schedule = Schedule(name, steps, warmup)
    return [schedule.factor(step) for step in range(steps)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_loss_with_its_defaults(name: str) -> None:
    torch.manual_seed(0)
    module, x = nn.Linear(4, 1), torch.randn(32, 4)
    optimizer = build(kind(name), kind(name).Config(), module)
    losses = []
    for _ in range(20):
        loss = module(x).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_reaches_torch_s_optimizer(name: str) -> None:
    given = {"lr": 0.3, "momentum": 0.7, "betas": (0.8, 0.9), "alpha": 0.6, "nesterov": True}
    known = {f.name for f in dataclasses.fields(kind(name).Config)}
    group = build(kind(name), kind(name).Config(**{k: v for k, v in given.items() if k in known}), nn.Linear(2, 2)).param_groups[0]
    assert {k: group[k] for k in given if k in known} == {k: v for k, v in given.items() if k in known}


def test_nesterov_without_momentum_is_plain() -> None:
    group = build(kind("sgd"), kind("sgd").Config(momentum=0.0, nesterov=True), nn.Linear(2, 2)).param_groups[0]
    assert (group["nesterov"], group["momentum"]) == (False, 0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_shrinks_matrices_and_kernels_and_leaves_biases_and_norms(name: str) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    optimizer = build(kind(name), kind(name).Config(lr=1e-3, weight_decay=0.5), module)
    before = {key: p.detach().clone() for key, p in module.named_parameters()}
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    shrunk = {key for key, p in module.named_parameters() if p.detach().norm() < before[key].norm()}
    unchanged = {key for key, p in module.named_parameters() if torch.equal(p, before[key])}
    assert shrunk == {"0.weight", "3.weight"}
    assert unchanged == {"0.bias", "1.weight", "1.bias", "3.bias"}


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    module = nn.Linear(2, 2, bias=False)
    assert len(build(kind("sgd"), kind("sgd").Config(), module).param_groups) == 1
    module = nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    assert [p.shape for group in build(kind("sgd"), kind("sgd").Config(), module).param_groups for p in group["params"]] == [(2,)]


def test_onecycle_is_torch_s_onecycle() -> None:
    steps = 2000
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps, cycle_momentum=False)
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step() if len(expected) < steps else None
    ours = factors("onecycle", steps)
    assert max(abs(a - b) for a, b in zip(ours, expected, strict=True)) < 2e-3  # theirs turns a fraction of a step earlier
    assert ours[0] == pytest.approx(expected[0], rel=1e-9)
    assert ours[-1] == pytest.approx(expected[-1], rel=1e-6)


def test_cosine_is_torch_s_cosine() -> None:
    ours = factors("cosine", 101)
    assert ours == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 100)) for step in range(101)], abs=1e-12)


def test_constant_is_constant() -> None:
    assert factors("constant", 5) == [1.0] * 5


def test_linear_rises_from_a_tenth_and_falls_to_a_hundredth() -> None:
    ours = factors("linear", 101)
    assert (ours[0], ours[25], ours[100]) == pytest.approx((0.1, 1.0, 0.01))
    assert ours[:26] == sorted(ours[:26])
    assert ours[25:] == sorted(ours[25:], reverse=True)
    assert ours[1] - ours[0] == pytest.approx(ours[11] - ours[10])


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "onecycle"])
@pytest.mark.parametrize("warmup", [0.5, 0.0, 1.0])
def test_warmup_is_the_share_of_the_steps_in_which_the_rate_rises(name: str, warmup: float) -> None:
    ours = factors(name, 101, warmup)
    top = round(100 * warmup)
    assert ours[top] == pytest.approx(1.0)
    assert ours[: top + 1] == sorted(ours[: top + 1])
    assert max(ours) <= 1.0 + 1e-12


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "onecycle"])
def test_one_step_and_steps_beyond_the_last_have_a_rate(name: str) -> None:
    assert math.isfinite(factors(name, 1)[0])
    assert Schedule(name, 10).factor(50) == Schedule(name, 10).factor(9)
