"""Tables: what a column is, how an image may be written in one, and what may be wrong with a file."""

from __future__ import annotations

import base64
import datetime
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import batches
from pipelines.prepare import prepare
from pipelines.raw import Raw
from pipelines.schema import DataError
from pipelines.sources import table
from pipelines.splits import SplitConfig
from tests.contracts.source_contract import SourceContract

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 4, 4), dtype=np.uint8)
LABELS = ["cat", "dog"] * 12


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


def write(path: Path, columns: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(made, path)
    else:
        pa.csv.write_csv(made, path, pa.csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ","))
    return path


def load(path: Path, **options: Any) -> Raw:
    return table.load(table.Config(str(path), **options))


def loaded(tmp_path: Path, columns: dict[str, Any], name: str = "data.parquet", **options: Any) -> Raw:
    return load(write(tmp_path / name, columns), **options)


def kinds(raw: Raw) -> dict[str, str]:
    return {column.name: column.kind for column in raw.inputs}


class TestParquetOfPictures(SourceContract):
    @pytest.fixture
    def load(self) -> object:
        return table.load

    @pytest.fixture
    def config(self, tmp_path: Path) -> table.Config:
        return table.Config(str(write(tmp_path / "data.parquet", {"image": [png(image) for image in PIXELS], "label": LABELS})))


class TestParquetOfFloatLists(SourceContract):
    @pytest.fixture
    def load(self) -> object:
        return table.load

    @pytest.fixture
    def config(self, tmp_path: Path) -> table.Config:
        return table.Config(str(write(tmp_path / "data.parquet", {"x": (PIXELS / 255.0).tolist(), "y": LABELS})), "y", kinds={"x": "image"})


class TestCsvOfFileNamesInOfficialParts(SourceContract):
    @pytest.fixture
    def load(self) -> object:
        return table.load

    @pytest.fixture
    def config(self, tmp_path: Path) -> table.Config:
        folder = tmp_path / "data"
        folder.mkdir()
        names = [f"{row}.png" for row in range(24)]
        for name, pixels in zip(names, PIXELS, strict=True):
            (folder / name).write_bytes(png(pixels))
        write(folder / "train.csv", {"file": names[:16], "label": LABELS[:16]})
        write(folder / "dev.csv", {"file": names[16:20], "label": LABELS[16:20]})
        write(folder / "test.csv", {"file": names[20:], "label": LABELS[20:]})
        return table.Config(str(folder))


