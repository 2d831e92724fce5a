"""Masks: intersection over union of each class, and some images with truth and prediction beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from models.family import Batch, Family, Outputs
from orchestrator.deployment.figures import draw
from orchestrator.deployment.figures.sample import Sample

EXAMPLES = 6


class Segmentation:
    """Pixels of each class, and some images."""

    def __init__(self, family: Family) -> None:
        self.family, self.classes = family, list(family.schema.classes)
        self.counts = MulticlassConfusionMatrix(num_classes=len(self.classes))
        self.sample = Sample(EXAMPLES)
        self.examples: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # image [C, H, W], truth [H, W], predicted [H, W]

    def add(self, outputs: Outputs, batch: Batch) -> None:
        schema = self.family.schema
        truth = batch[schema.target.name].cpu()
        predicted: Any = self.family.decode(outputs, batch)["prediction"]
        places = {row: place for place, row in self.sample.chosen(len(truth)).items()}
        for row in range(len(truth)):
            guess = predicted[row].cpu()
            own = truth[row, : guess.shape[-2], : guess.shape[-1]]
            counted = (own >= 0) & (own < len(self.classes))
            self.counts.update(guess[counted], own[counted])
            if row in places:
                image = batch[schema.inputs[0].name][row, :, : guess.shape[-2], : guess.shape[-1]].float().cpu()
                self.examples[places[row]] = (image.clone(), own.clone(), guess.clone())  # of views, which would hold the batch

    def write(self, folder: Path, scores: dict[str, float], part: str) -> None:
        counts = self.counts.compute().double()
        right, union = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
        table = {
            name: {"iou": float(r / u) if u else None, "dice": float(2 * r / (u + r)) if u else None, "pixels": int(n)}
            for name, r, u, n in zip(self.classes, right, union, counts.sum(1), strict=True)
        }
        draw.write(folder, "per_class", None, {"classes": table, "confusion": counts.long().tolist(), **scores})
        if self.examples:
            self._examples(folder, part)

    def _examples(self, folder: Path, part: str) -> None:
        drawn = draw.figure(7, 2.2 * len(self.examples) + 0.6)
        grid = drawn.subplots(len(self.examples), 3, squeeze=False)
        most = max(1, len(self.classes) - 1)
        for axes, (image, truth, guess) in zip(grid, self.examples.values(), strict=True):
            low, high = image.min(), image.max()
            picture = ((image - low) / (high - low).clamp_min(1e-6)).permute(1, 2, 0).numpy()
            axes[0].imshow(picture[..., 0] if picture.shape[2] == 1 else picture, cmap="gray")
            counted = (truth >= 0) & (truth < len(self.classes))
            for place, mask in ((axes[1], truth.float().masked_fill(~counted, float("nan"))), (axes[2], guess.float())):
                place.imshow(mask.numpy(), cmap="viridis", vmin=0, vmax=most, interpolation="nearest")
            for each in axes:
                each.axis("off")
        for axes, title in zip(grid[0], ("image", "truth", "prediction"), strict=True):
            axes.set_title(f"{title} ({part})")
        draw.write(folder, "examples", drawn, {"classes": self.classes, "shown": len(self.examples)})
