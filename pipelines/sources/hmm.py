"""Which of two hidden Markov models made a sequence? Generated, with the Bayes rate of its own rows as the optimum.

Both have 4 hidden states that emit the same symbols; one stays where it is, the other goes round. Counts of symbols tell nothing, so
only a network that follows the order learns anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Gt, doc

from ..raw import Raw
from ..schema import Column

STATES = 4
NAMES = ("sticky", "cyclic")
STAY = 0.75  # the probability of a model's favourite transition: to stay, or to go to the next state
OWN = 0.75  # the probability that a state emits one of its own symbols


@dataclass(frozen=True)
class Config:
    """How many sequences, and of what."""

    rows: Annotated[int, Ge(40), doc("of all parts together")] = 15000
    length: Annotated[int, Gt(1), doc("symbols of a sequence")] = 16
    symbols: Annotated[int, Ge(STATES), doc("that there are")] = 12
    seed: Annotated[int, Ge(0), doc("of the generator")] = 0


def load(config: Config) -> Raw:
    """`sequence` (lists of symbols from 0) and `label`, half of the rows each; the optimum is that of the rows themselves."""
    rng = np.random.default_rng(config.seed)
    labels = rng.permutation(config.rows) % 2
    sequences = _draw(rng, labels, config)
    emissions = _emissions(config.symbols)
    scores = np.stack([_log_likelihood(sequences, transitions, emissions) for transitions in _transitions()], 1)
    accuracy = float((scores.argmax(1) == labels).mean())
    offsets = np.arange(0, config.rows * config.length + 1, config.length, dtype=np.int32)
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(sequences.reshape(-1)))
    table = pa.table({"sequence": column, "label": pa.array(np.array(NAMES)[labels].tolist())})
    return Raw(
        table, (Column("sequence", "symbols", dtype="int64"),), Column("label", "class", dtype="str"), optimum={"accuracy": accuracy}
    )


def _transitions() -> tuple[np.ndarray, np.ndarray]:
    """[4, 4] of the sticky and of the cyclic model: from row to column. The states are equally frequent in both."""
    rest = (1 - STAY) / (STATES - 1)
    sticky = np.full((STATES, STATES), rest) + (STAY - rest) * np.eye(STATES)
    return sticky, np.roll(sticky, 1, axis=1)


def _emissions(symbols: int) -> np.ndarray:
    """[4, symbols]: each state has symbols of its own, and emits the others now and then."""
    own = np.arange(symbols)[None] % STATES == np.arange(STATES)[:, None]
    emissions: np.ndarray = OWN * own / own.sum(1, keepdims=True) + (1 - OWN) * ~own / (~own).sum(1, keepdims=True)
    return emissions


def _draw(rng: np.random.Generator, labels: np.ndarray, config: Config) -> np.ndarray:
    """[rows, length] int64 symbols, all rows at once."""
    ahead, emitted = np.cumsum(np.stack(_transitions()), -1), np.cumsum(_emissions(config.symbols), -1)
    states = rng.integers(STATES, size=len(labels))
    sequences = np.empty((len(labels), config.length), np.int64)
    for step in range(config.length):
        sequences[:, step] = _chosen(rng, emitted[states])
        states = _chosen(rng, ahead[labels, states])
    return sequences


def _chosen(rng: np.random.Generator, cumulative: np.ndarray) -> np.ndarray:
    """[N] int64: one column of each row, by its cumulative probabilities [N, K]."""
    found: np.ndarray = (rng.random(len(cumulative))[:, None] > cumulative[:, :-1]).sum(1)
    return found


def _log_likelihood(sequences: np.ndarray, transitions: np.ndarray, emissions: np.ndarray) -> np.ndarray:
    """[N]: of sequences [N, T] under a model, by the forward algorithm (https://doi.org/10.1109/5.18626, III A)."""
    ahead, total = np.full((len(sequences), STATES), 1 / STATES), np.zeros(len(sequences))
    for symbols in sequences.T:
        ahead = ahead * emissions[:, symbols].T
        scale = ahead.sum(1, keepdims=True)
        total += np.log(scale[:, 0])
        ahead = ahead / scale @ transitions
    return total
