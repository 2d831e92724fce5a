"""Warm gangs: several workers a trial."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError
from ray.train import ControllerError

from cluster.resources import Found
from orchestrator.errors import Lost, Note
from orchestrator.events import EpochEnded, RunEnded
from orchestrator.execution.ddp import Gangs, shares
from orchestrator.execution.deaths import MAX_RESTARTS
from orchestrator.execution.gang import _Member
from orchestrator.execution.hub import Hub
from orchestrator.execution.inline import Inline
from orchestrator.execution.messages import Answer, Heard, Rank, State
from orchestrator.training import checkpoint
from tests.contracts.executor_contract import ExecutorContract, Jobs, MakeJob, alive, finish, finish_all, same, wait_until

LONG = ("training.epochs=30", "training.batch_size=64", "model.norm=none")


@pytest.fixture(scope="module")
def gangs(local_ray: Found) -> Iterator[Gangs]:
    made = Gangs(2, (2, 2), 0.5, 0, timeout_s=20)
    yield made
    made.close()


@pytest.mark.parametrize(("fits", "broken"), [(1, False), (MAX_RESTARTS, False), (MAX_RESTARTS + 1, True)])
def test_a_gang_whose_rank_dies_while_the_others_start_is_started_anew_a_few_times(fits: int, broken: bool) -> None:
    made: Any = Gangs.__new__(Gangs)
    made._closed, made.broken = False, {}
    made.hub = SimpleNamespace(_actor_id=SimpleNamespace(hex=lambda: "ab"))
    errors = [ControllerError(RayActorError("cd")) for _ in range(fits)]
    made._trainer = lambda *given: SimpleNamespace(fit=lambda: raise_next(errors))
    made._fit(3, None, 0)
    assert (errors, list(made.broken)) == ([], [3] if broken else [])


def test_a_gang_that_ends_for_another_reason_or_since_the_hub_died_is_not_started_anew() -> None:
    made: Any = Gangs.__new__(Gangs)
    made.hub = SimpleNamespace(_actor_id=SimpleNamespace(hex=lambda: "ab"))
    for error in (ControllerError(RayActorError("ab")), ControllerError(ValueError("no")), ValueError("no")):
        made._closed, made.broken = False, {}
        errors = [error]
        made._trainer = lambda *given, errors=errors: SimpleNamespace(fit=lambda: raise_next(errors))
        made._fit(0, None, 0)
        assert list(made.broken) == [0]


@pytest.mark.parametrize("timeout_s", [8, 20, 600, 86400])
def test_a_rank_that_hangs_is_found_within_the_time_that_the_experiment_says(timeout_s: float) -> None:
    collective_s, settle_s = shares(timeout_s)
    assert collective_s + settle_s == timeout_s
    assert collective_s >= 0.75 * timeout_s
    assert settle_s >= 2, "each of the others is to say that it gave up"


def test_a_gang_that_starts_is_asked_to_leave_its_node_when_it_is_up() -> None:
    made: Any = Gangs.__new__(Gangs)
    asked = list[int]()
    made.hub = SimpleNamespace(move=SimpleNamespace(remote=asked.append))
    made.head = SimpleNamespace(check=lambda: None)
    made.leaving, made.stall = SimpleNamespace(nodes=frozenset({"node"})), SimpleNamespace(progress=lambda: None)
    made.moved, made.running = set(), {}
    for up in (False, False, True, True):
        made.heard = Heard([], [], [State(up, frozenset({"node"}), None, None, None)])
        made._look_around()
    assert asked == [0], "once, and not while nobody would hear it"


def raise_next(errors: list[Exception]) -> None:
    if errors:
        raise errors.pop()


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

    def test_a_rank_that_is_killed_brings_its_gang_back_to_the_trial_and_the_other_gang_is_not_disturbed(
        self, executor: Gangs, job: MakeJob
    ) -> None:
        undisturbed, killed = job(1, *LONG), job(2, *LONG, "training.checkpoint_every={epochs: 1}")

        def kill(slot: int, event: EpochEnded, before: bool) -> None:
            if slot == 1 and event.epoch == 5 and not before and not killings:
                killings.append(rank_of(executor, 1, 1).pid)
                os.kill(killings[0], signal.SIGKILL)

        killings: list[int] = []
        events = finish_all(executor, {0: undisturbed, 1: killed}, kill)
        assert [e.epoch for e in events[0] if isinstance(e, EpochEnded)] == list(range(1, 31))
        assert [e.state for slot in events for e in events[slot] if isinstance(e, RunEnded)] == ["finished", "finished"]
        epochs = [e.epoch for e in events[1] if isinstance(e, EpochEnded)]
        assert set(epochs) == set(range(1, 31))
        assert epochs.count(1) == 1, "it began anew instead of at its checkpoint"
        one, two = (checkpoint.load(each.checkpoints) for each in (undisturbed, killed))
        assert same(one["training"]["model"], two["training"]["model"])
        assert same(one["weights"], two["weights"])

    @pytest.mark.parametrize("number", [0, 1])
    def test_a_rank_that_hangs_is_found_named_and_ended_and_its_trial_goes_on(self, executor: Gangs, job: MakeJob, number: int) -> None:
        stopped: list[Rank] = []

        def stop(slot: int, event: EpochEnded, before: bool) -> None:
            if event.epoch == 2 and not before and not stopped:
                stopped.append(rank_of(executor, 1, number))
                os.kill(stopped[0].pid, signal.SIGSTOP)

        with pytest.warns(Note) as said:
            [events] = finish_all(executor, {1: job(1, *LONG)}, stop).values()
        assert events[-1].state == "finished"  # type: ignore[union-attr]
        [rank] = stopped
        [note] = [str(w.message) for w in said if "hung" in str(w.message)]
        assert note.startswith(
            f"rank {number} of trial 1 hung: on node {rank.node} ({rank.host}), pid {rank.pid}, it didn't answer within 20 s"
        )
        assert not alive(rank.pid)

    def test_a_gang_gives_its_run_time_for_a_checkpoint_says_its_end_and_leaves_nothing(
        self, local_ray: Found, gangs: Gangs, job: MakeJob
    ) -> None:
        import ray

        cut = job(1, "training.epochs=100000", "training.batch_size=16")
        gangs.start(1, cut)
        for _ in range(2):
            assert len(gangs.wait()) == 1
            gangs.verdict(1, True)
        ranks = ray.get(gangs.hub.__ray_call__.remote(lambda hub: [rank for gang in hub.gangs for rank in gang.ranks.values()]))
        pids = [rank.pid for rank in ranks]
        assert len(set(pids)) == 4
        assert gangs.wait(0) == [], "the time is over"
        *_, (slot, ended) = gangs.stop(60)
        assert isinstance(ended, RunEnded)
        assert (slot, ended.trial, ended.state) == (1, 1, "interrupted")
        assert (len(ended.nodes), ended.wall_s > 0, ended.best is not None) == (2, True, True)
        gangs.close()
        assert len(checkpoint.load(cut.checkpoints)["history"]) >= 2
        assert gangs.broken == {}
        assert not any(thread.is_alive() for thread in gangs.threads)
        wait_until(lambda: not any(alive(pid) for pid in pids))
        wait_until(lambda: {group["state"] for group in ray.util.placement_group_table().values()} <= {"REMOVED"})

    def test_a_hub_that_dies_ends_the_command_resumable(self, local_ray: Found, job: MakeJob) -> None:
        import ray

        gangs = Gangs(1, (2, 2), 0.5, 0)
        try:
            gangs.start(0, job(1))
            ray.kill(gangs.hub)
            with pytest.raises(Lost, match="the actor between the workers and this command died"):
                gangs.wait()
        finally:
            gangs.close(60)
            for thread in gangs.threads:  # Ray Train's end, which it comes to by itself; a Ray that is shut down under it is another matter
                thread.join(240)
        assert not any(thread.is_alive() for thread in gangs.threads)

    def test_a_rank_whose_hub_is_dead_ends_with_a_line_as_if_it_had_been_told_to(
        self, local_ray: Found, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import ray

        hub, rank = ray.remote(Hub).options(num_cpus=0).remote(1, 1), _Member.__new__(_Member)
        assert rank._tell(hub.next.remote(0, 0.01)) is Answer.WAIT
        ray.kill(hub)
        assert rank._tell(hub.next.remote(0, 0.01)) is Answer.END
        assert "died: this process ends" in capsys.readouterr().err


@pytest.mark.long
class TestThree(Jobs):
    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_among_three_ranks_the_one_that_hangs_is_named_though_the_others_lose_each_other_too(
        self, local_ray: Found, job: MakeJob, number: int
    ) -> None:
        """gloo closes the connections of a rank whose collective timed out."""
        gangs, stopped = Gangs(1, (3, 3), 0.5, 0, timeout_s=20), list[Rank]()

        def stop(slot: int, event: EpochEnded, before: bool) -> None:
            if event.epoch == 2 and not before and not stopped:
                stopped.append(rank_of(gangs, 0, number))
                os.kill(stopped[0].pid, signal.SIGSTOP)

        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", Note)
                [events] = finish_all(gangs, {0: job(0, *LONG)}, stop).values()
        finally:
            gangs.close(10)
        assert events[-1].state == "finished"  # type: ignore[union-attr]
        notes = [str(each.message) for each in said if "hung" in str(each.message)]
        assert [note.partition(" hung")[0] for note in notes] == [f"rank {number} of trial 0"]


def rank_of(gangs: Gangs, slot: int, number: int) -> Rank:
    """Where a rank of the gang is that is at a slot's job, asked of the hub."""
    import ray

    asked = gangs.hub.__ray_call__.remote(lambda hub: [gang.ranks[number] for gang in hub.gangs if gang.work and gang.work.slot == slot])
    [found] = ray.get(asked)
    assert isinstance(found, Rank)
    return found
