"""Seconds of training to 98.5 % and to 99.2 % of the official MNIST test set: ours against the loop of the tutorials.

Theirs is written as the tutorials have it: two convolutions of 3x3 (32, 64), pooling, dropout, a layer of 128, softmax, then a cross
entropy that takes the softmax for logits; Adam at 1e-3, batch 64, a DataLoader, and the test set after every epoch. It may go on for
`--epochs`; where it hasn't got there, its time is a lower bound and the ratio is marked `>`.

Ours is `orchestrator train`, once with the steps bounded (a smaller network, 125 steps), once with one whole epoch. Its validation rows
are taken from the training part, so it trains on 54,000 of the 60,000 rows, and the test set is looked at once, at the end.

A second counts when it trains or evaluates; loading the data and importing the libraries don't count, on either side. Ours adds up
`epoch_s`, which holds training and validation. Both run in processes of their own, in turn, with `--threads` intra-op threads each;
accuracies are those of each run, times are medians.

    python benchmarks/mnist.py [--quick] [--threads 2] [--epochs 5] [--repetitions 3]     (ORCHESTRATOR_TEST_DATA: the folder with mnist/)
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure


@dataclass(frozen=True)
class Recipe:
    """An experiment for a goal, and how many times sooner than the tutorial's loop it must be there."""

    goal: float
    model: str
    lr: float
    max_steps: int | None
    bar: str
    versus: float  # the accuracy to which the tutorial's loop is timed

    def text(self, data: Path) -> str:
        """The experiment file."""
        return f"""
name: mnist
data: {{source: idx, path: {data}}}
model: {{family: cnn, {self.model}, label_smoothing: 0.05}}
optimizer: {{name: adamw, lr: {self.lr}, betas: [0.9, 0.99], schedule: linear}}
training: {{epochs: 1, batch_size: 128, max_steps: {self.max_steps or "null"}}}
"""


SMALL = "channels: [32, 64, 64], kernels: [5, 3], strides: [2], pool_after: [2, 3]"
DEEP = "channels: [32, 64, 64, 64], kernels: [5, 3], strides: [2], pool_after: [2, 4], dropout: 0.1"
RECIPES = {
    "125 steps": Recipe(0.985, SMALL, 1e-2, 125, ">= 30", 0.985),
    "one epoch": Recipe(0.992, DEEP, 8e-3, None, ">= 12", 0.985),
}
QUICK_ROWS = 6400


def ours(recipe: Recipe, data: Path, seed: int, threads: int) -> tuple[float, float, float]:
    """(seconds of training, seconds of the whole command, test accuracy) of `orchestrator train` in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file = Path(folder, "mnist.yaml")
        file.write_text(recipe.text(data))
        overrides = [f"training.seed={seed}", f"scaling.cpus_per_worker={threads}", "--json"]
        whole_s, printed = measure.run([measure.ORCHESTRATOR, "train", str(file), *overrides], Path(folder), threads)
        database = sqlite3.connect(Path(folder, ".orchestrator", "ledger.sqlite"))
        epochs = [json.loads(row[0])["metrics"]["epoch_s"] for row in database.execute("select data from entries where kind = 'epoch'")]
        database.close()
    return sum(epochs), whole_s, json.loads(printed)["test"]["test_accuracy"]


# the tutorials' loop, in a process of its own -----------------------------------------------------------------------------------


def tutorial(data: Path, epochs: int, threads: int, rows: int | None) -> None:
    """Prints, after each epoch, the seconds so far and the test accuracy as one line of JSON."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    train, test = (_dataset(data, part, rows) for part in ("train", "t10k"))
    loader, test_loader = DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=1000)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(),
        nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10), nn.Softmax(1),
    )  # fmt: skip
    optimizer, criterion = torch.optim.Adam(net.parameters(), lr=1e-3), nn.CrossEntropyLoss()
    began = time.perf_counter()
    for _ in range(epochs):
        net.train()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
        accuracy = _accuracy(net, test_loader)
        print(json.dumps([time.perf_counter() - began, accuracy]), flush=True)


