"""One start of `train` or `sweep`: from the experiment file to a closed entry in the ledger and a bundle of the winner."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cluster
import models
import orchestrator
import pipelines
from cluster.connect import ClusterError, connect
from cluster.resources import Found, this_machine
from orchestrator.asking import Asked, check_storage, home, plan_of
from orchestrator.catalog import catalog
from orchestrator.closing import Winner, closing, conclude
from orchestrator.deployment import scoring
from orchestrator.errors import Failed, Interrupted, Note, OrchestratorError, Refused
from orchestrator.events import Event, RunEnded, RunStarted, TrialResult
from orchestrator.execution.executor import Executor
from orchestrator.execution.search import OneRun, Search
from orchestrator.execution.sweep import Rules, drive
from orchestrator.experiment.config import Experiment, parameters
from orchestrator.experiment.plan import Command, Plan, epochs_of
from orchestrator.experiment.read import space_of, with_values
from orchestrator.records import provenance
from orchestrator.records.ledger import Launch, Ledger, new_id
from orchestrator.records.tracking import BackgroundSender, check_store, destination
from orchestrator.training.checkpoint import folder_of
from orchestrator.training.trial import Job, one_line
from pipelines.stream import Streamed

Show = Callable[[Event | Plan], None]
FINISH_S = 20.0  # how long an ending command waits for an MLflow that doesn't answer
HOOK = "orchestrator.execution.executor.set_up_worker"


@dataclass(frozen=True)
class Outcome:
    """What a launch came to."""

    launch: Launch
    plan: Plan
    state: str
    results: list[TrialResult]
    best: TrialResult | None
    test: dict[str, float]
    baseline: dict[str, float]
    margin: tuple[float, float] | None  # by how much test beats the baseline: its 95 % interval
    bundle: Path | None
    run_id: str | None
    nodes: tuple[str, ...]
    wall_s: float
    left: int  # entries that MLflow hasn't got
    problem: str | None


def run(command: Command, asked: Asked, address: str | None, show: Show) -> Outcome:
    """Run it: everything recorded as it happens, the winner's bundle at the end. An interrupt gives an outcome too."""
    check_store(destination())
    began = time.time()
    check_storage(asked.experiment)
    with contextlib.ExitStack() as connection:
        found = connection.enter_context(_connected(address, 1, 0)) if address is not None else this_machine()
        plan = plan_of(command, asked, found, on_cluster=address is not None)
        show(plan)
        ledger, sender = Ledger(home()), BackgroundSender(home())  # MLflow is imported while Ray starts
        try:
            if address is None and plan.executor != "inline":
                connection.enter_context(_connected(None, plan.threads, found.cpus))
            launch = _begin(ledger, command, asked, plan)
            asked = dataclasses.replace(asked, network=None)  # it may be large, and each trial makes its own
            try:
                state, results = _drive(command, asked, plan, ledger, launch, show)
                winner = conclude(home(), ledger, launch, asked.experiment, asked.prepared, state, results)
            except BaseException as reason:
                raise _cut_short(ledger, launch, reason) from reason
        except BaseException:  # an interrupt too: what is recorded is sent, then it is raised again
            sender.finish(FINISH_S)
            raise
        sender.stop()  # it sends the rest while Ray ends
    left = sender.finish(FINISH_S)
    return _outcome(ledger, launch, plan, state, winner, left, sender.problem, began)


def _cut_short(ledger: Ledger, launch: Launch, reason: BaseException) -> OrchestratorError:
    """The launch's end is recorded, whatever ended it; what is to be raised. An error of nobody's making keeps its trace in a file."""
    interrupted = isinstance(reason, KeyboardInterrupt)
    if interrupted:
        error: OrchestratorError = Interrupted("interrupted; all that was done is recorded")
    elif isinstance(reason, OrchestratorError):
        error = reason
    else:
        trace = home() / f"error-{launch.id}.txt"
        trace.write_text("".join(traceback.format_exception(reason)))
        error = Failed(f"{one_line(reason, Path(launch.folder))}; the whole trace: {trace}")
    with contextlib.suppress(Failed):  # a full disk: it is what is raised already
        ledger.note(launch.id, None, "closed", closing(launch, "interrupted" if interrupted else "failed", [], None, str(error)))
    return error


@contextlib.contextmanager
def _connected(address: str | None, threads: int, cpus: float) -> Iterator[Found]:
    packages = {m.__name__: Path(m.__file__ or "").parent for m in (orchestrator, models, pipelines, cluster)}
    env = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"]}
    try:
        with connect(address, HOOK, packages, orchestrator.__version__, env, cpus) as found:
            yield found
    except ClusterError as error:
        raise Refused(str(error), key="--address") from None


def _begin(ledger: Ledger, command: Command, asked: Asked, plan: Plan) -> Launch:
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
        new_id(), command, experiment.name, experiment.plain(), experiment.metric, experiment.mode, prepared.fingerprint, str(asked.folder),
        about, int(time.time() * 1000),
    )  # fmt: skip
    ledger.launch(launch)
    return launch


