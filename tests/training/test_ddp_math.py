"""Two ranks give what one process gives: gradients, metrics, normalisation, resuming. Plain gloo; the processes are started once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from models.norm import SyncBatchNorm2d
from orchestrator import names
from orchestrator.events import EpochEnded
from orchestrator.experiment.config import Experiment
from orchestrator.training import checkpoint, seeds, trial
from orchestrator.training.evaluation import Evaluation
from orchestrator.training.job import Job, Place
from orchestrator.training.loop import Settings, Training
from orchestrator.training.optim import OPTIMIZERS
from pipelines import batches
from pipelines.batches import Batches
from pipelines.prepare import Prepared
from tests.conftest import MakeExperiment

RANKS = 2
# name -> overrides. 90 rows: 31 + 31 + 28, uneven shares; 89 + 1: the second rank has no row of the last batch
RUNS = {
    "plain": ["training.batch_size=31"],
    "no row": ["training.batch_size=89"],
    "accumulate": ["training.batch_size=31", "training.accumulate=3"],
    "clipped": ["training.batch_size=31", "training.clip_norm=0.05"],
    "sync": ["training.batch_size=31", "model.norm=sync"],
    "sync, no row": ["training.batch_size=89", "model.norm=sync"],
}
PLAIN = ["model.norm=none", "optimizer={name: sgd, lr: 0.05, momentum: 0}", "training.epochs=1"]
RESUMED = ["model={family: cnn, channels: [4], pool_after: [1], dropout: 0.3}", "training={epochs: 3, batch_size: 30}"]


def train(experiment: Experiment, folder: Path, rank: int, world_size: int) -> dict[str, Any]:
    """One epoch on a rank: its metrics and the weights."""
    prepared, t = Prepared.open(folder), experiment.training
    seeds.set_all(0)
    family = trial.build_family(experiment, prepared.schema, ".")
    kind = names.load(experiment.optimizer.name, OPTIMIZERS, "optimizer")
    config = trial.options(kind.Config, experiment.optimizer.options)
    settings = Settings(t.epochs, t.batch_size, 0, "fp32", None, t.clip_norm, t.accumulate, rank, world_size)
    shuffled = Batches(batches.load(prepared, "train"), t.batch_size, 0, rank, world_size, t.accumulate)
    validation = batches.Held(batches.load(prepared, "validation").rows(slice(0, 29)))
    training = Training(family, prepared.encoder, shuffled, validation, (kind, config), settings)
    metrics = training.run_epoch()
    return {"metrics": metrics, "weights": training.family.state_dict()}


def evaluate(experiment: Experiment, folder: Path, rows: int, rank: int, world_size: int) -> dict[str, float]:
    prepared = Prepared.open(folder)
    seeds.set_all(0)
    family = trial.build_family(experiment, prepared.schema, ".")
    columns = batches.Held(batches.load(prepared, "validation").rows(slice(0, rows)))
    return Evaluation(family, prepared.encoder)(columns, "test", rank, world_size)


def drive(job: Job, rank: int, epochs: int) -> list[Any]:
    """Events of a trial on a rank; it is cut off after so many epochs."""
    steps = trial.run(job, Place(rank, RANKS, node=f"node-{rank}"))
    events: list[Any] = [next(steps)]
    while isinstance(events[-1], EpochEnded) and len(events) < epochs:
        events.append(steps.send(True))
    steps.close()
    return events


def normalise(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """The outputs, gradients and statistics of a normalisation over 7 images, of which the ranks have 4 and 3."""
    torch.manual_seed(0)
    images, wanted = torch.randn(7, 3, 5, 5) * 4 + 2, torch.randn(7, 3, 5, 5)
    mine = slice(None) if world_size == 1 else (slice(0, 4), slice(4, 7))[rank]
    norm = SyncBatchNorm2d(3) if world_size > 1 else torch.nn.BatchNorm2d(3)
    x = images[mine].clone().requires_grad_()
    out = norm(x)
    (out * wanted[mine]).sum().backward()
    assert x.grad is not None
    gradients = torch.stack([norm.weight.grad, norm.bias.grad])
    if world_size > 1:
        dist.all_reduce(gradients)
    statistics = torch.stack([norm.running_mean, norm.running_var])
    return {"out": out.detach(), "x": x.grad, "gradients": gradients, "statistics": statistics}


def rank_main(rank: int, folder: Path, data: Path, experiments: dict[str, Experiment]) -> None:
    """Everything that the tests look at, on one rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    found: dict[str, Any] = {name: train(experiments[name], data, rank, RANKS) for name in RUNS}
    found["metrics"] = {rows: evaluate(experiments["plain"], data, rows, rank, RANKS) for rows in (29, 1)}
    found["norm"] = normalise(rank, RANKS)
    found["own statistics"] = train(experiments["own statistics"], data, rank, RANKS)
    found["sync, accumulate"] = train(experiments["sync, accumulate"], data, rank, RANKS)
    job = Job(3, experiments["resumed"], str(data), f"{folder}/whole", ".", "fp32", 1, 3)
    found["whole"] = drive(job, rank, 99)
    cut = dataclasses.replace(job, checkpoints=f"{folder}/cut")
    drive(cut, rank, 1)
    dist.barrier()
    found["resumed"] = drive(dataclasses.replace(cut, resume=True), rank, 99)
    torch.save(found, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


@dataclasses.dataclass(frozen=True)
class Found:
    folder: Path
    ranks: list[dict[str, Any]]
    alone: dict[str, dict[str, Any]]
    experiments: dict[str, Experiment]


@pytest.fixture(scope="module")
def found(prepared: Prepared, make_experiment: MakeExperiment, tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("ranks")
    experiments = {name: make_experiment(*PLAIN, *overrides) for name, overrides in RUNS.items()}
    experiments["resumed"] = make_experiment(*RESUMED)
    experiments["own statistics"] = make_experiment(*PLAIN, "training.batch_size=31", "model.norm=batch")
    experiments["sync, accumulate"] = make_experiment(*PLAIN, "training={batch_size: 31, accumulate: 4, epochs: 1}", "model.norm=sync")
    mp.spawn(rank_main, (folder, prepared.folder, experiments), nprocs=RANKS)  # type: ignore[no-untyped-call]
    ranks = [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(RANKS)]
    alone = {name: train(experiments[name], prepared.folder, 0, 1) for name in RUNS}
    return Found(folder, ranks, alone, experiments)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_end_with_the_weights_of_one_process(name: str, found: Found) -> None:
    assert distance(found.ranks[0][name]["weights"], found.alone[name]["weights"]) < 1e-5


def test_ranks_with_unequal_pieces_meet_in_every_collective(found: Found) -> None:
    """16 and 15 rows in four pieces each: a rank with fewer pieces would leave the other one waiting in its normalisation."""
    first, second = (rank["sync, accumulate"]["weights"] for rank in found.ranks)
    assert distance(first, second) == 0
    assert all(bool(values.double().isfinite().all()) for values in first.values())


@pytest.mark.parametrize("name", RUNS)
def test_both_ranks_end_with_the_same_weights_to_the_last_bit(name: str, found: Found) -> None:
    assert distance(found.ranks[0][name]["weights"], found.ranks[1][name]["weights"]) == 0


@pytest.mark.parametrize("name", RUNS)
def test_every_rank_has_the_metrics_of_all_rows(name: str, found: Found) -> None:
    first, second, alone = found.ranks[0][name]["metrics"], found.ranks[1][name]["metrics"], found.alone[name]["metrics"]
    for key in ("train_loss", "val_loss", "val_accuracy", "lr"):
        assert first[key] == second[key]
        assert first[key] == pytest.approx(alone[key], rel=1e-5)


@pytest.mark.parametrize("rows", [29, 1])
def test_metrics_of_uneven_shards_are_exact(rows: int, found: Found, prepared: Prepared) -> None:
    alone = evaluate(found.experiments["plain"], prepared.folder, rows, 0, 1)
    for rank in found.ranks:
        assert rank["metrics"][rows]["test_accuracy"] == alone["test_accuracy"]
        assert rank["metrics"][rows]["test_loss"] == pytest.approx(alone["test_loss"], rel=1e-6)


def test_sync_normalisation_is_batch_normalisation_over_the_whole_batch(found: Found) -> None:
    alone = normalise(0, 1)
    for name in ("out", "x"):
        whole = torch.cat([rank["norm"][name] for rank in found.ranks])
        assert torch.allclose(whole, alone[name], atol=1e-5), name
    for rank in found.ranks:
        assert torch.allclose(rank["norm"]["gradients"], alone["gradients"], atol=1e-4)
        assert torch.allclose(rank["norm"]["statistics"], alone["statistics"], atol=1e-5)


def test_with_statistics_of_each_rank_s_own_those_of_rank_0_are_evaluated_and_kept(found: Found, prepared: Prepared) -> None:
    first, second = (rank["own statistics"] for rank in found.ranks)
    assert distance(first["weights"], second["weights"]) == 0  # buffers are among them
    family = trial.build_family(found.experiments["own statistics"], prepared.schema, ".")
    family.load_state_dict(first["weights"])
    columns = batches.Held(batches.load(prepared, "validation").rows(slice(0, 29)))
    alone = Evaluation(family, prepared.encoder)(columns, "val")
    assert first["metrics"]["val_accuracy"] == second["metrics"]["val_accuracy"] == alone["val_accuracy"]
    assert first["metrics"]["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-5)


def test_every_rank_yields_the_same_events_with_the_node_of_each(found: Found) -> None:
    first, second = (rank["whole"] for rank in found.ranks)
    assert [e.epoch for e in first[:-1]] == [e.epoch for e in second[:-1]] == [1, 2, 3]
    assert [e.metrics["val_loss"] for e in first[:-1]] == [e.metrics["val_loss"] for e in second[:-1]]
    assert {(e[-1].state, e[-1].nodes, e[-1].trial) for e in (first, second)} == {("finished", ("node-0", "node-1"), 3)}


def test_two_ranks_cut_off_and_resumed_end_with_the_weights_of_two_that_were_not(found: Found) -> None:
    whole, cut = (checkpoint.load(str(found.folder / name))["training"] for name in ("whole", "cut"))
    assert whole["step"] == cut["step"] == 9
    assert distance(whole["model"], cut["model"]) == 0


def test_the_ranks_drop_out_different_cells(found: Found) -> None:
    """Both have drawn as many numbers, for shares of the same size."""
    first, second = checkpoint.load(str(found.folder / "whole"))["ranks"]
    assert not torch.equal(first["seeds"]["torch"], second["seeds"]["torch"])
