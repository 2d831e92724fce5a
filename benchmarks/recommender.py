"""Recommenders on MovieLens 100K against plain PyTorch scripts of the same recipe, and the full ranking against an epoch.

The plain scripts are what a specialist writes by hand: the same factors, loss, optimizer, schedule, batches and epochs, all rows in
memory, validated after each epoch by one metric. Ours is `orchestrator train` on the shipped files, which reports thirteen metrics of both
protocols. A second counts when it trains or validates. Each runs in a process of its own, in turn, in one thread.

References, measured with simple, good recipes: leave-one-out with 99 negatives HR@10 .659, NDCG@10 .385 (iALS .663, .392; popularity .410,
.230); random 90/10 with features RMSE .897 to .901 (ids only .906).

The last rows rank all 24,000 items for each of 31,000 users, which must cost less than an epoch of their 1.5 million rows.

    python benchmarks/recommender.py [--quick] [--seeds 3] [--recbole PYTHON]   (ORCHESTRATOR_TEST_DATA: the folder with ml-100k/)
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

RATING_SPLIT = "{train: 0.87, validation: 0.03, test: 0.1, seed: %d}"  # 90/10, the validation taken from the 90
USERS, ITEMS, EACH = 31_000, 24_000, 50
NAMES = {"ranking": ("test_hr_at_10", "test_ndcg_at_10"), "rating": ("test_rmse",)}


def ours(task: str, data: Path, seed: int, quick: bool) -> tuple[float, list[float]]:
    """(seconds of training, test scores) of `orchestrator train` on the shipped file."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        overrides = [f"data.path={data}", f"training.seed={seed}", "scaling.cpus_per_worker=1", *(["training.epochs=2"] if quick else [])]
        overrides += [f"data.split={RATING_SPLIT % seed}"] if task == "rating" else []
        command = [measure.ORCHESTRATOR, "train", str(measure.ROOT / "configs" / f"movielens-{task}.yaml"), *overrides, "--json"]
        _, printed = measure.run(command, Path(folder), 1)
        database = sqlite3.connect(Path(folder, ".orchestrator", "ledger.sqlite"))
        epochs = [json.loads(row[0])["metrics"]["epoch_s"] for row in database.execute("select data from entries where kind = 'epoch'")]
        database.close()
    test = json.loads(printed)["test"]
    return sum(epochs), [test[name] for name in NAMES[task]]


def script(*arguments: str) -> Any:
    """What this file prints, run in a process of its own."""
    return json.loads(measure.run([sys.executable, __file__, *arguments], Path.cwd(), 1)[1])


# the plain scripts --------------------------------------------------------------------------------------------------------------


