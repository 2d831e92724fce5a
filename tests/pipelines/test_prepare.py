"""Preparing: once for each content, options and split; atomically; and what it wrote is what it says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipelines import batches, spill
from pipelines import prepare as preparing
from pipelines.encode.masks import MaskColumn
from pipelines.fingerprint import hash_files, hash_raw, hash_table
from pipelines.prepare import Prepared, prepare
from pipelines.raw import Raw, Side, image_column
from pipelines.schema import Column, DataError
from pipelines.sources import files, synthetic
from pipelines.sources import table as table_source
from pipelines.splits import SplitConfig


@dataclass(frozen=True)
class Config:
    path: str = ""
    seed: int = 0
    inputs: tuple[str, ...] | None = None


def load(config: Config) -> Raw:
    rng = np.random.default_rng(config.seed)
    pixels = rng.integers(0, 256, (60, 4, 4), dtype=np.uint8)
    table = pa.table({"image": image_column(pixels), "speaker": [f"s{row % 20}" for row in range(60)], "label": ["a", "b", "c"] * 20})
    return Raw(table, (Column("image", "image", (1, 4, 4), "uint8"),), Column("label", "class", dtype="str"))


def with_column(column: Column, **changes: Any) -> Any:
    def changed(config: Config) -> Raw:
        raw = load(config)
        return Raw(raw.table, (*raw.inputs, column), changes.get("target", raw.target))

    return changed


def test_prepared_data_tells_rows_classes_and_counts(tmp_path: Path) -> None:
    prepared = prepare("mine", load, Config(), SplitConfig(), tmp_path)
    assert prepared.rows == {"train": 48, "validation": 6, "test": 6}
    assert prepared.schema.classes == ("a", "b", "c")
    assert prepared.counts == {"train": dict.fromkeys("abc", 16), "validation": dict.fromkeys("abc", 2), "test": dict.fromkeys("abc", 2)}
    assert prepared.size_bytes == 60 * (16 + 8)


def test_files_hold_the_inputs_and_the_target_only(tmp_path: Path) -> None:
    prepared = prepare("mine", load, Config(), SplitConfig(by="group", column="speaker"), tmp_path)
    assert pq.read_schema(prepared.file("test")).names == ["image", "label"]


def test_what_is_prepared_is_not_loaded_again(tmp_path: Path) -> None:
    loads = []

    @dataclass(frozen=True)
    class OneFile:
        def files(self) -> list[tuple[str, Path]]:
            return [("data", Path(__file__))]

    def counted(config: OneFile) -> Raw:
        loads.append(config)
        return load(Config())

    first, second = (prepare("mine", counted, OneFile(), SplitConfig(), tmp_path) for _ in range(2))
    assert len(loads) == 1
    assert first == second


@pytest.mark.parametrize(
    ("source", "config", "split"),
    [("other", Config(), SplitConfig()), ("mine", Config(seed=1), SplitConfig()), ("mine", Config(), SplitConfig(train=0.7, test=0.2))],
)
def test_another_source_content_or_split_is_another_fingerprint(source: str, config: Config, split: SplitConfig, tmp_path: Path) -> None:
    first = prepare("mine", load, Config(), SplitConfig(), tmp_path)
    assert prepare(source, load, config, split, tmp_path).fingerprint != first.fingerprint


CHANGES: dict[str, dict[str, Any]] = {
    "official parts": {"official": np.array(["train"] * 40 + ["validation"] * 10 + ["test"] * 10)},
    "other official parts": {"official": np.array(["train"] * 39 + ["validation"] * 11 + ["test"] * 10)},
    "features of ids": {"sides": {"speaker": Side(pa.table({"speaker": ["s1"], "age": [30]}), (Column("age", "measure"),))}},
    "a changed feature": {"sides": {"speaker": Side(pa.table({"speaker": ["s1"], "age": [31]}), (Column("age", "measure"),))}},
    "a feature of another kind": {"sides": {"speaker": Side(pa.table({"speaker": ["s1"], "age": [30]}), (Column("age", "words"),))}},
    "a time": {"time": "speaker"},
    "an optimum": {"optimum": {"accuracy": 0.9}},
    "another optimum": {"optimum": {"accuracy": 0.8}},
    "inputs": {"inputs": (Column("image", "image", (1, 4, 4), "uint8", resize=True),)},
    "a target": {"target": MaskColumn("label", "class", dtype="str", ignore=3)},
}


def test_whatever_a_source_gives_is_in_its_hash() -> None:
    raw = load(Config())
    hashes = {name: hash_raw(dataclasses.replace(raw, **change)) for name, change in {"nothing": {}, **CHANGES}.items()}
    assert len(set(hashes.values())) == len(hashes), hashes
    assert hash_raw(load(Config())) == hashes["nothing"]


def test_official_parts_of_a_source_without_files_that_change_are_prepared_anew(tmp_path: Path) -> None:
    rows = [
        prepare("mine", lambda config, n=n: dataclasses.replace(load(config), **CHANGES[n]), Config(), SplitConfig(), tmp_path).rows
        for n in ("official parts", "other official parts")
    ]
    assert [part["train"] for part in rows] == [40, 39]


def test_where_the_data_lies_is_not_in_the_fingerprint(tmp_path: Path) -> None:
    first, second = (prepare("mine", load, Config(path=path), SplitConfig(), tmp_path) for path in ("here", "there"))
    assert first.fingerprint == second.fingerprint


def test_a_table_s_hash_is_of_its_content_not_of_its_chunks() -> None:
    whole, cut = pa.table({"x": [1, 2, 3]}), pa.table({"x": pa.chunked_array([[1], [2, 3]])})
    assert hash_table(whole) == hash_table(cut)
    assert hash_table(whole) != hash_table(pa.table({"x": [1, 2, 4]}))


def test_a_file_s_hash_is_of_its_name_and_content(tmp_path: Path) -> None:
    for name, text in (("one", "a"), ("two", "a"), ("three", "b")):
        (tmp_path / name).write_text(text)
    assert hash_files([("x", tmp_path / "one")]) == hash_files([("x", tmp_path / "two")])
    assert hash_files([("x", tmp_path / "one")]) != hash_files([("y", tmp_path / "one")])
    assert hash_files([("x", tmp_path / "one")]) != hash_files([("x", tmp_path / "three")])


def test_a_folder_from_which_something_was_deleted_is_made_anew(tmp_path: Path) -> None:
    prepared = prepare("mine", load, Config(), SplitConfig(), tmp_path)
    (prepared.folder / "data.json").unlink()
    again = prepare("mine", load, Config(), SplitConfig(), tmp_path)
    assert again == prepared
    assert [entry.name for entry in tmp_path.iterdir()] == [prepared.fingerprint]


@pytest.mark.parametrize("name", ["data.json", "train.parquet", "test.parquet"])
def test_opening_what_is_not_whole_says_to_delete_it(name: str, tmp_path: Path) -> None:
    prepared = prepare("mine", load, Config(), SplitConfig(), tmp_path)
    (prepared.folder / name).unlink()
    with pytest.raises(DataError, match=r"holds no prepared data .* delete it and it is made anew"):
        Prepared.open(prepared.folder)


def test_the_encoder_is_fitted_on_all_training_rows(tmp_path: Path) -> None:
    prepared = prepare("mine", load, Config(), SplitConfig(), tmp_path)
    images = batches.load(prepared, "train")["image"].double()
    assert prepared.encoder.columns["image"].mean[0] == pytest.approx(images.mean().item(), rel=1e-9)
    assert prepared.encoder.columns["image"].std[0] == pytest.approx(images.std(correction=0).item(), rel=1e-9)


def test_a_column_that_no_family_takes_says_how_to_leave_it_out(tmp_path: Path) -> None:
    odd = with_column(Column("speaker", "category"))
    with pytest.raises(DataError, match=r"column 'speaker' is a category, .* data.drop: \[speaker\]") as caught:
        prepare("mine", odd, Config(), SplitConfig(), tmp_path)
    assert caught.value.key == "data.inputs"


def test_what_a_split_goes_by_is_no_input_unless_it_is_named(tmp_path: Path) -> None:
    odd, split = with_column(Column("speaker", "category")), SplitConfig(by="group", column="speaker")
    assert [column.name for column in prepare("mine", odd, Config(), split, tmp_path).schema.inputs] == ["image"]
    with pytest.raises(DataError, match="column 'speaker' is a category"):
        prepare("mine", odd, Config(inputs=("image", "speaker")), split, tmp_path)


def test_a_number_as_the_target_is_known_by_the_training_rows_mean_and_deviation(tmp_path: Path) -> None:
    def numbers(config: Config) -> Raw:
        raw = load(config)
        table = raw.table.set_column(2, "label", pa.array(np.arange(raw.table.num_rows) ** 2.0))
        return Raw(table, raw.inputs, Column("label", "number"))

    prepared = prepare("mine", numbers, Config(), SplitConfig(), tmp_path)
    train = pq.read_table(prepared.file("train"))["label"].to_numpy()
    assert prepared.schema.target.mean == pytest.approx(train.mean())
    assert prepared.schema.target.std == pytest.approx(train.std())
    assert prepared.schema.classes == ()


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_row_that_does_not_fit_is_named_by_its_number_in_the_data(part: str, tmp_path: Path) -> None:
    def broken(config: Config) -> Raw:
        values = [[float(row)] * 4 for row in range(60)]
        values[{"train": 7, "validation": 50, "test": 57}[part]] = [1.0, 2.0, 3.0]
        official = np.array(["train"] * 48 + ["validation"] * 6 + ["test"] * 6)
        table = pa.table({"image": values, "label": ["a", "b", "c"] * 20})
        return Raw(table, (Column("image", "image", (1, 2, 2)),), Column("label", "class"), official)

    row = {"train": 7, "validation": 50, "test": 57}[part]
    with pytest.raises(DataError, match=rf"\({part} part\), column 'image', row {row}: a list of shape \[3\]"):
        prepare("mine", broken, Config(), SplitConfig(), tmp_path)


def test_a_test_label_that_train_does_not_know_is_refused(tmp_path: Path) -> None:
    def unknown(config: Config) -> Raw:
        raw = load(config)
        table = raw.table.set_column(2, "label", pa.array(["a"] * 25 + ["b"] * 25 + ["c"] * 10))
        return Raw(table, raw.inputs, raw.target, np.array(["train"] * 50 + ["test"] * 10))

    with pytest.raises(DataError, match=r"\(test part\), column 'label', row 50: 'c' is none of the classes \(and 9 rows more\)"):
        prepare("mine", unknown, Config(), SplitConfig(), tmp_path)


def test_images_in_memory_are_writable_uint8_of_the_stored_values(tmp_path: Path) -> None:
    prepared = prepare("mine", load, Config(), SplitConfig(), tmp_path)
    loaded = batches.load(prepared, "validation")
    stored = pq.read_table(prepared.file("validation"))["image"].to_pylist()
    assert loaded["image"].shape == (6, 4, 4, 1)
    assert [image.numpy().tobytes() for image in loaded["image"]] == stored
    loaded["image"].add_(1)


# data bigger than memory ----------------------------------------------------------------------------------------------------------


def write_table(path: Path) -> None:
    """300 rows: pictures as raw bytes, a text, a number, a class."""
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "text": [" ".join(["word"] * int(count)) + f" {row}" for row, count in enumerate(rng.integers(1, 9, 300))],
            "number": rng.normal(size=300),
            "label": pa.array([f"class {row % 3}" for row in range(300)]).dictionary_encode(),
        }
    )
    if path.suffix == ".parquet":
        table = table.append_column("image", image_column(rng.integers(0, 256, (300, 4, 4), dtype=np.uint8)))
        pq.write_table(table, path, row_group_size=70)
    else:
        pa.csv.write_csv(table, path)


def as_if_large(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every table counts as large, and is worked on 50 rows at a time; the rows of each that went to a file."""
    spilled: list[int] = []
    table = spill.Spill.table
    monkeypatch.setattr(spill.Spill, "table", lambda self: (found := table(self), spilled.append(found.num_rows))[0])
    for module in (spill, preparing):
        monkeypatch.setattr(module, "SPILL_BYTES", 0)
    monkeypatch.setattr(preparing, "ROW_GROUP", 50)
    monkeypatch.setattr(files, "CHUNK_ROWS", 50)
    return spilled


