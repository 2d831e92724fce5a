"""Masks: any lossless picture of one channel gives its classes, and predictions come back as PNG with the data's own values."""

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
from pipelines.encode.images import ImageEncoder
from pipelines.encode.masks import IGNORE, MaskColumn, MaskEncoder
from pipelines.encode.pictures import decode_mask, encode_png
from pipelines.ragged import Ragged
from pipelines.raw import image_column
from pipelines.schema import Column, DataError

PIXELS = np.array([[[0, 1, 2], [2, 1, 0]], [[9, 9, 1], [0, 0, 0]]], np.uint8)
EXPECTED = np.where(PIXELS == 9, IGNORE, PIXELS)


def column(*shape: int, values: tuple[int, ...] = (0, 1, 2), ignore: int | None = 9, resize: bool = False) -> MaskColumn:
    return MaskColumn("mask", "mask", shape, "uint8", resize, values=values, names=tuple(f"c{v}" for v in values), ignore=ignore)


def encoder(*shape: int, **options: Any) -> MaskEncoder:
    made = column(*shape, **options)
    return MaskEncoder(made.plain(), made.values, made.ignore, made.names)


def saved(image: Image.Image, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind)
    return sink.getvalue()


def palette(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels, "P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, *[7] * 759])
    return saved(image)


FORMS = {
    "raw bytes of fixed size": image_column(PIXELS),
    "raw bytes": pa.array([pixels.tobytes() for pixels in PIXELS]),
    "png": pa.array([encode_png(pixels) for pixels in PIXELS]),
    "bmp": pa.array([saved(Image.fromarray(pixels), "BMP") for pixels in PIXELS]),
    "palette": pa.array([palette(pixels) for pixels in PIXELS]),
    "grey saved as RGB": pa.array([encode_png(np.repeat(pixels[..., None], 3, 2)) for pixels in PIXELS]),
    "16 bits": pa.array([saved(Image.fromarray(pixels.astype(np.uint16))) for pixels in PIXELS]),
    "struct": pa.array([{"bytes": encode_png(pixels), "path": None} for pixels in PIXELS]),
    "base64": pa.array([base64.b64encode(encode_png(pixels)).decode() for pixels in PIXELS]),
    "rows of lists": pa.array(PIXELS.tolist()),
    "json": pa.array([json.dumps(pixels.tolist()) for pixels in PIXELS]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_mask_gives_the_same_classes(form: str) -> None:
    array, errors = encoder(2, 3).array(pa.chunked_array([FORMS[form].slice(1), FORMS[form].slice(0, 1)]))
    assert errors == {}
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array, EXPECTED[::-1])


@pytest.mark.parametrize("form", [form for form in FORMS if "raw" not in form])
def test_masks_of_any_size_keep_their_own(form: str) -> None:
    array, errors = encoder(0, 0).array(pa.chunked_array([FORMS[form]]))
    assert errors == {}
    assert isinstance(array, Ragged)
    padded, sizes = array.take(torch.arange(2))
    assert sizes.tolist() == [[2, 3], [2, 3]]
    assert np.array_equal(padded.numpy(), EXPECTED)


def test_padding_is_not_counted() -> None:
    masks = pa.array([encode_png(np.ones(shape, np.uint8)) for shape in ((1, 3), (2, 1))])
    array, _ = encoder(0, 0).array(pa.chunked_array([masks]))
    assert isinstance(array, Ragged)
    tensor = encoder(0, 0).tensor(array.take(torch.arange(2))[0])
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == [[[1, 1, 1], [IGNORE] * 3], [[1, IGNORE, IGNORE], [1, IGNORE, IGNORE]]]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "it is missing"),
        (
            encode_png(np.array([[0, 1, 2], [7, 1, 8]], np.uint8)),
            r"the mask holds 7, which is no class \(the classes are 0, 1, 2; data.ignore is 9\)",
        ),
        (encode_png(np.zeros((3, 3), np.uint8)), r"a mask of 3x3; it must be 2x3 \(or set data.size: \[H, W\]\)"),
        (encode_png(np.full((2, 3, 3), (0, 1, 2), np.uint8)), "a mask of colours; it must hold one number for each pixel"),
        (saved(Image.fromarray(PIXELS[0]), "JPEG"), "a JPEG, which blurs the values of a mask; save masks as PNG"),
        (saved(Image.fromarray(np.full((2, 3), 300, np.uint16))), "the mask holds 300; values must lie between 0 and 255"),
        (encode_png(PIXELS[0])[:50], "no readable image"),
        (b"12345", "no readable image"),
        (b"\x00\x01\x05\x00\x00\x00", "the mask holds 5, which is no class"),
    ],
)
def test_a_mask_that_does_not_fit_is_not_counted_and_says_why(value: Any, says: str) -> None:
    array, errors = encoder(2, 3).array(pa.chunked_array([pa.array([encode_png(PIXELS[0]), value], pa.binary())]))
    assert list(errors) == [1]
    with pytest.raises(DataError, match=says):
        raise DataError(errors[1])
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array[0], EXPECTED[0])
    assert (array[1] == IGNORE).all()


