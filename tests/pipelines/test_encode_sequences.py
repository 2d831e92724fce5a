"""Sequences of numbers and of symbols: every form gives the same tensors, training says the scale, and a row that doesn't fit says why."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.encode import Encoder, encoder_class
from pipelines.encode.sequences import SequenceEncoder
from pipelines.encode.symbols import SymbolsEncoder
from pipelines.ragged import in_memory, take
from pipelines.schema import Column, DataError

COLUMN, SYMBOLS = Column("s", "sequence"), Column("s", "symbols")
ROWS: list[Any] = [[[1, 10], [3, 20], [5, 30]], [[7, 40]], [[2, 20], [4, 30]]]
NAN, INF = float("nan"), float("inf")


def chunked(values: Any, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([values if isinstance(values, pa.Array) else pa.array(values, kind)])


def tensors(encoder: Any, raw: pa.ChunkedArray) -> tuple[torch.Tensor, torch.Tensor]:
    """What a network gets of all rows, and their lengths."""
    array, errors = encoder.array(raw)
    assert errors == {}
    batch = take(in_memory({"s": array}), torch.arange(len(raw)))
    return encoder.tensor(batch["s"], batch["s.sizes"]), batch["s.sizes"][:, 0]


FORMS = {
    "lists of lists": pa.array(ROWS),
    "of floats": pa.array([[[float(n) for n in step] for step in row] for row in ROWS]),
    "of float32": pa.array(ROWS, pa.list_(pa.list_(pa.float32()))),
    "large lists": pa.array(ROWS, pa.large_list(pa.large_list(pa.int16()))),
    "lists of fixed-size lists": pa.array(ROWS, pa.list_(pa.list_(pa.float64(), 2))),
    "json": pa.array([json.dumps(row) for row in ROWS]),
    "a slice": pa.array([[[9, 9]], *ROWS, [[8, 8]]]).slice(1, 3),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_sequence_gives_the_same_tensors(form: str) -> None:
    encoder = SequenceEncoder.fit(COLUMN, chunked(FORMS[form]))
    values, lengths = tensors(encoder, chunked(FORMS[form]))
    expected, _ = tensors(SequenceEncoder.fit(COLUMN, chunked(ROWS)), chunked(ROWS))
    assert encoder.column.shape == (2,)
    assert lengths.tolist() == [3, 1, 2]
    assert values.dtype == torch.float32
    assert torch.equal(values, expected)


def test_channels_have_mean_0_and_deviation_1_over_the_training_steps_and_padding_is_0() -> None:
    values, lengths = tensors(SequenceEncoder.fit(COLUMN, chunked(ROWS)), chunked(ROWS))
    inside = torch.arange(3) < lengths[:, None]
    assert torch.allclose(values[inside].mean(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(values[inside].std(0, correction=0), torch.ones(2), atol=1e-6)
    assert values[~inside].abs().sum() == 0


def test_other_rows_are_scaled_as_training_was_and_may_be_longer() -> None:
    encoder = SequenceEncoder.fit(COLUMN, chunked([[[0, 5]], [[2, 5]]]))
    values, lengths = tensors(encoder, chunked([[[1, 5], [3, 6], [1, 5], [1, 5]]]))
    assert lengths.tolist() == [4]
    assert values[0].tolist() == [[0, 0], [2, 1], [0, 0], [0, 0]]


def test_flat_lists_are_sequences_of_one_number_a_step() -> None:
    for rows in ([[1, 2, 3], [4, 5, 6]], pa.array([[1, 2, 3], [4, 5, 6]], pa.list_(pa.int32(), 3)), ["[1, 2, 3]", "[4, 5, 6]"]):
        encoder = SequenceEncoder.fit(COLUMN, chunked(rows))
        values, _ = tensors(encoder, chunked(rows))
        assert encoder.column.shape == (1,)
        assert values.shape == (2, 3, 1)


WRONG: dict[str, tuple[Any, str]] = {
    "missing": (None, "it is missing"),
    "empty": ([], "it is empty; a sequence has one step at least"),
    "too wide": ([[1, 2], [1, 2, 3]], "step 1 holds 3 values; it must hold 2"),
    "too narrow": ([[1, 2], [1, 2], [1]], "step 2 holds 1 values; it must hold 2"),
    "a step missing": ([[1, 2], None], "step 1 is missing"),
    "a null": ([[1, None]], "it holds a missing value, NaN or infinity"),
    "nan": ([[1, NAN]], "it holds a missing value, NaN or infinity"),
    "infinity": ([[INF, 1]], "it holds a missing value, NaN or infinity"),
    "beyond float32": ([[1e300, 1]], "it holds a missing value, NaN or infinity"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_sequence_that_does_not_fit_says_why_and_the_others_stay(case: str) -> None:
    value, says = WRONG[case]
    encoder = SequenceEncoder.fit(COLUMN, chunked(ROWS))
    array, errors = encoder.array(chunked([[[1.0, 10.0]], value, [[7.0, 40.0]]]))
    assert errors == {1: says}
    assert array.sizes[:, 0].tolist() == [1, 0, 1]
    assert array.values.tolist() == [[1, 10], [7, 40]]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("[[1, 2], [3]]", "no list of numbers, or of lists of numbers of one length"),
        ("[[1, 2", "no list of numbers, or of lists of numbers of one length"),
        ("[1, 2]", "a flat list of numbers; each step must be a list of 2"),
        ("[[1, 2, 3]]", "step 0 holds 3 values; it must hold 2"),
        ("[]", "it is empty; a sequence has one step at least"),
        ("[[NaN, 2]]", "it holds a missing value, NaN or infinity"),
        ("[[null, 2]]", "it holds a missing value, NaN or infinity"),
        ("[[[1, 2]]]", r"lists of shape [1, 1, 2]; a sequence is a list of steps, each a list of 2 numbers"),
        ("7", "lists of shape []; a sequence is a list of steps, each a list of 2 numbers"),
        ("", "it is missing"),
        (None, "it is missing"),
    ],
)
def test_a_sequence_in_text_that_does_not_fit_says_why(value: str | None, says: str) -> None:
    encoder = SequenceEncoder.fit(COLUMN, chunked(ROWS))
    _, errors = encoder.array(chunked(["[[1, 2]]", value]))
    assert errors == {1: says}


def test_columns_of_another_type_are_errors_of_their_rows() -> None:
    encoder = SequenceEncoder.fit(COLUMN, chunked(ROWS))
    for raw in (chunked([1, 2]), chunked([["a"], ["b"]]), chunked([[1, 2], [3]]), chunked([[[[1]]], [[[2]]]])):
        assert set(encoder.array(raw)[1]) == {0, 1}


def test_rows_are_counted_over_the_chunks_of_a_column() -> None:
    encoder = SequenceEncoder.fit(COLUMN, chunked(ROWS))
    array, errors = encoder.array(pa.chunked_array([pa.array(ROWS), pa.array([[[1, 2]], None], pa.list_(pa.list_(pa.int64())))]))
    assert list(errors) == [4]
    assert array.sizes[:, 0].tolist() == [3, 1, 2, 1, 0]


def test_a_constant_channel_stays_finite() -> None:
    values, _ = tensors(SequenceEncoder.fit(COLUMN, chunked([[[3, 1]], [[3, 2]]])), chunked([[[3, 1]], [[4, 2]]]))
    assert values[:, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize(("kind", "rows"), [("sequence", ROWS), ("symbols", [[3, 1, 2], [1], [2, 2]])])
def test_what_is_stored_encodes_the_same(kind: str, rows: Any) -> None:
    raw = chunked(rows)
    fitted = encoder_class(kind).fit(Column("s", kind), raw)
    stored = encoder_class(kind).from_plain(fitted.column, json.loads(json.dumps(fitted.to_plain())))
    assert all(torch.equal(one, two) for one, two in zip(tensors(fitted, raw), tensors(stored, raw), strict=True))
    assert torch.equal(tensors(stored, chunked(fitted.example(raw)))[0], tensors(fitted, raw)[0])


@pytest.mark.parametrize(
    "rows",
    [
        [[3, 11, 2], [2], [11, 2]],
        [["3", "11", "2"], ["2"], ["11", "2"]],
        pa.array([[3, 11, 2], [2], [11, 2]], pa.large_list(pa.int8())),
        [[3.0, 11.0, 2.0], [2.0], [11.0, 2.0]],
        ["[3, 11, 2]", "[2]", "[11, 2]"],
    ],
    ids=["integers", "words", "large lists", "whole floats", "json"],
)
def test_symbols_become_codes_in_the_order_of_their_names(rows: Any) -> None:
    encoder = SymbolsEncoder.fit(SYMBOLS, chunked(rows))
    values, lengths = tensors(encoder, chunked(rows))
    assert encoder.symbols == ("2", "3", "11")
    assert encoder.column.vocabulary == 5
    assert values.tolist() == [[3, 4, 2], [2, 0, 0], [4, 2, 0]]
    assert values.dtype == torch.int64
    assert lengths.tolist() == [3, 1, 2]


def test_a_symbol_that_training_has_not_seen_is_unknown() -> None:
    encoder = SymbolsEncoder.fit(SYMBOLS, chunked([["a", "b"]]))
    assert tensors(encoder, chunked([["b", "z", "a"]]))[0].tolist() == [[3, 1, 2]]


def test_rows_of_symbols_that_do_not_fit_say_why() -> None:
    encoder = SymbolsEncoder.fit(SYMBOLS, chunked([[1, 2]]))
    array, errors = encoder.array(chunked([[1], None, [], [2, None], [2]]))
    assert errors == {1: "it is missing", 2: "it is empty; a sequence has one step at least", 3: "a symbol in it is missing"}
    assert array.values.tolist() == [2, 3]
    assert set(encoder.array(chunked(["[1]", "[1", "7", '[{"a": 1}]']))[1]) == {1, 2, 3}
    assert encoder.array(chunked([1.5, 2.5]))[1] == dict.fromkeys((0, 1), "double is no list of symbols")


def test_rows_that_do_not_fit_are_refused_when_data_are_prepared() -> None:
    label = Column("y", "class", dtype="str")
    table = pa.table({"s": [[[1, 2]], [[3, 4]], [[5]]], "y": ["a", "b", "a"]})
    encoder = Encoder.fit((COLUMN,), label, table.slice(0, 2))
    with pytest.raises(DataError, match=r"the data \(test part\), column 's', row 9: step 0 holds 1 values; it must hold 2"):
        encoder.check(table.slice(2), "test", np.array([9]))
