"""Warm gangs: several workers a trial."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cluster.resources import Found
from orchestrator.execution.ddp import Gangs
from orchestrator.execution.inline import Inline
from orchestrator.training import checkpoint
from tests.contracts.executor_contract import ExecutorContract, MakeJob, finish


@pytest.fixture(scope="module")
def gangs(ray_session: Found) -> Iterator[Gangs]:
    made = Gangs(1, 2, 0.5, 0)
    yield made
    made.close()


@pytest.mark.slow
class TestGangs(ExecutorContract):
    @pytest.fixture
    def executor(self, gangs: Gangs) -> Gangs:
        return gangs

    def test_a_run_names_the_node_of_each_rank(self, executor: Gangs, job: MakeJob) -> None:
        assert len(finish(executor, job(1))[-1].nodes) == 2  # type: ignore[union-attr]

    def test_two_ranks_learn_what_one_learns(self, executor: Gangs, job: MakeJob) -> None:
        plain = ("model.dropout=0.0", "model.norm=none")  # batch statistics and dropout are each rank's own
        one, two = job(1, *plain), job(2, *plain)
        finish(Inline(), one)
        finish(executor, two)
        alone, together = (checkpoint.load(each.checkpoints)["training"]["model"] for each in (one, two))
        assert alone.keys() == together.keys()
        assert max(float((alone[name] - together[name]).abs().max()) for name in alone) < 1e-5
        assert not torch.equal(alone["classifier.2.weight"], torch.zeros_like(alone["classifier.2.weight"]))

    def test_a_closed_gang_ends_its_threads(self, ray_session: Found, gangs: Gangs) -> None:
        gangs.close()
        assert not any(thread.is_alive() for thread in gangs.threads)
        assert gangs.broken == {}
