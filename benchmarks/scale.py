"""Long sweeps: does a trial cost the same, the 16th and the 256th, and how near to the ideal do one-second trials come?

Two trials at a time, everything recorded; whole and marginal are as runs.py says. The bar of the one-second trials is that of Ray's own
release test, which has an ideal time of 625 s (10,000 trials on 16 cores): so has this one, with 1,250.

    python benchmarks/scale.py [--quick] [--repetitions 1] [--only flat|one-second] [--trials 1250]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import measure
from runs import SEED, SLOTS, Run, marginal, ours, peak_mb, whole


def flat(repetitions: int, few: int, many: int) -> None:
    """Whether a trial costs the same in a long sweep: TPE, no scheduler, one epoch, so that what isn't training weighs most."""
    overrides = ["training.epochs=1", "training.precision=fp32", "sweep.scheduler=none", "sweep.search=tpe", f"sweep.seed={SEED}"]
    runs = measure.interleave({"few": lambda: ours(few, *overrides), "many": lambda: ours(many, *overrides)}, repetitions)
    last = measure.median([Run(0, sorted(run.spans, key=lambda span: span[1])[-many // 4 :]).marginal_s(SLOTS) for run in runs["many"]])
    measure.heading(f"from {few} to {many} trials of one epoch, TPE, {repetitions} x in turn (ours: many, theirs: few)")
    measure.table(
        [
            measure.compare(f"marginal of {many} against {few}", marginal(runs, "many"), marginal(runs, "few"), "<= 1.10"),
            measure.compare("marginal of the last quarter against few", last, marginal(runs, "few"), "<= 1.10"),
            measure.compare("the driver's memory, at its most", peak_mb(runs, "many"), peak_mb(runs, "few"), "<= 1.10", "MB"),
        ]
    )


ONE_SECOND = {
    "one-second.yaml": """
name: one-second
data: {source: digits}
model: {family: "sleeper:Sleeper"}
training: {epochs: 1, max_steps: 1}
sweep: {scheduler: none, search: random, space: {model.dropout: {uniform: [0.0, 0.5]}}}
""",
    "sleeper.py": '''
"""A network whose one training step takes a second, and no core."""

import time

from models.cnn import CNN


class Sleeper(CNN):
    def forward(self, batch):
        if self.training:
            time.sleep(1.0)
        return super().forward(batch)
''',
}


def one_second(repetitions: int, trials: int) -> None:
    """N trials of one second each, two at a time, against N / 2 seconds; start-up and end included."""
    runs = measure.interleave({"ours": lambda: ours(trials, config=Path("one-second.yaml"), files=ONE_SECOND)}, repetitions)
    measure.heading(f"{trials} one-second trials, {repetitions} x")
    measure.table(
        [
            measure.compare("ideal: whole", whole(runs, "ours"), trials / SLOTS, "<= 1.28"),
            measure.compare("ideal: marginal", marginal(runs, "ours"), 1 / SLOTS, ""),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="few trials: does it run at all?")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--trials", type=int, help="of one second (default 1250; --quick: 8)")
    parser.add_argument("--only", choices=["flat", "one-second"], help="one part of it")
    asked = parser.parse_args()
    measure.adopt_orphans()
    if asked.only in (None, "flat"):
        flat(asked.repetitions, *((8, 24) if asked.quick else (16, 256)))
    if asked.only in (None, "one-second"):
        one_second(asked.repetitions, asked.trials or (8 if asked.quick else 1250))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main()
