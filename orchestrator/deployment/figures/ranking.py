"""Rankings: each metric against k, beside 99 sampled negatives and over all items."""

from __future__ import annotations

import re
from pathlib import Path

from models.family import Batch, Family, Outputs
from orchestrator.deployment.figures import draw

AT = re.compile(r"(full_)?(\w+)_at_(\d+)$")


class Ranking:
    """Draws the scores themselves: they are counted over all users already."""

    def __init__(self, family: Family) -> None:
        self.family = family

    def add(self, outputs: Outputs, batch: Batch) -> None:
        pass

    def write(self, folder: Path, scores: dict[str, float], part: str) -> None:
        lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for name, value in scores.items():
            if found := AT.match(name.removeprefix(f"{part}_")):
                protocol = "all items" if found[1] or found[2] == "coverage" else "99 sampled negatives"
                lines.setdefault((found[2], protocol), []).append((int(found[3]), value))
        drawn = draw.figure()
        axes = drawn.add_subplot()
        for (metric, protocol), points in lines.items():
            points.sort()
            axes.plot(
                *zip(*points, strict=True), marker="o", linestyle="-" if protocol == "all items" else "--", label=f"{metric}, {protocol}"
            )
        axes.set(xlabel="k", ylabel="value", title=f"Ranking metrics at k ({part})", ylim=(0, 1))
        axes.legend(fontsize=8)
        draw.write(folder, "ranking", drawn, scores)
