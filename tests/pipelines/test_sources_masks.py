"""Images and masks: from folders or tables, paired by name, checked pixel by pixel."""

from __future__ import annotations

import io
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from models.cnn import CNN
from pipelines import batches, spill
from pipelines.encode.masks import IGNORE, MaskColumn
from pipelines.encode.pictures import encode_png
from pipelines.prepare import prepare
from pipelines.ragged import sizes_of
from pipelines.raw import Load, Raw
from pipelines.schema import DataError
from pipelines.sources import masks as masks_source
from pipelines.sources.masks import Config, load
from pipelines.splits import SplitConfig
from tests.contracts.source_contract import SourceContract

Make = Callable[..., Path]


def picture(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def mask_of(image: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    grey = image if image.ndim == 2 else image[..., 0]
    return np.array(values, np.uint8)[grey.astype(int) * len(values) // 256]


def fill(folder: Path, images: str, masks: str, sizes: list[tuple[int, int]], values: tuple[int, ...] = (0, 1, 2), first: int = 0) -> None:
    (folder / images).mkdir(parents=True)
    (folder / masks).mkdir(parents=True)
    for row, size in enumerate(sizes, first):
        image = picture((*size, 3), row)
        (folder / images / f"{row:02d}.png").write_bytes(encode_png(image))
        (folder / masks / f"{row:02d}.png").write_bytes(encode_png(mask_of(image, values)))


SAME = [(6, 5)] * 20
MIXED = [(5 + row % 4, 4 + row % 3) for row in range(20)]


class MasksContract(SourceContract):
    sizes = SAME

    @pytest.fixture
    def load(self) -> Load:
        return load

    @pytest.fixture
    def config(self, tmp_path: Path) -> Any:
        fill(tmp_path / "data", "images", "masks", self.sizes)
        return Config(path=str(tmp_path / "data"))


class TestOneSize(MasksContract):
    pass


class TestResized(MasksContract):
    sizes = MIXED

    @pytest.fixture
    def config(self, tmp_path: Path) -> Any:
        fill(tmp_path / "data", "images", "masks", self.sizes)
        return Config(path=str(tmp_path / "data"), size=(4, 6))


class TestAnySize(MasksContract):
    sizes = MIXED

    def test_tensors_have_the_shapes_that_the_schema_says(self, prepared: Any) -> None:
        tensors = prepared.encoder.tensors(batches.load(prepared, "test").rows(slice(None)))
        rows = prepared.rows["test"]
        assert tensors["image"].shape[:2] == (rows, 3)
        assert tensors[sizes_of("image")].shape == (rows, 2)
        assert torch.equal(tensors[sizes_of("image")], tensors[sizes_of("mask")])
        inside = tensors["mask"] != IGNORE
        assert torch.equal(inside.flatten(1).sum(1), tensors[sizes_of("mask")].prod(1))
        assert int(tensors["mask"][inside].max()) < len(prepared.schema.classes)


class TestOfficialParts(MasksContract):
    @pytest.fixture
    def config(self, tmp_path: Path) -> Any:
        for place, part in enumerate(("train", "val", "test")):
            fill(tmp_path / "data", part, f"{part}_masks", SAME[:8], first=10 * place)
        return Config(path=str(tmp_path / "data"))


class TestTable(MasksContract):
    sizes = MIXED
    test_tensors_have_the_shapes_that_the_schema_says = TestAnySize.test_tensors_have_the_shapes_that_the_schema_says

    @pytest.fixture
    def config(self, tmp_path: Path) -> Any:
        images = [picture((*size, 3), row) for row, size in enumerate(MIXED)]
        columns = {"image": [encode_png(image) for image in images], "mask": [encode_png(mask_of(image, (0, 1, 2))) for image in images]}
        (tmp_path / "data").mkdir()
        pq.write_table(pa.table(columns), tmp_path / "data" / "all.parquet")
        return Config(path=str(tmp_path / "data" / "all.parquet"))


def masked(raw: Raw) -> MaskColumn:
    assert isinstance(raw.target, MaskColumn)
    return raw.target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_images_and_masks_are_paired_by_name_whatever_their_suffixes(folder: Path) -> None:
    fill(folder, "images", "masks", SAME[:6])
    Image.open(folder / "images" / "00.png").save(folder / "images" / "00.bmp")
    (folder / "images" / "00.png").unlink()
    (folder / "masks" / "01.png").rename(folder / "masks" / "01_mask.png")
    raw, pixels = load(Config(path=str(folder))), picture((6, 5, 3), 1)
    assert raw.table["image"][0].as_py() == picture((6, 5, 3), 0).tobytes()
    assert raw.table["mask"][1].as_py() == mask_of(pixels, (0, 1, 2)).tobytes()


def test_files_of_different_sizes_are_kept_as_they_are(folder: Path) -> None:
    fill(folder, "images", "masks", MIXED)
    raw = load(Config(path=str(folder)))
    assert (raw.inputs[0].shape, raw.target.shape) == ((3, 0, 0), (0, 0))
    assert raw.table["image"][3].as_py() == (folder / "images" / "03.png").read_bytes()
    assert "data.size" in str(CNN.misfit(prepare("masks", load, Config(path=str(folder)), SplitConfig(), folder.parent / "cache").schema))


def test_parts_may_lie_below_images_and_masks(folder: Path) -> None:
    for place, part in enumerate(("train", "validation", "test")):
        fill(folder, f"images/{part}", f"masks/{part}", SAME[:3], first=10 * place)
    official = load(Config(path=str(folder))).official
    assert official is not None
    assert official.tolist() == ["test"] * 3 + ["train"] * 3 + ["validation"] * 3


def test_black_and_white_masks_are_two_classes(folder: Path) -> None:
    fill(folder, "images", "masks", SAME, (0, 255))
    target = masked(load(Config(path=str(folder))))
    assert (target.values, target.names) == ((0, 255), ("0", "255"))
    named = masked(load(Config(path=str(folder), classes=("ground", "road"))))
    assert (named.values, named.names) == ((0, 255), ("ground", "road"))


def test_a_value_that_is_ignored_is_no_class_and_is_not_counted(folder: Path) -> None:
    fill(folder, "images", "masks", SAME, (0, 1, 9))
    prepared = prepare("masks", load, Config(path=str(folder), ignore=9), SplitConfig(), folder.parent / "cache")
    assert prepared.schema.classes == ("0", "1")
    held = batches.load(prepared, "train")
    assert sum(prepared.schema.counts) == int((held["mask"] != IGNORE).sum()) < held["mask"].numel()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("place", ["inside", "beside"])
def test_the_classes_names_come_from_a_file(folder: Path, place: str) -> None:
    fill(folder, "images", "masks", SAME)
    file = (folder if place == "inside" else folder.parent) / "names.txt"
    file.write_text("sky\ntree \nroad\nlamp\n\n")
    config = Config(path=str(folder), classes="names.txt" if place == "inside" else str(file))
    target = masked(load(config))
    assert (target.values, target.names) == ((0, 1, 2, 3), ("sky", "tree", "road", "lamp"))
    before = prepare("masks", load, config, SplitConfig(), folder.parent / "cache").fingerprint
    file.write_text("sky\nbush\nroad\nlamp\n")
    assert prepare("masks", load, config, SplitConfig(), folder.parent / "cache").fingerprint != before


def test_as_many_names_as_values_are_theirs_in_order(folder: Path) -> None:
    fill(folder, "images", "masks", SAME, (1, 2, 3))
    assert masked(load(Config(path=str(folder), classes=("a", "b", "c")))).values == (1, 2, 3)


@pytest.mark.parametrize(
    ("held", "ignore", "classes", "values", "names"),
    [
        ((0, 1, 2), 0, ("void", "sky", "tree"), (1, 2), ("sky", "tree")),
        ((0, 1, 2), 1, ("sky", "Unlabeled", "tree"), (0, 2), ("sky", "tree")),
        ((0, 1, 2), 0, ("sky", "tree"), (1, 2), ("sky", "tree")),
        ((0, 1, 3), 1, ("a", "b", "c"), (0, 2, 3), ("a", "b", "c")),  # 2 is absent
        ((0, 1, 2, 3), 0, ("ignore", "a", "b", "c", "d"), (1, 2, 3, 4), ("a", "b", "c", "d")),  # 4 is absent
        ((0, 1, 9), 9, ("a", "b", "c"), (0, 1, 2), ("a", "b", "c")),
        ((0, 10, 20), 0, ("void", "a", "b"), (10, 20), ("a", "b")),
        ((0, 128, 255), 128, ("a", "b"), (0, 255), ("a", "b")),
    ],
)
def test_the_ignored_value_is_no_class_whether_the_names_have_one_for_it_or_not(
    folder: Path, held: tuple[int, ...], ignore: int, classes: tuple[str, ...], values: tuple[int, ...], names: tuple[str, ...]
) -> None:
    fill(folder, "images", "masks", SAME, held)
    found = masked(load(Config(path=str(folder), classes=classes, ignore=ignore)))
    assert (found.values, found.names, found.ignore) == (values, names, ignore)


def test_every_named_class_has_training_pixels_where_a_file_names_the_ignored_value_too(folder: Path) -> None:
    fill(folder, "images", "masks", SAME)
    (folder / "names.txt").write_text("void\nsky\ntree\n")
    prepared = prepare("masks", load, Config(path=str(folder), classes="names.txt", ignore=0), SplitConfig(), folder.parent / "cache")
    assert prepared.schema.classes == ("sky", "tree")
    assert min(prepared.schema.counts) > 0


def test_a_table_may_name_its_files_and_columns(folder: Path) -> None:
    fill(folder, "images", "masks", SAME)
    rows = "".join(f"images/{row:02d}.png,masks/{row:02d}.png\n" for row in range(20))
    (folder / "all.csv").write_text("photo,truth\n" + rows)
    raw = load(Config(path=str(folder / "all.csv"), image="photo", mask="truth"))
    assert (raw.inputs[0].name, raw.target.name) == ("photo", "truth")
    assert raw.table["photo"][7].as_py() == picture((6, 5, 3), 7).tobytes()
    assert len(Config(path=str(folder / "all.csv"), image="photo", mask="truth").files()) == 41


def as_table(folder: Path, name: str, sizes: list[tuple[int, int]], **columns: list[Any]) -> Config:
    images = [picture((*size, 3), row) for row, size in enumerate(sizes)]
    masks = [encode_png(mask_of(image, (0, 1, 2))) for image in images]
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({**columns, "mask": masks, "image": [encode_png(image) for image in images]}), folder / name)
    return Config(path=str(folder / name))


@pytest.mark.parametrize("sizes", [SAME, MIXED])
def test_a_table_may_be_split_by_its_other_columns(folder: Path, sizes: list[tuple[int, int]]) -> None:
    patients, parts = [f"p{row % 10}" for row in range(20)], ["train"] * 14 + ["val"] * 2 + ["test"] * 4
    config = as_table(folder, "all.parquet", sizes, patient=patients, split=parts)
    by_column = prepare("masks", load, config, SplitConfig(by="column", column="split"), folder.parent / "cache")
    assert by_column.rows == {"train": 14, "validation": 2, "test": 4}
    assert pq.read_schema(by_column.file("test")).names == ["image", "mask"]
    by_group = prepare("masks", load, config, SplitConfig(by="group", column="patient"), folder.parent / "cache")
    assert by_group.rows == {"train": 16, "validation": 2, "test": 2}
    raw = load(config)
    assert (raw.table["patient"].to_pylist(), [column.name for column in raw.inputs]) == (patients, ["image"])


def test_tables_for_each_part_keep_their_rows_pictures_and_other_columns(folder: Path) -> None:
    for part, count in (("train", 9), ("test", 4)):
        as_table(folder, f"{part}.parquet", SAME[:count], patient=[f"{part} {row}" for row in range(count)])
    raw = load(Config(path=str(folder)))
    assert raw.official is not None
    assert raw.table["patient"].to_pylist() == [f"{part} {row}" for part, count in (("test", 4), ("train", 9)) for row in range(count)]
    assert raw.official.tolist() == ["test"] * 4 + ["train"] * 9
    assert raw.table["image"][3].as_py() == raw.table["image"][7].as_py() == picture((6, 5, 3), 3).tobytes()


def test_image_and_mask_are_two_columns(folder: Path) -> None:
    as_table(folder, "all.parquet", SAME)
    with pytest.raises(DataError, match="'image' is the column of the images, too; name the masks' own") as caught:
        load(Config(path=str(folder / "all.parquet"), mask="image"))
    assert caught.value.key == "data.mask"


@pytest.mark.parametrize("size", [None, (192, 256)])
def test_decoded_masks_are_not_held(folder: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int] | None) -> None:
    """40 masks of 256 x 256 are 2.6 MB, and the images 7.8 MB; both lie in files."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for row in range(40):
        values = np.repeat(np.arange(256, dtype=np.uint8)[:, None] // 100, 256, 1)
        (folder / "images" / f"{row}.png").write_bytes(encode_png(np.stack([values] * 3, 2)))
        (folder / "masks" / f"{row}.png").write_bytes(encode_png(values))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(spill, "SPILL_BYTES", 1 << 16)
    load(Config(path=str(folder), size=size))  # what is imported and kept for good
    tracemalloc.start()
    with spill.spilling(folder.parent / "cache"):
        raw = load(Config(path=str(folder), size=size))
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert raw.table.num_rows == 40
    assert peak < 2 << 20
    assert list((folder.parent / "cache").iterdir()) == []


def test_files_of_different_sizes_that_are_large_lie_in_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, "images", "masks", MIXED)
    within = load(Config(path=str(folder)))
    monkeypatch.setattr(masks_source, "CHUNK_BYTES", 400)
    with spill.spilling(folder.parent / "cache"):
        through = load(Config(path=str(folder)))
    assert through.table["image"].num_chunks > 1
    assert through.table.equals(within.table)


def _missing_mask(folder: Path) -> None:
    (folder / "masks" / "03.png").unlink()


def _missing_image(folder: Path) -> None:
    (folder / "images" / "03.png").unlink()


def _other_size(folder: Path) -> None:
    (folder / "masks" / "03.png").write_bytes(encode_png(np.zeros((6, 4), np.uint8)))


def _colours(folder: Path) -> None:
    (folder / "masks" / "03.png").write_bytes(encode_png(picture((6, 5, 3), 0)))


def _broken(folder: Path) -> None:
    (folder / "images" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")


def _jpeg(folder: Path) -> None:
    sink = io.BytesIO()
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(sink, "JPEG")
    (folder / "masks" / "03.png").write_bytes(sink.getvalue())


def _twice(folder: Path) -> None:
    (folder / "images" / "03.bmp").write_bytes(b"")


def _photos(folder: Path) -> None:
    for row in range(20):
        (folder / "masks" / f"{row:02d}.png").write_bytes(encode_png(picture((6, 5), row)))


def _one_value(folder: Path) -> None:
    for row in range(20):
        (folder / "masks" / f"{row:02d}.png").write_bytes(encode_png(np.full((6, 5), 4, np.uint8)))


@pytest.mark.parametrize(
    ("spoil", "options", "key", "says"),
    [
        (_missing_mask, {}, "data.path", "'images/03.png' has no mask '03.png' in 'masks/'; add it"),
        (_missing_image, {}, "data.path", "'masks/03.png' has no image of its name in 'images/'"),
        (_other_size, {}, "data.path", "'images/03.png' is 6x5, 'masks/03.png' is 6x4; a mask has a value for each pixel"),
        (_colours, {}, "data.path", "'masks/03.png': a mask of colours"),
        (_broken, {}, "data.path", "'images/03.png': no readable image"),
        (_jpeg, {}, "data.path", "'masks/03.png': a JPEG, which blurs"),
        (_twice, {}, "data.path", "have one name; keep one"),
        (_photos, {}, "data.classes", "more than 64: no classes' indices, it seems"),
        (_one_value, {}, "data", r"the masks hold one value only \(4\)"),
        (None, {"classes": ("a", "b")}, "data.classes", "'masks/00.png' holds 2, but data.classes names 2 classes, 0 to 1; name it too"),
        (None, {"classes": ("a", "a", "b")}, "data.classes", "class 'a' is named twice"),
        (None, {"classes": ("a", "")}, "data.classes", "2 names, or an empty one"),
        (
            None, {"classes": ("a", "b", "c"), "ignore": 0}, "data.classes",
            "is 'a' the name of 0, which data.ignore leaves out, or of 1. Write 'ignore' as the name of 0: in its place, or before it",
        ),
        (None, {"classes": ("void", "b"), "ignore": 0}, "data.classes", "'b' is the only class beside the one that data.ignore leaves out"),
        (None, {"classes": "gone.txt"}, "data.classes", "no file 'gone.txt', in "),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_files_is_named(folder: Path, spoil: Any, options: dict[str, Any], key: str, says: str) -> None:
    fill(folder, "images", "masks", SAME)
    if spoil is not None:
        spoil(folder)
    with pytest.raises(DataError, match=says) as caught:
        load(Config(path=str(folder), **options))
    assert caught.value.key == key


def test_a_folder_without_pairs_says_how_they_are_named(folder: Path) -> None:
    fill(folder, "photos", "labels", SAME[:2])
    with pytest.raises(DataError, match="neither images/ and masks/ nor train/ and train_masks/; there is: labels/, photos/"):
        load(Config(path=str(folder)))


def test_a_split_without_masks_is_named(folder: Path) -> None:
    fill(folder, "train", "train_masks", SAME[:2])
    (folder / "test").mkdir()
    with pytest.raises(DataError, match=r"'test/' has no 'test_masks/' beside it"):
        load(Config(path=str(folder)))


def test_a_table_without_the_columns_lists_its_own(folder: Path) -> None:
    folder.mkdir()
    (folder / "all.csv").write_text("image,truth\na,b\n")
    with pytest.raises(DataError, match=r"'all\.csv' has no column 'mask'; its columns are: image, truth") as caught:
        load(Config(path=str(folder / "all.csv")))
    assert caught.value.key == "data.mask"
