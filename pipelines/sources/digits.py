"""1,797 real handwritten digits, 8x8, grey values 0 to 16, carried by scikit-learn: works with no file and no network."""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..raw import Raw, image_column
from ..schema import Column


@dataclass(frozen=True)
class Config:
    """No options."""

    def files(self) -> list[tuple[str, Path]]:
        """scikit-learn's own file: found without importing scikit-learn."""
        spec = importlib.util.find_spec("sklearn")
        assert spec is not None
        assert spec.origin is not None
        return [("digits.csv.gz", Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz")]


def load(config: Config) -> Raw:
    """https://archive.ics.uci.edu/dataset/80 (the test part, as scikit-learn ships it)."""
    [(_, path)] = config.files()
    with gzip.open(path, "rt") as opened:  # as sklearn.datasets.load_digits does, without the second that importing it takes
        rows = np.loadtxt(opened, delimiter=",")
    pixels, labels = np.ascontiguousarray(rows[:, :-1].astype(np.uint8)), rows[:, -1].astype(np.int64)
    table = pa.table({"image": image_column(pixels), "label": pa.array(labels, pa.int64())})
    return Raw(table, (Column("image", "image", (1, 8, 8), "uint8"),), Column("label", "class", dtype="int64"))
