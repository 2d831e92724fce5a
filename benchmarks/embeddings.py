"""What a step costs against the size of the embedding tables: updates by row, and the dense fused optimizer beside.

Matrix factorisation with two tables of so many rows and 32 columns each, batch 2,048, ids drawn evenly, Adam, float32: the training loop
itself (`orchestrator.training.loop.Training`), driven by nobody, once with `sparse=True` tables and once without. A figure is the median
over repetitions of a fresh process's median epoch (100 steps; dense fewer where one takes long); the first epoch, in which the moments are
made, doesn't count. The rows at the end compare the largest table with the smallest. By row a step reads and writes as many rows of either,
but those of the large one lie outside the processor's caches; "the same rows, untrained" shows how much of the growth is that: it gathers
the rows of tables, moments and counts, and writes them back, nothing else.

Memory: two tables of 10^7 rows take 7.8 GB by row, 10.3 GB dense. Dense is left out above `--dense` rows, and a size that the free memory
doesn't hold is left out and said.

    python benchmarks/embeddings.py [--quick] [--cpu] [--threads 1] [--repetitions 3] [--sizes 10000 100000 1000000 10000000]
                                    [--dense 1000000]

`--cpu` prints the processor's time instead of the clock's: with one thread they are the same on a quiet machine, and on a busy one only
the former means anything.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
WIDTH, BATCH, STEPS, EPOCHS = 32, 2048, 100, 5
ROW_BYTES = {"row": 2 * (12 * WIDTH + 4), "dense": 2 * 16 * WIDTH, "walk": 2 * (12 * WIDTH + 4)}  # weights, moments, counts, gradient
BAR = 2.0  # times the smallest table's step: what a thousandfold table may cost


# contenders, each in a process of its own ---------------------------------------------------------------------------------------


def training(rows: int, sparse: bool, steps: int) -> Any:
    """Our loop over a matrix factorisation of two tables, with 250 rows to validate on."""
    import torch
    from torch import nn

    import orchestrator  # noqa: F401  binds models and pipelines
    from models.family import Family, FamilyConfig
    from orchestrator.training.loop import Settings, Training
    from orchestrator.training.optim import Adam
    from pipelines.batches import Batches, Held
    from pipelines.encode import Encoder
    from pipelines.schema import Column, Schema

    class Factors(Family):
        Config, task, metrics = FamilyConfig, "regression", ()

        def __init__(self, config: Any, schema: Any) -> None:
            super().__init__(config, schema)
            self.tables = nn.ModuleDict({name: _table(rows, sparse) for name in ("user", "item")})

        @classmethod
        def misfit(cls, schema: Any) -> None:
            return None

        def forward(self, batch: Any) -> Any:
            return (self.tables["user"](batch["user"]) * self.tables["item"](batch["item"])).sum(1)

        def loss(self, outputs: Any, batch: Any) -> Any:
            return (outputs - batch["rating"]).square()

        def decode(self, outputs: Any, batch: Any) -> Any:
            return {"prediction": outputs}

    generator = torch.Generator().manual_seed(0)
    columns = {name: torch.randint(0, rows, (steps * BATCH,), generator=generator) for name in ("user", "item")}
    columns["rating"] = torch.randn(steps * BATCH, generator=generator)
    schema = Schema((Column("user", "id"), Column("item", "id")), Column("rating", "number"))
    validation = Held({name: values[:250] for name, values in columns.items()})
    batches, settings = Batches(Held(columns), BATCH, 0), Settings(1_000_000, BATCH, 0)
    family = Factors(FamilyConfig(), schema)
    return Training(family, Encoder(schema, {}), batches, validation, (Adam, Adam.Config()), settings)


def _table(rows: int, sparse: bool) -> Any:
    """Small numbers that no generator had to draw one by one: drawing 3.2e8 of them takes longer than the training."""
    import torch
    from torch import nn

    weight = torch.rand(4096, WIDTH).sub_(0.5).mul_(0.1).repeat(-(-rows // 4096), 1)[:rows].clone()
    return nn.Embedding(rows, WIDTH, sparse=sparse, _weight=weight)


def walk(rows: int) -> Callable[[], None]:
    """An epoch that gathers and writes back the rows that a step reads and writes."""
    import torch

    tables = [torch.zeros(rows, width).add_(1) for _ in range(2) for width in (WIDTH, WIDTH, WIDTH, 1)]

    def epoch() -> None:
        for _ in range(STEPS):
            for first in (0, 4):
                named = torch.randint(0, rows, (BATCH,)).unique()
                for table in tables[first : first + 4]:
                    table.index_copy_(0, named, table.index_select(0, named))

    return epoch


def contend(way: str, rows: int, threads: int) -> None:
    """Print the median ms a step, by the clock and by the processor's time; evaluating 250 rows is in it."""
    import torch

    torch.set_num_threads(threads)
    steps = STEPS if way != "dense" else max(2, min(STEPS, 20_000_000 // rows))
    epoch = walk(rows) if way == "walk" else training(rows, way == "row", steps).run_epoch
    epoch()
    times = []
    for _ in range(EPOCHS):
        began, cpu = time.perf_counter(), time.process_time()
        epoch()
        times.append((time.perf_counter() - began, time.process_time() - cpu))
    print(*(1000 * measure.median([pair[clock] for pair in times]) / steps for clock in (0, 1)))


# measuring ----------------------------------------------------------------------------------------------------------------------


def ms_a_step(way: str, rows: int, threads: int, cpu: bool) -> float:
    """Of a fresh process."""
    command = [sys.executable, __file__, "--contender", way, "--rows", str(rows), "--threads", str(threads)]
    with tempfile.TemporaryDirectory() as folder:
        _, printed = measure.run(command, Path(folder), threads)
    return float(printed.split()[-1 if cpu else -2])


def fits(way: str, rows: int) -> bool:
    """Whether a quarter of the free memory stays free (Linux; elsewhere it is taken to fit)."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return True
    return found is None or rows * ROW_BYTES[way] < 0.75 * 1024 * int(found[1])


def report(found: dict[tuple[str, int], float], sizes: list[int]) -> list[measure.Row]:
    """By row against dense at each size, then the largest size against the smallest."""
    rows: list[measure.Row] = []
    for size in sizes:
        ours, theirs = found["row", size], found.get(("dense", size))
        what = f"two tables of {size:,} rows: by row, dense"
        rows.append(measure.compare(what, ours, theirs, "", "ms") if theirs else (what, f"{ours:.3g} ms", "not run", "", ""))
    for way, what, bar in (("row", "a step by row", f"<= {BAR:.0f}"), ("walk", "... the same rows, untrained", "")):
        rows.append(measure.compare(f"{what}: {sizes[-1]:,}, {sizes[0]:,} rows", found[way, sizes[-1]], found[way, sizes[0]], bar, "ms"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="10^4 and 10^5 rows, once: does it run at all?")
    parser.add_argument("--repetitions", type=int, help="fresh processes, so many times (default 3; --quick: 1)")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads of each process")
    parser.add_argument("--cpu", action="store_true", help="the processor's time, not the clock's")
    parser.add_argument("--sizes", type=int, nargs="+", help="rows of each table")
    parser.add_argument("--dense", type=int, default=1_000_000, help="the most rows that are tried dense")
    parser.add_argument("--contender", choices=sorted(ROW_BYTES), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contender:
        sys.path.insert(0, str(measure.ROOT))
        contend(asked.contender, asked.rows, asked.threads)
        return
    repetitions = asked.repetitions or (1 if asked.quick else 3)
    wanted = sorted(asked.sizes or (SIZES[:2] if asked.quick else SIZES))
    sizes = [size for size in wanted if fits("row", size)]
    for size in wanted[len(sizes) :]:
        print(f"two tables of {size:,} rows are left out: there is not memory enough for them", file=sys.stderr)
    measure.adopt_orphans()
    ways = {size: ("row", "dense", "walk") if size <= asked.dense and fits("dense", size) else ("row", "walk") for size in sizes}
    cases = [(way, size) for size in sizes for way in ways[size]]
    contenders = {f"{way} {size:,}": lambda way=way, size=size: ms_a_step(way, size, asked.threads, asked.cpu) for way, size in cases}
    results = measure.interleave(contenders, repetitions)
    found = {case: measure.median(values) for case, values in zip(cases, results.values(), strict=True)}
    measure.heading(
        f"ms {'of CPU ' if asked.cpu else ''}a step, batch {BATCH:,}, {WIDTH} columns, {repetitions} repetitions, {asked.threads} threads"
    )
    measure.table(report(found, sizes))


if __name__ == "__main__":
    main()
