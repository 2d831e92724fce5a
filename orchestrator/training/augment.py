"""Random changes of the images of a training batch, on its device; a mask that is the target moves with its image.

Every row draws its own, from torch's global generator on the CPU: seeds and checkpoints cover it, and ranks differ. Whole pixels are
moved and mirrored by one `index_select`, a quarter to a half of an interpolating warp's time (benchmarks/augment.py); what needs
interpolation is kornia's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.experiment.config import AugmentConfig
from pipelines.encode.masks import IGNORE
from pipelines.ragged import sizes_of
from pipelines.schema import Schema

Batch = Mapping[str, Tensor]
RATIO = 4 / 3  # of a crop's sides, at most: https://arxiv.org/abs/1409.4842


class AugmentError(ValueError):
    """These data have nothing to change."""


def augmenting(config: AugmentConfig, schema: Schema) -> Augment | None:
    """What changes the batches of such data; None where all is off. Raises AugmentError if the data have no image column."""
    if config == AugmentConfig():
        return None
    return Augment(config, images_of(schema), schema.target.name if schema.target.kind == "mask" else None)


def images_of(schema: Schema) -> tuple[str, ...]:
    """The image columns. Raises AugmentError if there are none."""
    images = tuple(column.name for column in schema.inputs if column.kind == "image")
    if not images:
        kinds = ", ".join(f"{column.name} ({column.kind})" for column in schema.inputs)
        raise AugmentError(f"it changes images, and the inputs are {kinds}")
    return images


@dataclass(frozen=True)
class Canvas:
    """Where the rows of a batch lie: H and W of the tensors, and each row's own size within them, which may be `padded`."""

    height: int
    width: int
    sizes: Tensor  # [B, 2] int64
    padded: bool

    @property
    def y(self) -> Tensor:
        return torch.arange(self.height, device=self.sizes.device)  # [H]

    @property
    def x(self) -> Tensor:
        return torch.arange(self.width, device=self.sizes.device)  # [W]

    @property
    def inside(self) -> Tensor:
        """[B, H, W] bool: what belongs to the row, and is no padding."""
        return (self.y < self.sizes[:, :1])[:, :, None] & (self.x < self.sizes[:, 1:])[:, None, :]

    @property
    def edges(self) -> Tensor:
        """[B, H, W] int64: the place of each pixel in the whole batch, or of the row's nearest pixel where it is padding."""
        return self.places(torch.minimum(self.y, self.sizes[:, :1] - 1), torch.minimum(self.x, self.sizes[:, 1:] - 1))

    def places(self, y: Tensor, x: Tensor) -> Tensor:
        """[B, H, W] int64: places in the whole batch of the pixels at y [B, H] and x [B, W]."""
        first = torch.arange(len(self.sizes), device=self.sizes.device)[:, None, None] * (self.height * self.width)
        return first + y[:, :, None] * self.width + x[:, None, :]


