"""The public functions: plain values in, one typed result out. The command line calls only these, and a notebook may call them too."""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.resources import this_machine
from orchestrator import asking, clusters
from orchestrator import launch as launching
from orchestrator import results as r
from orchestrator.catalog import catalog, config_tables
from orchestrator.collecting import gc as gc
from orchestrator.deployment import bundle as bundles
from orchestrator.deployment import predict as predicting
from orchestrator.deployment import promotion
from orchestrator.deployment import top_k as recommending
from orchestrator.deployment.registry import Registry, fetch
from orchestrator.errors import Failed, GateFailed, Interrupted, Lost, Note, Refused
from orchestrator.events import Event, best_first
from orchestrator.experiment.file import apply_override, parse_value
from orchestrator.experiment.json_schema import json_schema
from orchestrator.experiment.plan import Command, Plan
from orchestrator.experiment.read import read, resolve, with_values
from orchestrator.outcome import Outcome
from orchestrator.outputs import logs as logs
from orchestrator.records import tracking
from orchestrator.records.ledger import Ledger

Overrides = Sequence[str]
cluster_attach = clusters.cluster_attach
cluster_jobs = clusters.cluster_jobs
cluster_status = clusters.cluster_status
cluster_stop = clusters.cluster_stop
cluster_submit = clusters.cluster_submit
cluster_template = clusters.cluster_template


def _silent(event: Event | Plan) -> None:
    """No progress."""


def train(
    experiment: str, overrides: Overrides = (), *, address: str | None = None, resume: str | None = None, show: launching.Show = _silent
) -> r.Trained:
    """Train one run of an experiment file. Raises Refused, Failed, Interrupted; the last two carry the result, if there is one.

    `resume`: the id of an earlier `train` to go on with, or "newest", or "if-any": the newest, or a new one.
    """
    out = _launch("train", experiment, overrides, address, resume, show)
    run = out.results[0]
    done = r.Trained(
        experiment=out.launch.name,
        run_id=out.run_id,
        state=run.state,
        epochs=run.epochs,
        executor=out.plan.executor,
        workers=len(out.nodes) or out.plan.workers,
        nodes=out.nodes,
        best=run.best,
        test=out.test,
        bundle=_relative(out.bundle),
        wall_s=out.wall_s,
        error=run.error,
        baseline=out.baseline,
        margin=out.margin,
        protocol=out.launch.about["protocol"],
    )
    _raise(out, done)
    return done


def sweep(
    experiment: str, overrides: Overrides = (), *, address: str | None = None, resume: str | None = None, show: launching.Show = _silent
) -> r.Swept:
    """Search an experiment's space. Raises Refused, Failed, Interrupted; the last two carry the result, if there is one.

    `resume`: the id of an earlier sweep to go on with, or "newest", or "if-any": the newest, or a new one.
    """
    out = _launch("sweep", experiment, overrides, address, resume, show)
    best = None if out.best is None else {**dataclasses.asdict(out.best), "test": out.test, "baseline": out.baseline, "margin": out.margin}
    launch, about = out.launch, out.launch.about
    done = r.Swept(
        launch.name, launch.id, out.run_id, out.state, out.results, best, out.wall_s, launch.metric, launch.mode,  # type: ignore[arg-type]
        about["baseline"], about["data"]["optimum"], about["protocol"],
    )  # fmt: skip
    _raise(out, done)
    return done


def _launch(command: Command, path: str, overrides: Overrides, address: str | None, resume: str | None, show: launching.Show) -> Outcome:
    asked = asking.ask(Path(path), overrides, writes=True)
    out = launching.run(command, asked, address or os.environ.get("RAY_ADDRESS") or None, show, resume)
    if not out.results:
        raise Interrupted(f"{out.why or 'interrupted'} before the first run had begun")
    return out


def _raise(out: Outcome, result: r.Result) -> None:
    """An outcome that isn't a success, as the error that carries its result; what MLflow lacks is said in any case."""
    if out.left:
        _note(f"MLflow at {tracking.shown_destination()} has not got everything ({out.problem or 'no answer yet'}); run: orchestrator sync")
    if out.state == "interrupted":
        done = sum(t.state in ("finished", "stopped", "failed") for t in out.results)
        says = f"{out.why}: {done} of {out.plan.trials} runs had ended; all that was done is recorded"
        says += f". To go on: {out.again}" if out.again else ""
        raise Interrupted(says, result=result)
    try:
        out.raise_if_all_failed()
    except Failed as error:
        raise Failed(str(error), result=result) from None


