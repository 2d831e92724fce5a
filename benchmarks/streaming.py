"""Data bigger than memory: what preparing and training on them hold, and what reading them costs.

1. Memory. A fresh process prepares a generated Parquet table (pictures of 32x32 in three colours, and their class); another one trains a
   small CNN on it for an epoch, streaming. Each may hold a quarter of the table's size beyond what it holds once torch is imported.
   That is its anonymous memory (RssAnon + RssShmem in /proc/self/status, every 2 ms): what the system keeps of files isn't counted, since
   it is given back whenever memory is short. If a process holds more, the script ends with 1.
2. Shuffled against unshuffled reading, in one process, in turn: the same file (256 MB of pictures, or 64 MB of numbers), buffers, batches.
3. Streamed against in memory: samples/s of training epochs of one network, in turn, and of reading alone; what a streamed epoch holds.

    python benchmarks/streaming.py [--quick] [--table-mb 1024] [--repetitions 7]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measure

SIDE, CLASSES = 32, 10
PIXELS = SIDE * SIDE * 3
MB = 1 << 20
SHARE = 4  # the table is so many times what may be held
NETWORK = {"channels": (16,), "kernels": (3,), "strides": (2,), "pool_after": (1,)}


# memory -----------------------------------------------------------------------------------------------------------------------------


def held_bytes() -> int:
    """Memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