def test_an_unknown_value_among_raw_masks_is_found_without_the_others() -> None:
    pixels = np.ones((4, 2, 3), np.uint8)
    pixels[2, 1, 1] = 77
    array, errors = encoder(2, 3).array(pa.chunked_array([image_column(pixels)]))
    assert list(errors) == [2]
    assert errors[2].startswith("the mask holds 77,")
    assert isinstance(array, np.ndarray)
    assert (array == 1).sum() == 18


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([[1, 2], [3]], "neither a picture nor a list"),
        ([1, 2], r"a list of shape \[2\]"),
        ([[1.5] * 3] * 2, "whole numbers"),
        ([[-1] * 3] * 2, "from -1 to -1"),
    ],
)
def test_lists_that_are_no_mask_are_refused(value: Any, says: str) -> None:
    _, errors = encoder(2, 3).array(pa.chunked_array([pa.array([json.dumps(value)])]))
    with pytest.raises(DataError, match=says):
        raise DataError(errors[0])


def test_black_and_white_are_two_classes_and_stay_what_they_are() -> None:
    made = encoder(2, 2, values=(0, 255), ignore=None)
    pixels = np.array([[0, 255], [255, 0]], np.uint8)
    one_bit = saved(Image.fromarray(pixels).convert("1"))
    array, errors = made.array(pa.chunked_array([pa.array([encode_png(pixels), one_bit])]))
    assert errors == {}
    assert np.asarray(array).tolist() == [[[0, 1], [1, 0]]] * 2
    [answer] = made.answers(torch.tensor([[[0, 1], [1, 0]]], dtype=torch.uint8)).to_pylist()
    assert np.array_equal(decode_mask(answer, None), pixels)


def test_answers_are_pngs_of_each_row_s_own_size() -> None:
    made = encoder(0, 0, values=(3, 5, 200))
    answers = made.answers([torch.tensor([[0, 1, 2]], dtype=torch.uint8), torch.tensor([[2], [0]], dtype=torch.uint8)])
    assert answers.type == pa.binary()
    assert [decode_mask(png, None).tolist() for png in answers.to_pylist()] == [[[3, 5, 200]], [[200], [3]]]


def test_a_mask_of_another_size_is_resized_by_nearest_pixels_only_where_the_column_says_so() -> None:
    large = pa.chunked_array([pa.array([encode_png(np.repeat(np.repeat(PIXELS[0], 4, 0), 4, 1))])])
    array, errors = encoder(2, 3, resize=True).array(large)
    assert errors == {}
    assert np.array_equal(np.asarray(array), EXPECTED[:1])


@pytest.mark.parametrize("form", ["raw bytes of fixed size", "png"])
@pytest.mark.parametrize("shape", [(2, 3), (0, 0)])
def test_fitting_counts_the_training_pixels_of_each_class(form: str, shape: tuple[int, int]) -> None:
    if form.startswith("raw") and not any(shape):
        pytest.skip("raw values don't tell their size")
    made = MaskEncoder.fit(column(*shape), pa.chunked_array([FORMS[form]]))
    assert made.classes == ("c0", "c1", "c2")
    assert made.counts == (5, 3, 2)
    assert type(made.column) is Column


