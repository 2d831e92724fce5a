"""One start of `train` or `sweep`: from the experiment file to a closed entry in the ledger and a bundle of the winner."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cluster
import models
import orchestrator
import pipelines
from cluster.connect import ClusterError, connect
from cluster.resources import Found, this_machine
from orchestrator import resuming
from orchestrator.asking import Asked, home, plan_of, sent_to_cluster
from orchestrator.beside import Beside
from orchestrator.closing import closing, conclude, warm_up
from orchestrator.deployment import scoring
from orchestrator.errors import Failed, Interrupted, Lost, Note, OrchestratorError, Refused, Taken
from orchestrator.events import Event
from orchestrator.execution.executor import GRACE_S, Executor
from orchestrator.execution.inline import Inline
from orchestrator.execution.sweep import drive
from orchestrator.experiment.config import ScalingConfig
from orchestrator.experiment.plan import Command, Plan
from orchestrator.outcome import Ended, Outcome, failure, outcome
from orchestrator.records import provenance
from orchestrator.records.driving import driving
from orchestrator.records.ledger import Launch, Ledger, new_id
from orchestrator.records.tracking import check_store, destination
from orchestrator.training.failure import one_line
from orchestrator.trials import Trials
from pipelines.stream import Streamed

Show = Callable[[Event | Plan], None]
FINISH_S = 20.0  # how long an ending command waits for an MLflow that doesn't answer
SOON_S = 15.0  # ... one that was interrupted
AT_ONCE_S = 1.0  # ... twice
HOOK = "orchestrator.execution.set_up_worker"


def run(command: Command, asked: Asked, address: str | None, show: Show, resume: str | None = None) -> Outcome:
    """Run it: everything recorded as it happens, the winner's bundle at the end. An interrupt gives an outcome too.

    `resume`: the id of the launch to go on with, or resuming.NEWEST or IF_ANY.
    """
    try:
        return _run(command, asked, address, show, resume)
    except KeyboardInterrupt as pressed:  # once more, while it ended: what was to be said is said all the same
        said: BaseException | None = pressed
        while said is not None and not isinstance(said, OrchestratorError):
            said = said.__context__
        raise (said or pressed) from None


def _run(command: Command, asked: Asked, address: str | None, show: Show, resume: str | None) -> Outcome:
    check_store(destination())
    began = time.time()
    beside = Beside(home(), asked.experiment)
    earlier = resuming.earlier(command, asked, resume) if resume is not None else None
    with contextlib.ExitStack() as held:
        connected = held.enter_context(contextlib.ExitStack())
        found = connected.enter_context(_connected(address, 1, 0)) if address is not None else this_machine()
        plan = plan_of(command, asked, found, on_cluster=address is not None)
        show(plan)
        if address is not None:
            asked = dataclasses.replace(asked, sent=sent_to_cluster(asked))
        ledger, launch_id = Ledger(home()), earlier.id if earlier is not None else new_id()
        again = resuming.command_of(command, asked, address, launch_id)
        held.enter_context(driving(home(), launch_id))
        beside.start()  # MLflow is imported while Ray starts
        try:
            idle = earlier is not None and resuming.is_idle(command, asked, plan, ledger, earlier.id)
            if address is None and plan.executor != "inline" and not idle:
                connected.enter_context(_connected(None, plan.threads, found.cpus))
            launch = resuming.reopen(ledger, earlier) if earlier is not None else _begin(ledger, command, asked, plan, launch_id)
            try:
                beside.follow(ledger, launch)
                asked = dataclasses.replace(asked, network=None)  # it may be large, and each trial makes its own
                ended = _drive(command, asked, plan, ledger, launch, _both(show, beside), idle)
            except BaseException as reason:
                raise _cut_short(ledger, launch, reason, again) from reason
        except BaseException as reason:  # what is recorded is sent, then it is raised again
            hurried = isinstance(reason.__cause__ or reason, KeyboardInterrupt)
            with contextlib.suppress(OrchestratorError):
                beside.finish(_state(reason), AT_ONCE_S if hurried else FINISH_S, error=str(reason))
            if earlier is not None and isinstance(reason, KeyboardInterrupt):  # before it went on
                raise Interrupted(f"interrupted; to go on: {again}") from None
            if isinstance(reason, KeyboardInterrupt):
                raise Interrupted(
                    "interrupted before anything had begun: there is nothing to resume, type the same command again"
                ) from None
            raise
        beside.stop()
        connected.close()
        winner = None if ended.winner is None else ended.winner.run.trial
        sent = beside.finish(ended.state, FINISH_S if ended.why is None else SOON_S, winner, ended.error or ended.why)
    done = outcome(ledger, launch, plan, ended, sent, time.time() - began, "" if beside.is_taken else again)
    ledger.close()
    return done


def _both(show: Show, beside: Beside) -> Show:
    def each(event: Event | Plan) -> None:
        show(event)
        beside(event)

    return each


def _cut_short(ledger: Ledger, launch: Launch, reason: BaseException, again: str) -> OrchestratorError:
    """The launch's end is recorded, whatever ended it; what is to be raised. An error of nobody's making keeps its trace in a file."""
    state = _state(reason)
    if isinstance(reason, KeyboardInterrupt):
        says = "interrupted; all that was done is recorded"
    elif isinstance(reason, OrchestratorError):
        says = str(reason)
    else:
        trace = home() / f"error-{launch.id}.txt"
        with contextlib.suppress(OSError):  # a full disk
            trace.write_text("".join(traceback.format_exception(reason)))
        says = f"{one_line(reason, Path(launch.folder))}; the whole trace: {trace}"
    with contextlib.suppress(Lost):  # a full disk: it is what is raised already
        ledger.note(launch.id, None, "closed", closing(launch, state, [], None, says))
    return (Interrupted if state == "interrupted" else Failed)(f"{says}; to go on: {again}")


def _state(reason: BaseException) -> str:
    """The state of a launch that ended by raising."""
    return "interrupted" if isinstance(reason, KeyboardInterrupt | Interrupted) else "failed"


@contextlib.contextmanager
def _connected(address: str | None, threads: int, cpus: float) -> Iterator[Found]:
    packages = {m.__name__: Path(m.__file__ or "").parent for m in (orchestrator, models, pipelines, cluster)}
    env = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"]}
    try:
        with connect(address, HOOK, packages, orchestrator.__version__, env, cpus) as found:
            yield found
    except ClusterError as error:
        raise Refused(str(error), key="--address") from None


def _begin(ledger: Ledger, command: Command, asked: Asked, plan: Plan, launch_id: str) -> Launch:
    experiment, prepared, look = asked.experiment, asked.prepared, asked.prepared.look()
    if look.get("leak"):
        warnings.warn(f"the data leak: {look['leak']}", Note, stacklevel=1)
    if look.get("shortage"):
        warnings.warn(look["shortage"], Note, stacklevel=1)
    about = provenance.collect(asked.folder) | {
        "source": f"orchestrator {command} {asked.path}",
        "overrides": list(asked.overrides),
        "plan": dataclasses.asdict(plan),
        "data": {
            "source": experiment.data.source,
            "path": experiment.data.options.get("path"),
            "columns": [{"type": c.kind, "name": c.name} for c in (*prepared.schema.inputs, prepared.schema.target)],
            "rows": dict(prepared.rows),
            "optimum": dict(prepared.optimum),
            "leaks": look.get("duplicates", {}).get("across", {}),
        },
        "baseline": _baseline(asked),
        "protocol": asked.family.protocol,
    }
    launch = Launch(
        launch_id, command, experiment.name, experiment.plain(), experiment.metric, experiment.mode, prepared.fingerprint,
        str(asked.folder), about, int(time.time() * 1000),
    )  # fmt: skip
    ledger.launch(launch)
    return launch


def _baseline(asked: Asked) -> dict[str, Any]:
    """What knowing nothing of the inputs is worth on validation: its name, and its metrics."""
    assert asked.network is not None
    prepared = asked.prepared
    scores = scoring.baseline(asked.network, prepared.encoder, Streamed.of(prepared, "validation"), "val")
    return {"name": asked.network.baseline_name, "metrics": scores} if scores else {}


def _drive(command: Command, asked: Asked, plan: Plan, ledger: Ledger, launch: Launch, show: Show, idle: bool) -> Ended:
    """Run every trial, then conclude. `idle`: none is left to run, so no workers are started."""

    def append(events: Sequence[Event]) -> None:
        ledger.append(launch.id, events)
        for event in events:
            show(event)

    why: str | None = None
    error: str | None = None
    full: str | None = None  # what is used up of the budget
    grace_s = GRACE_S
    executor = Inline() if idle else make_executor(plan, asked.experiment.scaling)  # its workers start while the search is made
    try:
        begun = resuming.begin(command, asked, plan, ledger, launch.id)
        if plan.executor != "inline":
            warm_up(asked.family.task)
        trials = Trials(asked, plan, launch)
        full = drive(executor, begun.judge, trials.make, append, begun.under_way, trials.kept)
    except KeyboardInterrupt:
        why = "interrupted"
        warnings.warn(
            f"interrupted: runs under way write a checkpoint at their next step, within {GRACE_S:g} s; a second Ctrl-C ends them at once",
            Note,
            stacklevel=1,
        )
    except Lost as lost:
        why = error = str(lost)
        if isinstance(lost, Taken):
            grace_s = 0  # the checkpoints are another command's
    finally:
        executor.close(grace_s)
    results = ledger.results(launch.id, destination())
    state = "interrupted" if why is not None else "failed" if all(r.state == "failed" for r in results) else "finished"
    if state == "failed":
        error = failure(results)
    winner = conclude(home(), ledger, launch, asked.experiment, asked.prepared, state, results, error)
    if full is not None:
        without = "" if winner else "; no checkpoint holds a whole epoch: there is no winner"
        warnings.warn(f"the budget is used up: {full}; with more of it --resume goes on{without}", Note, stacklevel=1)
    return Ended(state, winner, why, error)


def make_executor(plan: Plan, scaling: ScalingConfig) -> Executor:
    """The executor that the plan names."""
    if plan.executor == "inline":
        return Inline(plan.gpus)
    if plan.executor == "pool":
        from orchestrator.execution.pool import Pool

        return Pool(plan.slots, plan.cpus, plan.gpus, plan.accelerator)
    from orchestrator.execution.ddp import Gangs

    return Gangs(plan.slots, (plan.fewest, plan.workers), plan.cpus, plan.gpus, plan.accelerator, scaling.timeout_s, scaling.resize_s)
