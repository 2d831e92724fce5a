"""IDX files: the four of MNIST, packed or not, and what may be wrong with them."""

from __future__ import annotations

import gzip
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.schema import DataError
from pipelines.sources import idx
from tests.contracts.source_contract import SourceContract

DATA = Path(os.environ.get("ORCHESTRATOR_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
RNG = np.random.default_rng(0)
TRAIN, TEST = (RNG.integers(0, 256, (rows, 5, 4), dtype=np.uint8) for rows in (40, 10))
DIGITS = np.arange(50, dtype=np.uint8) % 5


def packed(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def write(folder: Path, train: np.ndarray = TRAIN, test: np.ndarray = TEST, dot: str = "-", zipped: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    parts = {"train-images{}idx3": train, "train-labels{}idx1": DIGITS[:40], "t10k-images{}idx3": test, "t10k-labels{}idx1": DIGITS[40:]}
    for name, values in parts.items():
        data = packed(values)
        (folder / f"{name.format(dot)}-ubyte{zipped}").write_bytes(gzip.compress(data) if zipped else data)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "idx")


class TestIdx(SourceContract):
    @pytest.fixture
    def load(self) -> object:
        return idx.load

    @pytest.fixture
    def config(self, folder: Path) -> idx.Config:
        return idx.Config(str(folder))


@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_files_are_read_under_each_of_their_usual_names(dot: str, zipped: str, tmp_path: Path) -> None:
    raw = idx.load(idx.Config(str(write(tmp_path / "idx", dot=dot, zipped=zipped))))
    images = np.stack([np.frombuffer(image, np.uint8).reshape(5, 4) for image in raw.table["image"].to_pylist()])
    assert np.array_equal(images, np.concatenate([TRAIN, TEST]))
    assert raw.table["label"].to_pylist() == DIGITS.tolist()
    assert raw.official is not None
    assert raw.official.tolist() == ["train"] * 40 + ["test"] * 10
    assert raw.inputs[0].shape == (1, 5, 4)


def test_four_dimensions_are_colours_last_or_second(tmp_path: Path) -> None:
    colour = [RNG.integers(0, 256, (rows, 5, 4, 3), dtype=np.uint8) for rows in (40, 10)]
    last = idx.load(idx.Config(str(write(tmp_path / "last", *colour))))
    second = idx.load(idx.Config(str(write(tmp_path / "second", *(images.transpose(0, 3, 1, 2).copy() for images in colour)))))
    assert last.inputs[0].shape == (3, 5, 4)
    assert last.table["image"][0].as_py() == colour[0][0].tobytes()
    assert second.table.equals(last.table)


def damage(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
WRONG = {
    "empty": (IMAGES, b"", "is empty; get the file again"),
    "payload too short": (IMAGES, packed(TRAIN)[:-5], r"is cut off: 795 bytes of values, its header says 40x5x4 = 800"),
    "payload too long": (IMAGES, packed(TRAIN) + b"\0", r"is too long: 801 bytes of values, its header says 40x5x4 = 800"),
    "header cut off": (IMAGES, packed(TRAIN)[:9], "is cut off within its header"),
    "packed and cut off": (IMAGES, gzip.compress(packed(TRAIN))[:-300], "is cut off"),
    "packed and broken": (IMAGES, gzip.compress(packed(TRAIN))[:40] + b"\xff" * 900, "can't be read"),
    "a web page": (IMAGES, b"<!DOCTYPE html><html>", r"is no IDX file \(it begins with b'<!DOCTYP'\)"),
    "floats": (IMAGES, struct.pack(">HBBIII", 0, 0x0D, 3, 1, 1, 1) + b"\0" * 4, "IDX type 0x0d; only 0x08"),
    "labels for images": (IMAGES, packed(DIGITS), "has 1 dimensions; it must have 3 or 4"),
    "images for labels": (LABELS, packed(TRAIN), "has 3 dimensions; it must have 1"),
    "no images": (IMAGES, packed(TRAIN[:0]), "holds no images"),
    "two channels": (IMAGES, packed(np.zeros((40, 5, 4, 2), np.uint8)), "images of 2 channels; they must have 1 or 3"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_wrong_is_named(case: str, folder: Path) -> None:
    name, data, says = WRONG[case]
    damage(folder, name, data)
    with pytest.raises(DataError, match=says) as caught:
        idx.load(idx.Config(str(folder)))
    assert name in str(caught.value)
    assert caught.value.key == "data.path"


def test_another_number_of_labels_names_both_files(folder: Path) -> None:
    damage(folder, LABELS, packed(DIGITS[:39]))
    with pytest.raises(DataError, match=f"'{IMAGES}' holds 40 images, '{LABELS}' 39 labels"):
        idx.load(idx.Config(str(folder)))


def test_other_image_sizes_in_the_test_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="different sizes, 5x4x1 and 4x4x1"):
        idx.load(idx.Config(str(write(tmp_path / "idx", test=TEST[:, :4]))))


def test_a_missing_file_is_named_with_what_is_there(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"no 't10k-labels-idx1-ubyte' \(or .gz\) in .*; there is: t10k-images-idx3-ubyte, train-images"):
        idx.Config(str(folder)).files()


def test_a_missing_folder_and_a_file_for_a_folder_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        idx.load(idx.Config(str(folder / "gone")))
    with pytest.raises(DataError, match="is a file; give the folder"):
        idx.load(idx.Config(str(folder / IMAGES)))
    with pytest.raises(DataError, match="where is the data"):
        idx.load(idx.Config())


@pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason=f"no MNIST in {DATA / 'mnist'}; set ORCHESTRATOR_TEST_DATA to where mnist/ lies")
def test_real_mnist_loads_within_a_second_or_so() -> None:
    start = time.perf_counter()
    raw = idx.load(idx.Config(str(DATA / "mnist")))
    assert time.perf_counter() - start < 5  # .3 s on an idle machine
    assert raw.table.num_rows == 70_000
    assert raw.table["label"].slice(0, 5).to_pylist() == [5, 0, 4, 1, 9]
    pixels = np.frombuffer(b"".join(raw.table["image"].slice(0, 60_000).to_pylist()), np.uint8)
    assert float(pixels.mean()) == pytest.approx(33.318421, abs=1e-5)
