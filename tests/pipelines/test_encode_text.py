"""Texts: the training rows say the words; any text, however odd, gets its codes."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
import torch

from pipelines.encode import Encoder
from pipelines.encode.text import TextEncoder
from pipelines.ragged import in_memory, take
from pipelines.schema import Column, Schema

COLUMN = Column("t", "text", dtype="str")
TRAIN = ["A good film, good indeed.", "a bad film", "Good good BAD, a film", "an odd one"]


def chunked(texts: Any, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(texts, kind)])


@pytest.fixture
def encoder() -> TextEncoder:
    return TextEncoder.fit(COLUMN, chunked(TRAIN))


def words(encoder: TextEncoder, texts: list[Any]) -> list[list[str]]:
    """What each text is split into, as its codes say."""
    names = {code: word for word, code in encoder.tokenizer["model"]["vocab"].items()}
    array, errors = encoder.array(chunked(texts, pa.string()))
    assert errors == {}
    return [[names[int(code)] for code in codes] for codes in torch.split(array.values, array.cells.tolist())]


def test_the_vocabulary_is_the_words_that_come_twice_in_training_most_frequent_first(encoder: TextEncoder) -> None:
    assert encoder.tokenizer["model"]["vocab"] == {"[PAD]": 0, "[UNK]": 1, "good": 2, "a": 3, "film": 4, ",": 5, "bad": 6}
    assert encoder.column.vocabulary == 7


def test_words_are_lower_case_and_punctuation_is_split_off(encoder: TextEncoder) -> None:
    assert words(encoder, ["GOOD,bad"]) == [["good", ",", "bad"]]


def test_forms_of_a_character_are_one_and_signs_without_spaces_are_words_each() -> None:
    encoder = TextEncoder.fit(COLUMN, chunked(["caf\u00e9 \u597d\u7247", "cafe\u0301 \u597d"]))
    assert words(encoder, ["CAFE\u0301", "\u597d\u597d\u7247"]) == [["caf\u00e9"], ["\u597d", "\u597d", "[UNK]"]]


def test_unseen_words_are_unknown_and_what_looks_like_a_special_word_is_only_text(encoder: TextEncoder) -> None:
    assert words(encoder, ["zzzz qqqq film"]) == [["[UNK]", "[UNK]", "film"]]
    assert "[PAD]" not in words(encoder, ["[PAD] good"])[0]


def test_a_missing_text_is_an_empty_one_and_has_no_words(encoder: TextEncoder) -> None:
    assert words(encoder, ["", None, " \t\n", "\0", "good"]) == [[], [], [], [], ["good"]]
    array, errors = encoder.array(pa.chunked_array([pa.nulls(3)]))
    assert (array.sizes[:, 0].tolist(), errors) == ([0, 0, 0], {})


def test_a_batch_of_texts_is_padded_with_zeros(encoder: TextEncoder) -> None:
    array, _ = encoder.array(chunked(["good film", "", "bad"]))
    batch = take(in_memory({"t": array}), torch.tensor([2, 0, 1]))
    tensor = encoder.tensor(batch["t"], batch["t.sizes"])
    assert tensor.tolist() == [[6, 0], [2, 4], [0, 0]]
    assert tensor.dtype == torch.int64
    assert batch["t.sizes"].tolist() == [[1], [2], [0]]


def test_the_column_may_bound_the_vocabulary() -> None:
    encoder = TextEncoder.fit(Column("t", "text", vocabulary=4), chunked(TRAIN))
    assert list(encoder.tokenizer["model"]["vocab"]) == ["[PAD]", "[UNK]", "good", "a"]
    assert encoder.column.vocabulary == 4


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_many_texts_are_encoded_in_order(kind: pa.DataType, encoder: TextEncoder) -> None:
    texts = [("good " * (row % 7)).strip() for row in range(10_000)]
    array, _ = encoder.array(chunked(texts, kind))
    assert array.sizes[:, 0].tolist() == [row % 7 for row in range(10_000)]


def test_a_column_that_is_no_text_is_an_error_of_its_rows(encoder: TextEncoder) -> None:
    _, errors = encoder.array(chunked([[1], [2]]))
    assert errors == {0: "list<item: int64> is no text", 1: "list<item: int64> is no text"}


def test_numbers_are_the_texts_that_they_are_written_as(encoder: TextEncoder) -> None:
    """A CSV of a few short texts may hold nothing else."""
    found = TextEncoder.fit(COLUMN, chunked(["12 and 12", "13"]))
    array, errors = found.array(chunked([12, 13]))
    assert errors == {}
    assert array.values.tolist() == [found.tokenizer["model"]["vocab"]["12"], 1]


def test_what_is_stored_is_json_and_encodes_the_same(encoder: TextEncoder) -> None:
    stored = TextEncoder.from_plain(encoder.column, json.loads(json.dumps(encoder.to_plain())))
    texts = ["Good, good film!", "odd bad", ""]
    assert words(stored, texts) == words(encoder, texts) == [["good", ",", "good", "film", "[UNK]"], ["[UNK]", "bad"], []]


def test_the_example_has_a_text_in_every_row(encoder: TextEncoder) -> None:
    assert encoder.example(chunked(["good", None])).to_pylist() == ["good", ""]


def test_a_bundle_with_texts_needs_the_tokenizer(encoder: TextEncoder) -> None:
    assert Encoder(Schema((encoder.column,), COLUMN), {"t": encoder}).requires == {"tokenizers"}
