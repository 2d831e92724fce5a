"""What a bundle is worth on a part of the data, beside what its baseline is worth, and whether the difference is more than noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.family import Batch, Family, Outputs
from models.metrics import Metric
from orchestrator.deployment.bundle import Bundle
from orchestrator.deployment.figures import Figures, kind_of
from orchestrator.training.evaluation import Evaluation, Totals
from pipelines.batches import Part
from pipelines.encode import Encoder
from pipelines.prepare import Prepared
from pipelines.stream import Streamed

SAMPLES = 1000  # of the bootstrap
CHUNK = 2048  # rows at a time, so that its memory is bounded
POISSON = np.repeat(  # drawn from by place: several times as fast as torch.poisson
    np.arange(9, dtype=np.uint8),
    [24109, 24109, 12055, 4018, 1005, 201, 33, 5, 1],  # of 2**16: 1 / (e k!)
)


@dataclass(frozen=True)
class Scored:
    """`scores`: `{part}_loss` and the metrics; `baseline`: the same of the family's baseline, empty if it has none.

    `margin`: by how much the network is better than its baseline in one metric: the 95 % interval of a paired bootstrap over the rows.
    """

    scores: dict[str, float]
    baseline: dict[str, float] = field(default_factory=dict)
    margin: tuple[float, float] | None = None


def score(bundle: Bundle, prepared: Prepared, metric: str, part: str = "test", figures: Path | None = None) -> Scored:
    """The scores on a part of prepared data, encoded by the bundle's own encoder; pictures of them, if a folder is given.

    `metric`: the one that the margin is of (val_accuracy ...). On data that the bundle is not from, these say what users have seen. Raises
    ValueError if the data don't fit the bundle.
    """
    rows = Streamed.of(prepared, part, bundle.encoder)
    if bundle.about.get("fingerprint") != prepared.fingerprint:
        bundle.family.bind(prepared.seen_by(bundle.encoder))
    kind = kind_of(bundle.family.task) if figures is not None else None
    drawn = kind(bundle.family) if kind is not None else None
    scored = _score(bundle.family, bundle.encoder, rows, metric.removeprefix("val_"), part, drawn)
    if drawn is not None and figures is not None:
        drawn.write(figures, scored.scores, part)
    return scored


def baseline(family: Family, encoder: Encoder, part: Part, prefix: str) -> dict[str, float]:
    """`{prefix}_loss` and the metrics of a family's baseline; empty if it has none."""
    evaluation = Evaluation(family, encoder)
    return evaluation(part, prefix, forward=family.baseline) if _has_baseline(family, evaluation, part) else {}


def _has_baseline(family: Family, evaluation: Evaluation, part: Part) -> bool:
    with torch.inference_mode():
        first = next(iter(evaluation.batches(part)), None)
        return first is not None and family.baseline(first) is not None


@torch.inference_mode()
def _score(family: Family, encoder: Encoder, part: Part, metric: str, prefix: str, figures: Figures | None) -> Scored:
    """One pass over the rows for all of it."""
    evaluation = Evaluation(family, encoder)
    own, base = Totals(family), Totals(family)
    judged = own.metrics.get(metric)
    paired = _Paired(judged, family) if judged is not None and judged.row_wise else None
    compared = _has_baseline(family, evaluation, part)
    for batch in evaluation.batches(part):
        outputs = evaluation.outputs(batch)
        own.add(outputs, batch)
        if figures is not None:
            figures.add(outputs, batch)
        if compared:
            guessed = evaluation.outputs(batch, family.baseline)
            base.add(guessed, batch)
            if paired is not None:
                paired.add(outputs, guessed, batch)
    if not compared:
        return Scored(own.values(prefix))
    return Scored(own.values(prefix), base.values(prefix), paired.interval() if paired is not None else None)


class _Paired:
    """A paired bootstrap over rows: each resample weighs network and baseline by the same Poisson(1) counts.

    Poisson weights need no second look at a row: https://doi.org/10.1145/2339530.2339541 (Chamandy et al., 2012).
    """

    def __init__(self, metric: Metric, family: Family) -> None:
        self.metric, self.schema = metric, family.schema
        self.rng = np.random.default_rng(0)
        self.totals: list[Tensor] = []  # [SAMPLES, K] of the network, and of the baseline

    def add(self, outputs: Outputs, guessed: Outputs, batch: Batch) -> None:
        both = [self.metric.rows(each, batch, self.schema).cpu() for each in (outputs, guessed)]
        for start in range(0, len(both[0]), CHUNK):
            rows = [each[start : start + CHUNK] for each in both]
            weights = torch.from_numpy(POISSON[self.rng.integers(0, len(POISSON), (SAMPLES, len(rows[0])), np.uint16)]).double()
            sums = [weights @ each for each in rows]
            self.totals = [a + b for a, b in zip(self.totals, sums, strict=True)] if self.totals else sums

    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the difference, positive where the network is better; None without rows."""
        if not self.totals:
            return None
        own, base = (torch.tensor([self.metric.value(row) for row in totals]) for totals in self.totals)
        better = own - base if self.metric.mode == "max" else base - own
        low, high = better.double().nan_to_num().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return low, high
