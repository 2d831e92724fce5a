"""How fast the training loop is: ours against a good hand-written one, on one worker and on two with DDP.

The same network, rows, batch, precision, optimizer (Adam, fused) and threads. Ours is `orchestrator.training.loop.Training` itself, driven
by nobody, so that the loop and nothing else is measured; theirs is handwritten.py. With two workers both have the same DDP options (gloo,
gradient_as_bucket_view, static_graph, no broadcast of buffers), and each rank is a process with torchrun's environment variables.

Both contenders are alive at the same time, each in processes of its own, and take turns: an epoch of ours while theirs waits for its
standard input, then the other way round. Both epochs of a pair see the same machine, so the ratio of a pair is steadier than either
figure. Ours counts an epoch's training only, as its `samples_per_s` does; theirs is timed around its epoch. The median of all pairs'
ratios is printed, after the processes were started afresh `--repetitions` times. The first epoch of each process doesn't count.

    python benchmarks/loop.py [--quick] [--threads 1] [--repetitions 3] [--pairs 12] [--precision auto|fp32|bf16]
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import measure


@dataclass(frozen=True)
class Case:
    """What is trained: `side`: of the images; `options`: of our CNN family; `bar`: the least share of their samples/s."""

    title: str
    side: int
    rows: int
    batch: int
    options: dict[str, Any]
    workers: int
    bar: float
    mixed: bool = True  # whether bf16 may be chosen; small rows gain nothing from it


MNIST = {"channels": (32, 64, 64, 64), "kernels": (5, 3), "strides": (2,), "pool_after": (2, 4), "dropout": 0.1}
TINY = {"channels": (8,), "pool_after": (1,)}
CASES = {
    "mnist": Case("28x28, batch 128, one worker", 28, 6400, 128, MNIST, 1, 0.97),
    "tiny": Case("8x8, batch 32, one convolution, one worker", 8, 6400, 32, TINY, 1, 0.90, mixed=False),
    "ddp": Case("28x28, batch 128, two workers", 28, 6400, 128, MNIST, 2, 0.97),
}
Epoch = Callable[[], float]  # trains an epoch; samples/s


# contenders, each in a process of its own ---------------------------------------------------------------------------------------


def images(case: Case) -> tuple[Any, Any]:
    """([N, 1, side, side] uint8, [N] int64): what is in them changes no time."""
    import torch

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (case.rows, 1, case.side, case.side), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, 10, (case.rows,), generator=generator)


def ours(case: Case, precision: str, rank: int) -> Epoch:
    """Our loop, with 250 rows to validate on, which isn't counted."""
    import orchestrator  # noqa: F401  binds models and pipelines
    from models.cnn import CNN
    from orchestrator.training.loop import Settings, Training
    from orchestrator.training.optim import Adam
    from pipelines.batches import Batches, Held
    from pipelines.encode import Encoder
    from pipelines.encode.classes import ClassEncoder
    from pipelines.encode.images import ImageEncoder
    from pipelines.schema import Column, Schema

    image, label = Column("image", "image", (1, case.side, case.side), "uint8"), Column("label", "class", dtype="int64")
    schema = Schema((image,), label, tuple("0123456789"))
    encoder = Encoder(schema, {"image": ImageEncoder(image, (127.5,), (73.9,)), "label": ClassEncoder(label, schema.classes)})
    pixels, labels = images(case)
    columns = {"image": pixels.permute(0, 2, 3, 1).contiguous(), "label": labels}
    batches = Batches(Held(columns), case.batch, 0, rank, case.workers)
    validation = Held({name: values[:250] for name, values in columns.items()})
    settings = Settings(1_000_000, case.batch, 0, precision, rank=rank, world_size=case.workers)
    training = Training(CNN(CNN.Config(**case.options), schema), encoder, batches, validation, (Adam, Adam.Config()), settings)
    return lambda: training.run_epoch()["samples_per_s"]


def theirs(case: Case, precision: str, rank: int) -> Epoch:
    """The hand-written loop."""
    import handwritten

    net: Any = handwritten.mnist_network() if case.side == 28 else handwritten.tiny_network()
    if case.workers > 1:
        net = handwritten.distributed(net)
    rows = handwritten.rows_of(*images(case))
    optimizer = handwritten.optimizer_of(net, {"optimizer.name": "adam", "optimizer.lr": 1e-3})
    loop = handwritten.Loop(net, optimizer, rows, case.batch, bf16=precision == "bf16", rank=rank, world_size=case.workers)

    def epoch() -> float:
        began = time.perf_counter()
        loop.epoch()
        return case.rows / (time.perf_counter() - began)

    return epoch


