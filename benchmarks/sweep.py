"""What a trial of a sweep costs beside its training: ours against a bare process pool, Ray's Tuner, and Tuner driving TorchTrainer.

The same trials everywhere: the network of configs/digits-cnn.yaml, 5 epochs, batch 64, fp32, one thread each, two at a time, and the same
list of settings, drawn once by our own random search and given to the others as it is. Ours is the command line in an empty folder, with
everything recorded (ledger, checkpoints, MLflow, the winner's bundle); the others record nothing beyond what they can't leave out.

Whole, marginal and busy are as runs.py says. All contenders run in turn, `--repetitions` times; medians are printed.

A two-worker trial's cost beyond its compute is the marginal cost less the trial's own epochs (`epoch_s`, in the ledger).

    python benchmarks/sweep.py [--quick] [--repetitions 3] [--only short|two-workers]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
from runs import SEED, SLOTS, Run, Runs, Span, marginal, ours, whole

SAME = ["sweep.search=random", "sweep.scheduler=none", f"sweep.seed={SEED}", "training.epochs=5", "training.precision=fp32"]


# contenders, each in a process of its own ---------------------------------------------------------------------------------------


def settings(trials: int) -> list[dict[str, Any]]:
    """The values of the first trials, as our random search suggests them."""
    from orchestrator.catalog import catalog
    from orchestrator.execution.search import Search
    from orchestrator.experiment.read import read, space_of

    experiment = read(measure.CONFIG, SAME, catalog(measure.CONFIG.parent))
    search = Search(experiment, space_of(experiment), experiment.training.epochs, trials)
    found = []
    for _ in range(trials):
        asked = search.ask()
        assert asked is not None
        search.end(asked[0], failed=False)
        found.append(asked[1])
    return found


_rows: Any = None  # of a pool's process


def _take_rows(train: Any, validation: Any) -> None:
    global _rows
    import torch

    torch.set_num_threads(1)
    _rows = (train, validation)


def _pool_trial(values: dict[str, Any]) -> Span:
    from handwritten import digits_trial

    return digits_trial(values, *_rows)[:2]


def pool(trials: list[dict[str, Any]], workers: int) -> list[Span]:
    """A spawn pool of two processes and a hand-written loop."""
    from handwritten import digits

    with multiprocessing.get_context("spawn").Pool(SLOTS, _take_rows, digits()) as processes:
        spans = list(processes.imap_unordered(_pool_trial, trials))
        processes.close()
        processes.join()
    return spans


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """A Ray as lean as ours is."""
    import logging

    import ray

    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=SLOTS,
            object_store_memory=200_000_000,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        yield
        ray.shutdown()


def tuner(trials: list[dict[str, Any]], workers: int) -> list[Span]:
    """Ray's Tuner with a class Trainable and reused actors; an epoch a step."""
    import torch
    from handwritten import EPOCHS, digits, digits_loop
    from ray import tune

    class Trial(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any], rows: Any = None) -> None:
            torch.set_num_threads(1)
            self.rows = rows
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.began = time.time()
            self.loop = digits_loop(new_config["values"], self.rows[0])
            return True

        def step(self) -> dict[str, Any]:
            self.loop.epoch()
            return {"accuracy": self.loop.accuracy(self.rows[1]), "began": self.began, "ended": time.time()}

    fit = tune.Tuner(
        tune.with_resources(tune.with_parameters(Trial, rows=digits()), {"CPU": 1}),
        param_space={"values": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(metric="accuracy", mode="max", reuse_actors=True, max_concurrent_trials=SLOTS),
        run_config=tune.RunConfig(
            stop={"training_iteration": EPOCHS},
            verbose=0,
            storage_path=str(Path.cwd() / "tuner"),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    return _spans(fit.fit(), len(trials))


def _spans(results: Any, expected: int) -> list[Span]:
    if results.errors or len(results) != expected:
        raise SystemExit(f"{len(results.errors)} of {len(results)} trials failed: {results.errors[:1]}")
    return [(result.metrics["began"], result.metrics["ended"]) for result in results]


def _ranks_loop(config: dict[str, Any]) -> None:
    """What each worker of a TorchTrainer runs: the hand-written loop, in DDP where there are two, reported after every epoch."""
    import ray.train
    import torch
    from handwritten import EPOCHS, digits, digits_loop

    torch.set_num_threads(1)
    context = ray.train.get_context()
    train, validation = digits()
    loop = digits_loop(config["values"], train, context.get_world_rank(), context.get_world_size())
    for _ in range(EPOCHS):
        loop.epoch()
        ray.train.report({"accuracy": loop.accuracy(validation)})


def tuner_of_trainers(trials: list[dict[str, Any]], workers: int) -> list[Span]:
    """Tuner driving a TorchTrainer a trial, as Ray's guide "Hyperparameter Tuning with Ray Tune" has it."""
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def trial(config: dict[str, Any]) -> None:
        began = time.time()
        TorchTrainer(
            _ranks_loop,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
            run_config=ray.train.RunConfig(name=tune.get_context().get_trial_id(), callbacks=[TuneReportCallback()]),
        ).fit()
        tune.report({"accuracy": 0.0, "began": began, "ended": time.time()})

    fit = tune.Tuner(
        tune.with_resources(trial, {"node:__internal_head__": 0.001}),  # it only waits: a CPU of its own would be one less for training
        param_space={"values": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(metric="accuracy", mode="max", max_concurrent_trials=SLOTS // workers),
        run_config=tune.RunConfig(verbose=0, storage_path=str(Path.cwd() / "tuner")),
    )
    return _spans(fit.fit(), len(trials))


THEIRS = {"pool": pool, "tuner": tuner, "trainers": tuner_of_trainers}


# measuring ----------------------------------------------------------------------------------------------------------------------


def theirs(name: str, trials: list[dict[str, Any]], workers: int = 1) -> Run:
    """A run of one of the others, in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        Path(folder, "trials.json").write_text(json.dumps(trials))
        command = [sys.executable, __file__, "--contender", name, "--workers", str(workers)]
        seconds, _ = measure.run(command, Path(folder))
        return Run(seconds, [tuple(span) for span in json.loads(Path(folder, "spans.json").read_text())])


def short_trials(repetitions: int, trials: int, guide_trials: int) -> None:
    """One-worker trials in four ways."""
    values = settings(trials)
    runs = measure.interleave(
        {
            "pool": lambda: theirs("pool", values),
            "ours": lambda: ours(trials, *SAME),
            "tuner": lambda: theirs("tuner", values),
            "trainers": lambda: theirs("trainers", values[:guide_trials]),
        },
        repetitions,
    )
    measure.heading(f"{trials} trials of one worker, {repetitions} x in turn")
    measure.table(
        [
            measure.compare("process pool: whole", whole(runs, "ours"), whole(runs, "pool"), "<= 1.8"),
            measure.compare("process pool: marginal a trial", marginal(runs, "ours"), marginal(runs, "pool"), "<= 1.10"),
            measure.compare("Tuner, reused actors: whole", whole(runs, "ours"), whole(runs, "tuner"), "<= 1.0"),
            measure.compare("Tuner, reused actors: marginal", marginal(runs, "ours"), marginal(runs, "tuner"), "<= 1.0"),
            measure.compare(
                f"Tuner + TorchTrainer ({guide_trials} trials): marginal",
                marginal(runs, "ours"),
                marginal(runs, "trainers"),
                ">= 30",
                theirs_first=True,
            ),
        ]
    )
    _busy(runs)


def _busy(runs: Runs) -> None:
    """Every run's share, because one idle slot in one run is what a median hides."""
    for name, found in runs.items():
        shares = ", ".join(f"{run.busy(SLOTS):.0%}" for run in found)
        print(f"slots busy, {name}: {shares}")


def two_workers(repetitions: int, trials: int, guide_trials: int) -> None:
    """Two-worker trials: warm gangs against a TorchTrainer a trial."""
    values = settings(max(guide_trials, 2))
    runs = measure.interleave(
        {
            "ours": lambda: ours(trials, *SAME, "scaling.workers=2", "scaling.cpus_per_worker=1"),
            "trainers": lambda: theirs("trainers", values[:guide_trials], workers=2),
        },
        repetitions,
    )
    beyond = measure.median([run.marginal_s(1) - run.compute_s for run in runs["ours"]])
    measure.heading(f"{trials} trials of two workers, {repetitions} x in turn")
    measure.table(
        [
            measure.compare(
                f"Tuner + TorchTrainer ({guide_trials} trials): marginal",
                marginal(runs, "ours", 1),
                marginal(runs, "trainers", 1),
                ">= 30",
                theirs_first=True,
            ),
            ("a trial beyond its compute", f"{beyond:.3f} s", "", "", "<= 0.5 s"),
            ("whole", f"{whole(runs, 'ours'):.1f} s", "", "", ""),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="few trials, once: does it run at all?")
    parser.add_argument("--repetitions", type=int, help="of every contender (default 3; --quick: 1)")
    parser.add_argument("--trials", type=int, help="of one worker (default 32; --quick: 8)")
    parser.add_argument("--only", choices=["short", "two-workers"], help="one part of it")
    parser.add_argument("--contender", choices=sorted(THEIRS), help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contender:
        with contextlib.nullcontext() if asked.contender == "pool" else local_ray():
            spans = THEIRS[asked.contender](json.loads(Path("trials.json").read_text()), asked.workers)
        Path("spans.json").write_text(json.dumps(spans))
        return
    measure.adopt_orphans()
    repetitions = asked.repetitions or (1 if asked.quick else 3)
    parts: list[tuple[str, Callable[[], None]]] = [
        ("short", lambda: short_trials(repetitions, asked.trials or (8 if asked.quick else 32), 3 if asked.quick else 4)),
        ("two-workers", lambda: two_workers(repetitions, 4 if asked.quick else 8, 2)),
    ]
    for name, part in parts:
        if asked.only in (None, name):
            part()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main()
