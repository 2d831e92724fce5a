"""Warm actors, one slot each."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.resources import Found
from orchestrator.errors import Note
from orchestrator.events import EpochEnded, Event, RunEnded, RunStarted
from orchestrator.execution import pool as pool_module
from orchestrator.execution.deaths import Past
from orchestrator.execution.executor import SlotEvent
from orchestrator.execution.inline import Inline
from orchestrator.execution.pool import Actor, Pool, Work
from orchestrator.execution.sweep import Judge, Rules, drive
from orchestrator.execution.watch import demanded, shortage
from orchestrator.execution.worker import About
from orchestrator.training import checkpoint
from orchestrator.training.job import Job
from tests.contracts.executor_contract import ExecutorContract, Jobs, MakeJob, alive, finish, finish_all, same, wait_until


@pytest.fixture(scope="module")
def pool(local_ray: Found) -> Iterator[Pool]:
    made = Pool(2, 0.5, 0)
    yield made
    made.close()


def test_two_workers_that_the_kernel_kills_at_once_have_both_died_for_want_of_memory(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both looks at the node find the two kills; a death after that is none of them."""
    made: Any = Pool.__new__(Pool)
    made.works, made.oom_kills, made._pending, made.leaving = {}, {"node": 5}, {}, SimpleNamespace(nodes=frozenset())
    made._replace = lambda actor: None
    looks: dict[str, int] = {}
    monkeypatch.setattr(pool_module, "on_node", lambda node, function: f"look {len(looks) + len(made._pending)}")
    monkeypatch.setattr(pool_module.ray, "get", looks.__getitem__)

    def dies(slot: int) -> Work:
        work = made.works[slot] = Work(slot, replace(make_job(trial=slot), logs=str(tmp_path)), slot, waits=False)
        actor = Actor(None, About("node", "host", 1, 5), work)
        assert made._died(actor, ValueError("SIGKILL")) == []
        made._settle(actor)
        return work

    first, second = dies(0), dies(1)
    looks.update(dict.fromkeys(made._pending, 7))
    assert [event for ref in list(made._pending) for event in made._heard(ref)] == []
    assert [work.past for work in (first, second)] == [Past(1, 1), Past(1, 1)]
    third = dies(2)
    looks.update(dict.fromkeys(made._pending, 7))
    (tmp_path / "rank-0.log").touch()
    third.past = Past(3)
    [(slot, ended)] = [event for ref in list(made._pending) for event in made._heard(ref)]
    assert (slot, ended.error) == (2, f"its worker died 4 times: SIGKILL; what it printed: {tmp_path}/rank-0.log")


