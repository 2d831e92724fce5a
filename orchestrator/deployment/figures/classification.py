"""Classes: confusion matrix, precision and recall of each, calibration, precision-recall and ROC curves. Counted by torchmetrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassPrecisionRecallCurve, MulticlassROC

from models.family import Batch, Family, Outputs
from orchestrator.deployment.figures import draw

THRESHOLDS = 200  # of the curves: counted in bins, so that memory doesn't grow with the rows
BINS = 15
MOST_CURVES = 10  # classes with a curve: the most frequent ones
MOST_CELLS = 60  # classes of a confusion matrix that is drawn; larger ones are written as numbers only


class Classification:
    """Counts of predictions against labels."""

    def __init__(self, family: Family) -> None:
        self.family, self.classes = family, list(family.schema.classes)
        count = len(self.classes)
        self.confusion = MulticlassConfusionMatrix(num_classes=count)
        self.curves = [kind(num_classes=count, thresholds=THRESHOLDS) for kind in (MulticlassPrecisionRecallCurve, MulticlassROC)]
        self.curves_of = count <= 1000  # beyond, the bins of all classes would take too much memory
        self.bins = torch.zeros(3, BINS, dtype=torch.float64)  # rows, their confidence, those that are right

    def add(self, outputs: Outputs, batch: Batch) -> None:
        answers = self.family.decode(outputs, batch)
        label = batch[self.family.schema.target.name].cpu()
        self.confusion.update(answers["prediction"].cpu(), label)
        if "probabilities" in answers:  # a family of one's own may give none
            self._weigh(answers["probabilities"].float().cpu(), label)

    def _weigh(self, probabilities: Tensor, label: Tensor) -> None:
        if self.curves_of:
            for curve in self.curves:
                curve.update(probabilities, label)
        best = probabilities.max(1)
        place = (best.values * BINS).long().clamp_max(BINS - 1)
        for row, weights in enumerate((torch.ones(len(label)), best.values, best.indices == label)):
            self.bins[row] += torch.bincount(place, weights.double(), BINS)

    def write(self, folder: Path, scores: dict[str, float], part: str) -> None:
        counts = self.confusion.compute()
        self._confusion(folder, counts, part)
        _per_class(folder, counts, self.classes)
        if not self.bins[0].sum():
            return
        self._calibration(folder, part)
        if self.curves_of:
            for curve in self.curves:
                self._curve(folder, curve, counts.sum(1), part)

    def _confusion(self, folder: Path, counts: Tensor, part: str) -> None:
        drawn = None
        if len(self.classes) <= MOST_CELLS:
            drawn = draw.figure(*[max(4.5, 0.35 * len(self.classes) + 2)] * 2)
            axes = drawn.add_subplot()
            shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
            axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
            ticks = range(len(self.classes))
            names = draw.shortened(self.classes)
            axes.set(xticks=ticks, yticks=ticks, xlabel="predicted", ylabel="true", title=f"Confusion matrix ({part})")
            axes.set_xticklabels(names, rotation=90 if len(names) > 8 else 0)
            axes.set_yticklabels(names)
            for row in ticks if len(self.classes) <= 20 else ():
                for column in ticks:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", color=colour, fontsize=8)
        draw.write(
            folder, "confusion_matrix", drawn, {"classes": self.classes, "counts": counts.tolist(), "rows": "true, columns: predicted"}
        )

    def _calibration(self, folder: Path, part: str) -> None:
        """Reliability and the expected calibration error (https://arxiv.org/abs/1706.04599), by bins of the top probability."""
        rows, confidence, right = self.bins
        seen = rows > 0
        accuracy, mean = right[seen] / rows[seen], confidence[seen] / rows[seen]
        error = float(((accuracy - mean).abs() * rows[seen]).sum() / rows.sum())
        drawn = draw.figure(4.5, 4.5)
        axes = drawn.add_subplot()
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
        axes.plot(mean.numpy(), accuracy.numpy(), linewidth=0.8)
        size = 20 + 180 * rows[seen] / rows.max()  # a bin of few rows says little
        axes.scatter(mean.numpy(), accuracy.numpy(), s=size.numpy(), label=f"this model: error {error:.3f}; larger: more rows")
        axes.set(xlabel="probability given", ylabel="share that is right", title=f"Calibration ({part})", xlim=(0, 1), ylim=(0, 1))
        axes.legend()
        numbers = {
            "expected_calibration_error": error,
            "probability": mean.tolist(),
            "right": accuracy.tolist(),
            "rows": rows[seen].tolist(),
        }
        draw.write(folder, "calibration", drawn, numbers)

    def _curve(self, folder: Path, curve: Any, support: Tensor, part: str) -> None:
        roc = type(curve).__name__ == "MulticlassROC"
        xs, ys, _ = curve.compute()  # ROC: false and true positive rate; else precision and recall
        if not roc:
            xs, ys = ys, xs
        drawn = draw.figure()
        axes, numbers = drawn.add_subplot(), {}
        chosen = support.argsort(descending=True)[: MOST_CURVES if len(self.classes) > 2 else 2].tolist()
        for place in sorted(chosen):
            x, y = (values[place][ys[place].isfinite()] for values in (xs, ys))  # the precision of no prediction is no number
            area = float(torch.trapezoid(y, x).abs())
            axes.plot(x.numpy(), y.numpy(), label=f"{draw.shortened([self.classes[place]])[0]} ({area:.3f})")
            numbers[self.classes[place]] = {"area": area, "x": x.tolist(), "y": y.tolist()}
        title, x_name, y_name = ("ROC", "false positive rate", "true positive rate") if roc else ("Precision-recall", "recall", "precision")
        axes.set(xlabel=x_name, ylabel=y_name, title=f"{title} ({part}), a class each against the rest", xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(fontsize=8)
        name = "roc" if roc else "precision_recall"
        draw.write(folder, name, drawn, {"x": x_name, "y": y_name, "classes": numbers})


def _per_class(folder: Path, counts: Tensor, classes: list[str]) -> None:
    """Precision, recall and F1 of each class, and their means."""
    right, predicted, support = counts.diag().double(), counts.sum(0).double(), counts.sum(1).double()
    precision, recall = right / predicted.clamp_min(1), right / support.clamp_min(1)
    f1 = 2 * right / (predicted + support).clamp_min(1)
    table = {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
        for name, p, r, f, n in zip(classes, precision, recall, f1, support, strict=True)
    }
    macro = {"precision": float(precision.mean()), "recall": float(recall.mean()), "f1": float(f1.mean())}
    draw.write(folder, "per_class", None, {"classes": table, "macro": macro, "accuracy": float(right.sum() / support.sum())})