@contextmanager
def peak() -> Iterator[Callable[[], int]]:
    """The most that this process holds meanwhile, in bytes beyond what it holds now."""
    before, most, ended = held_bytes(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            most[0] = max(most[0], held_bytes() - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: most[0]
    finally:
        ended.set()
        thread.join()


# data -------------------------------------------------------------------------------------------------------------------------------


def write_pictures(path: Path, size_bytes: int) -> None:
    """A table of raw pictures whose brightness tells their class, a few thousand rows at a time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, rows = np.random.default_rng(0), size_bytes // PIXELS
    schema = pa.schema({"image": pa.binary(PIXELS), "label": pa.string()})
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, rows, 4096):
            count = min(4096, rows - start)
            labels = rng.integers(0, CLASSES, count)
            pixels = rng.integers(0, 128, (count, PIXELS), dtype=np.uint8) + (labels * 12)[:, None].astype(np.uint8)
            images = pa.FixedSizeBinaryArray.from_buffers(pa.binary(PIXELS), count, [None, pa.py_buffer(pixels)])
            writer.write_table(pa.table([images, pa.array([f"class {label}" for label in labels])], schema=schema))


def write_numbers(path: Path, size_bytes: int) -> None:
    """A table of two numbers and a third to predict: rows so small that reading them is all bookkeeping."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, rows = np.random.default_rng(0), size_bytes // 24
    a, b = rng.normal(size=(2, rows))
    pq.write_table(pa.table({"a": a, "b": b, "target": a * b}), path, row_group_size=1 << 16)


def prepared_from(path: Path, cache: Path, **options: Any) -> Any:
    """The table, prepared by the toolkit."""
    import orchestrator  # noqa: F401  binds pipelines
    from pipelines.prepare import prepare
    from pipelines.sources.table import Config, load
    from pipelines.splits import SplitConfig

    return prepare("table", load, Config(path=str(path), **options), SplitConfig(), cache)


# a process that may not hold much ---------------------------------------------------------------------------------------------------


def contend(folder: Path, what: str) -> None:
    """Prepare, or train on what is prepared, in this process; prints what it held at most, and its seconds, as JSON."""
    import torch

    torch.set_num_threads(1)
    import orchestrator  # noqa: F401
    from orchestrator.training import trial  # noqa: F401  what is imported is no data
    from pipelines.prepare import Prepared

    began = time.perf_counter()
    with peak() as held:
        if what == "prepare":
            prepared_from(folder / "pictures.parquet", folder / "data", size=(SIDE, SIDE))
        else:
            train(Prepared.open(next((folder / "data").iterdir())), True).run_epoch()
        print(json.dumps({"held": held(), "seconds": time.perf_counter() - began}))


def train(prepared: Any, streamed: bool) -> Any:
    """Our loop over the prepared table, streamed or in memory."""
    from models.cnn import CNN
    from orchestrator.training.loop import Settings, Training
    from orchestrator.training.memory import keep_freed_memory
    from orchestrator.training.optim import Adam
    from pipelines import batches, stream

    keep_freed_memory()  # as every trial does
    if streamed:
        shuffled: Any = stream.StreamedBatches(stream.Streamed.of(prepared, "train"), 128, 0)
        validation: Any = stream.Streamed.of(prepared, "validation")
    else:
        shuffled = batches.Batches(batches.load(prepared, "train"), 128, 0)
        validation = batches.load(prepared, "validation")
    family = CNN(CNN.Config(**NETWORK), prepared.schema)
    return Training(family, prepared.encoder, shuffled, validation, (Adam, Adam.Config()), Settings(1000, 128, 0))


def memory(folder: Path, table_bytes: int) -> tuple[list[measure.Row], bool]:
    """Rows of what preparing and training held against the quarter of the table; whether both kept to it."""
    rows, allowed, kept = list[measure.Row](), table_bytes / SHARE, True
    for what in ("prepare", "train"):
        _, printed = measure.run([sys.executable, __file__, "--contender", str(folder), "--part", what], folder)
        found = json.loads(printed.splitlines()[-1])
        kept &= found["held"] <= allowed
        told = f"{what}: held at most ({found['seconds']:.0f} s) : a quarter of the table"
        rows.append((told, f"{found['held'] / MB:,.0f} MB", f"{allowed / MB:,.0f} MB", f"{found['held'] / allowed:.2f} x", "<= 1"))
    return rows, kept


# reading ----------------------------------------------------------------------------------------------------------------------------


def rate(batches: Iterable[Any], rows: int) -> float:
    """Rows/s of going through them."""
    began = time.perf_counter()
    for _ in batches:
        pass
    return rows / (time.perf_counter() - began)


def shuffling(name: str, prepared: Any, batch: int, repetitions: int) -> measure.Row:
    from pipelines.stream import Streamed, StreamedBatches

    part = Streamed.of(prepared, "train")
    contenders = {
        "shuffled": lambda: rate(StreamedBatches(part, batch, 0).epoch(1), len(part)),
        "unshuffled": lambda: rate(part.in_order(batch), len(part)),
    }
    return _row(f"reading, shuffled : unshuffled, rows of {name}, batches of {batch}", contenders, repetitions, ">= 0.9", "rows/s")


def streaming(prepared: Any, repetitions: int) -> list[measure.Row]:
    from pipelines.batches import Batches, load
    from pipelines.stream import BUFFER_BYTES, Streamed, StreamedBatches

    part = Streamed.of(prepared, "train")
    rate(StreamedBatches(part, 128, 0).epoch(1), 1)  # what a first time costs
    with peak() as held:
        rate(StreamedBatches(part, 128, 0).epoch(2), 1)
    buffers = (f"a streamed epoch held, in buffers of {BUFFER_BYTES / MB:.0f} MB", f"{held() / MB:.0f} MB", f"{BUFFER_BYTES / MB:.0f} MB")
    streamed, in_memory = train(prepared, True), train(prepared, False)
    contenders = {"streamed": lambda: streamed.run_epoch()["samples_per_s"], "in memory": lambda: in_memory.run_epoch()["samples_per_s"]}
    rows = [_row("training, streamed : in memory, a CNN of one convolution", contenders, repetitions, ">= 0.5", "samples/s")]
    whole = load(prepared, "train")
    reading = {
        "streamed": lambda: rate(StreamedBatches(part, 128, 0).epoch(1), len(part)),
        "in memory": lambda: rate(Batches(whole, 128, 0).epoch(1), len(part)),
    }
    rows.append(_row("reading alone, streamed : in memory", reading, repetitions, "none", "rows/s"))
    return [*rows, (*buffers, f"{held() / BUFFER_BYTES:.2f} x", "<= 3")]


def _row(what: str, contenders: dict[str, Callable[[], float]], repetitions: int, bar: str, unit: str) -> measure.Row:
    """Medians of both, and the median of the pairs' ratios; the first of each doesn't count."""
    (_, first), (_, second) = ((name, values[1:]) for name, values in measure.interleave(contenders, repetitions + 1).items())
    ratio = measure.median([a / b for a, b in zip(first, second, strict=True)])
    return what, f"{measure.median(first):,.0f} {unit}", f"{measure.median(second):,.0f} {unit}", f"{ratio:.2f} x", bar


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions: does it run at all?")
    parser.add_argument("--table-mb", type=int, default=1024, help="size of the table of pictures")
    parser.add_argument("--repetitions", type=int, help="of each pair (default 7; --quick: 2)")
    parser.add_argument("--contender", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=["prepare", "train"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contender:
        contend(asked.contender, asked.part)
        return 0
    import torch

    torch.set_num_threads(1)
    repetitions = asked.repetitions or (2 if asked.quick else 7)
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".streaming-") as made:  # not in /tmp, which may be memory itself
        folder = Path(made)
        write_pictures(folder / "pictures.parquet", asked.table_mb * MB)
        rows, kept = memory(folder, asked.table_mb * MB)
        write_pictures(folder / "pictures.parquet", min(asked.table_mb, 256) * MB)
        write_numbers(folder / "numbers.parquet", min(asked.table_mb, 64) * MB)
        pictures = prepared_from(folder / "pictures.parquet", folder / "others", size=(SIDE, SIDE))
        numbers = prepared_from(folder / "numbers.parquet", folder / "others")
        rows += [shuffling("pictures", pictures, 128, repetitions), shuffling("three numbers", numbers, 1024, repetitions)]
        rows += streaming(pictures, repetitions)
    measure.heading(f"a table of {asked.table_mb} MB, {repetitions} pairs in turn, one thread")
    measure.table(rows)
    if not kept:
        print(f"failed: it held more than a {SHARE}th of the table", file=sys.stderr)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
