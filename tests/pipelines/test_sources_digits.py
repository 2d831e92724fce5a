"""The digits that scikit-learn carries."""

from __future__ import annotations

import sys

import pytest

from pipelines.sources import digits
from tests.contracts.source_contract import SourceContract


class TestDigits(SourceContract):
    @pytest.fixture
    def load(self) -> object:
        return digits.load

    @pytest.fixture
    def config(self) -> digits.Config:
        return digits.Config()


def test_digits_are_1797_grey_images_of_ten_classes() -> None:
    raw = digits.load(digits.Config())
    assert (raw.table.num_rows, raw.inputs[0].shape, len(raw.table["label"].unique())) == (1797, (1, 8, 8), 10)


def test_the_file_is_found_without_importing_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    [(_, path)] = digits.Config().files()
    assert path.is_file()
    assert "sklearn" not in sys.modules
