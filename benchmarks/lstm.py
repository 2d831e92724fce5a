"""Film reviews (MR): seconds of an epoch and accuracy, ours against a plain PyTorch script; and the hidden Markov models.

Both read `configs/sentiment-lstm.yaml`: the same network, dropouts, optimizer, schedule, batch and epochs. Theirs is what a good engineer
writes with nothing but torch: words split by a regular expression, a Counter for the vocabulary, tensors in memory, batches of like
length, one `nn.LSTM` over the padded batch (no packing, which is slower), the fused optimizer, OneCycleLR, validation after each epoch,
and the test accuracy of the epoch that was best on validation. Both split 80/10/10 by class; the rows of the parts are each one's own.

Time: both train in one process, an epoch of ours, then one of theirs, then the other way round, so that both see the same machine; the
first pair doesn't count. The median of the pairs' ratios is printed, of wall time and of the process's CPU time (which other work on
the machine hardly touches). Reading, tokenizing and validation don't count. Accuracy: whole runs, each in a process of its own
(`orchestrator train` for ours), with the seeds 0, 1, 2 ...

    python benchmarks/lstm.py [--quick] [--threads 1] [--repetitions 3] [--pairs 8]     (ORCHESTRATOR_TEST_DATA: the folder with mr/)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure

CONFIG, SEQUENCES = (measure.ROOT / "configs" / f"{name}-lstm.yaml" for name in ("sentiment", "sequence"))
REFERENCE = 0.780  # a plain LSTM, mean of three seeds
Epoch = Callable[[], Any]


def ours(config: Path, seed: int, threads: int, *overrides: str) -> tuple[float, float, dict[str, float]]:
    """(seconds of training and validation, test accuracy, the optimum) of `orchestrator train` in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        asked = [str(config), f"training.seed={seed}", f"scaling.cpus_per_worker={threads}", *overrides]
        _, printed = measure.run([measure.ORCHESTRATOR, "train", *asked, "--json"], folder, threads)
        database = sqlite3.connect(folder / ".orchestrator" / "ledger.sqlite")
        epochs = [json.loads(row[0])["metrics"]["epoch_s"] for row in database.execute("select data from entries where kind = 'epoch'")]
        database.close()
        [facts] = [json.loads(path.read_text()) for path in (folder / ".orchestrator" / "data").glob("*/data.json")]
    return sum(epochs), json.loads(printed)["test"]["test_accuracy"], facts["optimum"]


def theirs(data: Path, seed: int, threads: int, epochs: int | None) -> float:
    """The test accuracy of the plain script, in a process of its own."""
    command = [sys.executable, __file__, "--plain", "--seed", str(seed), "--threads", str(threads)]
    return float(measure.run([*command, *(["--epochs", str(epochs)] if epochs else [])], data, threads)[1])


def our_epoch(data: Path) -> Epoch:
    """Our training loop on the reviews, without its validation: an epoch when called."""
    import orchestrator  # noqa: F401  binds models and pipelines
    from models.lstm import LSTM
    from orchestrator.training.loop import Settings, Training
    from orchestrator.training.optim import Adam
    from pipelines import batches
    from pipelines.prepare import prepare
    from pipelines.sources import text
    from pipelines.splits import SplitConfig

    recipe = _recipe()
    with tempfile.TemporaryDirectory(prefix="bench-") as cache:
        prepared = prepare("text", text.load, text.Config(str(data)), SplitConfig(), Path(cache))
        train = batches.load(prepared, "train")
    net = LSTM(LSTM.Config(**{name: value for name, value in recipe["model"].items() if name != "family"}), prepared.schema)
    few = batches.Held({name: _first(values) for name, values in train.columns.items()})
    shuffled = batches.Batches(train, recipe["training"].get("batch_size", 64), 0)
    settings = Settings(1000, shuffled.batch_size, 0)
    return Training(net, prepared.encoder, shuffled, few, (Adam, Adam.Config(**recipe["optimizer"])), settings).run_epoch


def _first(values: Any) -> Any:
    """The first rows of a column, whether ragged or not: validation must have some, and cost nothing."""
    rows = slice(0, 8)
    return dataclasses.replace(values, sizes=values.sizes[rows], starts=values.starts[rows]) if hasattr(values, "sizes") else values[rows]


def _recipe() -> Any:
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(CONFIG)


# the plain script ---------------------------------------------------------------------------------------------------------------