@pytest.mark.parametrize("name", ["data.parquet", "data.csv"])
def test_a_table_that_goes_through_files_is_prepared_as_one_in_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path / name)
    config = table_source.Config(path=str(tmp_path / name), target="label", size=(4, 4))
    within = prepare("table", table_source.load, config, SplitConfig(), tmp_path / "within")
    spilled = as_if_large(monkeypatch)
    through = prepare("table", table_source.load, config, SplitConfig(), tmp_path / "through")
    assert dataclasses.replace(through, folder=within.folder, size_bytes=within.size_bytes) == within  # it is told by the first rows
    for part in ("train", "validation", "test"):
        assert pq.read_table(through.file(part)).equals(pq.read_table(within.file(part)))
    assert sorted(spilled) == [30, 30, 240, 300, 300]  # the parts, and the table: for its text, and to be taken apart
    assert [entry.name for entry in (tmp_path / "through").iterdir()] == [through.fingerprint]


def test_a_large_table_that_is_broken_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path / "data.parquet")
    as_if_large(monkeypatch)
    with pytest.raises(DataError, match="no column 'nothing'"):
        prepare(
            "table", table_source.load, table_source.Config(str(tmp_path / "data.parquet"), "nothing"), SplitConfig(), tmp_path / "cache"
        )
    assert list((tmp_path / "cache").iterdir()) == []


