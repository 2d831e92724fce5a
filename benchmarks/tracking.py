"""1,000 trials x 50 epochs x 6 metrics through the ledger to MLflow: how fast, how far behind, how much memory.

Ours: a driver's own calls (a ledger's launch, its events, an epoch of two trials at a time as fast as it takes them) with the background
sender beside, on a SQLite store; then until MLflow has everything. Theirs: the same rows by MLflow's own client, one `log_metrics` an
epoch, as in its quickstart (https://mlflow.org/docs/latest/ml/tracking/quickstart), for `--theirs` trials, scaled up to as many. Printed:
for how long recording an epoch blocks training, the rates into the ledger and into MLflow, how long after the last event MLflow has
everything, and what the process holds above what it held before. `--server`: through an `mlflow server` on this machine.

    python benchmarks/tracking.py [--quick] [--trials 1000] [--epochs 50] [--theirs 20] [--server]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure

METRICS = ("train_loss", "val_loss", "val_accuracy", "lr", "samples_per_s", "epoch_s")


def rows(trial: int, epoch: int) -> dict[str, float]:
    """Six metrics of an epoch."""
    return {name: (trial * 31 + epoch * 7 + place) % 97 / 97 for place, name in enumerate(METRICS)}


def ours(trials: int, epochs: int, uri: str) -> dict[str, float]:
    """Through the ledger, with the sender in the background."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    import orchestrator  # noqa: F401  first: it binds the top-level packages to this project's own
    from orchestrator.events import EpochEnded, Event, RunEnded, RunStarted
    from orchestrator.experiment.config import DataConfig, Experiment, ModelConfig
    from orchestrator.records.ledger import Launch, Ledger
    from orchestrator.records.tracking import BackgroundSender, destination

    home = Path.cwd() / ".orchestrator"
    ledger, sender = Ledger(home), BackgroundSender(home)
    experiment = Experiment(name="many", data=DataConfig(source="digits"), model=ModelConfig(family="cnn")).plain()
    ledger.launch(Launch("one", "sweep", "many", experiment, "val_accuracy", "max", "data", str(home), {}, now()))
    before, began, blocked = held(), time.perf_counter(), 0.0

    def append(events: list[Event]) -> None:
        nonlocal blocked
        at = time.perf_counter()
        ledger.append("one", events)
        blocked += time.perf_counter() - at

    for first in range(0, trials, 2):
        pair = range(first, min(first + 2, trials))
        append([RunStarted(trial, now(), {"optimizer.lr": 0.1}, {"optimizer.lr": 0.1}) for trial in pair])
        for epoch in range(1, epochs + 1):
            append([EpochEnded(trial, epoch, rows(trial, epoch), now(), epoch == epochs, "continue") for trial in pair])
        append([RunEnded(trial, "finished", now()) for trial in pair])
    recorded = time.perf_counter() - began
    while ledger.left(destination()):
        time.sleep(0.2)
    done = time.perf_counter() - began
    sender.finish(20)
    entries = trials * epochs
    return {
        "recorded_s": recorded,
        "done_s": done,
        "blocked_ms": 1000 * blocked / entries * 2,
        "entries": entries,
        "held_mb": held() - before,
    }


def theirs(trials: int, epochs: int, uri: str) -> dict[str, float]:
    """MLflow's own client, a call an epoch."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("plain")
    began = time.perf_counter()
    for trial in range(trials):
        with mlflow.start_run():
            mlflow.log_params({"optimizer.lr": 0.1})
            for epoch in range(1, epochs + 1):
                mlflow.log_metrics(rows(trial, epoch), step=epoch)
    return {"done_s": time.perf_counter() - began, "entries": trials * epochs}


def now() -> int:
    return int(time.time() * 1000)


def held() -> float:
    """The most that this process has held so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


@contextlib.contextmanager
def store(folder: Path, server: bool) -> Iterator[str]:
    """A fresh store's URI; with a server in front of it, if that is asked."""
    file = f"sqlite:///{folder / 'store.db'}"
    if not server:
        yield file
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--backend-store-uri",
        file,
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words], cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 90
            while time.monotonic() < deadline:
                with socket.socket() as tried:
                    if tried.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def contender(name: str, trials: int, epochs: int, server: bool) -> dict[str, Any]:
    """One of the two, in a fresh process with a fresh store."""
    with tempfile.TemporaryDirectory(prefix="tracking-") as folder, store(Path(folder), server) as uri:
        words = [sys.executable, __file__, "--contender", name, "--trials", str(trials), "--epochs", str(epochs), "--uri", uri]
        found: dict[str, Any] = json.loads(measure.run(words, Path(folder))[1].splitlines()[-1])
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 trials of 10 epochs: does it run at all?")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--theirs", type=int, default=20, help="trials by MLflow's own client")
    parser.add_argument("--server", action="store_true", help="through an mlflow server")
    parser.add_argument("--contender", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contender:
        print(json.dumps({"ours": ours, "theirs": theirs}[asked.contender](asked.trials, asked.epochs, asked.uri)))
        return
    measure.adopt_orphans()
    trials, epochs, few = (20, 10, 4) if asked.quick else (asked.trials, asked.epochs, asked.theirs)
    one, two = contender("ours", trials, epochs, asked.server), contender("theirs", few, epochs, asked.server)
    scaled = two["done_s"] * one["entries"] / two["entries"]
    measure.heading(f"{trials} trials x {epochs} epochs x {len(METRICS)} metrics, {'an mlflow server' if asked.server else 'SQLite'}")
    measure.table(
        [
            measure.compare(f"until MLflow has everything (theirs: {few} trials, scaled)", one["done_s"], scaled, "<= 0.5"),
            ("rate into MLflow", f"{one['entries'] * len(METRICS) / one['done_s']:,.0f} metrics/s", "", "", "none"),
            ("rate into the ledger", f"{one['entries'] / one['recorded_s']:,.0f} epochs/s", "", "", "none"),
            measure.compare("an epoch blocks training for", one["blocked_ms"], 1000 * two["done_s"] / two["entries"], "<= 1", "ms"),
            ("after the last event MLflow lags by", f"{one['done_s'] - one['recorded_s']:.1f} s", "", "", "none"),
            ("the driver held, beyond its imports", f"{one['held_mb']:.0f} MB", "", "", "<= 200 MB"),
        ]
    )


if __name__ == "__main__":
    main()