def plain_ranking(data: Path, seed: int, epochs: int) -> tuple[float, list[float]]:
    """Matrix factorisation by full softmax, each user's scores once a batch; (seconds, [HR@10, NDCG@10] of test)."""
    import numpy as np
    import torch

    torch.manual_seed(seed)
    user, item, _, when = _movielens(data)
    order = np.lexsort((when, user))
    from_last = np.bincount(user).cumsum()[user[order]] - 1 - np.arange(len(order))
    parts = [order[from_last > 1], order[from_last == 1], order[from_last == 0]]
    users, items = (torch.from_numpy(codes) for codes in (user, item))
    had = torch.zeros(int(users.max()) + 1, int(items.max()) + 1, dtype=torch.bool)
    had[users, items] = True
    negatives = torch.rand(had.shape).masked_fill(had, -1).topk(99, 1).indices
    p, q = (torch.nn.Parameter(0.05 * torch.randn(n, 64)) for n in had.shape)
    bias = torch.nn.Parameter(torch.zeros(had.shape[1]))
    optimizer = torch.optim.Adam([p, q, bias], lr=1e-2, fused=True)
    batch = 16384
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * -(-len(parts[0]) // batch), cycle_momentum=False)

    def scores(rows: Any) -> tuple[float, float]:
        """Of held-out rows, one a user."""
        u = users[rows]
        candidates = torch.cat([items[rows][:, None], negatives[u]], 1)
        values = torch.einsum("bd,bcd->bc", p[u], q[candidates]) + bias[candidates]
        rank = (values[:, 1:] > values[:, :1]).sum(1)
        return float((rank < 10).float().mean()), float(((rank < 10) / (rank + 2).float().log2()).mean())

    best, test, began = -1.0, (0.0, 0.0), time.perf_counter()
    train, validation, held = (torch.from_numpy(part) for part in parts)
    for _ in range(epochs):
        for rows in train[torch.randperm(len(train))].split(batch):
            distinct, place = torch.unique(users[rows], return_inverse=True)
            logits = torch.nn.functional.dropout(p[distinct], 0.3) @ q.T + bias
            picked = logits.flatten().index_select(0, place * logits.shape[1] + items[rows])
            loss = (torch.nn.functional.embedding(place, logits.logsumexp(1, keepdim=True))[:, 0] - picked).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            ndcg = scores(validation)[1]
            if ndcg > best:
                best, test = ndcg, scores(held)
    return time.perf_counter() - began, list(test)


def plain_rating(data: Path, seed: int, epochs: int) -> tuple[float, list[float]]:
    """Factors of ids and features with biases by squared error; (seconds, [RMSE] of test)."""
    import numpy as np
    import torch

    torch.manual_seed(seed)
    user, item, rating, _ = _movielens(data)
    order = np.random.default_rng(seed).permutation(len(user))
    parts = [torch.from_numpy(part) for part in np.split(order, [87_000, 90_000])]
    codes = [torch.from_numpy(user), torch.from_numpy(item)]
    mean, std = rating[parts[0].numpy()].mean(), rating[parts[0].numpy()].std()
    target = torch.from_numpy((rating - mean) / std).float()
    features = [_features(data / "ml-100k.user", (1, 2, 3)), _features(data / "ml-100k.item", (2, 3))]
    tables = [[torch.nn.Parameter(0.05 * torch.randn(n, 33)) for n in matrix.shape] for matrix in features]
    optimizer = torch.optim.Adam([table for side in tables for table in side], lr=3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * -(-len(parts[0]) // 1024), cycle_momentum=False)

    def vectors(rows: Any) -> list[Any]:
        found = []
        for side, (ids, words), matrix in zip(codes, tables, features, strict=True):
            distinct, place = torch.unique(side[rows], return_inverse=True)
            found.append(torch.nn.functional.embedding(place, ids[distinct] + matrix[distinct] @ words))
        return found

    def predicted(p: Any, q: Any) -> Any:
        return (p[:, :32] * q[:, :32]).sum(1) + p[:, 32] + q[:, 32]

    @torch.no_grad()
    def rmse(rows: Any) -> float:
        guess = predicted(*vectors(rows)).clamp((1 - mean) / std, (5 - mean) / std)
        return float((guess - target[rows]).square().mean().sqrt() * std)

    best, test, began = 9.0, 9.0, time.perf_counter()
    for _ in range(epochs):
        for rows in parts[0][torch.randperm(len(parts[0]))].split(1024):
            p, q = vectors(rows)
            both = p.square() + q.square()
            squares = both[:, :32].sum(1) + both[:, 32] / 4
            loss = ((predicted(p, q) - target[rows]).square() + 0.08 * squares).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        validation = rmse(parts[1])
        if validation < best:
            best, test = validation, rmse(parts[2])
    return time.perf_counter() - began, [test]


def _movielens(data: Path) -> tuple[Any, Any, Any, Any]:
    """Users and items from 0, ratings, times."""
    import numpy as np

    table = np.loadtxt(data / "ml-100k.inter", skiprows=1, dtype=np.float64)
    return table[:, 0].astype(np.int64) - 1, table[:, 1].astype(np.int64) - 1, table[:, 2], table[:, 3]


def _features(path: Path, columns: tuple[int, ...]) -> Any:
    """[ids, words of all columns] float32, a column's words weighing 1 together."""
    import torch

    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    words = {word: place for place, word in enumerate(sorted({(c, w) for row in rows for c in columns for w in row[c].split()}))}
    matrix = torch.zeros(len(rows), len(words))
    for row in rows:
        for column in columns:
            found = row[column].split()
            for word in found:
                matrix[int(row[0]) - 1, words[column, word]] = 1 / len(found)
    return matrix


# the full ranking ---------------------------------------------------------------------------------------------------------------


def full_ranking(users: int, items: int) -> dict[str, float]:
    """Seconds of an epoch by each loss and of one evaluation of both protocols, in this process."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    import orchestrator  # noqa: F401  first: it binds `models` and `pipelines` to this project's own
    from models.recommender import Ranker
    from orchestrator.training.evaluation import Evaluation
    from orchestrator.training.loop import Settings, Training
    from orchestrator.training.memory import keep_freed_memory
    from orchestrator.training.optim import Adam
    from pipelines import batches
    from pipelines.prepare import prepare
    from pipelines.sources import interactions
    from pipelines.splits import SplitConfig

    torch.set_num_threads(1)
    keep_freed_memory()  # as every trial does
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        item = (items * rng.random(users * EACH) ** 2).astype(np.int64)  # some are popular
        pq.write_table(pa.table({"user": np.repeat(np.arange(users), EACH), "item": item}), Path(folder, "clicks.parquet"))
        config = interactions.Config(path=str(Path(folder, "clicks.parquet")))
        prepared = prepare("interactions", interactions.load, config, SplitConfig(by="leave_one_out"), Path(folder, "cache"))
        rows = {part: batches.load(prepared, part) for part in ("train", "test")}
        tables = prepared.tables()
    found = {}
    for loss in ("bpr", "sampled_softmax"):
        net = Ranker(Ranker.Config(dim=64, loss=loss), prepared.schema)  # type: ignore[arg-type]
        net.bind(tables)
        shuffled = batches.Batches(rows["train"], 16384, seed=0)
        training = Training(net, prepared.encoder, shuffled, rows["test"], (Adam, Adam.Config()), Settings(1, 16384, 0))
        metrics = training.run_epoch()
        found[loss] = metrics["epoch_s"]
        began = time.perf_counter()
        Evaluation(net, prepared.encoder)(rows["test"], "test")
        found[f"{loss} evaluation"] = time.perf_counter() - began
        found[loss] -= found[f"{loss} evaluation"]  # an epoch holds a validation
    return found


# measuring ----------------------------------------------------------------------------------------------------------------------


def recbole(python: str, data: Path, seed: int, epochs: int) -> Any:
    """(seconds, test scores) of RecBole's BPR, in its own environment."""
    file = str(Path(__file__).with_name("recbole_ranking.py"))
    with tempfile.TemporaryDirectory() as folder:  # it leaves its logs where it runs
        return json.loads(measure.run([python, file, str(data.parent), str(epochs), str(seed)], Path(folder), 1)[1].splitlines()[-1])


def compared(task: str, data: Path, seeds: int, quick: bool, python: str | None) -> list[measure.Row]:
    """Seconds of both and their scores, means over seeds; for rankings of RecBole too, if there is an interpreter with it."""
    runs: dict[str, list[Any]] = {"ours": [], "plain": []}
    others: list[Any] = []
    epochs = 2 if quick else {"ranking": 40, "rating": 20}[task]
    for seed in range(seeds):
        runs["ours"].append(ours(task, data, seed, quick))
        runs["plain"].append(script("--plain", task, "--seed", str(seed), "--epochs", str(epochs)))
        if python is not None and task == "ranking":
            others.append(recbole(python, data, seed, epochs))
            print(f"{task}, seed {seed}: RecBole {others[-1]}", file=sys.stderr, flush=True)
        print(f"{task}, seed {seed}: ours {runs['ours'][-1]}, plain {runs['plain'][-1]}", file=sys.stderr, flush=True)
    seconds = {name: measure.median([run[0] for run in some]) for name, some in runs.items()}
    rows = [measure.compare(f"{task}: seconds of training", seconds["ours"], seconds["plain"], "<= 1.5")]
    bars = {"test_hr_at_10": ">= .65 (reference .659)", "test_ndcg_at_10": ">= .38 (reference .385)", "test_rmse": "<= .905 (.897-.901)"}
    for place, name in enumerate(NAMES[task]):
        mine, theirs = (sum(run[1][place] for run in runs[who]) / seeds for who in ("ours", "plain"))
        rows.append((f"{task}: {name}, mean of {seeds}", f"{mine:.4f}", f"{theirs:.4f}", f"{mine / theirs:.3f} x", bars[name]))
    if others:
        rows.append(
            measure.compare("against RecBole's BPR: seconds of training", seconds["ours"], measure.median([o[0] for o in others]), "(told)")
        )
        for place, name in enumerate(NAMES[task]):
            mine, theirs = (sum(run[1][place] for run in some) / seeds for some in (runs["ours"], others))
            rows.append(
                (f"against RecBole's BPR: {name}, mean of {seeds}", f"{mine:.4f}", f"{theirs:.4f}", f"{mine / theirs:.3f} x", "(told)")
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="two epochs, one seed, few users: does it run at all?")
    parser.add_argument("--seeds", type=int, help="default 3; --quick: 1")
    parser.add_argument("--recbole", help="an interpreter that has RecBole: see recbole_ranking.py")
    for name in ("--plain", "--seed", "--epochs", "--full"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    data = measure.test_data() / "ml-100k"
    if asked.plain:
        plain = {"ranking": plain_ranking, "rating": plain_rating}[asked.plain]
        print(json.dumps(plain(data, int(asked.seed), int(asked.epochs))))
        return
    if asked.full:
        print(json.dumps(full_ranking(*map(int, asked.full.split("x")))))
        return
    measure.adopt_orphans()
    rows: list[measure.Row] = []
    if data.is_dir():
        for task in NAMES:
            rows += compared(task, data, asked.seeds or (1 if asked.quick else 3), asked.quick, asked.recbole)
    else:
        print(f"no MovieLens at '{data}': set ORCHESTRATOR_TEST_DATA to the folder that holds ml-100k/", file=sys.stderr)
    size = (1000, 2000) if asked.quick else (USERS, ITEMS)
    found = script("--full", f"{size[0]}x{size[1]}")
    for loss in ("bpr", "sampled_softmax"):
        what = f"ranking {size[1]:,} items for {size[0]:,} users, both protocols, against an epoch of {loss}"
        bar = "< 1" if loss == "sampled_softmax" else "(told)"  # pairs cost so little that ranking all items costs more
        rows.append(measure.compare(what, found[f"{loss} evaluation"], found[loss], bar))
    measure.heading("recommenders, one thread")
    measure.table(rows)
    if asked.recbole is None:
        print("RecBole: not compared; see recbole_ranking.py")


if __name__ == "__main__":
    main()