def test_row_groups_are_small_in_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "GROUP_BYTES", 10 * (16 + 8))
    prepared = prepare("mine", load, Config(), SplitConfig(), tmp_path)
    metadata = pq.read_metadata(prepared.file("train"))
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [10, 10, 10, 10, 8]


def test_a_large_array_lies_in_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "SPILL_BYTES", 100)
    with spill.spilling(tmp_path):
        large, small = spill.empty((101,), np.uint8), spill.empty((100,), np.uint8)
    outside = spill.empty((101,), np.uint8)
    assert [isinstance(array, np.memmap) for array in (large, small, outside)] == [True, False, False]
    large[:] = 7
    assert large.sum() == 707
    assert list(tmp_path.iterdir()) == []


def test_users_stay_an_input_where_the_split_goes_by_them(tmp_path: Path) -> None:
    prepared = prepare("r", synthetic.ratings, synthetic.RatingsConfig(rows=800), SplitConfig(by="group", column="user"), tmp_path)
    assert prepared.encoder.input_names == ["user", "item"]
    users = [set(pq.read_table(prepared.file(part))["user"].to_pylist()) for part in ("train", "validation", "test")]
    assert not users[0] & users[2]


def test_the_only_input_can_not_be_what_the_split_goes_by(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'image' is the only input") as caught:
        prepare("mine", load, Config(), SplitConfig(by="group", column="image"), tmp_path)
    assert caught.value.key == "data.split.column"