class Plain:
    """The plain script's loop: an epoch when called."""

    def __init__(self, data: Path, epochs: int) -> None:
        import torch

        recipe = _recipe()
        self.size, lr = recipe["training"].get("batch_size", 64), recipe["optimizer"]["lr"]
        self.parts, words = _read(data)
        self.net = _network(recipe["model"], words)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=lr, fused=True)
        steps = epochs * -(-len(self.parts["train"][1]) // self.size)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, steps, cycle_momentum=False)

    def __call__(self) -> None:
        import torch.nn.functional as F

        self.net.train()
        for words_of, lengths, labels in _batches(*self.parts["train"], self.size, shuffle=True):
            F.cross_entropy(self.net(words_of, lengths), labels).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.schedule.step()

    def accuracy(self, part: str) -> float:
        import torch

        self.net.eval()
        right, (texts, labels) = 0, self.parts[part]
        with torch.inference_mode():
            for words_of, lengths, labels_of in _batches(texts, labels, 250, shuffle=False):
                right += int((self.net(words_of, lengths).argmax(1) == labels_of).sum())
        return right / len(labels)


def plain(data: Path, seed: int, epochs: int) -> float:
    """The test accuracy of the epoch that was best on validation."""
    import torch

    torch.manual_seed(seed)
    loop, best = Plain(data, epochs), (-1.0, -1.0)
    for _ in range(epochs):
        loop()
        best = max(best, (loop.accuracy("validation"), loop.accuracy("test")), key=lambda found: found[0])
    return best[1]


def _read(data: Path) -> tuple[dict[str, tuple[list[list[int]], Any]], int]:
    """({part: (codes of each text, labels)}, how many codes there are); words that come once in training are unknown."""
    import numpy as np
    import torch

    texts, labels = [], []
    for label, path in enumerate(sorted(data.glob("rt-polarity.*"))):
        lines = [line for line in path.read_bytes().decode("latin-1").lower().split("\n") if line.strip()]
        texts += [re.findall(r"\w+|[^\w\s]", line) for line in lines]
        labels += [label] * len(lines)
    rng, codes_of = np.random.default_rng(0), np.array(labels)
    order = [rng.permutation(np.flatnonzero(codes_of == label)) for label in (0, 1)]
    rows = {
        name: np.concatenate([own[int(first * len(own)) : int(last * len(own))] for own in order]).tolist()
        for name, first, last in (("train", 0, 0.8), ("validation", 0.8, 0.9), ("test", 0.9, 1))
    }
    counts = Counter(word for row in rows["train"] for word in texts[row])
    code = {word: place for place, word in enumerate((word for word, count in counts.items() if count > 1), start=2)}
    coded = [[code.get(word, 1) for word in text] for text in texts]
    return {name: ([coded[row] for row in own], torch.tensor(codes_of[own])) for name, own in rows.items()}, len(code) + 2


def _batches(texts: list[list[int]], labels: Any, size: int, shuffle: bool) -> Iterator[tuple[Any, Any, Any]]:
    """Batches of like length, padded with zeros, in a new order each time."""
    import torch

    lengths = torch.tensor([len(text) for text in texts])
    order = torch.randperm(len(texts)) if shuffle else torch.arange(len(texts))
    pieces = [piece for pool in order.split(50 * size) for piece in pool[lengths[pool].argsort()].split(size)]
    for place in torch.randperm(len(pieces)).tolist() if shuffle else range(len(pieces)):
        rows = pieces[place]
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(texts[row]) for row in rows.tolist()], batch_first=True)
        yield padded, lengths[rows], labels[rows]


