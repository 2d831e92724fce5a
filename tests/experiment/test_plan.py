"""The plan: which executor, how many at once, how precise, and why; a pure function."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import ExperimentError
from orchestrator.experiment.plan import Command, DataFacts, Plan, Resources, make_plan, trial_count
from tests.conftest import MakeExperiment

LAPTOP = Resources(4, memory_bytes=8_000_000_000)
CLUSTER = Resources(12, per_node=((4, 0), (4, 0), (4, 0)), cluster=True)
GPUS = Resources(16, 2, ((8, 1), (8, 1)), cluster=True)
DATA = DataFacts(rows=1000, train_rows=700, size_bytes=1_000_000, row_values=64)


@pytest.fixture
def plan(make_experiment: MakeExperiment) -> Any:
    def made(command: Command, *overrides: str, on: Resources = LAPTOP, data: DataFacts = DATA, mixed: bool = True) -> Plan:
        return make_plan(command, make_experiment(*overrides), on, data, mixed, parameters=1000)

    return made


@pytest.mark.parametrize(
    ("command", "overrides", "resources", "executor", "why"),
    [
        ("train", [], LAPTOP, "inline", "one worker and no cluster: in this process, nothing to start"),
        ("train", [], CLUSTER, "pool", "one worker, on the cluster"),
        ("train", ["scaling.workers=2"], LAPTOP, "ddp", "each run has 2 workers: a gang of processes with DDP inside"),
        ("sweep", [], LAPTOP, "pool", "each trial has one worker: warm processes take one trial after the other"),
        ("sweep", [], CLUSTER, "pool", "each trial has one worker: warm processes take one trial after the other"),
        ("train", ["scaling.workers=[1,2]"], LAPTOP, "ddp", "each run has 1 to 2 workers: a gang of processes with DDP inside"),
        ("sweep", ["scaling.workers=2"], CLUSTER, "ddp", "each run has 2 workers: a gang of processes with DDP inside"),
        ("train", ["training.executor=pool"], LAPTOP, "pool", "training.executor says so"),
        ("train", ["training.executor=ddp"], LAPTOP, "ddp", "training.executor says so"),
        ("sweep", ["sweep.executor=inline"], LAPTOP, "inline", "sweep.executor says so"),
        ("sweep", ["training.executor=inline"], LAPTOP, "pool", "each trial has one worker: warm processes take one trial after the other"),
    ],
)
def test_the_executor_follows_from_workers_and_cluster(
    plan: Any, command: Command, overrides: list[str], resources: Resources, executor: str, why: str
) -> None:
    made = plan(command, *overrides, on=resources)
    assert (made.executor, made.why) == (executor, why)


@pytest.mark.parametrize(
    ("command", "overrides", "resources", "says"),
    [
        (
            "train",
            ["scaling.workers=500"],
            LAPTOP,
            "scaling.workers: 500 workers of 1 CPUs don't fit: this machine has 4 CPUs; lower scaling.workers or scaling.cpus_per_worker",
        ),
        (
            "sweep",
            ["scaling.workers=500"],
            CLUSTER,
            "scaling.workers: 500 workers of 1 CPUs don't fit: the cluster has 12 CPUs; lower scaling.workers or scaling.cpus_per_worker",
        ),
        (
            "sweep",
            ["scaling={workers: 2, cpus_per_worker: 3}"],
            LAPTOP,
            "scaling.workers: 2 workers of 3 CPUs don't fit: this machine has 4 CPUs; lower scaling.workers or scaling.cpus_per_worker",
        ),
        (
            "sweep",
            ["scaling.cpus_per_worker=5"],
            CLUSTER,
            "scaling.workers: 1 workers of 5 CPUs don't fit: the cluster has 12 CPUs; lower scaling.workers or scaling.cpus_per_worker",
        ),
        (
            "train",
            ["scaling.workers=[5,9]"],
            LAPTOP,
            "scaling.workers: 5 workers of 1 CPUs don't fit: this machine has 4 CPUs; lower scaling.workers or scaling.cpus_per_worker",
        ),
        (
            "train",
            ["scaling.gpus_per_worker=1"],
            LAPTOP,
            "scaling.gpus_per_worker: 1 workers of 4 CPUs and 1 GPUs don't fit: this machine has 4 CPUs and 0 GPUs; "
            "lower scaling.gpus_per_worker",
        ),
        (
            "train",
            ["scaling.workers=2", "training.executor=inline"],
            LAPTOP,
            "training.executor: 'inline' runs trials of one worker, and scaling.workers is 2; take ddp",
        ),
        (
            "sweep",
            ["scaling.workers=2", "sweep.executor=pool"],
            LAPTOP,
            "sweep.executor: 'pool' runs trials of one worker, and scaling.workers is 2; take ddp",
        ),
        (
            "train",
            ["training.executor=inline"],
            CLUSTER,
            "training.executor: 'inline' runs in this process, not on a cluster; take pool",
        ),
        (
            "train",
            [],
            Resources(0, cluster=True),
            "scaling.workers: 1 workers of 1 CPUs don't fit: the cluster has 0 CPUs; lower scaling.workers or scaling.cpus_per_worker",
        ),
    ],
)
def test_what_can_never_be_placed_is_refused_with_both_numbers(
    plan: Any, command: Command, overrides: list[str], resources: Resources, says: str
) -> None:
    with pytest.raises(ExperimentError) as caught:
        plan(command, *overrides, on=resources)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("overrides", "resources", "slots", "cpus", "threads"),
    [
        ([], LAPTOP, 4, 1, 1),
        (["scaling.cpus_per_worker=0.5"], LAPTOP, 8, 0.5, 1),
        (["scaling.cpus_per_worker=2"], LAPTOP, 2, 2, 2),
        (["scaling.cpus_per_worker=3"], CLUSTER, 3, 3, 3),  # one on each node: what is left of a node joins no other
        (["scaling.workers=2"], LAPTOP, 2, 1, 1),
        (["scaling.workers=[1,2]"], LAPTOP, 2, 1, 1),
        (["scaling.workers=[1,9]"], LAPTOP, 1, 1, 1),  # what is there for the fewest is enough
        (["sweep.max_concurrent=3"], LAPTOP, 3, 1, 1),
        (["sweep.trials=2"], LAPTOP, 2, 1, 1),
        (["sweep.executor=inline"], LAPTOP, 1, 1, 1),
        (["scaling={gpus_per_worker: 0.25}"], GPUS, 8, 1, 1),
        ([], GPUS, 2, 1, 1),
    ],
)
def test_as_many_trials_at_once_as_fit_and_are_asked_for(
    plan: Any, overrides: list[str], resources: Resources, slots: int, cpus: float, threads: int
) -> None:
    made = plan("sweep", *overrides, on=resources)
    assert (made.slots, made.cpus, made.threads) == (slots, cpus, threads)


@pytest.mark.parametrize(
    ("overrides", "resources", "cpus", "gpus"),
    [
        ([], LAPTOP, 4, 0),
        (["scaling.workers=2"], LAPTOP, 2, 0),
        (["scaling.workers=3"], LAPTOP, 1, 0),
        ([], CLUSTER, 4, 0),  # a worker lies on one node
        (["scaling.workers=2"], GPUS, 8, 1),
        (["scaling={workers: 2, gpus_per_worker: 0}"], GPUS, 8, 0),
        (["scaling.workers=[1,4]"], GPUS, 4, 1),
        (["scaling.workers=4"], GPUS, 4, 0),  # two GPUs are too few for four workers, so none is taken by default
        ([], Resources(0.5), 0.5, 0),
    ],
)
def test_a_run_of_its_own_takes_what_there_is(plan: Any, overrides: list[str], resources: Resources, cpus: float, gpus: float) -> None:
    made = plan("train", *overrides, on=resources)
    assert (made.cpus, made.gpus, made.slots, made.trials) == (cpus, gpus, 1, 1)


@pytest.mark.parametrize(
    ("overrides", "resources", "row_values", "mixed", "precision", "why"),
    [
        ([], LAPTOP, 1000, True, "fp32", "a CPU without bfloat16"),
        ([], Resources(4, bf16=True), 784, True, "bf16", "this CPU multiplies bfloat16"),
        ([], Resources(4, bf16=True), 64, True, "fp32", "small rows: the casts would cost more than they save"),
        ([], GPUS, 64, True, "bf16", "a GPU"),
        ([], GPUS, 64, False, "fp32", "the family gains nothing from less"),
        (["scaling.gpus_per_worker=0"], GPUS, 64, True, "fp32", "a CPU without bfloat16"),
        (["training.precision=fp16"], LAPTOP, 64, False, "fp16", "training.precision says so"),
    ],
)
def test_precision_is_lowered_only_where_it_pays(
    plan: Any, overrides: list[str], resources: Resources, row_values: int, mixed: bool, precision: str, why: str
) -> None:
    made = plan("train", *overrides, on=resources, data=DataFacts(1000, 700, 1, row_values), mixed=mixed)
    assert (made.precision, made.precision_why) == (precision, why)


@pytest.mark.parametrize(
    ("overrides", "epochs"),
    [
        (["training={epochs: 5, batch_size: 64}"], 5),
        (["training={epochs: 5, batch_size: 64, max_steps: 22}"], 2),  # 11 steps an epoch
        (["training={epochs: 5, batch_size: 64, max_steps: 23}"], 3),
        (["training={epochs: 5, batch_size: 64, max_steps: 1}"], 1),
        (["training={epochs: 5, batch_size: 64, max_steps: 9999}"], 5),
    ],
)
def test_epochs_end_with_the_last_step(plan: Any, overrides: list[str], epochs: int) -> None:
    made = plan("train", *overrides)
    assert (made.epochs, made.steps_per_epoch) == (epochs, 11)


def test_a_grace_period_above_the_epochs_is_lowered_with_a_note(plan: Any) -> None:
    scheduler = "sweep.scheduler={name: asha, grace_period: 9}"
    assert plan("sweep", scheduler).notes == ("sweep.scheduler.grace_period lowered from 9 to the 2 epochs that a trial has",)
    assert plan("sweep", scheduler, "training.epochs=9").notes == ()
    assert plan("train", scheduler).notes == ()
    assert plan("sweep", "sweep.scheduler={name: none, grace_period: 9}").notes == ()


@pytest.mark.parametrize(
    ("size_bytes", "overrides", "fits"),
    [(900_000_000, [], True), (1_100_000_000, [], False), (1_100_000_000, ["sweep.max_concurrent=1"], True)],
)
def test_data_fit_in_memory_if_every_slot_s_copy_takes_less_than_half(plan: Any, size_bytes: int, overrides: list[str], fits: bool) -> None:
    assert plan("sweep", *overrides, data=DataFacts(1000, 700, size_bytes)).fits_in_memory is fits


def test_disk_holds_two_checkpoints_of_every_trial_and_one_more_of_each_that_runs(plan: Any) -> None:
    """Each of weights, best weights and two moments, and of what doesn't grow with the network."""
    few, many = (plan("sweep", f"sweep.trials={trials}", "sweep.max_concurrent=2") for trials in (10, 20))
    assert few.slots == many.slots == 2
    assert few.disk_bytes / (2 * 10 + 2) == many.disk_bytes / (2 * 20 + 2)
    assert few.disk_bytes > 4 * 4 * 1000 * (2 * 10 + 2)


@pytest.mark.parametrize(("trials", "count"), [(100, 6), (4, 4)])
def test_a_grid_ends_when_it_is_exhausted(make_experiment: MakeExperiment, trials: int, count: int) -> None:
    space = "space: {optimizer.lr: {choice: [0.1, 0.2]}, model.dropout: {choice: [0, 0.1, 0.2]}}"
    assert trial_count(make_experiment(f"sweep={{search: grid, trials: {trials}, {space}}}")) == count
    assert trial_count(make_experiment(f"sweep={{search: random, trials: {trials}, {space}}}")) == trials