def contend(make: Callable[[Case, str, int], Epoch], case: Case, precision: str, threads: int) -> None:
    """An epoch for every line of standard input, its samples/s as a line of standard output; ends with its input."""
    import torch
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if case.workers > 1:
        dist.init_process_group("gloo")
    epoch = make(case, precision, rank)
    while True:
        go_on = [bool(sys.stdin.readline())] if rank == 0 else [False]
        if case.workers > 1:
            dist.broadcast_object_list(go_on, 0)
        if not go_on[0]:
            break
        samples_per_s = epoch()
        if rank == 0:
            print(samples_per_s, flush=True)
    if case.workers > 1:
        dist.destroy_process_group()


# measuring ----------------------------------------------------------------------------------------------------------------------


class Contender:
    """The processes of one side: an epoch when asked."""

    def __init__(self, side: str, case: str, precision: str, threads: int) -> None:
        command = [sys.executable, __file__, "--contender", side, "--case", case, "--precision", precision, "--threads", str(threads)]
        workers, port = CASES[case].workers, _free_port()
        shared = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads)}
        shared["PYTHONPATH"] = str(measure.ROOT)
        self.processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                text=True,
            )
            for rank in range(workers)
        ]

    def epoch(self) -> float:
        """Samples/s of one epoch."""
        process = self.processes[0]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise measure.ContenderFailed(f"{' '.join(map(str, process.args))} ended early; see above")  # type: ignore[arg-type]
        return float(line)

    def end(self) -> None:
        """Wait for every process to end."""
        assert self.processes[0].stdin is not None
        self.processes[0].stdin.close()
        for process in self.processes:
            process.wait(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Pair = tuple[float, float]  # samples/s of ours and of theirs


def pairs_of(case: str, precision: str, threads: int, pairs: int) -> list[Pair]:
    """Pairs of epochs in turn, from freshly started processes; every other pair begins with theirs."""
    sides = [Contender(side, case, precision, threads) for side in SIDES]
    try:
        for side in sides:
            side.epoch()
        found = []
        for pair in range(pairs):
            values = {place: sides[place].epoch() for place in ((0, 1) if pair % 2 == 0 else (1, 0))}
            found.append((values[0], values[1]))
        return found
    finally:
        for side in sides:
            side.end()


def report(case: Case, pairs: list[Pair], precision: str) -> measure.Row:
    """Medians of both, and the median of the pairs' ratios."""
    mine, other = (measure.median([pair[side] for pair in pairs]) for side in (0, 1))
    ratio = measure.median([a / b for a, b in pairs])
    what = f"{case.title}, {precision}, {case.batch / other * 1000:.2f} ms a step"
    return (what, f"{mine:,.0f}/s", f"{other:,.0f}/s", f"{ratio:.3f} x", f">= {case.bar:.2f}")


def fastest_precision() -> str:
    """bf16 where the processor multiplies it, as `precision: auto` chooses."""
    import orchestrator  # noqa: F401  binds cluster
    from cluster.resources import this_machine

    return "bf16" if this_machine().bf16 else "fp32"


SIDES: dict[str, Callable[[Case, str, int], Epoch]] = {"ours": ours, "theirs": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="few pairs, once: does it run at all?")
    parser.add_argument("--repetitions", type=int, help="fresh processes, so many times (default 3; --quick: 1)")
    parser.add_argument("--pairs", type=int, help="of epochs a repetition (default 12; --quick: 4)")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads of each process with one worker; with two it is always 1")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--case", choices=sorted(CASES), help="one of them")
    parser.add_argument("--contender", choices=sorted(SIDES), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contender:
        contend(SIDES[asked.contender], CASES[asked.case], asked.precision, asked.threads)
        return
    repetitions, pairs = asked.repetitions or (1 if asked.quick else 3), asked.pairs or (4 if asked.quick else 12)
    fastest = fastest_precision() if asked.precision == "auto" else asked.precision
    rows = []
    for name, case in CASES.items():
        if asked.case in (None, name):
            precision, threads = fastest if case.mixed else "fp32", asked.threads if case.workers == 1 else 1
            found = [pair for _ in range(repetitions) for pair in pairs_of(name, precision, threads, pairs)]
            rows.append(report(case, found, precision))
    measure.heading(f"samples/s, {repetitions} x {pairs} pairs of epochs in turn, {asked.threads} threads")
    measure.table(rows)


if __name__ == "__main__":
    main()