COLOUR = np.random.default_rng(1).integers(0, 256, (4, 3, 3, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
B64 = [base64.b64encode(png(image)).decode() for image in GREY]
IMAGES: dict[str, tuple[Any, dict[str, Any], np.ndarray]] = {
    "png": ([png(image) for image in GREY], {}, GREY),
    "png in colour": ([png(image) for image in COLOUR], {}, COLOUR),
    "png in a struct": ([{"bytes": png(image), "path": "x"} for image in GREY], {}, GREY),
    "raw bytes with a size": ([image.tobytes() for image in GREY], {"size": (3, 3)}, GREY),
    "raw colour bytes with a size": ([image.tobytes() for image in COLOUR], {"size": (3, 3)}, COLOUR),
    "raw bytes of fixed size": (pa.array([image.tobytes() for image in GREY], pa.binary(9)), {"size": (3, 3)}, GREY),
    "flat lists, square": (GREY.reshape(4, 9).tolist(), {}, GREY),
    "flat lists, square, colour": (COLOUR.reshape(4, 27).tolist(), {}, COLOUR),
    "flat lists with a size": (GREY.reshape(4, 9).tolist(), {"size": (9, 1)}, GREY.reshape(4, 9, 1)),
    "lists of rows": (GREY.tolist(), {}, GREY),
    "lists with channels": (COLOUR.tolist(), {}, COLOUR),
    "base64": (B64, {}, GREY),
    "data urls": ([f"data:image/png;base64,{text}" for text in B64], {}, GREY),
    "json": ([json.dumps(image.tolist()) for image in GREY], {}, GREY),
    "flat json": ([json.dumps(image.ravel().tolist()) for image in COLOUR], {}, COLOUR),
}


@pytest.mark.parametrize("form", IMAGES)
def test_an_image_in_any_form_is_stored_as_raw_bytes(form: str, tmp_path: Path) -> None:
    values, options, images = IMAGES[form]
    raw = loaded(tmp_path, {"image": values, "label": ["a", "b", "a", "b"]}, **options)
    images = images.reshape(*images.shape[:3], -1)
    assert kinds(raw) == {"image": "image"}
    assert raw.inputs[0].shape == (images.shape[3], images.shape[1], images.shape[2])
    assert raw.inputs[0].dtype == "uint8"
    assert raw.table["image"].to_pylist() == [image.tobytes() for image in images]


@pytest.mark.parametrize("form", IMAGES)
def test_the_table_itself_is_encoded_as_what_was_prepared_from_it(form: str, tmp_path: Path) -> None:
    values, options, _ = IMAGES[form]
    image = values if isinstance(values, pa.Array) else pa.array(values)
    image = pa.concat_arrays([image] * 6)
    path = write(tmp_path / "data.parquet", {"image": image, "label": LABELS, "part": ["train"] * 16 + ["val"] * 4 + ["test"] * 4})
    split = SplitConfig(by="column", column="part")
    prepared = prepare("table", table.load, table.Config(str(path), **options), split, tmp_path / "cache")
    arrays, errors = prepared.encoder.arrays(pq.read_table(path).slice(20), ["image"], tmp_path)
    assert errors == {}
    assert np.array_equal(arrays["image"], batches.load(prepared, "test")["image"].numpy())


def test_integers_beyond_a_byte_and_floats_are_kept_as_float32(tmp_path: Path) -> None:
    for values in (GREY.astype(int) * 300, GREY - 200.0, GREY / 255.0):
        raw = loaded(tmp_path, {"image": values.reshape(4, 9).tolist(), "label": ["a", "b"] * 2})
        assert raw.inputs[0].dtype == "float32"
        assert raw.table.schema.field("image").type == pa.list_(pa.float32(), 9)
        assert np.array_equal(raw.table["image"].to_pylist(), values.reshape(4, 9).astype(np.float32))


def test_pictures_are_brought_to_the_size_and_turned_grey(tmp_path: Path) -> None:
    values = [png(np.full((side, 9, 3), 50, np.uint8), kind) for side, kind in ((5, "PNG"), (8, "JPEG"), (7, "PNG"), (3, "JPEG"))]
    raw = loaded(tmp_path, {"photo": values, "label": ["a", "b"] * 2}, size=(2, 3), grey=True)
    assert raw.inputs[0].shape == (1, 2, 3)
    assert raw.inputs[0].resize
    assert raw.table["photo"].to_pylist() == [bytes([50] * 6)] * 4


def test_pictures_of_two_sizes_name_two_rows(tmp_path: Path) -> None:
    values = [png(np.zeros((side, 9), np.uint8)) for side in (5, 5, 7)]
    with pytest.raises(DataError, match=r"row 0 is 5x9, 'data.parquet', column 'photo', row 2 is 7x9; set data.size: \[H, W\]") as caught:
        loaded(tmp_path, {"photo": values, "label": ["a", "b", "a"]})
    assert caught.value.key == "data.size"


def test_kinds_are_inferred_from_types_and_values(tmp_path: Path) -> None:
    columns = {
        "age": [1, 2, 3, 4],
        "height": [1.5, 2.5, 3.5, 4.5],
        "smokes": [True, False] * 2,
        "city": ["Rome", "Oslo"] * 2,
        "city_code": pa.array(["Rome", "Oslo"] * 2).dictionary_encode(),
        "review": ["good", "bad", "so so", "fine"],
        "when": [datetime.datetime(2024, 1, day) for day in (1, 2, 3, 4)],
        "steps": [[1, 2], [3], [4, 5, 6], [7]],
        "label": ["a", "b"] * 2,
    }
    raw = loaded(tmp_path, columns)
    assert kinds(raw) == {
        "age": "number",
        "height": "number",
        "smokes": "number",
        "city": "category",
        "city_code": "category",
        "review": "text",
        "when": "time",
        "steps": "sequence",
    }
    assert raw.table.column_names == list(columns)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([[1.5, 2.5], [3.5]], "sequence"),
        ([[[1, 2], [3, 4]], [[5, 6]]], "sequence"),
        (pa.array([[[1, 2]], [[3, 4]]], pa.list_(pa.list_(pa.float32(), 2), 1)), "sequence"),
        (["[[1, 2], [3, 4]]", "[[5, 6]]"], "sequence"),
        (["[]", "[1]"], "sequence"),
        ([["a", "b"], ["a"]], "symbols"),
        (['["a", "b"]', '["a"]'], "symbols"),
        (["[sic] a film", "[again] a film"], "text"),
    ],
)
def test_lists_are_sequences_or_symbols_and_text_that_only_begins_like_a_list_is_text(values: Any, kind: str, tmp_path: Path) -> None:
    assert kinds(loaded(tmp_path, {"x": values, "label": ["a", "b"]})) == {"x": kind}


