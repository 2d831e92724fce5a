"""Numbers: as they are stored, also where they are written as text; what is no finite number is its row's error."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from pipelines.encode.numbers import NumberEncoder
from pipelines.schema import Column


def encoded(values: pa.Array) -> tuple[list[float], dict[int, str]]:
    array, errors = NumberEncoder(Column("x", "number")).array(pa.chunked_array([values]))
    assert array.dtype == np.float64
    return array.tolist(), errors


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_text_is_read_as_the_numbers_that_it_says(kind: pa.DataType) -> None:
    assert encoded(pa.array(["1", "-2.5", " 3e2 ", "+.5"], kind)) == ([1.0, -2.5, 300.0, 0.5], {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nan", "'nan' is no finite number"),
        ("NaN", "'NaN' is no finite number"),
        ("inf", "'inf' is no finite number"),
        ("-Infinity", "'-Infinity' is no finite number"),
        ("1e999", "'1e999' is no finite number"),
        ("1_0", "'1_0' is no number"),
        ("ten", "'ten' is no number"),
        ("", "'' is no number"),
        (None, "it is missing"),
    ],
)
def test_text_that_is_no_finite_number_is_an_error_of_its_row(text: str | None, says: str) -> None:
    assert encoded(pa.array(["1", text, "3"])) == ([1.0, 0.0, 3.0], {1: says})


def test_numbers_that_are_not_finite_are_errors_of_their_rows() -> None:
    values, errors = encoded(pa.array([1.0, math.nan, math.inf, None, -4.0]))
    assert values == [1.0, 0.0, 0.0, 0.0, -4.0]
    assert errors == {1: "nan is no finite number", 2: "inf is no finite number", 3: "it is missing"}


def test_booleans_and_decimals_are_numbers_and_dates_are_none() -> None:
    assert encoded(pa.array([True, False])) == ([1.0, 0.0], {})
    assert encoded(pa.array([Decimal("1.25")])) == ([1.25], {})
    assert encoded(pa.array([0], pa.date32())) == ([0.0], {0: "date32[day] is no number"})


@pytest.mark.parametrize("text", [False, True])
def test_mean_and_deviation_are_those_of_the_training_rows(text: bool) -> None:
    numbers = np.random.default_rng(0).normal(5, 3, 1000)
    raw = pa.chunked_array([pa.array([str(number) for number in numbers] if text else numbers)])
    fitted = NumberEncoder.fit(Column("x", "number"), raw).column
    assert (fitted.mean, fitted.std) == pytest.approx((numbers.mean(), numbers.std()))
