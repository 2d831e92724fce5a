"""Numbers: predicted against true, and the residuals. R2 and errors are counted by torchmetrics."""

from __future__ import annotations

from pathlib import Path

import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score

from models.family import Batch, Family, Outputs
from orchestrator.deployment.figures import draw
from orchestrator.deployment.figures.sample import Sample

MOST_POINTS = 5000  # drawn, of all rows


class Regression:
    """Predictions beside their targets."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.totals = MetricCollection({"r2": R2Score(), "mse": MeanSquaredError(), "mae": MeanAbsoluteError()})
        self.sample = Sample(MOST_POINTS)
        self.points = torch.empty(MOST_POINTS, 2, dtype=torch.float64)  # predicted, true

    def add(self, outputs: Outputs, batch: Batch) -> None:
        predicted = self.family.decode(outputs, batch)["prediction"].double().cpu()
        true = batch[self.family.schema.target.name].double().cpu()
        self.totals.update(predicted, true)
        chosen = self.sample.chosen(len(true))
        self.points[list(chosen)] = torch.stack([predicted, true], 1)[list(chosen.values())]

    def write(self, folder: Path, scores: dict[str, float], part: str) -> None:
        rows = self.sample.seen
        points = self.points[:rows]
        predicted, true = points.T
        residual = predicted - true
        drawn = draw.figure(10, 4.5)
        left, right = drawn.subplots(1, 2)
        span = [float(points.min()), float(points.max())]
        left.scatter(true.numpy(), predicted.numpy(), s=8, alpha=0.4)
        left.plot(span, span, color="grey", linestyle=":")
        left.set(xlabel="true", ylabel="predicted", title=f"Predicted against true ({part})")
        right.hist(residual.numpy(), bins=50)
        right.axvline(0, color="grey", linestyle=":")
        right.set(xlabel="predicted - true", ylabel="rows", title="Residuals")
        at = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
        quantiles = dict(zip(("5 %", "25 %", "50 %", "75 %", "95 %"), residual.quantile(at).tolist(), strict=True))
        whole = {name: float(value) for name, value in self.totals.compute().items()} if rows > 1 else {}
        draw.write(folder, "residuals", drawn, {**whole, "rows": rows, "drawn": len(points), "residual_quantiles": quantiles})
