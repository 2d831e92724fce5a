"""The executor in this process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.events import RunEnded
from orchestrator.execution.inline import Inline
from orchestrator.training import checkpoint
from tests.contracts.executor_contract import ExecutorContract, MakeJob, finish, same

PRESSES = """
import os
import signal

from models.cnn import CNN


class Net(CNN):
    '''Presses Ctrl-C in the middle of the first epoch, so often.'''

    presses, steps = 1, 0

    def forward(self, batch):
        Net.steps += self.training
        if Net.steps == 3 and self.training:
            for _ in range(Net.presses):
                os.kill(os.getpid(), signal.{sent})
        return super().forward(batch)
"""


class TestInline(ExecutorContract):
    @pytest.fixture
    def executor(self) -> Iterator[Inline]:
        made = Inline()
        yield made
        made.close()

    def test_closing_in_the_middle_of_a_run_leaves_a_checkpoint_to_go_on_from(self, executor: Inline, job: MakeJob) -> None:
        cut = job(1)
        executor.start(0, cut)
        executor.wait()
        executor.close()
        assert [row["epoch"] for row in checkpoint.load(cut.checkpoints)["history"]] == [1]

    def test_a_run_that_has_no_more_time_ends_in_the_middle_of_an_epoch_with_a_checkpoint(self, executor: Inline, job: MakeJob) -> None:
        cut = job(1, "training.epochs=100000", "training.batch_size=8")
        executor.start(0, cut)
        [(_, epoch)] = executor.wait()
        executor.verdict(0, True)
        assert executor.wait(0.02) == []
        [(slot, ended)] = executor.stop(10)
        assert isinstance(ended, RunEnded)
        assert (slot, ended.state) == (0, "interrupted")
        state = checkpoint.load(cut.checkpoints)
        assert ended.best == state["best"] == {"epoch": 1, "metrics": epoch.metrics}  # type: ignore[union-attr]
        assert state["training"]["step"] % 180 != 0, "it stopped with an epoch"

    @pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
    def test_a_signal_ends_a_run_in_the_middle_of_an_epoch_and_it_goes_on_exactly_there(
        self, executor: Inline, job: MakeJob, tmp_path: Path, sent: str
    ) -> None:
        (tmp_path / "presses.py").write_text(PRESSES.format(sent=sent))
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        whole, cut = job(1), job(2, "model={class: presses:Net, channels: [4], pool_after: [1], dropout: 0.2}")
        finish(Inline(), whole)
        executor.start(0, cut)
        [(_, ended)] = executor.wait()
        assert isinstance(ended, RunEnded)
        assert (ended.state, ended.error) == ("interrupted", None)
        assert checkpoint.load(cut.checkpoints)["history"] == []
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        finish(Inline(), replace(job(2), resume=True))
        one, two = (checkpoint.load(each.checkpoints) for each in (whole, cut))
        assert same(one["training"]["model"], two["training"]["model"])

    def test_the_second_signal_raises_at_once(self, executor: Inline, job: MakeJob, tmp_path: Path) -> None:
        (tmp_path / "presses.py").write_text(PRESSES.format(sent="SIGINT").replace("presses, steps = 1", "presses, steps = 2"))
        executor.start(0, job(1, "model={class: presses:Net, channels: [4], pool_after: [1]}"))
        with pytest.raises(KeyboardInterrupt):
            executor.wait()