def _note(text: str) -> None:
    warnings.warn(text, Note, stacklevel=3)


def _relative(path: Path | None) -> str | None:
    if path is None:
        return None
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def plan(experiment: str, overrides: Overrides = (), *, command: Command | None = None) -> r.Planned:
    """What a command (default: sweep where the file has a space) would do here, and why; prepares the data, trains nothing."""
    asked = asking.ask(Path(experiment), overrides)
    command = command or ("sweep" if asked.experiment.sweep.space else "train")
    found = this_machine()
    made = asking.plan_of(command, asked, found, on_cluster=False)
    resources = {
        "cpus": found.cpus,
        "gpus": found.gpus,
        "slots": made.slots,
        "cpus_per_worker": made.cpus,
        "gpus_per_worker": made.gpus,
        "threads_per_worker": made.threads,
        "precision": f"{made.precision} ({made.precision_why})",
    }
    rows = sum(asked.prepared.rows.values())
    data = {"rows": rows, "bytes": asked.prepared.size_bytes, "fits_in_memory": made.fits_in_memory, "streamed": made.streamed}
    return r.Planned(
        made.executor,
        made.why,
        made.trials,
        made.epochs,
        made.workers,
        resources,
        data,
        made.disk_bytes,
        asking.estimate(asked, made),
        made.notes,
        made.fewest,
    )


def runs(name: str, *, top: int | None = None, sweep: str | None = None) -> r.Leaderboard:
    """The leaderboard of an experiment, best first, from MLflow; what the ledger still holds is sent first."""
    client = _reading_client()
    found = [run for run in tracking.recorded(client, name) if run.kind in ("trial", "train")]
    if sweep is not None:
        known = sorted({run.launch for run in found})
        found = [run for run in found if run.launch == sweep]
        if not found:
            raise Refused(f"no sweep '{sweep}' in experiment '{name}'; there is: {', '.join(known) or 'none'}", key="--sweep")
    newest = max(found, key=lambda run: run.started_ms, default=None)
    metric, mode = (newest.metric, newest.mode) if newest else ("", "max")
    results = [tracking.so_far(client, run) if run.result.state == "running" else run.result for run in found]
    ranked = best_first(results, metric, mode)
    baseline, optimum = (newest.about(key) if newest else {} for key in ("baseline", "optimum"))
    protocol = newest.tags.get("orchestrator.protocol", "") if newest else ""
    return r.Leaderboard(name, ranked[:top], metric, baseline, optimum, protocol)


def _reading_client() -> Any:
    """A client for a reading command, after the ledger's rest was sent; who can't send now reads MLflow as it is, and says so."""
    client = tracking.reachable_client()
    try:
        tracking.sync(asking.home())
    except (Failed, Lost) as error:
        _note(f"{error}; this is what MLflow has now")
    return client


def promote(name: str, overrides: Overrides = (), *, run: str | None = None, alias: str = "champion", force: bool = False) -> r.Promoted:
    """Evaluate the best run once, gate it, register it, point the alias to it. Raises GateFailed, with the result, if it is refused."""
    _check_alias(alias)
    client = _reading_client()
    candidates = tracking.recorded(client, name) if run is None else [promotion.run_of(client, run, name)]
    chosen = promotion.choose(candidates, name)
    tree = parse_value(tracking.experiment_file(client, chosen))
    folder = _folder_of(chosen.launch)
    for override in overrides:
        apply_override(tree, {}, override)
    experiment = with_values(resolve(tree, catalog(folder)), chosen.result.params if chosen.kind == "trial" else {}, catalog(folder))
    challenger = promotion.Challenger(client, chosen, experiment, folder, asking.home())
    decision = promotion.decide(challenger, alias, force, lambda: asking.prepare_data(experiment, folder))
    if decision.decision == "refused":
        raise GateFailed(f"refused: {decision.reason}", result=decision)
    return decision


