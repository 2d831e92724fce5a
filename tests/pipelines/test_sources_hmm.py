"""The two hidden Markov models: the optimum is the Bayes rate of the rows, and only order tells them apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipelines.sources import hmm
from tests.contracts.source_contract import SourceContract


class TestHmm(SourceContract):
    @pytest.fixture
    def load(self) -> object:
        return hmm.load

    @pytest.fixture
    def config(self) -> hmm.Config:
        return hmm.Config(rows=60)


def sequences(config: hmm.Config) -> tuple[np.ndarray, np.ndarray]:
    table = hmm.load(config).table
    return np.array(table["sequence"].to_pylist()), np.array(table["label"].to_pylist())


def test_twelve_thousand_rows_are_for_training_half_of_each_model() -> None:
    found, labels = sequences(hmm.Config())
    assert found.shape == (15000, 16)
    assert set(found.ravel()) == set(range(12))
    assert (labels == "sticky").sum() == 7500


def test_the_bayes_rate_is_that_of_the_reference() -> None:
    assert [hmm.load(hmm.Config(seed=seed)).optimum["accuracy"] for seed in range(3)] == pytest.approx([0.9365] * 3, abs=0.008)


def test_the_forward_algorithm_gives_what_summing_over_all_paths_gives() -> None:
    rng, emissions = np.random.default_rng(0), hmm._emissions(12)
    rows = rng.integers(12, size=(5, 4))
    for transitions in hmm._transitions():
        for row, found in zip(rows, hmm._log_likelihood(rows, transitions, emissions), strict=True):
            paths = itertools.product(range(hmm.STATES), repeat=len(row))
            total = sum(
                np.prod([1 / hmm.STATES, *(transitions[a, b] for a, b in itertools.pairwise(path))])
                * np.prod([emissions[state, symbol] for state, symbol in zip(path, row, strict=True)])
                for path in paths
            )
            assert found == pytest.approx(np.log(total))


def test_each_model_is_one_of_probabilities_and_both_have_the_same_symbols() -> None:
    for matrix in (*hmm._transitions(), hmm._emissions(12), hmm._emissions(5)):
        assert np.allclose(matrix.sum(1), 1)
        assert (matrix > 0).all()


def test_counts_of_symbols_tell_nothing() -> None:
    found, labels = sequences(hmm.Config())
    for symbol in range(12):
        counts = (found == symbol).sum(1)
        one, other = (counts[labels == name].mean() for name in hmm.NAMES)
        assert abs(one - other) < 0.1


def test_the_seed_and_the_sizes_say_what_is_made() -> None:
    one, _ = sequences(hmm.Config(rows=100, length=5, symbols=7, seed=1))
    same, _ = sequences(hmm.Config(rows=100, length=5, symbols=7, seed=1))
    other, _ = sequences(hmm.Config(rows=100, length=5, symbols=7, seed=2))
    assert one.shape == (100, 5)
    assert one.max() == 6
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
