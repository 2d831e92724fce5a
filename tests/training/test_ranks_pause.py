"""Several ranks pause at the same step, go on exactly, and tell a broken collective from a failure of their own. Plain gloo."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from orchestrator.events import EpochEnded, RunEnded
from orchestrator.experiment.config import Experiment
from orchestrator.training import checkpoint, pauses, trial
from orchestrator.training.job import Job, Place
from orchestrator.training.loop import Training
from orchestrator.training.trial import PeerLost
from pipelines.prepare import Prepared
from tests.conftest import MakeExperiment

multiprocessing.set_forkserver_preload(["tests.training.test_ranks_pause"])  # imported once, not by each rank
RANKS = 3  # of two, the order in which their gradients are added would count for nothing
TIMEOUT_S = 6.0  # of a collective that a stopped rank is waited for in
NET = "model={family: cnn, channels: [4], pool_after: [1], dropout: 0.3, norm: batch}"  # each rank has statistics of its own
RUN = "training={epochs: 2, batch_size: 9, augment: {shift: 0.2}}"  # 10 steps an epoch
CUTS = [("plain", 1), ("plain", 2), ("plain", 4), ("plain", 10), ("plain", 13), ("accumulated", 13)]
EVERY = {"steps": "{steps: 4}", "minutes": "{minutes: 1.0e-9}"}


def job_of(experiment: Experiment, data: Path, folder: Path, name: str) -> Job:
    return Job(3, experiment, str(data), f"{folder}/{name}", ".", "fp32", 1, experiment.training.epochs)


def drive(job: Job, rank: int, stop: Callable[[], bool] = pauses.never) -> list[Any]:
    steps = trial.run(job, Place(rank, dist.get_world_size()), stop)
    events: list[Any] = [next(steps)]
    while isinstance(events[-1], EpochEnded):
        events.append(steps.send(True))
    return events


def at(number: int) -> Callable[[], bool]:
    asked = iter(range(10**9))
    return lambda: next(asked) >= number


def pausing(rank: int, folder: Path, data: Path, experiments: dict[str, Experiment]) -> None:
    """What ranks do that all live."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/pausing", rank=rank, world_size=RANKS)
    saved: list[int] = []
    save = checkpoint.Writer.save
    checkpoint.Writer.save = lambda self, state: (saved.append(state["training"]["step"]), save(self, state))[1]  # type: ignore[assignment, method-assign, func-returns-value]
    found: dict[str, Any] = {}
    shares: list[int] = []
    share = pauses.Pauses._share
    pauses.Pauses._share = lambda self, step: (shares.append(step), share(self, step))[1]  # type: ignore[assignment, method-assign]
    for name in EVERY:
        saved.clear()
        pauses.SHARED_EVERY_S = 0.0  # each step: the outcome depends on no clock
        found[name] = drive(job_of(experiments[name], data, folder, name), rank), list(saved)
    for name, step in CUTS:
        cut = job_of(experiments[name], data, folder, f"{name} cut at {step}")
        first = drive(cut, rank, at(step) if rank == 0 else lambda: True)
        dist.barrier()
        if rank == 0:
            shutil.copytree(cut.checkpoints, folder / f"{name} left at {step}")
        found[f"{name} cut at {step}"] = first, drive(dataclasses.replace(cut, resume=True), rank)
    pauses.SHARED_EVERY_S = 3600.0
    for name in ("accumulated", "plain"):
        shares.clear()
        found[name] = drive(job_of(experiments[name], data, folder, name), rank)
    found["shares"] = list(shares)
    torch.save(found, folder / f"pausing-{rank}.pt")
    dist.destroy_process_group()


