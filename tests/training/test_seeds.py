"""Seeds: every generator is set, saved and brought back."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from orchestrator.training import seeds, state_file


def drawn() -> list[float]:
    return [
        random.random(),
        random.gauss(),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


@pytest.fixture(autouse=True)
def _as_before() -> object:
    before = seeds.save()
    yield
    seeds.restore(before)


def test_the_same_seed_gives_the_same_numbers_and_another_one_others() -> None:
    seeds.set_all(1)
    first = drawn()
    seeds.set_all(1)
    assert drawn() == first
    seeds.set_all(2)
    assert not set(drawn()) & set(first)


def test_the_largest_seed_is_one() -> None:
    seeds.set_all(2**31 + 7919 * 100)
    first = drawn()
    seeds.set_all(2**31 + 7919 * 100)
    assert drawn() == first


def test_a_saved_state_goes_on_where_it_was_through_a_file_too() -> None:
    seeds.set_all(1)
    drawn()  # leaves half of a pair of normal numbers in Python's and numpy's generators
    saved = seeds.save()
    expected = [drawn(), drawn()]
    seeds.set_all(2)
    seeds.restore(saved)
    assert [drawn(), drawn()] == expected
    seeds.restore(state_file.from_bytes(state_file.to_bytes(saved), "it"))
    assert [drawn(), drawn()] == expected