def _baseline(asked: Asked) -> dict[str, Any]:
    """What knowing nothing of the inputs is worth on validation: its name, and its metrics."""
    assert asked.network is not None
    prepared = asked.prepared
    scores = scoring.baseline(asked.network, prepared.encoder, Streamed.of(prepared, "validation"), "val")
    return {"name": asked.network.baseline_name, "metrics": scores} if scores else {}


def _drive(command: Command, asked: Asked, plan: Plan, ledger: Ledger, launch: Launch, show: Show) -> tuple[str, list[TrialResult]]:
    """Run every trial; the state of the whole and each trial's result."""
    experiment, names_of = asked.experiment, catalog(asked.folder)

    def make(trial: int | None, values: dict[str, Any]) -> tuple[Job, RunStarted]:
        chosen = with_values(experiment, values, names_of) if values else experiment
        origin, start = asked.starts.of(chosen) if asked.starts else (None, {})
        job = Job(
            trial, chosen, str(asked.prepared.folder), checkpoints(experiment, launch.id, trial), str(asked.folder), plan.precision,
            plan.threads, epochs_of(chosen, asked.prepared.rows["train"]), origin=origin, streamed=plan.streamed,
        )  # fmt: skip
        env = {"executor": plan.executor, "world_size": plan.workers, "precision": plan.precision, "threads": plan.threads, **start}
        return job, RunStarted(trial, int(time.time() * 1000), values or _given(asked), parameters(chosen.plain()), env)

    def append(events: Sequence[Event]) -> None:
        ledger.append(launch.id, events)
        for event in events:
            show(event)

    interrupted = False
    executor = make_executor(plan)  # before the search: its workers start while that is made
    try:
        search = _search(command, asked, plan)
        drive(executor, search, make, append, Rules(experiment.metric, experiment.mode, experiment.training.patience))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        executor.close()
    results = ledger.results(launch.id, destination())
    if interrupted:
        return "interrupted", results
    return ("failed" if all(r.state == "failed" for r in results) else "finished"), results


def _search(command: Command, asked: Asked, plan: Plan) -> OneRun | Search:
    if command == "train":
        return OneRun()
    search = Search(asked.experiment, space_of(asked.experiment), plan.epochs, plan.trials, asked.folder)
    if search.first is None and asked.experiment.sweep.search != "grid":
        warnings.warn("the file's own values lie outside sweep.space: no trial has them", Note, stacklevel=1)
    return search


def _given(asked: Asked) -> dict[str, Any]:
    """What distinguishes a run of `train`: the keys that were overridden, with their values."""
    flat = asked.experiment.flat()
    keys = [override.partition("=")[0].strip() for override in asked.overrides]
    return {key: flat[key] for key in keys if key in flat and not key.startswith("data.")}


def make_executor(plan: Plan) -> Executor:
    """The executor that the plan names."""
    if plan.executor == "inline":
        from orchestrator.execution.inline import Inline

        return Inline(plan.gpus)
    if plan.executor == "pool":
        from orchestrator.execution.pool import Pool

        return Pool(plan.slots, plan.cpus, plan.gpus, plan.accelerator)
    from orchestrator.execution.ddp import Gangs

    return Gangs(plan.slots, plan.workers, plan.cpus, plan.gpus, plan.accelerator)


def checkpoints(experiment: Experiment, launch: str, trial: int | None) -> str:
    """The URI below which a run keeps its checkpoints."""
    return folder_of(experiment.storage.path, home(), launch, trial)


def _outcome(
    ledger: Ledger, launch: Launch, plan: Plan, state: str, winner: Winner | None, left: int, problem: str | None, began: float
) -> Outcome:
    """What the launch came to, with the MLflow ids that its runs have got."""
    results = ledger.results(launch.id, destination())
    ends = [event for event in ledger.events(launch.id) if isinstance(event, RunEnded)]
    of_winner = [event for event in ends if winner is None or event.trial == winner.run.trial]
    best = next((r for r in results if winner is not None and r.trial == winner.run.trial), None)
    run_id = ledger.identities(destination(), launch.id).get(None)
    ledger.close()
    return Outcome(
        launch=launch,
        plan=plan,
        state=state,
        results=results,
        best=best,
        test=winner.test.scores if winner else {},
        baseline=winner.test.baseline if winner else {},
        margin=winner.test.margin if winner else None,
        bundle=winner.bundle if winner else None,
        run_id=run_id,
        nodes=of_winner[-1].nodes if of_winner else (),
        wall_s=round(time.time() - began, 3),
        left=left,
        problem=problem,
    )


def refuse_if_all_failed(outcome: Outcome) -> None:
    """Raises Failed if no run of the launch came to an end."""
    if outcome.state == "failed":
        errors = list(dict.fromkeys(r.error for r in outcome.results if r.error))
        raise Failed(errors[0] if len(outcome.results) == 1 and errors else f"every trial failed: {'; '.join(errors[:3])}")
