"""Picture files in a folder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.prepare import prepare
from pipelines.schema import DataError
from pipelines.sources import images
from pipelines.splits import SplitConfig
from tests.contracts.source_contract import SourceContract

SUFFIXES = (".png", ".JPG", ".jpeg", ".bmp", ".webp", ".gif")


def save(path: Path, height: int = 6, width: int = 8, colour: Any = (200, 30, 90), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), colour).save(path)
    return path


def fill(folder: Path, rows: int = 12, **options: Any) -> Path:
    for label, shift in (("cat", 0), ("dog", 100)):
        for row in range(rows):
            save(folder / label / f"{row:02}{SUFFIXES[row % 6]}", colour=(shift + row, 2 * row, 50), **options)
    return folder


def load(folder: Path, **options: Any) -> Any:
    return images.load(images.Config(str(folder), **options))


class TestImages(SourceContract):
    split_config = SplitConfig(train=0.6, validation=0.2, test=0.2)

    @pytest.fixture
    def load(self) -> object:
        return images.load

    @pytest.fixture
    def config(self, tmp_path: Path) -> images.Config:
        return images.Config(str(fill(tmp_path / "data")))


class TestImagesInOfficialParts(SourceContract):
    @pytest.fixture
    def load(self) -> object:
        return images.load

    @pytest.fixture
    def config(self, tmp_path: Path) -> images.Config:
        for part, rows in (("train", 12), ("val", 3), ("test", 4)):
            fill(tmp_path / "data" / part, rows, height=5 + rows)
        return images.Config(str(tmp_path / "data"), size=(6, 6), grey=True)


def test_every_kind_of_picture_is_read_and_its_class_is_its_folder(tmp_path: Path) -> None:
    raw = load(fill(tmp_path, rows=6))
    assert raw.table["label"].to_pylist() == ["cat"] * 6 + ["dog"] * 6
    assert raw.inputs[0].shape == (3, 6, 8)
    assert not raw.inputs[0].resize
    assert raw.official is None
    values = [np.frombuffer(image, np.uint8).reshape(6, 8, 3) for image in raw.table["image"].to_pylist()]
    for row in range(6):
        assert np.abs(values[row].astype(int) - [row, 2 * row, 50]).max() <= 4, SUFFIXES[row]


def test_rows_do_not_depend_on_the_order_in_which_files_were_made(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        save(tmp_path / "x" / "cat" / name, colour=(ord(name[0]), 0, 0))
    assert load(tmp_path / "x").table["image"][0].as_py()[0] == ord("a")


def test_official_parts_are_kept_under_any_of_their_names(tmp_path: Path) -> None:
    for part, rows in (("Train", 4), ("valid", 2), ("test", 3)):
        fill(tmp_path / part, rows)
    raw = load(tmp_path)
    assert [int((raw.official == part).sum()) for part in ("train", "validation", "test")] == [8, 4, 6]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for label in ("bus", "train"):
        save(tmp_path / label / "1.png")
    raw = load(tmp_path)
    assert (raw.official, raw.table["label"].to_pylist()) == (None, ["bus", "train"])


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, rows=2)
    for name in (".hidden.png", "notes.txt", "Thumbs.db", ".ipynb_checkpoints/1.png"):
        (tmp_path / "cat" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "cat" / name).write_bytes(b"no picture")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "classes.txt").write_text("cat dog")
    assert load(tmp_path).table.num_rows == 4


def test_pictures_below_a_class_folder_are_of_that_class(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "2023" / "1.png")
    save(tmp_path / "dog" / "1.png")
    assert load(tmp_path).table["label"].to_pylist() == ["cat", "dog"]


def test_mixed_sizes_are_brought_to_the_size(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "1.png", 20, 30)
    save(tmp_path / "dog" / "1.JPG", 9, 5)
    raw = load(tmp_path, size=(4, 7))
    assert raw.inputs[0].shape == (3, 4, 7)
    assert raw.inputs[0].resize
    assert np.abs(np.frombuffer(raw.table["image"][0].as_py(), np.uint8).reshape(-1, 3).astype(int) - [200, 30, 90]).max() <= 1


def test_mixed_sizes_without_a_size_name_two_files(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "1.png", 20, 30)
    save(tmp_path / "dog" / "1.JPG", 9, 5)
    with pytest.raises(DataError, match=r"'cat/1.png' is 20x30, 'dog/1.JPG' is 9x5; set data.size: \[H, W\]") as caught:
        load(tmp_path)
    assert caught.value.key == "data.size"


def test_grey_pictures_have_one_channel_unless_one_has_colour(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "1.png", mode="L", colour=7)
    save(tmp_path / "dog" / "1.png", mode="L", colour=9)
    assert load(tmp_path).inputs[0].shape == (1, 6, 8)
    save(tmp_path / "dog" / "2.png")
    assert load(tmp_path).inputs[0].shape == (3, 6, 8)
    assert load(tmp_path, grey=True).inputs[0].shape == (1, 6, 8)
    assert load(tmp_path, grey=True, size=(3, 3)).inputs[0].shape == (1, 3, 3)


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    fill(tmp_path, rows=3)
    path = tmp_path / "dog" / "00.png"
    path.write_bytes(path.read_bytes()[:50])
    for options in ({}, {"size": (4, 4), "grey": True}):
        with pytest.raises(DataError, match=r"'dog/00.png': no readable image \(.*\); replace it or take it out"):
            load(tmp_path, **options)


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    fill(tmp_path, rows=1)
    (tmp_path / "cat" / "page.jpg").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"'cat/page.jpg': no readable image \(cannot identify image file\)"):
        load(tmp_path)


def test_a_kind_of_picture_that_is_not_read_is_not_left_out_silently(tmp_path: Path) -> None:
    fill(tmp_path, rows=1)
    (tmp_path / "cat" / "scan.TIFF").write_bytes(b"II*\0")
    with pytest.raises(DataError, match=r"scan.TIFF' can't be read; convert it to PNG or JPEG"):
        load(tmp_path)


def empty_class(folder: Path) -> None:
    fill(folder, rows=1)
    (folder / "cow").mkdir()
    (folder / "cow" / "notes.txt").write_text("")


def no_classes(folder: Path) -> None:
    save(folder / "1.png")


def nothing(folder: Path) -> None:
    folder.joinpath("notes.txt").write_text("")


def unlabelled_test(folder: Path) -> None:
    fill(folder / "train", rows=1)
    save(folder / "test" / "1.png")


def no_train(folder: Path) -> None:
    fill(folder / "val", rows=1)
    fill(folder / "test", rows=1)


def two_validations(folder: Path) -> None:
    for part in ("train", "val", "valid"):
        fill(folder / part, rows=1)


def unknown_class(folder: Path) -> None:
    fill(folder / "train", rows=1)
    save(folder / "test" / "cow" / "1.png")


def beside_the_parts(folder: Path) -> None:
    fill(folder / "train", rows=1)
    fill(folder / "extra", rows=1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (empty_class, r"class folder '.*cow' holds no image \(.png, .*\) but: notes.txt; fill it or take it out"),
        (no_classes, "holds no class folders; images lie directly in it; put them in a folder for each class"),
        (nothing, "holds no class folders and no images"),
        (unlabelled_test, "test' holds no class folders; images lie directly in it"),
        (no_train, "has test/, val/ but no train/"),
        (two_validations, "has two folders of one part among train/, val/, valid/"),
        (unknown_class, r"class 'cow' is in test/ \('.*1.png'\) but not in train/"),
        (beside_the_parts, "extra' lies beside train/ and holds images"),
    ],
)
def test_a_folder_that_is_not_laid_out_so_is_refused(make: Any, says: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=says) as caught:
        images.Config(str(tmp_path)).files()
    assert caught.value.key == "data.path"


def test_a_changed_picture_is_another_fingerprint(tmp_path: Path) -> None:
    config = images.Config(str(fill(tmp_path / "data")))
    first = prepare("images", images.load, config, SplitConfig(), tmp_path / "cache")
    save(tmp_path / "data" / "cat" / "00.png", colour=(1, 2, 3))
    assert prepare("images", images.load, config, SplitConfig(), tmp_path / "cache").fingerprint != first.fingerprint