def _network(options: dict[str, Any], words: int) -> Any:
    """The config's network, with one nn.LSTM; the family's defaults where the config has none."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    hidden, both = options.get("hidden", 128), options.get("bidirectional", False)
    dropout, word_dropout, feature_dropout = (options.get(name, 0.0) for name in ("dropout", "word_dropout", "feature_dropout"))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(words, options.get("embedding", 100), padding_idx=0)
            self.embedding.weight.data.mul_(0.1)
            self.lstm = nn.LSTM(options.get("embedding", 100), hidden, batch_first=True, bidirectional=both)
            self.head = nn.Linear(hidden * (1 + both), 2)

        def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
            if self.training:
                codes = codes.masked_fill((torch.rand(codes.shape) < word_dropout) & (codes > 0), 1)
            x = self.embedding(codes)
            if self.training:
                x = x * F.dropout(torch.ones(len(x), 1, x.shape[2]), feature_dropout)
            h = self.lstm(x)[0]
            inside = (torch.arange(h.shape[1]) < lengths[:, None])[..., None]
            if options.get("pooling") == "max":
                pooled = h.masked_fill(~inside, -2).amax(1)
            elif options.get("pooling") == "mean":
                pooled = (h * inside).sum(1) / lengths[:, None]
            else:
                pooled = h[torch.arange(len(h)), lengths - 1]
            logits: Tensor = self.head(F.dropout(pooled, dropout, self.training))
            return logits

    return Plain()


# measuring ----------------------------------------------------------------------------------------------------------------------


def in_turn(data: Path, threads: int, pairs: int) -> list[list[tuple[float, float]]]:
    """[(wall, CPU) seconds of ours, of theirs] for each pair of epochs; the first pair, which warms up, is left out."""
    import torch

    torch.set_num_threads(threads)
    sides, found = (our_epoch(data), Plain(data, pairs + 1)), []
    for pair in range(pairs + 1):
        spent = [(0.0, 0.0), (0.0, 0.0)]
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            began = time.perf_counter(), time.process_time()
            sides[side]()
            spent[side] = (time.perf_counter() - began[0], time.process_time() - began[1])
        found.append(spent)
        print(f"load {measure.load()}: ours {spent[0][0]:.2f} s, theirs {spent[1][0]:.2f} s", file=sys.stderr, flush=True)
    return found[1:]


def time_rows(found: list[list[tuple[float, float]]]) -> list[measure.Row]:
    """Medians of both, and the median of the pairs' ratios."""
    rows = []
    for place, what in enumerate(("wall", "CPU")):
        mine, other = (measure.median([pair[side][place] for pair in found]) for side in (0, 1))
        ratio = measure.median([pair[0][place] / pair[1][place] for pair in found])
        rows.append((f"MR: seconds of an epoch, {what}", f"{mine:.2f} s", f"{other:.2f} s", f"{ratio:.3f} x", "<= 1.2"))
    return rows


def accuracy_row(mine: list[float], other: list[float]) -> measure.Row:
    means = [sum(values) / len(values) for values in (mine, other)]
    each = [", ".join(f"{value:.2%}" for value in values) for values in (mine, other)]
    what = f"MR: test accuracy, mean of {each[0]}; theirs of {each[1]}"
    return (what, f"{means[0]:.2%}", f"{means[1]:.2%}", f"{means[0] / REFERENCE:.3f} x", f">= 77 % (reference: {REFERENCE:.1%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one epoch, once, and one pair: does it run at all?")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads of each")
    parser.add_argument("--repetitions", type=int, help="whole runs of each, with seeds from 0 (default 3; --quick: 1)")
    parser.add_argument("--pairs", type=int, help="of epochs in turn (default 8; --quick: 1)")
    parser.add_argument("--epochs", type=int, help="of a whole run, instead of the config's")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    data, epochs = measure.test_data() / "mr", asked.epochs or (1 if asked.quick else None)
    if not data.is_dir():
        raise SystemExit(f"no film reviews at '{data}': set ORCHESTRATOR_TEST_DATA to the folder that holds mr/")
    if asked.plain:
        print(plain(data, asked.seed, epochs or _recipe()["training"]["epochs"]))
        return
    measure.adopt_orphans()
    rows = time_rows(in_turn(data, asked.threads, asked.pairs or (1 if asked.quick else 8)))
    mine, other, overrides = [], [], [f"training.epochs={epochs}"] if epochs else []
    for seed in range(asked.repetitions or (1 if asked.quick else 3)):
        mine.append(ours(CONFIG, seed, asked.threads, f"data.path={data}", *overrides)[1])
        other.append(theirs(data, seed, asked.threads, epochs))
        print(f"seed {seed}: test {mine[-1]:.2%}, theirs {other[-1]:.2%}", file=sys.stderr, flush=True)
    spent, accuracy, optimum = ours(SEQUENCES, 0, asked.threads)
    what = f"HMM: test accuracy against the Bayes rate, after {spent:.1f} s"
    hmm = (what, f"{accuracy:.2%}", f"{optimum['accuracy']:.2%}", f"{accuracy / optimum['accuracy']:.3f} x", ">= 0.97")
    measure.heading(f"LSTM, {asked.threads} threads")
    measure.table([*rows, accuracy_row(mine, other), hmm])


if __name__ == "__main__":
    main()
