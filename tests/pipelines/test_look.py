"""A look at the data: every oddity that is put into a table is found, named by its row, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipelines import seen
from pipelines.prepare import Prepared, prepare
from pipelines.raw import NoOptions, Raw, image_column
from pipelines.row_hash import hash_column
from pipelines.schema import Column
from pipelines.sources import digits, hmm, table
from pipelines.splits import SplitConfig

PARTS = ["train"] * 60 + ["validation"] * 20 + ["test"] * 20
TEXT, LABEL = Column("text", "text"), Column("label", "class", dtype="str")


def texts(**changes: str | None) -> list[str | None]:
    """100 different texts of six words, but for row numbers `r5="..."`."""
    made: list[str | None] = [f"this is the {row} th film" for row in range(100)]
    for name, text in changes.items():
        made[int(name[1:])] = text
    return made


def look(folder: Path, inputs: dict[str, tuple[str, Any]], target: tuple[str, Any] | None = None, official: bool = True) -> dict[str, Any]:
    """What is found in 100 rows, 60/20/20. `inputs`: name -> (kind, values); `target`: (kind, values)."""
    kind, labels = target or ("class", ["pos", "neg"] * 50)
    columns = {name: values if isinstance(values, pa.Array) else pa.array(values) for name, (_, values) in inputs.items()}
    shapes = {"image": (1, 4, 4)}
    raw = Raw(
        pa.table({**columns, "label": labels, "split": PARTS}),
        tuple(Column(name, kind, shapes.get(kind, ()), "uint8" if kind == "image" else "float32") for name, (kind, _) in inputs.items()),
        Column("label", kind),
        np.array(PARTS) if official else None,
    )
    split = SplitConfig() if official else SplitConfig(by="column", column="split")
    return prepare("mine", lambda config: raw, NoOptions(), split, folder).look()


def problems(folder: Path, *args: Any, **more: Any) -> list[str]:
    found: list[str] = look(folder, *args, **more)["problems"]
    return found


def test_nothing_is_said_of_data_without_fault(tmp_path: Path) -> None:
    found = look(tmp_path, {"text": ("text", texts())})
    assert found["problems"] == []
    assert found["leak"] is None
    assert found["duplicates"] == {
        "inside": {"train": 0, "validation": 0, "test": 0},
        "across": {"train/test": 0, "train/validation": 0, "validation/test": 0},
        "differing_targets": 0,
    }
    assert found["columns"]["text"]["lengths"]["train"] == {"min": 6, "median": 6, "p95": 6, "max": 6}


def test_a_leak_is_named_by_both_rows_of_their_own_parts(tmp_path: Path) -> None:
    found = look(tmp_path, {"text": ("text", texts(r83="this is the 5 th film", r85="this is the 5 th film", r90="this is the 7 th film"))})
    assert found["duplicates"]["across"] == {"train/test": 3, "train/validation": 0, "validation/test": 0}
    assert found["leak"] == found["problems"][0]
    assert found["leak"].startswith("test: 3 rows (15.00%) have the same inputs as rows of train, as row 3 of test and row 5 of train: ")
    assert "take them out" in found["leak"]


def test_rows_of_one_table_are_named_by_their_numbers_in_it(tmp_path: Path) -> None:
    [leak] = problems(
        tmp_path, {"text": ("text", texts(r83="this is the 5 th film"))}, ("class", (["a"] * 3 + ["b"]) * 25), official=False
    )[:1]
    assert "1 row (5.00%) has the same inputs as rows of train, as row 83 and row 5:" in leak


def test_validation_rows_in_train_or_in_test_are_no_leak_into_the_test_score_but_are_said(tmp_path: Path) -> None:
    found = look(tmp_path, {"text": ("text", texts(r61="this is the 5 th film", r81="this is the 65 th film"))})
    assert found["duplicates"]["across"] == {"train/test": 0, "train/validation": 1, "validation/test": 1}
    assert found["leak"] is None
    assert [says.partition(":")[0] for says in found["problems"]] == ["validation", "test"]


def test_copies_inside_a_part_count_beyond_the_first(tmp_path: Path) -> None:
    found = look(tmp_path, {"text": ("text", texts(r10="same", r20="same", r30="same"))})
    assert found["duplicates"]["inside"] == {"train": 2, "validation": 0, "test": 0}
    assert found["problems"] == [
        "train: 2 rows repeat the inputs of an earlier one, as row 20 of train of row 10 of train; they count twice: drop the copies"
    ]


@pytest.mark.parametrize("kinds", [3, 30, 300])
def test_copies_are_as_many_as_a_count_by_hand_finds(kinds: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(kinds)
    values, labels = rng.integers(kinds, size=100), rng.integers(2, size=100)
    rows = {"train": values[:60].tolist(), "validation": values[60:80].tolist(), "test": values[80:].tolist()}
    found = look(tmp_path, {"text": ("text", [f"film {value}" for value in values])}, ("number", labels.astype(float)))["duplicates"]
    assert found["inside"] == {part: len(of) - len(set(of)) for part, of in rows.items()}
    assert found["across"] == {
        f"{other}/{part}": sum(value in rows[other] for value in rows[part])
        for other, part in (("train", "test"), ("train", "validation"), ("validation", "test"))
    }
    assert found["differing_targets"] == sum(len(set(labels[values == value])) > 1 for value in set(values.tolist()))


def test_the_same_input_with_two_labels_is_said(tmp_path: Path) -> None:
    found = look(tmp_path, {"text": ("text", texts(r11="this is the 10 th film"))})
    assert found["duplicates"]["differing_targets"] == 1
    assert "one input comes with different targets, as in row 10 of train (train) and row 11 of train (train)" in found["problems"][-1]


def test_texts_that_differ_in_case_and_spaces_alone_are_copies(tmp_path: Path) -> None:
    found = look(tmp_path, {"text": ("text", texts(r83=" This is  the 5 th\tFILM"))})
    assert found["duplicates"]["across"]["train/test"] == 1


def test_rows_of_users_and_items_are_copies_by_these_alone_and_may_repeat(tmp_path: Path) -> None:
    users, items = [row % 10 for row in range(100)], list(range(100))
    users[20], items[20], users[85], items[85] = users[10], items[10], users[5], items[5]
    inputs = {"user": ("id", users), "item": ("id", items), "age": ("measure", [None, *range(99)])}
    found = look(tmp_path, inputs, ("number", [1.0, 2.0] * 50))
    assert found["duplicates"]["inside"]["train"] == found["duplicates"]["across"]["train/test"] == 1
    assert found["columns"]["user"]["unknown"]["test"] == {"ids": 0, "rows": 0, "share": 0.0}
    assert found["columns"]["item"]["unknown"]["test"] == {"ids": 19, "rows": 19, "share": 0.95}
    assert found["problems"][1:] == [
        "test: column 'item' is not known from train in 19 rows (95%; 19 ids), first in row 0 of test; "
        "they are answered from features or popularity"
    ]


def test_all_input_columns_together_make_a_copy(tmp_path: Path) -> None:
    numbers = list(range(100))
    same = {"text": ("text", texts(r83="this is the 5 th film"))}
    assert look(tmp_path / "a", {**same, "age": ("number", numbers)}, ("number", np.arange(100.0)))["leak"] is None
    numbers[83] = 5
    assert look(tmp_path / "b", {**same, "age": ("number", numbers)}, ("number", np.arange(100.0)))["leak"] is not None


def test_empty_text_is_missing_and_no_copy_of_other_empty_text(tmp_path: Path) -> None:
    found = look(tmp_path, {"text": ("text", texts(r4="", r5="  ", r6=None, r88=""))})
    assert found["columns"]["text"]["missing"] == {"train": 3, "validation": 0, "test": 1}
    assert found["problems"] == [
        "train: column 'text' is empty or missing in 3 rows of 60, first in row 4 of train; fill them or take them out",
        "test: column 'text' is empty or missing in 1 row of 20, first in row 8 of test; fill them or take them out",
    ]


def test_numbers_far_from_the_median_are_outliers_by_their_row_in_the_data(tmp_path: Path) -> None:
    numbers = np.linspace(0, 1, 100)
    numbers[85] = 99.0
    found = look(tmp_path, {"text": ("text", texts())}, ("number", numbers))
    assert found["columns"]["label"]["outliers"] == {"count": 1, "rows": [85]}
    assert found["columns"]["label"]["numbers"]["test"]["max"] == 99.0
    assert found["problems"] == [
        "test: column 'label' is more than 8 robust deviations from the median in 1 row, first in row 5 of test (99); "
        "correct them if they are mistakes"
    ]


def test_skewed_numbers_are_no_faults_of_single_rows(tmp_path: Path) -> None:
    numbers = np.exp(np.random.default_rng(0).normal(size=100) * 3)
    found = look(tmp_path, {"text": ("text", texts())}, ("number", numbers))
    assert found["columns"]["label"]["outliers"]["count"] > 5
    assert found["problems"] == []


def test_one_text_far_longer_than_all_others_is_said(tmp_path: Path) -> None:
    [says] = problems(tmp_path, {"text": ("text", texts(r7="word " * 500))})
    assert says.startswith("train: column 'text' has 500 words in row 7 of train (1 row over 20 times the 6 that 95 % stay below)")


def test_sequences_are_measured_in_steps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(3 + row % 5, 2)).tolist() for row in range(100)]
    sequences[95] = sequences[2]
    found = look(tmp_path, {"window": ("sequence", sequences)})
    assert found["columns"]["window"]["lengths"]["test"] == {"min": 3, "median": 5, "p95": 7, "max": 7}
    assert found["columns"]["window"]["lengths"]["unit"] == "steps"
    assert found["duplicates"]["across"]["train/test"] == 1


def test_images_of_one_value_are_outliers_and_copies_are_found_by_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 4, 4), dtype=np.uint8)
    pixels[40], pixels[90] = 7, pixels[3]
    found = look(tmp_path, {"image": ("image", image_column(pixels))})
    assert found["columns"]["image"]["outliers"] == {"count": 1, "rows": [40]}
    assert found["columns"]["image"]["numbers"]["train"]["min"] == 7.0
    assert found["duplicates"]["across"]["train/test"] == 1
    assert "train: column 'image' is an image of one value in 1 row, first in row 40 of train;" in found["problems"][1]


def test_images_of_different_sizes_have_no_brightness_but_their_copies_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "CHUNK_BYTES", 1)
    made = [np.full((2 + row // 70, 2), row).tolist() for row in range(100)]
    made[99] = made[0]
    pa.parquet.write_table(pa.table({"image": made}), tmp_path / "all.parquet")
    found = seen.read_seen(tmp_path / "all.parquet", (Column("image", "image", (1, 2, 2)),))["image"]
    assert {*found} == {"hashes", "missing"}
    assert len(set(found["hashes"].tolist())) == 99


def test_a_class_without_rows_in_a_part_and_unbalanced_classes_are_said(tmp_path: Path) -> None:
    labels = ["a"] * 98 + ["b", "b"]
    labels[3] = labels[4] = "b"
    labels[60:80] = ["a"] * 20
    assert problems(tmp_path, {"text": ("text", texts())}, ("class", labels)) == [
        "class 'b' has no row in validation; add some, or leave the class out: nothing is known of it there",
        "train: class 'a' has 58 rows, class 'b' 2: a model that always says 'a' is right on 97%; look at more than accuracy, "
        "and weigh them",
    ]


def test_an_input_that_never_changes_tells_nothing(tmp_path: Path) -> None:
    inputs = {"text": ("text", texts()), "site": ("number", np.ones(100))}
    assert problems(tmp_path, inputs, ("number", np.arange(100.0))) == [
        "train: column 'site' is the same in all 60 rows and tells nothing; leave it out: data.drop: [site]"
    ]


def test_row_numbers_do_not_depend_on_how_many_rows_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"text": ("text", texts(r5="", r83="this is the 40 th film", r95="word " * 500))}
    whole = look(tmp_path / "a", inputs)
    monkeypatch.setattr(seen, "CHUNK_BYTES", 1)
    assert look(tmp_path / "b", inputs) == whole


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["a", "b", None, "", "a"]),
        pa.array([b"a", b"bb", None, b"", b"a"]),
        pa.array([b"ab", b"bb", None, b"ba", b"ab"], pa.binary(2)),
        pa.array([1, 2, None, 0, 1]),
        pa.array([1.5, 2.0, None, -0.0, 1.5]),
        pa.array([[1, 2], [1], None, [], [1, 2]]),
        pa.array([[[1, 2], [3, 4]], [[1, 2, 3, 4]], None, [], [[1, 2], [3, 4]]]),
        pa.array([[1.0, 2.0], [2.0, 1.0], None, [0.0, 0.0], [1.0, 2.0]], pa.list_(pa.float32(), 2)),
        pa.array([["a", "bc"], ["ab", "c"], None, [], ["a", "bc"]]),
        pa.array([{"bytes": b"a"}, {"bytes": b"b"}, None, {"bytes": b""}, {"bytes": b"a"}]),
    ],
    ids=lambda values: str(values.type),
)
def test_equal_values_and_no_others_have_equal_numbers_wherever_a_chunk_begins(values: pa.Array) -> None:
    hashed = hash_column(values)
    assert hashed[0] == hashed[4]
    assert len(set(hashed.tolist())) == 4
    for start in range(5):
        assert (hash_column(values.slice(start)) == hashed[start:]).all()


@pytest.mark.parametrize(("source", "load"), [("digits", digits), ("hmm", hmm)])
def test_what_ships_with_the_toolkit_gives_no_alarm(source: str, load: Any, tmp_path: Path) -> None:
    assert prepare(source, load.load, load.Config(), SplitConfig(), tmp_path).look()["problems"] == []


def test_data_prepared_before_there_was_a_look_are_prepared_again(tmp_path: Path) -> None:
    (tmp_path / "films.csv").write_text("text,label\n" + "".join(f"film {row},{'ab'[row % 2]}\n" for row in range(40)))
    config = table.Config(str(tmp_path / "films.csv"))

    def made() -> Prepared:
        return prepare("table", table.load, config, SplitConfig(), tmp_path / "cache")

    first = made()
    (first.folder / "look.json").unlink()
    assert first.look() == {}
    assert made().look() == json.loads((first.folder / "look.json").read_text()) != {}
