"""What recommenders keep beside a family's contract, and the ids, features and rows that their tests bind: subclass PairContract."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from models.family import Family
from models.recommender import Ranker
from pipelines.schema import Column, Schema
from tests.contracts.family_contract import Batch, FamilyContract, close

USERS, ITEMS = 9, 40
FEATURES = {
    "user": (Column("group", "words", vocabulary=4), Column("age", "measure", vocabulary=1)),
    "item": (Column("genres", "words", vocabulary=5),),
}


def schema_of(target: Column, features: bool = True) -> Schema:
    inputs = (Column("user", "id", vocabulary=USERS + 1), Column("item", "id", vocabulary=ITEMS + 1))
    return Schema(inputs, target, features=FEATURES if features else {})


def feature_tables() -> dict[str, Tensor]:
    """One or more feature values of every id but 0: of users a group and an age, of items two genres."""
    users, items = torch.arange(1, USERS + 1), torch.arange(1, ITEMS + 1)
    return {
        "users.codes": torch.stack([1 + users % 3, torch.full_like(users, 4)], 1).flatten(),
        "users.weights": torch.stack([torch.ones(USERS), torch.linspace(-1, 1, USERS)], 1).flatten(),
        "users.starts": torch.cat([torch.zeros(1).long(), 2 * torch.arange(USERS + 1)]),
        "items.codes": torch.stack([1 + items % 4, 1 + (items + 1) % 4], 1).flatten(),
        "items.weights": torch.full((2 * ITEMS,), 0.5),
        "items.starts": torch.cat([torch.zeros(1).long(), 2 * torch.arange(ITEMS + 1)]),
    }


def tables(features: bool = True) -> dict[str, Tensor]:
    """Each user has had three items in training, one in validation and one in test."""
    items = torch.stack([torch.arange(5) * 2 + user for user in range(1, USERS + 1)])
    rows = torch.bincount(items[:, :3].flatten(), minlength=ITEMS + 1).clamp_min(1)
    rows[0] = 0
    return {
        "users.rows": torch.tensor([0] + [3] * USERS),
        "items.rows": rows,
        "seen.starts": torch.cat([torch.zeros(1).long(), 5 * torch.arange(USERS + 1)]),
        "seen.items": items.flatten().int(),
        "seen.parts": torch.tensor([0, 0, 0, 1, 2] * USERS).byte(),
        "rating.range": torch.tensor([1.0, 5.0]),
    } | (feature_tables() if features else {})


class PairContract(FamilyContract):
    features = True
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def config(self) -> Any:
        return self.family.Config(dim=4, **self.options)

    @pytest.fixture
    def net(self, config: Any, schema: Schema) -> Family:
        torch.manual_seed(0)
        net = self.family(config, schema)
        net.bind(tables(self.features))
        return net

    def test_its_state_makes_another_one_the_same(self, net: Family, config: Any, schema: Schema, batch: Batch) -> None:
        """Tables are bound, not loaded: they are no weights."""
        other = self.family(config, schema)
        other.load_state_dict(net.state_dict())
        other.bind(tables(self.features))
        with torch.inference_mode():
            assert close(other.eval()(batch), net.eval()(batch))


def ranker(**options: Any) -> Ranker:
    torch.manual_seed(0)
    net = Ranker(Ranker.Config(dim=4, **options), schema_of(Column("target", "ranking")))
    net.bind(tables())
    return net.eval()
