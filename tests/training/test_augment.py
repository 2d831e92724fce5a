"""Augmentation: what moves, by how much, where the mask goes; off in evaluation, and exact after resuming."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.experiment.config import AugmentConfig
from orchestrator.training import checkpoint
from orchestrator.training.augment import Augment, AugmentError, augmenting
from pipelines.encode.masks import IGNORE
from pipelines.schema import Column, Schema
from tests.conftest import MakeJob, drive

ROWS = 400
EVERYTHING = {"shift": 0.2, "flip": "both", "rotate": 20.0, "crop": 0.7, "cutout": 0.3}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def augment(batch: dict[str, Tensor], mask: str | None = None, **changes: Any) -> dict[str, Tensor]:
    return Augment(AugmentConfig(**changes), ("image",), mask)(batch)


def ramp(rows: int = ROWS, height: int = 10, width: int = 20) -> Tensor:
    """Images [rows, 2, H, W] whose pixels say where they are: channel 0 is y, channel 1 is x."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([y, x]).float().expand(rows, 2, height, width)


def test_nothing_is_changed_unless_asked() -> None:
    assert augmenting(AugmentConfig(), Schema((Column("a", "number"),), Column("b", "class"))) is None


def test_data_without_images_are_refused_with_what_they_have() -> None:
    with pytest.raises(AugmentError, match=r"^it changes images, and the inputs are a \(number\), b \(text\)$"):
        augmenting(AugmentConfig(shift=0.1), Schema((Column("a", "number"), Column("b", "text")), Column("c", "class")))


def test_a_shift_moves_by_every_whole_number_of_pixels_up_to_its_share_of_each_side() -> None:
    done = augment({"image": ramp()}, shift=0.1)["image"]
    moved = done - ramp()
    centre = moved[:, :, 5, 10]  # [rows, 2]: by how much, along y and x
    assert centre[:, 0].unique().tolist() == [-1, 0, 1]
    assert centre[:, 1].unique().tolist() == [-2, -1, 0, 1, 2]
    counts = centre[:, 1].long().add(2).bincount()
    assert counts.min() > ROWS / 5 * 0.6  # each as often


def test_what_a_shift_brings_in_is_the_edge_repeated() -> None:
    done = augment({"image": ramp()}, shift=0.1)["image"]
    left = done[(done[:, 1, 5, 10] == 8)][:, 1, 5]  # moved right by two
    assert len(left) > 0
    assert left[:, :4].tolist() == [[0, 0, 0, 1]] * len(left)


def test_the_smallest_shift_is_one_pixel() -> None:
    done = augment({"image": ramp()}, shift=0.001)["image"]
    assert (done - ramp())[:, 1, 5, 10].unique().tolist() == [-1, 0, 1]


@pytest.mark.parametrize(("flip", "axes"), [("vertical", [0]), ("horizontal", [1]), ("both", [0, 1])])
def test_a_flip_mirrors_half_of_the_images_along_its_axes_only(flip: str, axes: list[int]) -> None:
    done = augment({"image": ramp()}, flip=flip)["image"]
    for axis, last in ((0, 9), (1, 19)):
        first = done[:, axis, 0, 0]
        mirrored = int((first == last).sum())
        assert int((first == 0).sum()) + mirrored == ROWS
        assert 0.4 < mirrored / ROWS < 0.6 if axis in axes else mirrored == 0
    both = int(((done[:, 0, 0, 0] == 9) & (done[:, 1, 0, 0] == 19)).sum())
    assert 0.15 < both / ROWS < 0.35 if flip == "both" else both == 0


def test_a_crop_keeps_at_least_its_share_and_lies_anywhere_within_the_image() -> None:
    done = augment({"image": ramp()}, crop=0.5)["image"]
    seen = done[:, :, -1, -1] - done[:, :, 0, 0]  # the extent that is left of 9 and 19
    area = (seen[:, 0] / 9) * (seen[:, 1] / 19)
    assert 0.499 < area.min() < 0.55
    assert area.max() > 0.95
    assert done.min() >= -1e-4
    assert (done.amax((0, 2, 3)) <= torch.tensor([9, 19]) + 1e-4).all()
    assert done[:, 1, 0, 0].max() > 3  # not always the same corner


def test_a_rotation_turns_about_the_centre_by_up_to_its_degrees() -> None:
    image = ramp(height=21, width=21)
    done = augment({"image": image}, rotate=30)["image"]
    assert torch.allclose(done[:, :, 10, 10], image[:, :, 10, 10], atol=1e-3)
    slope = done[:, 0, 10, 14] - done[:, 0, 10, 6]  # of y along x, over 8 pixels: 8 sin(angle)
    degrees = (slope / 8).arcsin().rad2deg()
    assert degrees.abs().max() <= 30.1
    assert degrees.max() > 20
    assert degrees.min() < -20


def test_a_hole_is_a_square_of_its_share_and_nothing_else_changes() -> None:
    image = torch.ones(ROWS, 1, 20, 20)
    done = augment({"image": image}, cutout=0.25)["image"]
    holes = (done == 0).flatten(1).sum(1)
    assert holes.max() == 25
    assert holes.min() >= 4  # a corner of it, at a corner of the image
    assert set(done.unique().tolist()) == {0.0, 1.0}
    whole = done[holes == 25][0, 0] == 0
    assert sorted(whole.any(0).sum().view(1).tolist() + whole.any(1).sum().view(1).tolist()) == [5, 5]