def losing(rank: int, folder: Path, data: Path, experiment: Experiment, way: str) -> None:
    """What a rank says when the other one is killed, stops, or fails, in its fifth step."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{way}", rank=rank, world_size=2, timeout=timeout)
    step, steps = Training._step, iter(range(10**9))

    def disturbed(self: Training, given: Any) -> Any:
        if rank == 1 and next(steps) == 4:
            if way == "raises":
                raise RuntimeError("a bug of one's own")
            os.kill(os.getpid(), signal.SIGKILL if way == "killed" else signal.SIGSTOP)
        return step(self, given)

    Training._step = disturbed  # type: ignore[method-assign]
    job = job_of(experiment, data, folder, way)
    try:
        said: Any = drive(job, rank)[-1]
    except PeerLost as lost:
        said = str(lost)
    torch.save(said, folder / f"{way}-{rank}.pt")


@pytest.fixture(scope="module")
def experiments(make_experiment: MakeExperiment) -> dict[str, Experiment]:
    made = {name: make_experiment(NET, RUN, f"training.checkpoint_every={every}") for name, every in EVERY.items()}
    return made | {"plain": make_experiment(NET, RUN), "accumulated": make_experiment(NET, RUN, "training.accumulate=2")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder: Path, experiments: dict[str, Experiment], prepared: Prepared) -> list[dict[str, Any]]:
    mp.start_processes(pausing, (folder, prepared.folder, experiments), RANKS, start_method="forkserver")  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"pausing-{rank}.pt", weights_only=False) for rank in range(RANKS)]


def scores(events: list[Any]) -> dict[int, dict[str, float]]:
    return {e.epoch: {k: v for k, v in e.metrics.items() if not k.endswith("_s")} for e in events if isinstance(e, EpochEnded)}


def model(folder: Path, name: str) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = checkpoint.load(str(folder / name))["training"]["model"]  # type: ignore[index]
    return weights


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step"), CUTS)
def test_rank_0_stops_all_at_one_step_and_they_go_on_exactly(name: str, step: int, found: list[dict[str, Any]], folder: Path) -> None:
    for rank in found:
        first, second = rank[f"{name} cut at {step}"]
        assert (first[-1].state, second[-1].state) == ("interrupted", "finished")
        assert scores(first) | scores(second) == scores(rank[name])
    assert checkpoint.load(str(folder / f"{name} left at {step}"))["training"]["step"] == step  # type: ignore[index]
    assert equal(model(folder, f"{name} cut at {step}"), model(folder, name))


@pytest.mark.slow
@pytest.mark.parametrize(("every", "steps"), [("steps", [4, 8, 12, 16, 20]), ("minutes", list(range(1, 21)))])
def test_rank_0_writes_the_checkpoints_of_all_when_they_are_asked_for(
    every: str, steps: list[int], found: list[dict[str, Any]], folder: Path
) -> None:
    assert [rank[every][1] for rank in found] == [steps, [], []]
    assert equal(model(folder, every), model(folder, "plain"))


@pytest.mark.slow
def test_ranks_that_agree_seldom_agree_at_the_same_steps(found: list[dict[str, Any]]) -> None:
    assert [rank["shares"] for rank in found] == [[0, 4]] * RANKS  # the next one would be at 20


@pytest.mark.slow
def test_a_run_of_three_goes_on_with_one_and_sees_every_row_once(
    found: list[dict[str, Any]], folder: Path, experiments: dict[str, Experiment], prepared: Prepared
) -> None:
    """Its loss of the first epoch, of which 4 steps were done by three, is that of three but for what dropout and moves drew."""
    alone = dataclasses.replace(job_of(experiments["plain"], prepared.folder, folder, "plain left at 4"), resume=True)
    steps = trial.run(alone)
    events: list[Any] = [next(steps)]
    while isinstance(events[-1], EpochEnded):
        events.append(steps.send(True))
    assert (events[-1].state, events[-1].error) == ("finished", None)  # rows that were missed would be an error
    assert events[-1].notes == ("resumed with 1 workers instead of 3: from here not bit for bit",)
    assert events[0].metrics["train_loss"] == pytest.approx(found[0]["plain"][0].metrics["train_loss"], rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["killed", "stops", "raises"])
def test_a_rank_tells_the_loss_of_another_from_a_failure_of_the_trial(
    way: str, folder: Path, experiments: dict[str, Experiment], prepared: Prepared
) -> None:
    context = mp.get_context("forkserver")
    processes = [context.Process(target=losing, args=(rank, folder, prepared.folder, experiments["plain"], way)) for rank in range(2)]
    for process in processes:
        process.start()
    processes[0].join(120)
    if way == "raises":
        processes[1].join(120)
    with contextlib.suppress(ProcessLookupError):
        processes[1].kill()
    for process in processes:
        process.join(30)
    said = torch.load(folder / f"{way}-0.pt", weights_only=False)
    assert isinstance(said, str), said
    assert "gloo" in said
    if way == "raises":
        own = torch.load(folder / f"{way}-1.pt", weights_only=False)
        assert isinstance(own, RunEnded)
        assert (own.state, own.alone) == ("failed", True)
        assert own.error is not None
        assert own.error.startswith("RuntimeError: a bug of one's own")