def _dataset(data: Path, part: str, rows: int | None) -> Any:
    import gzip

    import numpy as np
    import torch

    images, labels = (next(data.glob(f"{part}-{what}*")) for what in ("images", "labels"))
    pixels, classes = (
        np.frombuffer(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes(), np.uint8, offset=offset)
        for path, offset in ((images, 16), (labels, 8))
    )
    scaled = (torch.from_numpy(pixels.copy()).float().reshape(-1, 1, 28, 28) / 255 - 0.1307) / 0.3081
    return torch.utils.data.TensorDataset(scaled[:rows], torch.from_numpy(classes.copy()).long()[:rows])


def _accuracy(net: Any, loader: Any) -> float:
    import torch

    net.eval()
    with torch.no_grad():
        right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in loader)
    return float(right / len(loader.dataset))


Epochs = list[tuple[float, float]]  # seconds so far, test accuracy


def theirs(data: Path, epochs: int, threads: int, quick: bool) -> Epochs:
    """The tutorials' loop in a process of its own; says each epoch on stderr, as it takes minutes."""
    command = [sys.executable, __file__, "--tutorial", "--epochs", str(epochs), "--threads", str(threads), *(["--quick"] if quick else [])]
    found: Epochs = []
    with subprocess.Popen(command, env=measure.environment(threads), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found.append(tuple(json.loads(line)))
            print(f"tutorial: {found[-1][0]:.1f} s, test {found[-1][1]:.2%}", file=sys.stderr, flush=True)
    if process.returncode:
        raise measure.ContenderFailed(f"the tutorials' loop ended with {process.returncode}")
    return found


# measuring ----------------------------------------------------------------------------------------------------------------------


def reached(epochs: Epochs, goal: float) -> tuple[float, bool]:
    """The seconds after which an accuracy was reached, and whether it was: else all of the seconds."""
    return next(((seconds, True) for seconds, accuracy in epochs if accuracy >= goal), (epochs[-1][0], False))


def rows_of(runs: dict[str, list[Any]]) -> list[measure.Row]:
    """A row for each recipe, and what each of its runs reached."""
    rows = []
    for name, recipe in RECIPES.items():
        mine = measure.median([run[0] for run in runs[name]])
        ends = [reached(epochs, recipe.versus) for epochs in runs["tutorial"]]
        seconds, bound = measure.median([end[0] for end in ends]), "" if all(end[1] for end in ends) else "> "
        tests = ", ".join(f"{run[2]:.2%}" for run in runs[name])
        what = f"{name} to {recipe.goal:.1%} ({tests}) against the tutorial to {recipe.versus:.1%}"
        rows.append((what, f"{mine:.1f} s", f"{bound}{seconds:.0f} s", f"{bound}{seconds / mine:.1f} x", recipe.bar))
        whole = measure.median([run[1] for run in runs[name]])
        rows.append((f"{name}: the whole command", f"{whole:.1f} s", "", "", ""))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rows for theirs, once: does it run at all?")
    parser.add_argument("--threads", type=int, default=2, help="intra-op threads of each; 1 where anything else runs on the machine")
    parser.add_argument("--epochs", type=int, help="of the tutorials' loop, at most (default 5; --quick: 1)")
    parser.add_argument("--repetitions", type=int, help="of ours, with seeds from 0 (default 3; --quick: 1); the tutorials' loop runs once")
    parser.add_argument("--tutorial", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    data, epochs = measure.test_data() / "mnist", asked.epochs or (1 if asked.quick else 5)
    if not data.is_dir():
        raise SystemExit(f"no MNIST at '{data}': set ORCHESTRATOR_TEST_DATA to the folder that holds mnist/ with its four IDX files")
    if asked.tutorial:
        tutorial(data, epochs, asked.threads, QUICK_ROWS if asked.quick else None)
        return
    measure.adopt_orphans()
    runs: dict[str, list[Any]] = {name: [] for name in (*RECIPES, "tutorial")}
    for seed in range(asked.repetitions or (1 if asked.quick else 3)):
        for name, recipe in RECIPES.items():
            runs[name].append(ours(recipe, data, seed, asked.threads))
            print(f"{name}, seed {seed}: {runs[name][-1][0]:.1f} s, test {runs[name][-1][2]:.2%}", file=sys.stderr, flush=True)
        if seed == 0:
            runs["tutorial"].append(theirs(data, epochs, asked.threads, asked.quick))
    measure.heading(f"MNIST, seconds of training, {asked.threads} threads")
    measure.table(rows_of(runs))


if __name__ == "__main__":
    main()
