"""Batch normalisation: torch's, save for one value a channel, which torch refuses. (Over ranks: see the tests of training.)"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.norm import BatchNorm2d, SyncBatchNorm2d, norm2d


@pytest.mark.parametrize("kind", [BatchNorm2d, SyncBatchNorm2d])
@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (1, 3, 2, 1), (2, 3, 1, 1)])
def test_on_one_rank_it_is_torch_s(kind: type[nn.BatchNorm2d], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, theirs, x = kind(3), nn.BatchNorm2d(3), torch.randn(*shape)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("kind", [BatchNorm2d, SyncBatchNorm2d])
def test_one_value_a_channel_is_normalised_by_the_running_statistics(kind: type[nn.BatchNorm2d]) -> None:
    norm, x = kind(3), torch.randn(1, 3, 1, 1)
    norm(torch.randn(8, 3, 2, 2) * 3 + 1)
    before = norm.running_mean.clone()
    out = norm(x)
    assert torch.equal(norm.running_mean, before)
    assert torch.equal(out, norm.eval()(x))


def test_no_normalisation_is_no_layer() -> None:
    assert norm2d("none", 3) == []
    assert [type(layer) for layer in norm2d("batch", 3)] == [BatchNorm2d]