def test_a_column_of_few_texts_is_text_where_it_is_the_only_input(tmp_path: Path) -> None:
    columns = {"said": ["good", "bad"] * 60, "where": ["Rome", "Oslo"] * 60, "label": ["pos", "neg"] * 60}
    assert kinds(loaded(tmp_path, columns)) == {"said": "category", "where": "category"}
    assert kinds(loaded(tmp_path, columns, drop=("where",))) == {"said": "text"}
    assert kinds(loaded(tmp_path, columns, drop=("where",), kinds={"said": "category"})) == {"said": "category"}


@pytest.mark.parametrize("name", ["data.csv", "data.parquet"])
def test_missing_and_empty_texts_are_texts(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, {"text": ["good", None, "", "bad"] * 10, "label": ["a", "b"] * 20})
    prepared = prepare("table", table.load, table.Config(str(path)), SplitConfig(), tmp_path / "cache")
    assert prepared.schema.inputs[0].kind == "text"
    assert sorted(set(batches.load(prepared, "train")["text"].sizes[:, 0].tolist())) == [0, 1]


def test_the_words_of_texts_may_be_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", {"text": ["a b c d", "b c d e"] * 10, "label": ["x", "y"] * 10})
    prepared = prepare("table", table.load, table.Config(str(path), vocabulary=4), SplitConfig(), tmp_path / "cache")
    assert prepared.schema.inputs[0].vocabulary == 4


class TestParquetOfSequencesWithANumber(SourceContract):
    @pytest.fixture
    def load(self) -> object:
        return table.load

    @pytest.fixture
    def config(self, tmp_path: Path) -> table.Config:
        steps = [np.random.default_rng(row).normal(size=(1 + row % 5, 3)).tolist() for row in range(40)]
        return table.Config(str(write(tmp_path / "data.parquet", {"steps": steps, "target": np.arange(40) / 7})))


class TestCsvOfTexts(SourceContract):
    @pytest.fixture
    def load(self) -> object:
        return table.load

    @pytest.fixture
    def config(self, tmp_path: Path) -> table.Config:
        texts = [f"film {row % 7} is {'good' if row % 2 else 'bad'}, really" for row in range(40)]
        return table.Config(str(write(tmp_path / "data.csv", {"text": texts, "label": ["neg", "pos"] * 20})))


def test_a_sequence_that_does_not_fit_is_named_with_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", {"x": [[[1.0, 2.0]]] * 39 + [[[1.0]]], "label": ["a", "b"] * 20})
    with pytest.raises(DataError, match=r"column 'x', row 39: step 0 holds 1 values; it must hold 2"):
        prepare("table", table.load, table.Config(str(path)), SplitConfig(), tmp_path / "cache")


def test_kinds_may_be_said(tmp_path: Path) -> None:
    raw = loaded(tmp_path, {"x": [[1, 2, 3, 4]] * 4, "zip": [1, 2, 3, 4], "label": [1, 2, 1, 2]}, kinds={"x": "image", "zip": "category"})
    assert kinds(raw) == {"x": "image", "zip": "category"}
    assert raw.inputs[0].shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("values", "kind"),
    [(["a", "b"], "class"), ([True, False], "class"), ([3, 4], "class"), ([3.0, 4.0], "class"), ([3.5, 4.0], "number")],
)
def test_a_target_is_a_class_unless_it_is_a_fraction(values: list[Any], kind: str, tmp_path: Path) -> None:
    assert loaded(tmp_path, {"x": [1, 2], "label": values}).target.kind == kind


def test_a_target_s_kind_may_be_said(tmp_path: Path) -> None:
    assert loaded(tmp_path, {"x": [1, 2], "label": [3, 4]}, kinds={"label": "number"}).target.kind == "number"
    assert loaded(tmp_path, {"x": [1, 2], "label": [3.5, 4.0]}, kinds={"label": "class"}).target.kind == "class"


@pytest.mark.parametrize("dtype", [float, int])
def test_many_whole_numbers_are_numbers(dtype: type, tmp_path: Path) -> None:
    values = np.arange(1001).astype(dtype)
    assert loaded(tmp_path, {"x": values, "label": values}).target.kind == "number"
    assert loaded(tmp_path, {"x": values, "label": values % 1000}).target.kind == "class"


