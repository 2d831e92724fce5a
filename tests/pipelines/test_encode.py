"""Encoding: an image in any of its forms gives the same tensor, and a row that doesn't fit says why."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipelines.encode import Encoder
from pipelines.encode.classes import ClassEncoder, sort_classes
from pipelines.encode.images import ImageEncoder, image_array
from pipelines.encode.pictures import decode_picture, image_text, picture_shape
from pipelines.raw import image_column
from pipelines.schema import Column, DataError, Schema

GREY = Column("image", "image", (1, 2, 3), "uint8")
PIXELS = np.array([[[0, 10, 20], [30, 40, 255]], [[1, 2, 3], [4, 5, 6]]], np.uint8)


def picture(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


PNGS = [picture(pixels) for pixels in PIXELS]
FORMS = {
    "raw bytes of fixed size": image_column(PIXELS),
    "raw bytes": pa.array([pixels.tobytes() for pixels in PIXELS]),
    "png": pa.array(PNGS),
    "bmp": pa.array([picture(pixels, "BMP") for pixels in PIXELS]),
    "png in a struct": pa.array([{"bytes": data, "path": None} for data in PNGS]),
    "base64": pa.array([base64.b64encode(data).decode() for data in PNGS]),
    "data url": pa.array(["data:image/png;base64," + base64.b64encode(data).decode() for data in PNGS]),
    "flat list": pa.array(PIXELS.reshape(2, 6).tolist()),
    "flat list of floats": pa.array(PIXELS.reshape(2, 6).astype(float).tolist()),
    "fixed list": pa.FixedSizeListArray.from_arrays(pa.array(PIXELS.ravel()), 6),
    "list of rows": pa.array(PIXELS.tolist()),
    "list with channels": pa.array(PIXELS[..., None].tolist()),
    "json": pa.array([json.dumps(pixels.tolist()) for pixels in PIXELS]),
}


def column_of(images: np.ndarray) -> pa.ChunkedArray:
    """Images [N, H, W, C] as bytes where they are uint8, else as lists."""
    if images.dtype == np.uint8:
        return pa.chunked_array([image_column(images)])
    return pa.chunked_array([pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), int(np.prod(images.shape[1:])))])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_the_same_numbers(form: str) -> None:
    array, errors = image_array(pa.chunked_array([FORMS[form]]), GREY)
    assert errors == {}
    assert np.array_equal(array, PIXELS[..., None])


@pytest.mark.parametrize("form", FORMS)
def test_slices_and_chunks_keep_their_rows(form: str) -> None:
    chunks = pa.chunked_array([FORMS[form], FORMS[form].slice(1), FORMS[form].slice(0, 0)])
    array, errors = image_array(chunks.slice(1), GREY)
    assert errors == {}
    assert np.array_equal(array[..., 0], PIXELS[[1, 1]])


def test_a_column_without_rows_is_an_empty_array() -> None:
    array, errors = image_array(pa.chunked_array([], pa.binary(6)), GREY)
    assert (array.shape, errors) == ((0, 2, 3, 1), {})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "it is missing"),
        (b"12345", "5 bytes, neither PNG nor JPEG nor 2x3x1 = 6 raw values"),
        (PNGS[0][:40], "no readable image"),
        (picture(np.zeros((3, 3), np.uint8)), r"an image of 3x3; it must be 2x3 \(or set data.size: \[H, W\]\)"),
        ([1, 2, 3], r"a list of shape \[3\]; the image is 2x3x1 = 6 values"),
        ([[1, 2, 3], [4, 5]], "neither an image nor a list of numbers of one shape"),
        ([1, 2, 3, 4, 5, None], "a missing value, NaN or infinity"),
        ([1, 2, 3, 4, 5, float("nan")], "a missing value, NaN or infinity"),
        ([1, 2, 3, 4, 5, float("-inf")], "a missing value, NaN or infinity"),
        ([1, 2, 3, 4, 5, 1e300], "a missing value, NaN or infinity"),
        ([1, 2, 3, 4, 5, 256], "values from 1 to 256; they must lie between 0 and 255"),
        ("[1, 2", "no list of numbers"),
        ("cat", r"text \('cat'\) that is neither a list of numbers nor a picture in base64"),
        ("cat.png", "the name of a file, 'cat.png'; give the picture itself"),
    ],
)
def test_a_row_that_does_not_fit_is_zeros_and_says_why(value: Any, says: str) -> None:
    good = PIXELS[0].tobytes() if isinstance(value, bytes) else json.dumps(PIXELS[0].tolist()) if isinstance(value, str) else [1] * 6
    if value == [[1, 2, 3], [4, 5]]:
        good = PIXELS[0].tolist()
    array, errors = image_array(pa.chunked_array([pa.array([good, value])]), GREY)
    assert list(errors) == [1]
    with pytest.raises(DataError, match=says):
        raise DataError(errors[1])
    assert array[0].any()
    assert not array[1].any()


def test_one_bad_row_among_dense_lists_is_found_without_the_others() -> None:
    values = np.ones((5, 6))
    values[3, 2] = np.inf
    array, errors = image_array(pa.array(list(values)), GREY)
    assert errors == {3: "it holds a missing value, NaN or infinity"}
    assert array.reshape(5, 6).sum(1).tolist() == [6, 6, 6, 0, 6]


def test_a_picture_for_a_column_of_float_lists_is_refused() -> None:
    _, errors = image_array(pa.array([PNGS[0]]), Column("image", "image", (1, 2, 3), "float32"))
    assert "the training data were lists of numbers of another scale" in errors[0]


def test_a_picture_of_another_size_is_resized_only_where_the_column_says_so() -> None:
    large = pa.array([picture(np.full((20, 30), 7, np.uint8))])
    array, errors = image_array(large, Column("image", "image", (1, 2, 3), "uint8", resize=True))
    assert errors == {}
    assert np.array_equal(array, np.full((1, 2, 3, 1), 7))


def test_file_names_are_read_only_where_a_folder_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNGS[0])
    schema = Schema((GREY,), Column("label", "class"), ("a", "b"))
    encoder = Encoder(schema, {"image": ImageEncoder(GREY, (0.0,), (1.0,))})
    table = pa.table({"image": ["a.png", "gone.png"]})
    arrays, errors = encoder.arrays(table, ["image"], tmp_path)
    assert np.array_equal(arrays["image"][0, ..., 0], PIXELS[0])
    assert errors == {1: f"image: no file 'gone.png' in '{tmp_path}' (No such file or directory)"}
    assert list(encoder.arrays(table, ["image"])[1]) == [0, 1]


def test_text_that_is_a_picture_s_base64_is_its_bytes() -> None:
    assert image_text(base64.b64encode(PNGS[0]).decode()) == PNGS[0]


def test_a_picture_lying_on_its_side_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, :8] = 255
    data = picture(pixels, "JPEG", exif=exif, quality=100)
    assert picture_shape(data) == (16, 8, 1)
    upright = decode_picture(data, 1, None)
    assert upright.shape == (16, 8, 1)
    assert upright[:6].min() > 200
    assert upright[10:].max() < 50


def test_sixteen_bit_grey_keeps_its_upper_byte() -> None:
    levels = (np.arange(6, dtype=np.uint16) * 10000).reshape(2, 3)
    assert np.array_equal(decode_picture(picture(levels), 1, None)[..., 0], levels >> 8)


def test_a_large_jpeg_is_brought_to_the_size() -> None:
    pixels = np.full((400, 640, 3), (200, 100, 50), np.uint8)
    small = decode_picture(picture(pixels, "JPEG", quality=95), 3, (10, 16))
    assert small.shape == (10, 16, 3)
    assert np.abs(small.astype(int) - [200, 100, 50]).max() <= 3


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_grey_pictures_have_one_channel_and_all_others_three(mode: str, channels: int) -> None:
    sink = io.BytesIO()
    Image.new(mode, (4, 5)).save(sink, "PNG")
    assert picture_shape(sink.getvalue()) == (5, 4, channels)
    assert decode_picture(sink.getvalue(), channels, None).shape == (5, 4, channels)


def test_normalised_training_rows_have_mean_0_and_deviation_1_per_channel() -> None:
    images = np.random.default_rng(0).integers(0, 200, (30, 5, 4, 3), dtype=np.uint8)
    encoder = ImageEncoder.fit(Column("image", "image", (3, 5, 4), "uint8"), column_of(images))
    tensor = encoder.tensor(torch.from_numpy(images))
    assert tensor.shape == (30, 3, 5, 4)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert tensor.mean((0, 2, 3)).abs().max() < 1e-5
    assert (tensor.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_moments_by_blocks_are_those_of_the_whole() -> None:
    images = np.random.default_rng(0).normal(5, 2, (40, 200, 200, 1)).astype(np.float32)
    encoder = ImageEncoder.fit(Column("image", "image", (1, 200, 200)), column_of(images))
    assert encoder.mean[0] == pytest.approx(images.mean(dtype=np.float64), rel=1e-9)
    assert encoder.std[0] == pytest.approx(images.std(dtype=np.float64), rel=1e-9)
    levels = (images * 10).clip(0, 255).astype(np.uint8)
    encoder = ImageEncoder.fit(Column("image", "image", (1, 200, 200), "uint8"), column_of(levels))
    assert encoder.mean[0] == pytest.approx(levels.mean(dtype=np.float64), rel=1e-9)
    assert encoder.std[0] == pytest.approx(levels.std(dtype=np.float64), rel=1e-9)


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    encoder = ImageEncoder.fit(GREY, column_of(np.full((3, 2, 3, 1), 9, np.uint8)))
    assert encoder.tensor(torch.full((1, 2, 3, 1), 9, dtype=torch.uint8)).abs().max() == 0


def test_labels_become_the_places_of_their_names() -> None:
    encoder = ClassEncoder(Column("label", "class"), ("1", "2", "10"))
    found, errors = encoder.array(pa.chunked_array([[10, 1], [2, 1]]))
    assert (found.tolist(), errors) == ([2, 0, 1, 0], {})
    assert encoder.array(pa.chunked_array([[10.0, 2.0]]))[0].tolist() == [2, 1]


def test_a_label_that_is_no_class_is_an_error_of_its_row() -> None:
    encoder = ClassEncoder(Column("label", "class"), ("cat", "None"))
    _, errors = encoder.array(pa.chunked_array([["cat", "cow", None, "None"]]))
    assert errors == {1: "'cow' is none of the classes", 2: "'None' is none of the classes"}


def test_classes_are_in_the_order_of_their_numbers_or_letters() -> None:
    assert sort_classes({"10", "9", "1.5"}) == ("1.5", "9", "10")
    assert sort_classes({"b", "10", "9"}) == ("10", "9", "b")
    assert sort_classes({"nan", "10", "9"}) == ("10", "9", "nan")


def test_a_missing_input_column_lists_those_that_are_there() -> None:
    encoder = Encoder(Schema((GREY,), Column("label", "class")), {})
    with pytest.raises(DataError, match="no column 'image'; the input has: picture, id"):
        encoder.arrays(pa.table({"picture": [b""], "id": [1]}), ["image"])