def _folder_of(launch: str) -> Path:
    """The folder of the experiment file that a launch was started with, if this ledger has it and it is there; else the working folder."""
    if (asking.home() / "ledger.sqlite").exists():
        ledger = Ledger(asking.home())
        try:
            if launch in ledger.launches() and (folder := Path(ledger.find(launch).folder)).is_dir():
                return folder
        finally:
            ledger.close()
    return Path.cwd()


def _check_alias(alias: str) -> None:
    if not alias or alias == "latest" or (alias[:1] == "v" and alias[1:].isdigit()) or set(alias) & set("/:@ "):
        raise Refused(f"'{alias}' can't be an alias: MLflow reserves latest and v1, v2 ..., and it is one word", key="--alias")


def rollback(model: str, *, alias: str = "champion") -> r.RolledBack:
    """Point an alias to the champion before. Raises Failed if there is none."""
    registry = Registry(tracking.reachable_client(), model)
    now, before = registry.earlier(alias)
    registry.move(alias, before, "rollback", f"rolled back from version {now}", now, {})
    return r.RolledBack(model, alias, now, before)


def history(model: str) -> r.History:
    """Who promoted what, when, against what, and why."""
    return r.History(model, Registry(tracking.reachable_client(), model).history())


def predict(model: str, source: str, output: str, *, probabilities: bool = False, top_k: int | None = None) -> r.Predicted:
    """Predict a Parquet or CSV file with models:/NAME@alias, models:/NAME/VERSION or a bundle's folder. Raises Refused.

    `top_k`: the best so many items for each user of the file, instead of a prediction for each row.
    """
    began = time.time()
    cleanup = None
    if Path(model).is_dir():
        folder, name, version = Path(model), Path(model).name, None
    else:
        folder, name, version, cleanup = fetch(tracking.reachable_client(), model)
    try:
        bundle = bundles.read(folder)
        if top_k is None:
            rows, failed = predicting.predict(bundle, Path(source), Path(output), probabilities)
        else:
            rows, failed = recommending.top_k(bundle, Path(source), Path(output), top_k)
    finally:
        if cleanup is not None:
            cleanup.cleanup()
    return r.Predicted(rows, failed, output, name, version, round(time.time() - began, 3))


def data_prepare(experiment: str, overrides: Overrides = ()) -> r.PreparedData:
    """Prepare an experiment's data: Parquet files, split, with a fingerprint."""
    return _data(experiment, overrides, shown=False)


def data_show(experiment: str, overrides: Overrides = ()) -> r.PreparedData:
    """A look at an experiment's data: splits, columns, class balance, copies inside and across splits, the known optimum, problems."""
    return _data(experiment, overrides, shown=True)


def _data(path: str, overrides: Overrides, shown: bool) -> r.PreparedData:
    folder = Path(path).resolve().parent
    prepared = asking.prepare_data(read(Path(path), overrides, catalog(folder)), folder)
    schema, look = prepared.schema, prepared.look()
    splits = {part: {"rows": rows, "files": [_relative(prepared.file(part))]} for part, rows in prepared.rows.items()}
    found = look.get("columns", {})
    columns = [{"name": c.name, "kind": c.kind, "shape": list(c.shape), **found.get(c.name, {})} for c in (*schema.inputs, schema.target)]
    return r.PreparedData(
        prepared.fingerprint, str(_relative(prepared.folder)), splits, prepared.encoder.input_names, schema.target.name,
        list(schema.classes),
        columns, {k: dict(v) for k, v in prepared.counts.items()}, dict(prepared.optimum), look.get("duplicates", {}),
        look.get("problems", []), shown,
    )  # fmt: skip


def sync() -> r.Sent:
    """Look up every run of this folder's ledger in MLflow, and send what is missing."""
    tracking.check_store(tracking.destination())
    sent, left = tracking.sync(asking.home(), again=True)
    return r.Sent(sent, left)


def schema() -> dict[str, Any]:
    """JSON Schema of the experiment file."""
    return json_schema(*config_tables())


def doctor() -> r.Checked:
    """What works on this machine, what does not, and what to do."""
    from orchestrator.diagnosis import check

    return r.Checked(check(asking.home()))