def test_inputs_follow_the_table_and_all_columns_stay_in_it(tmp_path: Path) -> None:
    columns = {"id": [1, 2], "b": [1, 2], "a": [1, 2], "target": ["x", "y"]}
    assert list(kinds(loaded(tmp_path, columns, inputs=("a", "b")))) == ["b", "a"]
    raw = loaded(tmp_path, columns, drop=("id",))
    assert list(kinds(raw)) == ["b", "a"]
    assert raw.table.column_names == ["id", "b", "a", "target"]


def test_a_split_may_go_by_a_column_that_is_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", {"image": PIXELS.tolist(), "who": [row // 2 for row in range(24)], "label": LABELS})
    split = SplitConfig(by="group", column="who", train=0.5, validation=0.25, test=0.25)
    prepared = prepare("table", table.load, table.Config(str(path), drop=("who",)), split, tmp_path / "cache")
    assert prepared.rows == {"train": 12, "validation": 6, "test": 6}


@pytest.mark.parametrize("name", ["data.csv", "data.tsv"])
def test_text_files_give_what_parquet_gives(name: str, tmp_path: Path) -> None:
    text = {"image": [json.dumps(image.ravel().tolist()) for image in PIXELS], "note": ["a, b\nc"] * 24, "label": LABELS}
    raw, same = loaded(tmp_path, text, name), loaded(tmp_path, {**text, "image": PIXELS.tolist()})
    assert raw.table.equals(same.table)
    assert raw.inputs == same.inputs


def test_a_csv_may_be_separated_by_semicolons(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("x;label\n1;a\n2;b\n")
    assert load(tmp_path / "d.csv").table.to_pydict() == {"x": [1, 2], "label": ["a", "b"]}


def test_empty_text_is_missing_and_NA_is_text(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("x,y,label\n1,NA,NA\n,,a\n")
    assert load(tmp_path / "d.csv").table.to_pydict() == {"x": [1, None], "y": [None, None], "label": ["NA", "a"]}


def test_an_official_folder_keeps_its_parts(tmp_path: Path) -> None:
    for name, rows in (("train.csv", 4), ("validation.parquet", 2), ("test.csv", 3)):
        write(tmp_path / name, {"x": list(range(rows)), "label": ["a", "b", "a", "b"][:rows]})
    raw = load(tmp_path)
    assert raw.official is not None
    assert sorted(raw.official.tolist()) == ["test"] * 3 + ["train"] * 4 + ["validation"] * 2
    assert raw.table.filter(pa.array(raw.official == "test"))["x"].to_pylist() == [0, 1, 2]


def test_parts_may_write_numbers_differently(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", {"x": [1, 2], "label": ["a", "b"]})
    write(tmp_path / "test.csv", {"x": [1.5, 2.5], "label": ["a", "b"]})
    assert sorted(load(tmp_path).table["x"].to_pylist()) == [1, 1.5, 2, 2.5]


def test_a_folder_with_train_only_is_split_like_a_file(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", {"x": [1, 2], "label": ["a", "b"]})
    assert load(tmp_path).official is None


def test_a_changed_picture_that_a_table_names_is_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for row, pixels in enumerate(PIXELS):
        (tmp_path / "pictures" / f"{row}.png").write_bytes(png(pixels))
    path = write(tmp_path / "d.csv", {"file": [f"pictures/{row}.png" for row in range(24)], "label": LABELS})
    config = table.Config(str(path))
    first = prepare("table", table.load, config, SplitConfig(), tmp_path / "cache")
    (tmp_path / "pictures" / "3.png").write_bytes(png(PIXELS[4]))
    assert prepare("table", table.load, config, SplitConfig(), tmp_path / "cache").fingerprint != first.fingerprint


def test_a_named_picture_that_is_not_there_is_named_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(PIXELS[0]))
    with pytest.raises(DataError, match=r"'d.csv', column 'file', row 1: no file '1.png' in '.*'"):
        loaded(tmp_path, {"file": ["0.png", "1.png"], "label": ["a", "b"]}, "d.csv")


def test_names_of_pictures_that_are_elsewhere_are_text(tmp_path: Path) -> None:
    raw = loaded(tmp_path, {"file": ["0.png", "1.png"], "image": PIXELS[:2].tolist(), "label": ["a", "b"]})
    assert kinds(raw) == {"file": "text", "image": "image"}