def test_a_column_that_names_no_classes_has_those_of_its_training_rows() -> None:
    made = MaskEncoder.fit(Column("mask", "mask", (2, 3), "uint8"), pa.chunked_array([image_column(PIXELS)]))
    assert (made.values, made.classes, made.counts) == ((0, 1, 2, 9), ("0", "1", "2", "9"), (5, 3, 2, 2))


def test_the_encoder_survives_json_with_the_schema() -> None:
    image = Column("image", "image", (1, 2, 3), "uint8")
    table = pa.table({"image": image_column(PIXELS), "mask": FORMS["png"]})
    made = Encoder.fit((image,), column(2, 3), table)
    again = Encoder.from_plain(
        type(made.schema).from_plain(json.loads(json.dumps(made.schema.to_plain()))), json.loads(json.dumps(made.to_plain()))
    )
    assert again.columns["mask"] == made.columns["mask"]
    assert again.schema == made.schema
    assert (again.schema.classes, again.schema.counts) == (("c0", "c1", "c2"), (5, 3, 2))
    assert "pillow" in again.requires


def test_file_names_are_read_only_where_a_folder_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(PIXELS[0]))
    names = pa.chunked_array([["a.png", "gone.png"]])
    array, errors = encoder(2, 3).array(names, tmp_path)
    assert np.array_equal(np.asarray(array)[0], EXPECTED[0])
    assert errors == {1: f"no file 'gone.png' in '{tmp_path}' (No such file or directory)"}
    assert list(encoder(2, 3).array(names)[1]) == [0, 1]


SIZED = Column("image", "image", (3, 0, 0), "uint8")
IMAGES = [np.random.default_rng(0).integers(0, 256, shape, np.uint8) for shape in ((2, 5, 3), (4, 1, 3), (3, 3, 3))]


def test_images_of_any_size_keep_their_own_in_every_form() -> None:
    for form in (
        pa.array([encode_png(image) for image in IMAGES]),
        pa.array([{"bytes": encode_png(image)} for image in IMAGES]),
        pa.array([base64.b64encode(encode_png(image)).decode() for image in IMAGES]),
        pa.array([image.tolist() for image in IMAGES]),
    ):
        array, errors = ImageEncoder(SIZED, (0.0,) * 3, (1.0,) * 3).array(pa.chunked_array([form.slice(1), form.slice(0, 1)]))
        assert errors == {}
        assert isinstance(array, Ragged)
        for row, image in enumerate([*IMAGES[1:], IMAGES[0]]):
            padded, sizes = array.take(torch.tensor([row]))
            assert sizes.tolist() == [list(image.shape[:2])]
            assert np.array_equal(padded[0].numpy(), image)


def test_images_of_any_size_are_normalised_by_their_own_pixels_and_padded_with_zeros() -> None:
    raw = pa.chunked_array([pa.array([encode_png(image) for image in IMAGES])])
    made = ImageEncoder.fit(SIZED, raw)
    pixels = np.concatenate([image.reshape(-1, 3) for image in IMAGES]).astype(float)
    assert made.mean == pytest.approx(pixels.mean(0))
    assert made.std == pytest.approx(pixels.std(0))
    array, _ = made.array(raw)
    assert isinstance(array, Ragged)
    padded, sizes = array.take(torch.arange(3))
    tensor = made.tensor(padded, sizes)
    assert tensor.shape == (3, 3, 4, 5)
    assert torch.equal(tensor[0, :, 2:], torch.zeros(3, 2, 5))
    assert torch.equal(tensor[1, :, :, 1:], torch.zeros(3, 4, 4))
    assert torch.allclose(
        tensor[2, :, :3, :3],
        ((torch.from_numpy(IMAGES[2]) - torch.tensor(made.mean)) / torch.tensor(made.std)).permute(2, 0, 1).float(),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "it is missing"),
        (b"123456789012", "raw values don't tell an image's height and width"),
        (encode_png(IMAGES[0])[:40], "no readable image"),
    ],
)
def test_an_image_of_any_size_that_does_not_fit_says_why(value: Any, says: str) -> None:
    array, errors = ImageEncoder(SIZED, (0.0,) * 3, (1.0,) * 3).array(
        pa.chunked_array([pa.array([encode_png(IMAGES[0]), value], pa.binary())])
    )
    assert list(errors) == [1]
    assert says in errors[1]
    assert len(array) == 2


