"""Some of the rows of a pass, each as likely as any other: batches of an evaluation come sorted by size, so the first ones are not."""

from __future__ import annotations

import numpy as np


class Sample:
    """Which rows to keep of a stream, at most `size` (algorithm R, https://doi.org/10.1145/3147.3165); the same ones each time."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self.rng = np.random.default_rng(0)

    def chosen(self, rows: int) -> dict[int, int]:
        """Of the next `rows`: place in the sample -> row, which takes the place of what was there."""
        number = np.arange(self.seen, self.seen + rows)
        drawn = self.rng.integers(0, number + 1)
        place = np.where(number < self.size, number, drawn)
        self.seen += rows
        kept = np.flatnonzero(place < self.size)
        return dict(zip(place[kept].tolist(), kept.tolist(), strict=True))
