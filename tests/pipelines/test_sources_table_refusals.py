"""Tables that can't be used, or not as they are: what is said of which column, row and file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.schema import DataError
from pipelines.sources import files
from tests.pipelines.test_sources_table import COLOUR, PIXELS, load, loaded, png, write

X, NAN, INF = [1, 2, 3, 4], float("nan"), float("inf")
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "no target": ({"x": X, "y": X}, {}, "data.target", "the target is missing: name the column to predict; the columns are: x, y"),
    "two targets": ({"x": X, "label": X, "target": X}, {}, "data.target", "both 'label' and 'target' may be the target"),
    "unknown target": (
        {"x": X, "species": X},
        {"target": "specis"},
        "data.target",
        r"no column 'specis' \(did you mean 'species'\?\); the columns are: x, species",
    ),
    "unknown input": ({"x": X, "label": X}, {"inputs": ("q",)}, "data.inputs", "no column 'q'; the columns are: x, label"),
    "unknown drop": ({"x": X, "label": X}, {"drop": ("lable",)}, "data.drop", "did you mean 'label'"),
    "unknown kind": ({"x": X, "label": X}, {"kinds": {"z": "text"}}, "data.kinds", "no column 'z'"),
    "target as input": (
        {"x": X, "label": X},
        {"inputs": ("x", "label")},
        "data.inputs",
        "'label' is the target; take it out of data.inputs",
    ),
    "target dropped": ({"x": X, "y": X}, {"target": "y", "drop": ("y",)}, "data.drop", "'y' is the target; take it out of data.drop"),
    "no input left": ({"x": X, "label": X}, {"drop": ("x",)}, "data.inputs", "no column is left as an input"),
    "list as target": ({"x": X, "label": [[1]] * 4}, {}, "data.target", "it must be text, numbers or booleans"),
    "null label": (
        {"x": X, "label": ["a", None, "b", None]},
        {},
        "data.path",
        r"column 'label', row 1: the label is missing \(and 1 rows more\)",
    ),
    "nan label": ({"x": X, "label": [1.5, 2, NAN, 3]}, {}, "data.path", "column 'label', row 2: the label is missing"),
    "null image": ({"image": [[1], None, [2], [3]], "label": X}, {}, "data.path", "column 'image', row 1: it is missing"),
    "null picture": ({"i": [png(PIXELS[0]), None] * 2, "label": X}, {}, "data.path", "column 'i', row 1: it is missing"),
    "null within": ({"image": [[1], [None], [2], [3]], "label": X}, {}, "data.path", "row 1: it holds a missing value, NaN or infinity"),
    "nan within": ({"image": [[1.0], [2.0], [NAN], [3.0]], "label": X}, {}, "data.path", "column 'image', row 2: it holds a missing value"),
    "infinity": ({"image": [[1.0], [2.0], [3.0], [-INF]], "label": X}, {}, "data.path", "column 'image', row 3: it holds a missing value"),
    "ragged": (
        {"image": [[1], [2], [1, 2], [3]], "label": X},
        {},
        "data.path",
        r"row 2: a list of shape \[2\]; the image is 1x1x1 = 1 values",
    ),
    "ragged rows": ({"image": [[[1, 2], [3]]] * 4, "label": X}, {}, "data.path", "column 'image', row 0: no lists of one shape"),
    "no square": (
        {"image": [[1, 2, 3, 4, 5]] * 4, "label": X},
        {},
        "data.size",
        r"shape \[5\] are no square image, grey or RGB; set data.size",
    ),
    "not the size": ({"x": [[1, 2, 3, 4]] * 4, "label": X}, {"size": (3, 2)}, "data.size", r"values of shape \[4\] are no square"),
    "rows not the size": ({"x": [[[1, 2]]] * 4, "label": X}, {"size": (3, 2)}, "data.size", "only pictures are resized"),
    "channels first": ({"image": np.zeros((4, 3, 5, 6), int).tolist(), "label": X}, {}, "data.path", r"put the channels last, \[H, W, C\]"),
    "grey lists": ({"image": COLOUR.tolist(), "label": X}, {"grey": True}, "data.grey", "only pictures are turned grey"),
    "raw without size": (
        {"x": [b"1234"] * 4, "label": X},
        {},
        "data.size",
        r"column 'x' holds binary, but no pictures; set data.size: \[H, W\]",
    ),
    "raw of two sizes": (
        {"x": [b"1234", b"123", b"1234", b"1234"], "label": X},
        {"size": (2, 2)},
        "data.path",
        "row 1: 3 bytes, neither PNG nor JPEG nor 2x2x1 = 4 raw values",
    ),
    "broken picture": (
        {"i": [png(PIXELS[0]), png(PIXELS[0])[:40]] * 2, "label": X},
        {},
        "data.path",
        "column 'i', row 1: no readable image",
    ),
    "broken json": ({"image": ["[1]", "[2", "[3]", "[4]"], "label": X}, {}, "data.path", "column 'image', row 1: no list of numbers"),
    "number as image": ({"x": X, "label": X}, {"kinds": {"x": "image"}}, "data.kinds", "column 'x' holds int64, which can't be an image"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named_with_what_to_do(case: str, tmp_path: Path) -> None:
    columns, options, key, says = WRONG[case]
    with pytest.raises(DataError, match=says) as caught:
        loaded(tmp_path, columns, **options)
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


def test_a_row_is_counted_in_its_own_file(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"image": [[1]] * 4, "label": ["a", "b"] * 2})
    write(tmp_path / "test.parquet", {"image": [[1], [2], [None]], "label": ["a", "b", "a"]})
    with pytest.raises(DataError, match=r"'test.parquet', column 'image', row 2: it holds a missing value"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("d.parquet", b"", "d.parquet' is empty; get the file again"),
        ("d.parquet", b"PAR1 and then nothing", "can't be read as Parquet, or is cut off: .*; get the file again or mend it"),
        ("d.csv", b"", "d.csv' is empty"),
        ("d.csv", b"x,label\n", "'d.csv' has no rows; its columns are: x, label"),
        ("d.csv", b"x,label\n1,a\n2,b,c\n3,d,e\n", r"'d.csv', row 1: 3 values, the header has 2 \(and 1 rows more\); mend it"),
        ("d.csv", b"x,label\n1,\xff\xfe\n2,b\n", "'d.csv', column 'label': it is not UTF-8 text; save the file as UTF-8"),
        ("d.csv", b"x,x,label\n1,2,a\n", "'d.csv' has two columns 'x'; rename one"),
        ("d.xlsx", b"PK", "'d.xlsx' is none of .parquet, .csv, .tsv; convert it"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        load(tmp_path / name)
    assert caught.value.key == "data.path"


def test_a_parquet_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", {"x": list(range(1000)), "label": ["a", "b"] * 500})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"d.parquet' can't be read as Parquet, or is cut off"):
        load(path)


def test_a_missing_file_tells_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "trian.csv", {"x": [1], "label": [1]})
    with pytest.raises(DataError, match=r"no file or folder '.*train.csv'; in '.*' there is: trian.csv"):
        load(tmp_path / "train.csv")
    with pytest.raises(DataError, match=r"holds no train.parquet, train.csv or train.tsv; there is: trian.csv"):
        load(tmp_path)


def test_two_files_of_one_part_are_refused(tmp_path: Path) -> None:
    for name in ("train.csv", "dev.csv", "val.csv"):
        write(tmp_path / name, {"x": [1], "label": [1]})
    with pytest.raises(DataError, match=r"two files of one part, dev.csv and val.csv"):
        load(tmp_path)


def test_a_test_file_without_labels_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", {"x": [1, 2], "label": ["a", "b"]})
    write(tmp_path / "test.csv", {"x": [1, 2]})
    with pytest.raises(DataError, match=r"'test.csv' has no column 'label', which 'train.csv' has; add it, or take the file away"):
        load(tmp_path)


def test_parts_of_different_types_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", {"x": [1, 2], "label": ["a", "b"]})
    write(tmp_path / "test.csv", {"x": ["one", "two"], "label": ["a", "b"]})
    with pytest.raises(DataError, match=r"column 'x' has different types: .*int64 in 'train.csv'.*; write one type in all"):
        load(tmp_path)


def test_texts_of_a_csv_that_kinds_tells_of_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("code,label\n007,a\n7,b\n,a\n")
    assert load(tmp_path / "d.csv", kinds={"code": "text"}).table["code"].to_pylist() == ["007", "7", None]


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (["a\t1", '"b\t2', "c\t3", '"d\t4'], 3),  # the second quote closes the first one
        (["a\t1", 'b\t"2', "c\t3"], 3),  # none does
        (["a\t1", '"5 inch\t2', '6 inch"\t3'], 3),  # one does, at the end of a value
        (["a\t1", '"b\r\nb"\t2', '"b"" c\t3', 'd" e\t4'], 5),
    ],
)
def test_a_quote_in_a_tsv_that_takes_in_the_lines_below_is_refused(tmp_path: Path, lines: list[str], line: int) -> None:
    (tmp_path / "d.tsv").write_bytes("\n".join(["x\tlabel", *lines, ""]).encode())
    says = rf"^'d.tsv', line {line}: the value that begins with '\"' takes in lines below it; take that '\"' out, or convert"
    with pytest.raises(DataError, match=says):
        load(tmp_path / "d.tsv")
    with pytest.raises(DataError, match=says):
        list(files.chunks(tmp_path / "d.tsv", 10))


def test_quotes_in_a_tsv_may_hold_tabs_lines_and_quotes(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text('"x"\t"label"\n"a\tb"\t"1"\n"c\n""d"" "\t2\n5" e"\t3\n"f" g\t4')
    assert load(tmp_path / "d.tsv").table["x"].to_pylist() == ["a\tb", 'c\n"d" ', '5" e"', "f g"]
