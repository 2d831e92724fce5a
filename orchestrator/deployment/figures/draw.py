"""What every figure needs: an empty one, and a way to write it with its numbers beside. Matplotlib without its global state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def figure(width: float = 6.0, height: float = 4.5) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def write(folder: Path, name: str, drawn: Figure | None, numbers: Any) -> None:
    """NAME.png, if there is something drawn, and NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    if drawn is not None:
        drawn.savefig(folder / f"{name}.png", dpi=110)
    (folder / f"{name}.json").write_text(json.dumps(numbers, indent=1))


def shortened(names: Sequence[str], most: int = 18) -> list[str]:
    """Class names that fit on an axis."""
    return [name if len(name) <= most else f"{name[: most - 1]}…" for name in names]
