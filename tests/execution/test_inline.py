"""The executor in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.execution.inline import Inline
from orchestrator.training import checkpoint
from tests.contracts.executor_contract import ExecutorContract, MakeJob


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
