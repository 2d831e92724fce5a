"""Files in, files out: every row, in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import orchestrator
from models.lstm import LSTM
from orchestrator.deployment import bundle as bundles
from orchestrator.deployment import predict as predicting
from orchestrator.deployment.bundle import Bundle
from orchestrator.errors import Failed, Refused
from pipelines.encode import Encoder
from pipelines.schema import Column
from tests.deployment.conftest import Train

Write = Callable[[Path, pd.DataFrame], None]


@pytest.fixture(scope="module")
def bundle(folder: Path, train: Train) -> Bundle:
    return bundles.read(folder / str(train("training.epochs=4").bundle))


@pytest.fixture
def frame(bundle: Bundle, folder: Path) -> pd.DataFrame:
    """Forty images as lists, a number for each row, and the label."""
    table = pq.read_table(folder / ".orchestrator" / "data" / bundle.about["fingerprint"] / "test.parquet").slice(0, 40)
    images = [list(map(float, value)) for value in table["image"].to_pylist()]
    return pd.DataFrame({"image": images, "id": range(40), "label": table["label"].to_pylist()})


def write(path: Path, frame: pd.DataFrame) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        text = frame.assign(image=[None if v is None else json.dumps(v) for v in frame["image"]]) if "image" in frame else frame
        text.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]
    options = pa.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
    return pa.csv.read_csv(path, parse_options=options).to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("given", [".parquet", ".csv", ".tsv"])
@pytest.mark.parametrize("wanted", [".parquet", ".csv", ".tsv"])
def test_every_form_goes_in_and_comes_out_with_the_same_answers(
    bundle: Bundle, frame: pd.DataFrame, tmp_path: Path, given: str, wanted: str
) -> None:
    source, target = write(tmp_path / f"in{given}", frame), tmp_path / f"out{wanted}"
    assert predicting.predict(bundle, source, target) == (40, 0)
    rows = read(target)
    assert [row["id"] for row in rows] == list(range(40))
    assert list(rows[0]) == ["id", "label", "prediction", "probability", "error"], "what the model consumes is left out, the rest is kept"
    right = [str(row["prediction"]) == str(row["label"]) for row in rows]
    assert sum(right) / len(right) > 0.7
    assert all(0.0 < row["probability"] <= 1.0 for row in rows)
    assert target.stat().st_mode & 0o777 == 0o644


def test_a_probability_for_each_class_adds_up_to_one(bundle: Bundle, frame: pd.DataFrame, tmp_path: Path) -> None:
    predicting.predict(bundle, write(tmp_path / "in.parquet", frame), tmp_path / "out.parquet", every_class=True)
    for row in read(tmp_path / "out.parquet"):
        each = {name.removeprefix("probability_"): v for name, v in row.items() if name.startswith("probability_")}
        assert sorted(each) == [str(digit) for digit in range(10)]
        assert sum(each.values()) == pytest.approx(1, abs=1e-5)
        assert each[row["prediction"]] == max(each.values()) == row["probability"]


@pytest.mark.parametrize("form", [".parquet", ".csv"])
def test_rows_that_do_not_fit_come_out_empty_with_a_sentence_and_are_counted(
    bundle: Bundle, frame: pd.DataFrame, tmp_path: Path, form: str
) -> None:
    images = list(frame["image"])
    images[3], images[17] = [1.0, 2.0], None
    broken = pd.DataFrame({"image": images, "id": frame["id"]})
    assert predicting.predict(bundle, write(tmp_path / f"in{form}", broken), tmp_path / "out.parquet") == (40, 2)
    predicting.predict(bundle, write(tmp_path / "whole.parquet", frame), tmp_path / "whole-out.parquet")
    rows, whole = read(tmp_path / "out.parquet"), read(tmp_path / "whole-out.parquet")
    assert [row["id"] for row in rows] == list(range(40))
    assert "image: " in rows[3]["error"]
    assert "64" in rows[3]["error"]
    assert rows[17]["error"]
    for place, row in enumerate(rows):
        if place in (3, 17):
            assert (row["prediction"], row["probability"]) == (None, None)
        else:
            assert (row["prediction"], row["error"]) == (whole[place]["prediction"], None)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (pd.DataFrame({"picture": [[1.0] * 64]}), "no column 'image'; the input has: picture"),
        (pd.DataFrame({"image": [[1.0], [2.0]]}), "no row fits; row 0: image: "),
        (pd.DataFrame({"image": []}), "has no rows"),
    ],
)
def test_input_that_does_not_fit_at_all_is_refused_and_nothing_is_written(
    bundle: Bundle, tmp_path: Path, broken: pd.DataFrame, says: str
) -> None:
    with pytest.raises(Refused, match=says):
        predicting.predict(bundle, write(tmp_path / "in.parquet", broken), tmp_path / "out.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet"]


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("imput.parquet", "out.parquet", "no such file; did you mean 'input.parquet'"),
        ("input.parquet", "out.xlsx", "its name must end in .parquet, .csv, .tsv"),
        ("input.parquet", "nowhere/out.parquet", "there is no folder"),
        ("text.parquet", "out.parquet", "can't be read"),
    ],
)
def test_files_that_can_not_be_used_are_named(
    bundle: Bundle, frame: pd.DataFrame, tmp_path: Path, source: str, target: str, says: str
) -> None:
    write(tmp_path / "input.parquet", frame)
    (tmp_path / "text.parquet").write_text("no table at all")
    with pytest.raises(Refused, match=says):
        predicting.predict(bundle, tmp_path / source, tmp_path / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.parquet", "text.parquet"]


def test_an_output_that_was_there_stays_when_the_input_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("precious")
    with pytest.raises(Refused):
        predicting.predict(bundle, write(tmp_path / "in.csv", pd.DataFrame({"x": [1]})), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "precious"


def test_a_table_of_many_chunks_keeps_its_order_and_its_row_numbers(
    bundle: Bundle, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "CHUNK", 7)
    images = list(frame["image"])
    images[30] = [1.0]
    source = write(tmp_path / "in.parquet", pd.DataFrame({"image": images, "id": frame["id"]}))
    assert predicting.predict(bundle, source, tmp_path / "out.parquet") == (40, 1)
    rows = read(tmp_path / "out.parquet")
    assert [row["id"] for row in rows] == list(range(40))
    assert [place for place, row in enumerate(rows) if row["error"]] == [30]


def test_columns_named_like_answers_are_replaced_by_the_answers(bundle: Bundle, frame: pd.DataFrame, tmp_path: Path) -> None:
    given = frame.assign(prediction="mine", error="old")
    predicting.predict(bundle, write(tmp_path / "in.parquet", given), tmp_path / "out.parquet")
    rows = read(tmp_path / "out.parquet")
    assert {row["error"] for row in rows} == {None}
    assert "mine" not in {row["prediction"] for row in rows}


def test_raw_bytes_and_lists_of_the_same_image_get_the_same_answer(bundle: Bundle, frame: pd.DataFrame, tmp_path: Path) -> None:
    as_bytes = frame.assign(image=[np.array(image, np.uint8).tobytes() for image in frame["image"]])
    for name, given in (("lists", frame), ("bytes", as_bytes)):
        predicting.predict(bundle, write(tmp_path / f"{name}.parquet", given), tmp_path / f"{name}-out.parquet")
    assert read(tmp_path / "lists-out.parquet") == read(tmp_path / "bytes-out.parquet")


def test_a_folder_may_stand_for_a_model(bundle: Bundle, frame: pd.DataFrame, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", frame)
    done = orchestrator.predict(str(bundle.folder), str(source), str(tmp_path / "out.csv"))
    assert (done.document()["rows"], done.failed, done.version) == (40, 0, None)
    assert len(read(tmp_path / "out.csv")) == 40


@pytest.mark.parametrize("form", [".parquet", ".csv"])
def test_two_columns_of_one_name_are_refused(bundle: Bundle, frame: pd.DataFrame, tmp_path: Path, form: str) -> None:
    table = pa.table(
        [pa.array(list(map(json.dumps, frame["image"]))), pa.array(range(40)), pa.array(range(40))], names=["image", "id", "id"]
    )
    source = tmp_path / f"in{form}"
    pq.write_table(table, source) if form == ".parquet" else pa.csv.write_csv(table, source)
    with pytest.raises(Refused, match="has two columns 'id'"):
        predicting.predict(bundle, source, tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize("kept", [[[1, 2]] * 40, [{"a": 1}] * 40])
def test_a_nested_column_is_refused_where_text_is_to_be_written(
    bundle: Bundle, frame: pd.DataFrame, tmp_path: Path, kept: list[Any]
) -> None:
    source = write(tmp_path / "in.parquet", frame.assign(extra=kept))
    with pytest.raises(Refused, match=r"column 'extra' is a .*, which .csv can't hold: write .parquet"):
        predicting.predict(bundle, source, tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]
    assert predicting.predict(bundle, source, tmp_path / "out.parquet") == (40, 0)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(4)])
@pytest.mark.parametrize("wanted", [".csv", ".tsv"])
def test_bytes_are_refused_where_text_is_to_be_written(tmp_path: Path, kind: pa.DataType, wanted: str) -> None:
    table = pa.table({"id": [1], "prediction": pa.array([b"\x89PNG"], kind)})

    def fill(writer: predicting.Writer) -> tuple[int, int, str | None]:
        writer.write(table)
        return 1, 0, None

    (tmp_path / "in.parquet").touch()
    with pytest.raises(Refused, match=rf"column 'prediction' is a .*, which {wanted} can't hold: write .parquet"):
        predicting.write_whole(tmp_path / "in.parquet", tmp_path / f"out{wanted}", fill)
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]
    assert predicting.write_whole(tmp_path / "in.parquet", tmp_path / "out.parquet", fill) == (1, 0)
    assert read(tmp_path / "out.parquet")[0]["prediction"] == b"\x89PNG"


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_csv_is_read_as_in_training(bundle: Bundle, frame: pd.DataFrame, tmp_path: Path, separator: str) -> None:
    text = frame.assign(image=[json.dumps(v) for v in frame["image"]], note=["", "x"] * 20)
    text.to_csv(tmp_path / "in.csv", index=False, sep=separator)
    assert predicting.predict(bundle, tmp_path / "in.csv", tmp_path / "out.parquet") == (40, 0)
    assert [row["note"] for row in read(tmp_path / "out.parquet")] == [None, "x"] * 20


def test_a_csv_whose_end_changes_a_columns_type_is_read_whole(bundle: Bundle, frame: pd.DataFrame, tmp_path: Path) -> None:
    many = pd.concat([frame] * 200, ignore_index=True)
    many["id"] = [*range(len(many) - 1), "last"]
    source = write(tmp_path / "in.csv", many)
    assert source.stat().st_size > 2 << 20
    assert predicting.predict(bundle, source, tmp_path / "out.parquet") == (len(many), 0)
    assert [row["id"] for row in read(tmp_path / "out.parquet")][-2:] == [str(len(many) - 2), "last"]


def test_a_row_of_another_length_is_named(bundle: Bundle, frame: pd.DataFrame, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", frame)
    source.write_text(source.read_text() + "1,2\n")
    with pytest.raises(Refused, match=r"^input 'in\.csv', row 40: 2 values, the header has 3"):
        predicting.predict(bundle, source, tmp_path / "out.parquet")


@pytest.mark.parametrize("error", [pa.ArrowInvalid("odd\nvalue"), pa.ArrowNotImplementedError("odd value"), OSError(28, "No space left")])
def test_what_can_not_be_written_is_one_line_and_leaves_nothing(
    bundle: Bundle, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    source = write(tmp_path / "in.parquet", frame)
    monkeypatch.setattr(pq.ParquetWriter, "write_table", fails)
    with pytest.raises(Failed, match=r"can't write '.*out.parquet': (odd value|No space left)$"):
        predicting.predict(bundle, source, tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_a_folder_that_can_not_be_written_in_is_one_line(
    bundle: Bundle, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    source = write(tmp_path / "in.parquet", frame)
    monkeypatch.setattr(predicting.tempfile, "NamedTemporaryFile", fails)
    with pytest.raises(Failed, match=r"can't write '.*out.parquet': Permission denied$"):
        predicting.predict(bundle, source, tmp_path / "out.parquet")


@pytest.mark.parametrize("texts", [["007", "7"], ["true", "True"], ["2024-01-02", "2024-01-03"], ["1.50", "12"]])
def test_texts_of_a_csv_that_all_look_like_something_else_are_read_as_they_are_written(tmp_path: Path, texts: list[str]) -> None:
    train = pa.table({"note": [*texts, *texts, "a note", "a note"], "label": ["a", "b"] * 3})
    encoder = Encoder.fit((Column("note", "text"),), Column("label", "class"), train)
    of_texts = Bundle(tmp_path, LSTM(LSTM.Config(), encoder.schema), encoder, {"family": "lstm"})
    pd.DataFrame({"note": texts}).to_csv(tmp_path / "in.csv", index=False)
    pq.write_table(pa.table({"note": texts}), tmp_path / "in.parquet")
    for name in ("in.csv", "in.parquet"):
        assert predicting.predict(of_texts, tmp_path / name, tmp_path / f"of-{name}.parquet", every_class=True) == (2, 0)
    assert read(tmp_path / "of-in.csv.parquet") == read(tmp_path / "of-in.parquet.parquet")


def test_a_tsv_with_a_quote_that_takes_in_the_lines_below_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text('image\tnote\n[1]\t"5 inch\n[2]\t"6 inch\n')
    with pytest.raises(Refused, match=r"^input 'in.tsv', line 2: the value that begins with '\"' takes in lines below it"):
        predicting.predict(bundle, tmp_path / "in.tsv", tmp_path / "out.parquet")