@pytest.mark.parametrize("value", [[1, 2, 3], [[1, 2], [3, 4]], [[[1, 2], [3, 4]]], [[[1, 2, 300]]], [[[1, 2, None]]]])
def test_lists_that_are_no_image_of_any_size_are_refused(value: Any) -> None:
    _, errors = ImageEncoder(SIZED, (0.0,) * 3, (1.0,) * 3).array(pa.chunked_array([pa.array([json.dumps(value)])]))
    assert list(errors) == [0]


FIXED = Column("image", "image", (3, 3, 3), "uint8")


def of_other_sizes(column: Column = FIXED) -> ImageEncoder:
    return ImageEncoder(column, (0.0,) * 3, (1.0,) * 3, other_sizes=True)


def test_images_of_the_trained_size_alone_are_no_ragged_rows() -> None:
    for form in (IMAGES[2].tobytes(), encode_png(IMAGES[2]), IMAGES[2].tolist(), IMAGES[2].reshape(-1).tolist()):
        array, errors = of_other_sizes().array(pa.chunked_array([pa.array([form] * 2)]))
        assert errors == {}
        assert isinstance(array, np.ndarray)
        assert np.array_equal(array, [IMAGES[2]] * 2)


@pytest.mark.parametrize("form", [encode_png, np.ndarray.tolist, lambda image: json.dumps(image.tolist())])
def test_images_of_other_sizes_keep_them_beside_those_of_the_trained_one(form: Any) -> None:
    images = [IMAGES[2], IMAGES[0], IMAGES[2], IMAGES[1]]
    array, errors = of_other_sizes().array(pa.chunked_array([pa.array([form(image) for image in images])]))
    assert errors == {}
    assert isinstance(array, Ragged)
    for row, image in enumerate(images):
        assert np.array_equal(array.take(torch.tensor([row]))[0][0].numpy(), image)


def test_what_is_no_image_of_any_size_says_why_beside_those_that_are() -> None:
    values = [IMAGES[0].tolist(), None, [[[1, 2, 300]]], [1, 2], [300] * 27]
    array, errors = of_other_sizes().array(pa.chunked_array([pa.array([json.dumps(value) if value else None for value in values])]))
    assert isinstance(array, Ragged)
    assert len(array) == 5
    assert errors == {
        1: "it is missing",
        2: "values from 1 to 300; they must lie between 0 and 255",
        3: "a list of shape [2]; an image of any size is a list of rows of pixels: [H, W, 3]",
        4: "values from 300 to 300; they must lie between 0 and 255",
    }


def test_a_picture_of_another_size_is_none_of_another_scale() -> None:
    column = Column("image", "image", (3, 3, 3), "float32")
    _, errors = of_other_sizes(column).array(pa.chunked_array([pa.array([encode_png(IMAGES[0])])]))
    assert "the training data were lists of numbers of another scale" in errors[0]


def test_the_example_of_images_that_may_have_other_sizes_is_text_too() -> None:
    raw = pa.chunked_array([image_column(np.stack([IMAGES[2]] * 2))])
    example = of_other_sizes().example(raw)
    assert example.type == pa.string()
    assert np.array_equal(np.asarray(of_other_sizes().array(pa.chunked_array([example]))[0]), [IMAGES[2]] * 2)


def test_the_example_of_images_of_any_size_is_text_that_gives_them_again() -> None:
    made = ImageEncoder(SIZED, (0.0,) * 3, (1.0,) * 3)
    raw = pa.chunked_array([pa.array([encode_png(image) for image in IMAGES])])
    example = made.example(raw)
    assert example.type == pa.string()
    arrays = [made.array(pa.chunked_array([form]))[0] for form in (example, raw.combine_chunks())]
    assert torch.equal(arrays[0].values, arrays[1].values)  # type: ignore[union-attr]
