"""How a user's and an item's vectors make a score: dot product, two towers, or a network.

Vectors are [..., width]; the last number is a bias. `pairs` scores rows, `all` every user with every item.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

BLOCK = 1 << 18  # pairs that a network scores at once, of all users with all items


class Dot(nn.Module):
    """Matrix factorisation with biases (https://doi.org/10.1109/MC.2009.263)."""

    def __init__(self, dim: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.dim, self.width = dim, dim + 1
        self.dropout = nn.Dropout(dropout)

    def user(self, vectors: Tensor) -> Tensor:
        """What `pairs` and `all` take, of an entity's vectors."""
        return self._dropped(vectors)

    def item(self, vectors: Tensor) -> Tensor:
        return vectors

    def pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """[B, w] and [B, w] -> [B]; and [B, K, w] -> [B, K]."""
        d = self.dim
        if items.ndim == 3:
            return torch.einsum("bd,bkd->bk", users[:, :d], items[..., :d]) + users[:, d:] + items[..., d]
        return (users[:, :d] * items[:, :d]).sum(1) + users[:, d] + items[:, d]

    def all(self, users: Tensor, items: Tensor) -> Tensor:
        """[U, w] and [N, w] -> [U, N]."""
        d = self.dim
        with_bias = torch.cat([users[:, :d], torch.ones_like(users[:, d:]), users[:, d:]], 1)
        return with_bias @ torch.cat([items, torch.ones_like(items[:, d:])], 1).T

    def _dropped(self, vectors: Tensor) -> Tensor:
        if not (self.training and self.dropout.p):
            return vectors
        return torch.cat([self.dropout(vectors[:, : self.dim]), vectors[:, self.dim :]], 1)


class TwoTower(Dot):
    """A network for each side, its input added to its output, then the dot product (https://doi.org/10.1145/3298689.3346996)."""

    def __init__(self, dim: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__(dim, hidden, dropout)
        self.towers = nn.ModuleList(_layers([dim, *(hidden or (dim,)), dim], dropout) for _ in range(2))

    def user(self, vectors: Tensor) -> Tensor:
        return self._through(0, vectors)

    def item(self, vectors: Tensor) -> Tensor:
        return self._through(1, vectors)

    def _through(self, side: int, vectors: Tensor) -> Tensor:
        own = vectors[..., : self.dim]
        return torch.cat([own + self.towers[side](own), vectors[..., self.dim :]], -1)


class NeuMF(nn.Module):
    """A weighted product of factors beside a network of other factors (https://arxiv.org/abs/1708.05031)."""

    def __init__(self, dim: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.dim, self.width = dim, 2 * dim + 1
        sizes = [*(hidden or (2 * dim, dim)), 1]
        self.first = nn.ModuleList([nn.Linear(dim, sizes[0]), nn.Linear(dim, sizes[0], bias=False)])  # one layer, in halves
        self.rest = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), *_layers(sizes, dropout))
        self.product = nn.Parameter(torch.ones(dim))

    def user(self, vectors: Tensor) -> Tensor:
        return vectors

    def item(self, vectors: Tensor) -> Tensor:
        return vectors

    def pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """[B, w] and [B, w] -> [B]; and [B, K, w] -> [B, K]."""
        if items.ndim == 3:
            users = users[:, None]
        d = self.dim
        deep: Tensor = self.rest(self.first[0](users[..., d:-1]) + self.first[1](items[..., d:-1]))[..., 0]
        return (users[..., :d] * items[..., :d]) @ self.product + deep + users[..., -1] + items[..., -1]

    def all(self, users: Tensor, items: Tensor) -> Tensor:
        """[U, w] and [N, w] -> [U, N], some users at a time."""
        step = max(1, BLOCK // max(1, len(items)))
        return torch.cat([self._block(some, items) for some in users.split(step)])

    def _block(self, users: Tensor, items: Tensor) -> Tensor:
        d = self.dim
        deep: Tensor = self.rest(self.first[0](users[:, None, d:-1]) + self.first[1](items[None, :, d:-1]))[..., 0]
        return (users[:, :d] * self.product) @ items[:, :d].T + deep + users[:, -1:] + items[:, -1]


def _layers(sizes: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear layers with ReLU and dropout between them."""
    layers: list[nn.Module] = []
    for one, two in pairwise(sizes):
        layers += [nn.Linear(one, two), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


SCORERS = {"mf": Dot, "neumf": NeuMF, "two_tower": TwoTower}