@dataclass(frozen=True)
class Augment:
    """Changes the columns `images` ([B, C, H, W]) of a batch, and `mask` ([B, H, W] int64) alike.

    What a move brings in from outside is the edge's pixels repeated, in a mask IGNORE. A hole is 0 (the mean, after normalisation),
    in a mask IGNORE too. Padding stays as it is. The same draw serves all images of a row.
    """

    config: AugmentConfig
    images: tuple[str, ...]
    mask: str | None = None

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The batch with its images changed; nothing is written in place."""
        done = dict(batch)
        first = batch[self.images[0]]
        if not len(first):
            return done
        where = self._canvas(first, batch.get(sizes_of(self.images[0])))
        if self.config.shift or self.config.flip != "none":
            self._move(done, where)
        if self.config.rotate or self.config.crop < 1:
            self._warp(done, where)
        if self.config.cutout:
            self._cut_out(done, where)
        return done

    @staticmethod
    def _canvas(image: Tensor, sizes: Tensor | None) -> Canvas:
        height, width = image.shape[-2:]
        whole = torch.tensor([height, width], device=image.device)
        return Canvas(height, width, whole.expand(len(image), 2) if sizes is None else sizes, sizes is not None)

    def _move(self, done: dict[str, Tensor], where: Canvas) -> None:
        """Mirror, then shift by whole pixels."""
        rows, sizes = len(where.sizes), where.sizes
        flips = torch.rand(rows, 2).to(sizes.device) < 0.5
        flips &= torch.tensor([self.config.flip in ("vertical", "both"), self.config.flip in ("horizontal", "both")], device=sizes.device)
        most = (self.config.shift * sizes).round().clamp(min=1) if self.config.shift else torch.zeros_like(sizes)
        shifts = (torch.rand(rows, 2).to(sizes.device) * (2 * most + 1)).long() - most.long()
        y, beyond_y = _from(where.y, sizes[:, :1], shifts[:, :1], flips[:, :1])
        x, beyond_x = _from(where.x, sizes[:, 1:], shifts[:, 1:], flips[:, 1:])
        taken = where.places(y, x).view(-1)
        for name in self.images:
            done[name] = _take(done[name], taken)
        if self.mask is not None:
            moved = done[self.mask].reshape(-1).index_select(0, taken).view_as(done[self.mask])
            done[self.mask] = moved.masked_fill(beyond_y[:, :, None] | beyond_x[:, None, :], IGNORE)

    def _warp(self, done: dict[str, Tensor], where: Canvas) -> None:
        """Turn and crop, by one interpolation."""
        from kornia.geometry.transform import warp_affine

        matrix, canvas = self._turn_and_crop(where.sizes), (where.height, where.width)
        inside = where.inside if where.padded else None
        for name in self.images:
            image = _take(done[name], where.edges.view(-1)) if where.padded else done[name]
            moved = warp_affine(image, matrix, canvas, padding_mode="border").contiguous(memory_format=torch.channels_last)
            done[name] = moved if inside is None else torch.where(inside[:, None], moved, done[name])
        if self.mask is not None:
            mask = done[self.mask]
            shown = torch.where(mask == IGNORE, 0, mask + 1)[:, None].float()  # 0, which comes in from outside, is ignored
            labels = warp_affine(shown, matrix, canvas, mode="nearest").round().long()[:, 0] - 1
            labels = labels.masked_fill(labels < 0, IGNORE)
            done[self.mask] = labels if inside is None else torch.where(inside, labels, mask)

    def _turn_and_crop(self, sizes: Tensor) -> Tensor:
        """Where each row's pixels go: [B, 2, 3] float32, on (x, y)."""
        from kornia.geometry.transform import get_affine_matrix2d

        drawn = torch.rand(len(sizes), 5).to(sizes.device)
        side = (sizes.flip(1) - 1).float()  # [B, 2]: from the first to the last pixel's middle, along x and y
        area = 1 - (1 - self.config.crop) * drawn[:, 0]
        ratio = torch.exp((2 * drawn[:, 1] - 1) * math.log(RATIO)).clamp(area, 1 / area)  # neither side may be longer than the image's
        kept = torch.stack([area * ratio, area / ratio], 1).sqrt()  # [B, 2]: shares of the sides
        away = (2 * drawn[:, 2:4] - 1) * (1 - kept) / 2 * side  # the crop's centre from the image's
        angle = (2 * drawn[:, 4] - 1) * self.config.rotate
        return get_affine_matrix2d(-away / kept, side / 2, 1 / kept, angle)[:, :2]

    def _cut_out(self, done: dict[str, Tensor], where: Canvas) -> None:
        """A square hole, its centre anywhere in the image: https://arxiv.org/abs/1708.04552."""
        sizes = where.sizes
        centre = (torch.rand(len(sizes), 2).to(sizes.device) * sizes).long()
        side = (self.config.cutout * sizes.amin(1, keepdim=True)).round().clamp(min=1).long()
        first = centre - side // 2
        y, x = where.y - first[:, :1], where.x - first[:, 1:]  # [B, H], [B, W]: within the hole from 0
        hole = ((y >= 0) & (y < side))[:, :, None] & ((x >= 0) & (x < side))[:, None, :] & where.inside
        for name in self.images:
            done[name] = done[name] * ~hole[:, None]  # half the time of masked_fill, and channels_last stays
        if self.mask is not None:
            done[self.mask] = done[self.mask].masked_fill(hole, IGNORE)


def _from(place: Tensor, size: Tensor, shift: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
    """Where the pixel of each place ([S]) comes from along one axis ([B, S] int64), and whether that lies outside the image.

    Padding, beyond `size` ([B, 1]), comes from itself.
    """
    moved = place - shift
    source = torch.where(flip, size - 1 - moved, moved)
    beyond = ((source < 0) | (source >= size)) & (place < size)
    return torch.where(place < size, torch.minimum(source.clamp(min=0), size - 1), place), beyond


def _take(image: Tensor, taken: Tensor) -> Tensor:
    """Pixels of a batch of images [B, C, H, W] by their places in [B * H * W]; the result is channels_last."""
    rows, channels, height, width = image.shape
    pixels = image.permute(0, 2, 3, 1).reshape(-1, channels)
    return pixels.index_select(0, taken).view(rows, height, width, channels).permute(0, 3, 1, 2)
