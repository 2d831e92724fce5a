"""Training from a stream: the same loop, the same scores, exact resuming, and nothing left behind."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import errors
from orchestrator.events import EpochEnded, RunEnded
from orchestrator.experiment.plan import DataFacts, Plan, Resources, make_plan
from orchestrator.training import checkpoint, trial
from orchestrator.training.evaluation import Evaluation
from orchestrator.training.job import Job, Place
from pipelines import batches
from pipelines import prepare as preparing
from pipelines.prepare import Prepared, prepare
from pipelines.splits import SplitConfig
from pipelines.stream import Streamed
from tests.conftest import CornersConfig, MakeExperiment, MakeJob, corners


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """150 rows, 90 of them to train, in groups of 16, two in a buffer."""
    monkeypatch.setattr(preparing, "ROW_GROUP", 16)
    monkeypatch.setattr("pipelines.stream.BUFFER_ROWS", 32)
    split = SplitConfig(train=0.6, validation=0.2, test=0.2)
    trial._DATA.clear()
    return prepare("corners", corners, CornersConfig(), split, tmp_path / "data")


@pytest.fixture
def make_streamed(make_job: MakeJob, data: Prepared) -> MakeJob:
    def make(*overrides: str, **options: Any) -> Job:
        return dataclasses.replace(make_job(*overrides, **options), data=str(data.folder), streamed=True)

    return make


def finish(job: Job, epochs: int = 99) -> list[Any]:
    """The events of a job, which is told to stop after so many epochs."""
    steps = trial.run(job)
    events: list[Any] = [next(steps)]
    while isinstance(events[-1], EpochEnded):
        events.append(steps.send(len(events) < epochs))
    return events


def scores(events: list[Any]) -> list[dict[str, float]]:
    """Metrics without times."""
    return [{k: v for k, v in e.metrics.items() if not k.endswith("_s")} for e in events if isinstance(e, EpochEnded)]


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_a_streamed_trial_learns_and_says_the_same_again(make_streamed: MakeJob) -> None:
    first, second = (finish(make_streamed("training.epochs=6", checkpoints=place)) for place in ("first", "second"))
    assert scores(first) == scores(second)
    assert scores(first)[-1]["val_accuracy"] >= 0.9
    assert scores(first)[-1]["train_loss"] < scores(first)[0]["train_loss"] / 2
    assert first[-1].state == "finished"


def test_a_streamed_trial_that_is_resumed_ends_as_one_that_was_not(make_streamed: MakeJob) -> None:
    options = ("training.epochs=4", "model.dropout=0.3", "optimizer.schedule=onecycle")
    whole, cut = make_streamed(*options, checkpoints="whole"), make_streamed(*options, checkpoints="cut")
    expected = scores(finish(whole))
    steps = trial.run(cut)
    next(steps), steps.send(True)
    steps.close()
    assert scores(finish(dataclasses.replace(cut, resume=True))) == expected[1:]
    ends = [checkpoint.load(job.checkpoints)["training"]["model"] for job in (whole, cut)]  # type: ignore[index]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("overrides", [("training.max_steps=2",), ("training.epochs=5",)])
def test_a_trial_that_ends_early_leaves_no_reader_behind(make_streamed: MakeJob, overrides: tuple[str, ...]) -> None:
    assert isinstance(finish(make_streamed(*overrides), epochs=1)[-1], RunEnded)
    assert readers() == []


def test_a_trial_that_diverges_leaves_no_reader_behind(make_streamed: MakeJob) -> None:
    ended = finish(make_streamed("optimizer={name: sgd, lr: 1.0e+30}", "model.norm=none"))[-1]
    assert (ended.state, "is nan" in ended.error or "is inf" in ended.error) == ("failed", True)
    assert readers() == []


def test_data_that_are_gone_in_the_middle_are_one_line(make_streamed: MakeJob, data: Prepared) -> None:
    steps = trial.run(make_streamed("training.epochs=3"))
    next(steps)
    data.file("train").unlink()
    ended = steps.send(True)
    assert isinstance(ended, RunEnded)
    assert ended.error is not None
    assert "train.parquet' was deleted, cut or changed since it was prepared" in ended.error
    assert "\n" not in ended.error


def test_scores_of_a_stream_are_those_of_memory_to_the_last_bit(data: Prepared, make_experiment: MakeExperiment) -> None:
    torch.manual_seed(0)
    family = trial.build_family(make_experiment(), data.schema, ".")
    evaluation = Evaluation(family, data.encoder)
    for part in ("train", "validation", "test"):
        assert evaluation(Streamed.of(data, part), part) == evaluation(batches.load(data, part), part)


def test_ranks_share_a_stream_s_rows_and_its_pieces(make_streamed: MakeJob) -> None:
    job = make_streamed("training={batch_size: 25, accumulate: 2}")
    made = trial._Trial(job, Place()).training.train
    ranks = [type(made)(made.part, 25, 0, rank, 2, 2) for rank in range(2)]  # type: ignore[attr-defined, call-arg]
    steps = [[(step.rows, step.total, len(step.pieces)) for step in rank.epoch(1)] for rank in ranks]
    assert steps == [[(13, 25, 2)] * 3 + [(8, 15, 2)], [(12, 25, 2)] * 3 + [(7, 15, 2)]]


# the plan -------------------------------------------------------------------------------------------------------------------------


def planned(make_experiment: MakeExperiment, size_bytes: int, *overrides: str) -> Plan:
    resources = Resources(4, memory_bytes=4_000_000_000)
    return make_plan("train", make_experiment(*overrides), resources, DataFacts(1000, 800, size_bytes), False, 1000)


def test_data_that_do_not_fit_in_memory_are_streamed_and_the_plan_says_why(make_experiment: MakeExperiment) -> None:
    made = planned(make_experiment, 3_000_000_000)
    assert (made.fits_in_memory, made.streamed) == (False, True)
    assert made.notes == (
        "3 GB of data don't fit in half of the 4 GB of memory: rows are read from disk while training (training.streaming)",
    )
    assert planned(make_experiment, 1_000_000_000) == dataclasses.replace(made, fits_in_memory=True, streamed=False, notes=())


@pytest.mark.parametrize(
    ("says", "size_bytes", "streamed", "note"),
    [
        ("always", 1000, True, "rows are read from disk while training: training.streaming says so"),
        ("never", 3_000_000_000, False, "training.streaming says never: it may run out of memory"),
    ],
)
def test_the_file_s_word_counts_for_more_than_the_size(
    make_experiment: MakeExperiment, says: str, size_bytes: int, streamed: bool, note: str
) -> None:
    made = planned(make_experiment, size_bytes, f"training.streaming={says}")
    assert made.streamed is streamed
    assert made.notes[0].endswith(note)


def test_every_worker_of_a_node_holds_a_copy(make_experiment: MakeExperiment) -> None:
    made = planned(make_experiment, 1_500_000_000, "scaling.workers=2")
    assert made.streamed
    assert made.notes[0].startswith("2 times 1.5 GB of data don't fit")


def test_another_word_is_refused(make_experiment: MakeExperiment) -> None:
    with pytest.raises(errors.ExperimentError, match=r"training.streaming: .*always"):
        make_experiment("training.streaming=sometimes")
