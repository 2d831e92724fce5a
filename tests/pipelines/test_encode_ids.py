"""Ids become codes, unknown ones 0, whatever their type and however many they are; so do the features of ids."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.encode.features import MeasureEncoder, WordsEncoder
from pipelines.encode.ids import IdEncoder, RankingEncoder, as_ids, of_text
from pipelines.schema import Column, DataError

USER = Column("user", "id")


def chunked(values: list[Any], kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


def stored(encoder: Any) -> Any:
    """As it comes back from JSON."""
    return type(encoder).from_plain(encoder.column, json.loads(json.dumps(encoder.to_plain())))


@pytest.mark.parametrize("values", [[30, -4, 7, 30], ["b", "Ä", "a b", "b"], [3.0, 1.0, 2.0, 3.0]])
def test_known_ids_get_codes_in_their_order_and_unknown_ones_0(values: list[Any]) -> None:
    encoder = stored(IdEncoder.fit(USER, chunked(values)))
    assert encoder.column.vocabulary == 4
    other = "zz" if isinstance(values[0], str) else 10**9
    codes, errors = encoder.array(chunked([*sorted(set(values)), other]))
    assert codes.tolist() == [1, 2, 3, 0]
    assert errors == {}
    assert encoder.names(codes).to_pylist() == [*sorted(set(values)), None]


def test_a_missing_id_does_not_fit() -> None:
    codes, errors = IdEncoder.fit(USER, chunked([1, 2])).array(chunked([2, None]))
    assert codes.tolist() == [2, 0]
    assert errors == {1: "it is missing"}


def test_numbers_and_their_own_spelling_are_one_id() -> None:
    """A CSV may have made one of the other; but '07' and '7.0' are other ids than 7."""
    numbers, texts = IdEncoder.fit(USER, chunked([7, 12])), IdEncoder.fit(USER, chunked(["7", "07", "x"]))
    assert numbers.codes(chunked(["7", "12", "07", "7.0", "x"])).tolist() == [1, 2, 0, 0, 0]
    assert numbers.codes(chunked([7.0, 12.0])).tolist() == [1, 2]
    assert texts.codes(chunked([7])).tolist() == texts.codes(chunked(["7"])).tolist() == [2]


def test_whole_floats_are_the_ids_that_integers_are_wherever_they_stand() -> None:
    mixed = as_ids(chunked([7.0, 2.5, 1e15, 1e20, float("inf")]), "user")
    assert mixed.to_pylist() == ["7", "2.5", "1000000000000000", "1e+20", "inf"]
    assert IdEncoder.fit(USER, chunked([7, 10**15])).codes(mixed).tolist() == [1, 0, 2, 0, 0]


def test_nan_is_a_missing_id_and_no_user_of_that_name() -> None:
    encoder = IdEncoder.fit(USER, chunked([1.0, float("nan"), 2.0]))
    assert encoder.ids.to_pylist() == [1, 2]
    codes, errors = encoder.array(chunked([2.0, float("nan")]))
    assert codes.tolist() == [2, 0]
    assert errors == {1: "it is missing"}


def test_ids_beyond_int64_are_text_and_no_other_id() -> None:
    large = chunked([2**63 + 1, 5, 2**63 - 1], pa.uint64())
    encoder = stored(IdEncoder.fit(USER, large))
    assert encoder.codes(large).tolist() == [3, 1, 2]
    assert encoder.codes(chunked([5, 2**63 - 1])).tolist() == [1, 2]
    small = IdEncoder.fit(USER, chunked([5, 2**63 - 1, 1 - 2**63]))
    assert small.codes(large).tolist() == [0, 2, 3]
    assert small.codes(chunked([f"{1 - 2**63}", f"-{2**63 + 1}"])).tolist() == [1, 0]


@pytest.mark.parametrize(("values", "kind"), [([[1]], "list"), ([{"a": 1}], "struct"), ([b"a\xff"], "binary")])
def test_what_can_be_no_id_is_refused_with_its_column_and_type(values: list[Any], kind: str) -> None:
    encoder = IdEncoder.fit(USER, chunked([5]))
    for look in (encoder.codes, encoder.array, lambda raw: IdEncoder.fit(USER, raw)):
        with pytest.raises(DataError, match=rf"column 'user' holds {kind}"):
            look(chunked(values))
    with pytest.raises(DataError, match=r"column 'history' holds"):
        encoder.lists(chunked([values]))


def test_ids_of_a_feature_table_get_codes_too() -> None:
    encoder = IdEncoder.fit(USER, chunked([5, 9])).also(chunked([7, 9]))
    assert encoder.codes(chunked([5, 7, 9])).tolist() == [1, 2, 3]
    assert IdEncoder.fit(USER, chunked([5])).also(chunked(["u", "5"])).ids.to_pylist() == ["5", "u"]


def test_lists_of_ids_become_ragged_codes() -> None:
    lists = IdEncoder.fit(USER, chunked([5, 9])).lists(chunked([[9, 5], None, [], [4]]))
    assert lists.sizes[:, 0].tolist() == [2, 0, 0, 1]
    assert lists.values.tolist() == [2, 1, 0]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_lists_of_ids_may_be_text_with_bars_or_single_ids(kind: pa.DataType) -> None:
    encoder = IdEncoder.fit(USER, chunked([5, 9]))
    for raw in (chunked(["9|5", None, "", "4"], kind), chunked([[9, 5], None, [], [4]])):
        lists = encoder.lists(raw)
        assert (lists.values.tolist(), lists.sizes[:, 0].tolist()) == ([2, 1, 0], [2, 0, 0, 1])
    single = encoder.lists(chunked([9, None, 4]))
    assert (single.values.tolist(), single.sizes[:, 0].tolist()) == ([2, 0], [1, 0, 1])


def test_a_million_ids_are_a_few_bytes_each_and_no_entry_each() -> None:
    ids = np.random.default_rng(0).permutation(10_000_000)[:1_000_000]
    plain = IdEncoder.fit(USER, pa.chunked_array([ids])).to_plain()
    assert len(json.dumps(plain)) < 3_000_000
    assert IdEncoder.from_plain(USER, plain).codes(pa.chunked_array([np.sort(ids)[-3:]])).tolist() == [999_998, 999_999, 1_000_000]


def test_words_are_categories_lists_or_text_with_bars() -> None:
    encoder = stored(WordsEncoder.fit(Column("genres", "words"), chunked(["b|a", "a", None, "c | b"])))
    assert encoder.column.vocabulary == 4
    words, errors = encoder.array(chunked(["c|a", "new", None, "a"]))
    assert words.sizes[:, 0].tolist() == [2, 0, 0, 1]
    assert words.values.tolist() == [3, 1, 1]
    assert errors == {}
    lists, _ = encoder.array(chunked([["a", "c"], None]))
    assert (lists.values.tolist(), lists.sizes[:, 0].tolist()) == ([1, 3], [2, 0])


def test_an_empty_text_is_no_word() -> None:
    encoder = WordsEncoder.fit(Column("genres", "words"), chunked([["a", ""], [" "]]))
    assert encoder.words == ("a",)
    words, _ = encoder.array(chunked([["", "a"], [""]]))
    assert (words.values.tolist(), words.sizes[:, 0].tolist()) == ([1], [1, 0])


@pytest.mark.parametrize("values", [[[["a"]]], [{"a": 1}], [b"\xff"]])
def test_features_that_are_no_words_or_no_numbers_are_refused_with_their_column(values: list[Any]) -> None:
    words, age = WordsEncoder.fit(Column("genres", "words"), chunked(["a"])), MeasureEncoder.fit(Column("age", "measure"), chunked([1, 2]))
    with pytest.raises(DataError, match=r"column 'genres' holds .*, which is no text and no list of words"):
        words.array(chunked(values))
    with pytest.raises(DataError, match=r"column 'age' holds .*, which is no number"):
        age.array(chunked(values))


def test_measures_are_standardised_and_may_be_missing() -> None:
    encoder = stored(MeasureEncoder.fit(Column("age", "measure"), chunked([10.0, 30.0, None])))
    values, errors = encoder.array(chunked([30, None, 20]))
    assert values[[0, 2]].tolist() == [1.0, 0.0]
    assert np.isnan(values[1])
    assert errors == {}
    assert np.isnan(encoder.array(chunked(["old"]))[0][0])
    assert encoder.array(chunked([" 40 "]))[0].tolist() == [2.0]


def test_a_ranking_s_rows_are_positives_and_its_answers_scores() -> None:
    encoder = RankingEncoder.fit(Column("target", "ranking"), chunked([1, 1]))
    assert encoder.array(chunked([1, 1]))[0].tolist() == [1, 1]
    assert encoder.answers(torch.tensor([0.5, -1.0])).to_pylist() == [0.5, -1.0]


@pytest.mark.parametrize(
    ("written", "ids"),
    [
        (["7", "-12", "0", "9223372036854775807"], [7, -12, 0, 2**63 - 1]),
        ([" 7", "8 "], [7, 8]),
        (["7.0", "12", "NA", None], [7, 12, None, None]),
        (["7", "07"], ["7", "07"]),
        (["7", "x", "NA", None], ["7", "x", "NA", None]),
        (["9223372036854775808", "1"], ["9223372036854775808", "1"]),
        (["0x1F", "1e5", "2.5", "-0"], ["0x1F", "1e5", "2.5", "-0"]),
        ([None, None], [None, None]),
    ],
)
def test_written_ids_are_numbers_only_where_every_one_is_a_number_s_own_spelling(written: list[Any], ids: list[Any]) -> None:
    """Numbers as pandas writes them beside missing ones ('7.0') count, so do spaces around them."""
    first, second = pa.array(written[:1], pa.string()), pa.array(written[1:], pa.string())
    assert of_text(pa.chunked_array([first, second])).to_pylist() == ids
