"""Generated ratings and rankings with a known optimum: they run anywhere, and tell a good recommender from one that only looks good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
from annotated_types import Ge, doc

from ..candidates import NEGATIVES, Positives
from ..raw import Raw, Side
from ..schema import Column

EACH = 40  # rows of each user
RATED_ITEMS, RANKED_ITEMS = 400, 500
NOISE = 0.5  # standard deviation of a rating about what its user thinks of its item
GENRES = ("action", "comedy", "crime", "drama", "fantasy", "horror", "romance", "thriller")
GROUPS = ("a", "b", "c", "d", "e", "f")


@dataclass(frozen=True)
class RatingsConfig:
    """`rows` ratings, 40 a user, of 400 items."""

    rows: Annotated[int, Ge(400), doc("ratings, 40 a user")] = 32_000
    seed: Annotated[int, Ge(0), doc("of the generator")] = 0


@dataclass(frozen=True)
class RankingConfig:
    """`rows` positives, 40 a user, of 500 items."""

    rows: Annotated[int, Ge(400), doc("positives, 40 a user")] = 40_000
    seed: Annotated[int, Ge(0), doc("of the generator")] = 0


def ratings(config: RatingsConfig) -> Raw:
    """Means, biases and products of latent factors, half of which follow from features; the optimum's error is the noise alone."""
    rng = np.random.default_rng(config.seed)
    users, size = config.rows // EACH, 4
    user_side, of_users = _user_features(rng, users, size)
    item_side, of_items = _item_features(rng, RATED_ITEMS, size)
    p = of_users + 0.4 * rng.normal(size=(users, size))
    q = of_items + 0.4 * rng.normal(size=(RATED_ITEMS, size))
    truth = 3.5 + 0.3 * rng.normal(size=(users, 1)) + 0.3 * rng.normal(size=RATED_ITEMS) + 0.5 * p @ q.T
    item = rng.random((users, RATED_ITEMS)).argsort(1)[:, :EACH].ravel()
    user = np.repeat(np.arange(users), EACH)
    order = rng.permutation(len(user))
    user, item = user[order], item[order]
    noise = NOISE * rng.normal(size=len(user))
    table = pa.table({"user": user, "item": item, "rating": truth[user, item] + noise})
    optimum = {"rmse": NOISE, "mae": NOISE * float(np.sqrt(2 / np.pi))}
    sides = {"user": user_side, "item": item_side}
    return Raw(table, (Column("user", "id"), Column("item", "id")), Column("rating", "number"), None, optimum, sides)


def ranking(config: RankingConfig) -> Raw:
    """Each user's positives are the 40 items with the largest utility + Gumbel noise; the oracle ranks by the utility.

    Its scores are measured as a model's are: one positive of each user against 99 items that are none. https://arxiv.org/abs/1903.06059
    """
    rng = np.random.default_rng(config.seed)
    users, size = config.rows // EACH, 4
    taste = 1.9 * rng.normal(size=(users, size)) @ rng.normal(size=(RANKED_ITEMS, size)).T / np.sqrt(size)
    utility = taste + 0.6 * rng.normal(size=RANKED_ITEMS)
    positives = np.argpartition(-(utility + rng.gumbel(size=utility.shape)), EACH, axis=1)[:, :EACH]
    item, user = positives.ravel(), np.repeat(np.arange(users), EACH)
    order = rng.permutation(len(user))
    table = pa.table({"user": user[order], "item": item[order], "target": np.ones(len(user), np.int8)})
    target = Column("target", "ranking", dtype="int8")
    return Raw(table, (Column("user", "id"), Column("item", "id")), target, None, _oracle(utility, positives, rng))


def _oracle(utility: np.ndarray, positives: np.ndarray, rng: np.random.Generator, times: int = 8) -> dict[str, float]:
    """Scores of the utility itself: a random positive of each user among 99 other items, several times."""
    users = np.arange(len(utility))
    drawer = Positives(np.repeat(users, EACH), positives.ravel(), utility.shape[1])
    ranks = []
    for _ in range(times):
        held = positives[users, rng.integers(0, EACH, len(users))]
        others, _ = drawer.draw(users, NEGATIVES, rng)
        ranks.append((utility[users[:, None], others] > utility[users, held][:, None]).sum(1))
    rank = np.concatenate(ranks)
    scores = {"mrr": float((1 / (1 + rank)).mean())}
    for k in (5, 10, 20):
        scores |= {f"hr_at_{k}": float((rank < k).mean()), f"ndcg_at_{k}": float(((rank < k) / np.log2(2 + rank)).mean())}
    return scores


def _user_features(rng: np.random.Generator, users: int, size: int) -> tuple[Side, np.ndarray]:
    """A group and an age, and the factors that follow from them: [U, size]."""
    group, age = rng.integers(0, len(GROUPS), users), rng.normal(size=users)
    factors = 0.8 * rng.normal(size=(len(GROUPS), size))[group] + 0.4 * age[:, None] * rng.normal(size=size)
    table = pa.table({"user": np.arange(users), "group": np.array(GROUPS)[group], "age": 40 + 12 * age})
    return Side(table, (Column("group", "words"), Column("age", "measure"))), factors


def _item_features(rng: np.random.Generator, items: int, size: int) -> tuple[Side, np.ndarray]:
    """One to three genres and a year, and the factors that follow from them: [I, size]."""
    has = rng.random((items, len(GENRES))).argsort(1) < rng.integers(1, 4, (items, 1))
    year = rng.normal(size=items)
    mean = has @ rng.normal(size=(len(GENRES), size)) / has.sum(1, keepdims=True)
    genres = [[GENRES[place] for place in np.flatnonzero(row)] for row in has]
    table = pa.table({"item": np.arange(items), "genres": genres, "year": 1990 + 10 * year})
    return Side(table, (Column("genres", "words"), Column("year", "measure"))), mean + 0.4 * year[:, None] * rng.normal(size=size)