def test_a_mask_moves_with_its_image_and_what_comes_in_is_ignored() -> None:
    mask = torch.randint(0, 3, (ROWS, 12, 16))
    done = augment({"image": mask[:, None].float() + 1, "mask": mask}, "mask", shift=0.2, flip="both", cutout=0.3)
    counted = done["mask"] != IGNORE
    assert torch.equal(done["image"][:, 0].long()[counted], done["mask"][counted] + 1)
    assert 0.5 < counted.float().mean() < 0.95
    assert (done["image"][:, 0] == 0)[counted].sum() == 0


def test_a_mask_turns_and_is_cut_out_with_its_image_by_its_nearest_pixel() -> None:
    y, x = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    square = ((y - 17).abs() < 9) & ((x - 23).abs() < 6)
    mask = square.long().expand(50, 40, 40).clone()
    done = augment({"image": mask[:, None].float(), "mask": mask}, "mask", rotate=45, crop=0.5)
    counted = done["mask"] != IGNORE
    assert set(done["mask"].unique().tolist()) == {0, 1, IGNORE}  # nothing between classes
    assert ((done["image"][:, 0] > 0.5) == (done["mask"] == 1))[counted].float().mean() > 0.995
    assert not torch.equal(done["mask"], mask)


def test_pixels_that_were_ignored_stay_so() -> None:
    mask = torch.full((8, 12, 12), IGNORE)
    done = augment({"image": torch.randn(8, 1, 12, 12), "mask": mask}, "mask", **EVERYTHING)
    assert torch.equal(done["mask"], mask)


@pytest.mark.parametrize("changes", [{"shift": 0.2, "flip": "both"}, {"rotate": 40.0, "crop": 0.5}, {"cutout": 0.5}])
def test_padding_stays_as_it_is_and_none_of_it_comes_into_the_image(changes: dict[str, Any]) -> None:
    sizes = torch.tensor([[6, 9], [12, 16], [1, 1], [12, 5]]).repeat(20, 1)
    image, mask = torch.zeros(80, 1, 12, 16), torch.full((80, 12, 16), IGNORE)
    own = torch.zeros(80, 12, 16, dtype=torch.bool)
    for row, (height, width) in enumerate(sizes.tolist()):
        own[row, :height, :width] = True
    image[:, 0][own], image[:, 0][~own], mask[own] = 3.0, -7.0, 1
    done = augment({"image": image, "image.sizes": sizes, "mask": mask}, "mask", **changes)
    assert set(done["image"][:, 0][~own].unique().tolist()) == {-7.0}
    assert set(done["mask"][~own].unique().tolist()) == {IGNORE}
    inside = done["image"][:, 0][own]
    assert ((inside - 3).abs() < 1e-3).logical_or(inside == 0).all()
    assert (inside == 0).any() == ("cutout" in changes)
    assert {1} <= set(done["mask"][own].unique().tolist()) <= {1, IGNORE}


def test_the_batch_given_is_left_as_it_was_and_other_columns_are_passed_on() -> None:
    batch = {"image": torch.randn(6, 3, 9, 9), "label": torch.arange(6)}
    before = batch["image"].clone()
    done = augment(batch, **EVERYTHING)
    assert torch.equal(batch["image"], before)
    assert done["label"] is batch["label"]
    assert done["image"].shape == before.shape
    assert not torch.equal(done["image"], before)


def test_a_rank_without_rows_has_nothing_to_change() -> None:
    assert augment({"image": torch.zeros(0, 1, 8, 8)}, **EVERYTHING)["image"].shape == (0, 1, 8, 8)


def test_moved_images_lie_in_memory_as_convolutions_want_them() -> None:
    image = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    done = augment({"image": image}, shift=0.1, flip="both", cutout=0.2)["image"]
    assert done.is_contiguous(memory_format=torch.channels_last)


def test_draws_follow_torch_s_generator() -> None:
    image, changes = torch.randn(8, 1, 8, 8), AugmentConfig(**EVERYTHING)
    own = Augment(changes, ("image",))
    state = torch.get_rng_state()
    first, second = own({"image": image})["image"], own({"image": image})["image"]
    torch.set_rng_state(state)
    assert torch.equal(own({"image": image})["image"], first)
    assert not torch.equal(first, second)


# in training ----------------------------------------------------------------------------------------------------------------

SETTING = "training.augment={shift: 0.2, flip: both, rotate: 20, crop: 0.7, cutout: 0.3}"


def test_training_is_changed_and_evaluation_is_not(make_job: MakeJob) -> None:
    still = ("optimizer={name: sgd, lr: 1e-30, momentum: 0}", "model.norm=none", "training.epochs=1")
    plain, changed = (drive(make_job(*still, *more, checkpoints=str(len(more))))[0].metrics for more in ((), (SETTING,)))
    assert plain["val_loss"] == changed["val_loss"]
    assert plain["train_loss"] != changed["train_loss"]


def test_a_run_cut_off_and_resumed_draws_what_it_would_have_drawn(make_job: MakeJob) -> None:
    whole, cut = (make_job(SETTING, "training.epochs=3", checkpoints=place) for place in ("whole", "cut"))
    undisturbed = drive(whole)
    drive(cut, 1)
    resumed = drive(dataclasses.replace(cut, resume=True))
    weights = [checkpoint.load(job.checkpoints)["training"]["model"] for job in (whole, cut)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [e.metrics["train_loss"] for e in undisturbed[:3]] == [e.metrics["train_loss"] for e in resumed[:3]]
