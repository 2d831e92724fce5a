"""Text files, one for each class: what names the class, which lines are texts, and what may be wrong with a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.prepare import prepare
from pipelines.raw import Raw
from pipelines.schema import DataError
from pipelines.sources import text
from pipelines.splits import SplitConfig
from tests.contracts.source_contract import SourceContract

DATA = Path(os.environ.get("ORCHESTRATOR_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
GOOD, BAD = "a good film\ngood, good\n" * 20, "a bad film\r\nnothing in it\r\n" * 20


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def loaded(folder: Path, files: dict[str, str | bytes], **options: Any) -> Raw:
    return text.load(text.Config(str(write(folder, files)), **options))


class TestTwoFiles(SourceContract):
    @pytest.fixture
    def load(self) -> object:
        return text.load

    @pytest.fixture
    def config(self, tmp_path: Path) -> text.Config:
        return text.Config(str(write(tmp_path / "data", {"pos.txt": GOOD, "neg.txt": BAD})))


class TestOfficialParts(SourceContract):
    @pytest.fixture
    def load(self) -> object:
        return text.load

    @pytest.fixture
    def config(self, tmp_path: Path) -> text.Config:
        files = {f"{part}/{name}": content for part in ("train", "dev", "test") for name, content in (("a.txt", GOOD), ("b.txt", BAD))}
        return text.Config(str(write(tmp_path / "data", files)))


@pytest.mark.parametrize(
    "names",
    [("rt-polarity.neg", "rt-polarity.pos"), ("neg.txt", "pos.txt"), ("neg", "pos"), ("neg.txt", "pos.text")],
    ids=["endings", "names", "names without endings", "names with two endings"],
)
def test_the_class_is_what_differs_in_the_files_names(names: tuple[str, str], tmp_path: Path) -> None:
    raw = loaded(tmp_path, {names[0]: "bad\nworse\n", names[1]: "good\n", "README.txt": "about it", ".hidden": "x"})
    assert raw.table.to_pydict() == {"text": ["bad", "worse", "good"], "label": ["neg", "neg", "pos"]}
    assert [column.kind for column in raw.inputs] == ["text"]


def test_lines_are_texts_unless_they_are_empty(tmp_path: Path) -> None:
    raw = loaded(tmp_path, {"a.txt": "\ufeffone \r\n\r\n  two\n\n", "b.txt": "x\u2028y\x0bz\x85w"})
    assert raw.table["text"].to_pylist() == ["one", "two", "x\u2028y\x0bz\x85w"]


def test_lines_end_as_on_any_system(tmp_path: Path) -> None:
    raw = loaded(tmp_path, {"a.txt": "one\rtwo\rthree\r", "b.txt": "four\r\nfive\rsix\nseven"})
    assert raw.table["text"].to_pylist() == ["one", "two", "three", "four", "five", "six", "seven"]


def test_a_file_that_is_no_utf_8_is_latin_1_and_an_encoding_may_be_said(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"a.txt": "caf\u00e9".encode("latin-1"), "b.txt": "caf\u00e9".encode()}
    assert loaded(tmp_path / "1", files).table["text"].to_pylist() == ["caf\u00e9"] * 2
    files = {name: "caf\u00e9 \u201cno\u201d".encode("cp1252") for name in ("a.txt", "b.txt")}
    assert loaded(tmp_path / "2", files, encoding="cp1252").table["text"].to_pylist() == ["caf\u00e9 \u201cno\u201d"] * 2


def test_official_parts_are_kept(tmp_path: Path) -> None:
    raw = loaded(
        tmp_path, {"train/a.txt": "1\n2", "train/b.txt": "3", "test/a.txt": "4", "test/b.txt": "5", "val/a.txt": "6", "val/b.txt": "7"}
    )
    assert raw.official is not None
    parts = {name: set(np.array(raw.table["text"].to_pylist())[raw.official == name]) for name in ("train", "validation", "test")}
    assert parts == {"train": {"1", "2", "3"}, "validation": {"6", "7"}, "test": {"4", "5"}}


def test_the_vocabulary_may_be_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "data", {"pos.txt": GOOD, "neg.txt": BAD})
    for size, codes in ((5, 5), (None, 10)):
        config = text.Config(str(path), vocabulary=size)
        assert prepare("text", text.load, config, SplitConfig(), tmp_path / "cache").schema.inputs[0].vocabulary == codes


WRONG: dict[str, tuple[dict[str, str | bytes], dict[str, Any], str, str]] = {
    "one class": ({"a.txt": "x"}, {}, "data.path", "must hold a file for each class, two at least, a text a line; there is: a.txt"),
    "no file": ({"x/a.txt": "x"}, {}, "data.path", "two at least, a text a line; there is: none"),
    "names that don't tell": (
        {"a.txt": "x", "a.csv": "x", "b.txt": "x"},
        {},
        "data.path",
        "don't tell the classes: a.csv, a.txt, b.txt; name them by these, as pos.txt and neg.txt",
    ),
    "empty file": ({"a.txt": "x", "b.txt": " \n\n"}, {}, "data.path", "b.txt' holds no text; fill it or take it out"),
    "binary file": ({"a.txt": "x", "b.txt": b"PK\0\0"}, {}, "data.path", "b.txt' is no text, or of another encoding"),
    "not the encoding": (
        {"a.txt": "x", "b.txt": "x\ny\ncaf\u00e9".encode("latin-1")},
        {"encoding": "utf-8"},
        "data.encoding",
        r"b.txt', line 2: it is not utf-8 \(.*\); set data.encoding to what it is",
    ),
    "not the encoding, with an old Mac's line ends": (
        {"a.txt": "x", "b.txt": "x\ry\rcaf\u00e9".encode("latin-1")},
        {"encoding": "utf-8"},
        "data.encoding",
        "b.txt', line 2: it is not utf-8",
    ),
    "no encoding": ({"a.txt": "x", "b.txt": "x"}, {"encoding": "uft8"}, "data.encoding", "there is no encoding 'uft8'"),
    "no train": ({"test/a.txt": "x", "test/b.txt": "x"}, {}, "data.path", "holds test/; it must hold one train/"),
    "one part twice": ({f"{p}/{n}.txt": "x" for p in ("train", "val", "dev") for n in "ab"}, {}, "data.path", "holds dev/, train/, val/"),
    "a class of test only": (
        {"train/a.txt": "x", "train/b.txt": "x", "test/a.txt": "x", "test/c.txt": "x"},
        {},
        "data.path",
        r"class 'c' is in test/ \('.*c.txt'\) but not in train/; add it there or take it out",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named_with_what_to_do(case: str, tmp_path: Path) -> None:
    files, options, key, says = WRONG[case]
    with pytest.raises(DataError, match=says) as caught:
        loaded(tmp_path, files, **options)
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "x"})
    with pytest.raises(DataError, match=r"a.txt' is a file; give the folder that holds a file for each class"):
        text.load(text.Config(str(tmp_path / "a.txt")))
    with pytest.raises(DataError, match="it is missing: where is the data"):
        text.load(text.Config())


@pytest.mark.skipif(not (DATA / "mr").is_dir(), reason=f"no film reviews in {DATA / 'mr'}; set ORCHESTRATOR_TEST_DATA to where mr/ lies")
def test_the_film_reviews_are_read_whole() -> None:
    raw = text.load(text.Config(str(DATA / "mr")))
    labels = raw.table["label"].to_pylist()
    assert {name: labels.count(name) for name in set(labels)} == {"pos": 5331, "neg": 5331}