def test_an_actor_that_starts_beside_one_that_the_kernel_has_just_killed_does_not_make_that_kill_an_old_one(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray says the death after it says that the other one is up, which has already counted the kill."""
    made: Any = Pool.__new__(Pool)
    made.works, made.oom_kills, made.leaving = {}, {"node": 5}, SimpleNamespace(nodes=frozenset())
    made._replace = lambda actor: None
    monkeypatch.setattr(pool_module, "on_node", lambda node, function: "look")
    monkeypatch.setattr(pool_module.ray, "get", {"up": About("node", "host", 2, 6), "look": 6}.__getitem__)
    work = made.works[0] = Work(0, make_job(trial=0), 0, waits=False)
    killed, starts = Actor(None, About("node", "host", 1, 5), work), Actor(None)
    made.actors, made._pending = [killed, starts], {"up": ("up", starts)}
    assert made._heard("up") == []
    assert made._died(killed, ValueError("SIGKILL")) == []
    made._settle(killed)
    assert made._heard("look") == []
    assert work.past == Past(1, 1)
    made._pending["up"] = ("up", starts)
    assert made._heard("up") == []
    assert made.oom_kills == {"node": 6}, "with nobody at work on the node a kill is another's"


def test_nothing_is_asked_of_the_head_before_it_has_answered_since_an_actor_died() -> None:
    """The head may have died with it, and a call that asks it for something would hang until Ray ends the process."""
    made: Any = Pool.__new__(Pool)
    looks, answers, asked = list[bool](), [False, True], list[Actor]()
    made.head = SimpleNamespace(check=lambda at_once: looks.append(at_once) or (answers.pop(0) if at_once else True))
    made.works, made.oom_kills, made._pending, made._failed_starts, made.slots = {}, {}, {}, 0, 1
    made.leaving, made.stall = SimpleNamespace(nodes=frozenset()), SimpleNamespace(progress=lambda: None)
    made._settle = asked.append
    actor = Actor(None)
    made.actors = [actor]
    assert made._died(actor, ValueError("SIGKILL")) == []
    made._look_around()
    assert (looks, asked) == ([False], []), "it is looked at in a moment: the others may be dying"
    assert actor.died_at is not None
    actor.died_at -= 1
    made._look_around()
    assert (looks, asked) == ([False, True], [])
    made._look_around()
    assert asked == [actor]


def test_a_verdict_on_a_trial_that_has_ended_or_waits_for_another_actor_meanwhile_goes_to_nobody(make_job: MakeJob) -> None:
    made: Any = Pool.__new__(Pool)
    made.works, made.actors, made._pending = {}, [], {}
    made.verdict(0, True)
    work = made.works[0] = Work(0, make_job(trial=0), 0, waits=False)
    made.actors = [Actor(SimpleNamespace(answer=None), None, work)]  # another actor, which has said nothing yet
    made.verdict(0, True)
    assert made._pending == {}


@pytest.mark.slow
class TestPool(ExecutorContract):
    @pytest.fixture
    def executor(self, pool: Pool) -> Pool:
        return pool

    def test_a_run_in_an_actor_ends_with_the_weights_that_it_has_in_this_process(self, executor: Pool, job: MakeJob) -> None:
        here, there = job(1), job(2)
        finish(Inline(), here)
        finish(executor, there)
        assert same(checkpoint.load(here.checkpoints)["weights"], checkpoint.load(there.checkpoints)["weights"])

    def test_a_ray_that_is_started_here_listens_on_this_machine_only(self, local_ray: Found) -> None:
        import ray

        port = int(ray.get_runtime_context().gcs_address.rpartition(":")[2])
        assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
        socket.create_connection(("127.0.0.1", port), 5).close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            try:
                asked.connect(("192.0.2.1", 9))  # sends nothing: which address would it be sent from?
            except OSError:
                pytest.skip("this machine has no address but loopback's")
            own = asked.getsockname()[0]
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((own, port), 5).close()

    def test_workers_import_neither_mlflow_nor_what_is_not_theirs(self, executor: Pool, job: MakeJob) -> None:
        finish(executor, job(1))
        import ray

        loaded = executor.actors[-1].handle.__ray_call__.remote(
            lambda self: sorted({"mlflow", "optuna", "torch", "torch._dynamo"} & set(__import__("sys").modules))
        )
        assert ray.get(loaded) == ["torch"]

    def test_workers_have_our_packages_whatever_their_working_folder_holds(self, executor: Pool) -> None:
        import ray

        import models

        where = executor.actors[0].handle.__ray_call__.remote(lambda self: __import__("models").__file__)
        assert ray.get(where) == models.__file__

    def test_no_slot_is_idle_while_there_are_trials_to_come_and_both_actors_work_at_the_same_time(
        self, executor: Pool, job: MakeJob
    ) -> None:
        trials, events = _Trials(8), list[Event]()
        watched = _Watched(executor, trials)

        def make(trial: int, values: dict[str, Any], resume: bool) -> tuple[Job, RunStarted]:
            return job(trial), RunStarted(trial, 0, values, {})

        drive(watched, Judge(trials, Rules("val_accuracy", "max")), make, events.extend)
        assert len(watched.busy) > 3
        assert set(watched.busy) == {2}, "a slot was idle although there were trials to come"
        first, second = (_intervals(events, watched, slot) for slot in (0, 1))
        assert len(first) + len(second) == 8
        assert any(a < d and c < b for a, b in first for c, d in second), "the actors never worked at the same time"


LONG = ("training.epochs=60", "training.batch_size=64")
EACH_EPOCH = "training.checkpoint_every={epochs: 1}"


@pytest.mark.slow
class TestDeaths(Jobs):
    """Real SIGKILLs of the actors' processes."""

    @pytest.mark.parametrize("answered", [True, False], ids=["in an epoch", "before the verdict"])
    def test_a_trial_whose_worker_is_killed_goes_on_and_the_other_one_is_not_disturbed(
        self, pool: Pool, job: MakeJob, answered: bool
    ) -> None:
        undisturbed, other, killed = job(1, "training.epochs=9"), job(2, *LONG), job(3, "training.epochs=9", EACH_EPOCH)
        finish(Inline(), undisturbed)

        def kill(slot: int, event: EpochEnded, before: bool) -> None:
            if slot == 1 and event.epoch == 4 and before != answered and not killings:
                killings.append(pid_of(pool, slot))
                os.kill(killings[0], signal.SIGKILL)

        killings: list[int] = []
        events = finish_all(pool, {0: other, 1: killed}, kill)
        assert [type(e).__name__ for e in events[0]] == ["EpochEnded"] * 60 + ["RunEnded"]
        assert [e.epoch for e in events[0] if isinstance(e, EpochEnded)] == list(range(1, 61))
        *epochs, ended = events[1]
        assert isinstance(ended, RunEnded)
        assert (ended.state, ended.error) == ("finished", None)
        assert killings
        assert [e.epoch for e in epochs if isinstance(e, EpochEnded)].count(1) == 1, "it began anew instead of at its checkpoint"
        one, two = (checkpoint.load(each.checkpoints) for each in (undisturbed, killed))
        assert same(one["training"]["model"], two["training"]["model"])
        assert same(one["weights"], two["weights"])

    def test_a_trial_whose_worker_dies_again_and_again_fails_and_the_slot_goes_on(self, pool: Pool, job: MakeJob) -> None:
        def kill(slot: int, event: EpochEnded, before: bool) -> None:
            if before and event.trial == 1:
                os.kill(pid_of(pool, slot), signal.SIGKILL)

        [events] = finish_all(pool, {1: job(1)}, kill).values()
        assert isinstance(events[-1], RunEnded)
        assert events[-1].state == "failed"
        assert (events[-1].error or "").startswith("its worker died 4 times: ")
        assert finish(pool, job(2))[-1].state == "finished"  # type: ignore[union-attr]

    def test_a_pool_gives_its_runs_time_for_a_checkpoint_in_the_middle_of_an_epoch_says_their_ends_and_leaves_no_process(
        self, local_ray: Found, job: MakeJob
    ) -> None:
        pool = Pool(2, 0.5, 0)
        assert pool.wait(0.1) == [], "the time is over"
        busy, asking = job(1, "training.epochs=100000", "training.batch_size=8"), job(2, "training.epochs=3")
        for slot, each in enumerate((busy, asking)):
            pool.start(slot, each)
        seen = set[int]()
        while seen != {0, 1}:
            for slot, _ in pool.wait():
                seen.add(slot)
                if slot == 0:
                    pool.verdict(slot, True)
        pids = [pid_of(pool, slot) for slot in (0, 1)]
        ends = {event.trial: event for _, event in pool.stop(60) if isinstance(event, RunEnded)}
        assert {trial: ended.state for trial, ended in ends.items()} == {1: "interrupted", 2: "stopped"}
        assert ends[1].best == checkpoint.load(busy.checkpoints)["best"]
        pool.close()
        assert checkpoint.load(busy.checkpoints)["history"]
        assert [row["epoch"] for row in checkpoint.load(asking.checkpoints)["history"]] == [1]
        wait_until(lambda: not any(alive(pid) for pid in pids))

    def test_workers_without_a_place_are_told_of_with_who_holds_it(self, pool: Pool, job: MakeJob) -> None:
        import ray

        class Holder:
            def there(self) -> bool:
                return True

        holder = ray.remote(Holder).options(num_cpus=1).remote()  # the other CPU is the fixture's
        assert ray.get(holder.there.remote())
        late = Pool(1, 1, 0, stall_s=2)
        try:
            late.start(0, job(1, "training.epochs=1"))
            with pytest.warns(Note) as said:  # noqa: PT031  its list is what the thread waits for
                threading.Thread(target=lambda: (wait_until(lambda: said.list), ray.kill(holder))).start()
                [(_, event)] = late.wait()
            assert re.match(
                r"no progress for \d+ s: 1 worker waits for 1 CPU; 0 of 2 CPU free; held by this command with", str(said.list[0].message)
            )
            late.verdict(0, True)
            [(_, ended)] = late.wait()
            assert (event.trial, ended.state) == (1, "finished")  # type: ignore[union-attr]
        finally:
            ray.kill(holder)
            late.close()

    def test_workers_that_have_their_place_and_still_start_are_not_said_to_lack_it(self, local_ray: Found) -> None:
        import ray

        class Slow:
            def __init__(self) -> None:
                time.sleep(6)

            def there(self) -> bool:
                return True

        each = {"CPU": 0.75}
        slow = [ray.remote(Slow).options(num_cpus=0.75).remote() for _ in range(2)]  # 1 of 2 CPUs is the pool's
        try:
            wait_until(lambda: ray.available_resources().get("CPU", 0) < 0.75)
            wait_until(lambda: demanded(each))
            assert (shortage(1, each, lambda: demanded(each)) or "").startswith("1 worker waits for 0.75 CPU; 0.25 of 2 CPU free")
            ray.kill(slow.pop())
            wait_until(lambda: not demanded(each))
            assert shortage(1, each, lambda: demanded(each)) is None
            assert ray.get(slow[0].there.remote())
        finally:
            for each_of in slow:
                ray.kill(each_of)


def pid_of(pool: Pool, slot: int) -> int:
    """The process that runs a slot's trial."""
    [pid] = [actor.about.pid for actor in pool.actors if actor.about and actor.work and actor.work.slot == slot]
    return pid


class _Trials:
    """So many trials; none is stopped."""

    def __init__(self, trials: int) -> None:
        self.left = list(range(trials))

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        return (self.left.pop(0), {}) if self.left else None

    def repeats(self, trial: int, values: dict[str, Any]) -> bool:
        return True

    def take(self, trial: int, values: dict[str, Any]) -> None:
        """Nothing to remember."""

    def learn(self, values: dict[str, Any], score: float) -> bool:
        return False

    def tell(self, trial: int, epoch: int, score: float) -> bool:
        return False

    def end(self, trial: int, failed: bool) -> None:
        """Nothing to learn."""


class _Watched:
    """An executor that notes how many slots are busy at each wait, as long as there are trials to come."""

    def __init__(self, inner: Pool, trials: _Trials) -> None:
        self.inner, self.slots, self.trials = inner, inner.slots, trials
        self.running: set[int] = set()
        self.busy: list[int] = []
        self.slot_of: dict[int | None, int] = {}

    def start(self, slot: int, job: Job) -> None:
        self.running.add(slot)
        self.slot_of[job.trial] = slot
        self.inner.start(slot, job)

    def wait(self, within_s: float | None = None) -> list[SlotEvent]:
        if self.trials.left:
            self.busy.append(len(self.running))
        found = self.inner.wait(within_s)
        self.running -= {slot for slot, event in found if isinstance(event, RunEnded)}
        return found

    def verdict(self, slot: int, go_on: bool) -> None:
        self.inner.verdict(slot, go_on)

    def stop(self, grace_s: float) -> list[SlotEvent]:
        return self.inner.stop(grace_s)

    def close(self, grace_s: float = 0) -> None:
        """The pool serves other tests."""


def _intervals(events: list[Event], watched: _Watched, slot: int) -> list[tuple[float, float]]:
    """When a slot was busy, by its workers' own clocks, in seconds."""
    ends = [e for e in events if isinstance(e, RunEnded) and watched.slot_of[e.trial] == slot]
    return [(e.at_ms / 1000 - e.wall_s, e.at_ms / 1000) for e in ends]
