"""The end of a launch: the winner's bundle, its scores on test beside its baseline's, and what the launch's own MLflow run says."""

from __future__ import annotations

import contextlib
import importlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.catalog import catalog
from orchestrator.deployment import bundle as bundles
from orchestrator.deployment import selection
from orchestrator.deployment.figures import kind_of
from orchestrator.deployment.scoring import Scored, score
from orchestrator.events import TrialResult, best_first
from orchestrator.experiment.config import Experiment
from orchestrator.experiment.read import with_values
from orchestrator.records.ledger import Launch, Ledger
from orchestrator.training.checkpoint import folder_of, run_key
from pipelines.prepare import Prepared


@dataclass(frozen=True)
class Winner:
    """The best run of a launch, its bundle, and its scores on test."""

    run: TrialResult
    bundle: Path
    test: Scored


def warm_up(task: str) -> None:
    """Import in the background, while runs are under way elsewhere, what the end of a launch would take seconds to import."""

    def work() -> None:
        with contextlib.suppress(Exception):  # it is raised where it is needed
            kind_of(task)
            importlib.import_module("mlflow.pyfunc")

    threading.Thread(target=work, name="closing", daemon=True).start()


def conclude(
    home: Path,
    ledger: Ledger,
    launch: Launch,
    experiment: Experiment,
    prepared: Prepared,
    state: str,
    results: list[TrialResult],
    error: str | None = None,
) -> Winner | None:
    """The winner's bundle and its test scores, once; then the end of the launch is recorded. One that is to go on has no winner yet."""
    ranked, best, winner = best_first(results, launch.metric, launch.mode), best_ended(ledger, launch, results), None
    if best is not None and state != "interrupted":
        winner = _kept(ledger, launch, best) or keep(home, ledger, launch, experiment, prepared, best)
    earlier = sum(entry.kind == "closed" and bool(entry.data["metrics"]) for entry in ledger.run_entries(launch.id, None))
    ledger.note(launch.id, None, "closed", closing(launch, state, ranked, winner, error) | {"step": earlier})
    return winner


def best_ended(ledger: Ledger, launch: Launch, results: list[TrialResult]) -> TrialResult | None:
    """The best of the runs that came to an end of their own, and of which something is left: `gc` may have been here."""
    removed = ledger.removed(launch.id)
    there = [r for r in results if r.best is not None and r.state in ("finished", "stopped") and r.trial not in removed]
    return next(iter(best_first(there, launch.metric, launch.mode)), None)


def _kept(ledger: Ledger, launch: Launch, run: TrialResult) -> Winner | None:
    """What an earlier command kept of this run: test is evaluated once."""
    for entry in ledger.run_entries(launch.id, run.trial):
        if entry.kind == "kept" and run.best is not None and entry.data["epoch"] == run.best.epoch and Path(entry.data["bundle"]).is_dir():
            margin = entry.data.get("margin")
            scores = Scored(entry.data["test"], entry.data.get("baseline", {}), tuple(margin) if margin else None)
            return Winner(run, Path(entry.data["bundle"]), scores)
    return None


def keep(home: Path, ledger: Ledger, launch: Launch, experiment: Experiment, prepared: Prepared, run: TrialResult) -> Winner:
    """The bundle of a run's best checkpoint, its scores on test and pictures of them, recorded. May be repeated: the answer is the same."""
    folder = Path(launch.folder)
    chosen = with_values(experiment, run.params, catalog(folder)) if run.trial is not None else experiment
    key = run_key(launch.id, run.trial)
    where = folder_of(experiment.storage.path, home, launch.id, run.trial)
    about = {"run": key, "metric": launch.metric}
    bundle, epoch = selection.compose(home / "bundles" / key, chosen, prepared, where, folder, about)
    figures = home / "figures" / key
    test = score(bundles.read(bundle), prepared, launch.metric, figures=figures)
    kept = {"bundle": str(bundle), "epoch": epoch, "figures": str(figures), "test": test.scores, "baseline": test.baseline}
    ledger.note(launch.id, run.trial, "kept", kept | {"margin": test.margin})
    return Winner(run, bundle, test)


def closing(launch: Launch, state: str, ranked: list[TrialResult], winner: Winner | None, error: str | None) -> dict[str, Any]:
    """What the launch's own MLflow run gets at the end: state, the winner's scores, the leaderboard as a note."""
    own = launch.command == "train" and state == "finished" and ranked  # the launch's run is the run itself
    tags: dict[str, Any] = {"state": ranked[0].state if own else state}
    metrics: dict[str, float] = {}
    if winner is not None and winner.run.best is not None:
        tags |= {"best_trial": "" if winner.run.trial is None else winner.run.trial}
        metrics = {launch.metric: winner.run.best.metrics[launch.metric], **winner.test.scores}
    if error:
        tags["error"] = error
    return {"state": state, "tags": tags, "metrics": metrics, "note": _note(launch, ranked, winner, error)}


def _note(launch: Launch, ranked: list[TrialResult], winner: Winner | None, error: str | None) -> str:
    """The leaderboard in Markdown: MLflow shows it as the run's description."""
    if error and not ranked:
        return f"failed: {error}"
    keys = list(dict.fromkeys(key for r in ranked for key in r.params))
    lines = [f"| | trial | {launch.metric} | epoch | state | {' | '.join(keys)} |", "|" + "---|" * (5 + len(keys))]
    for place, r in enumerate(ranked[:20], start=1):
        score = f"{r.best.metrics[launch.metric]:.4f}" if r.best else ""
        values = " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in (r.params.get(k, "") for k in keys))
        stopped = f"{r.state} ({r.stopped_by})" if r.stopped_by else r.state
        lines.append(
            f"| {place} | {'train' if r.trial is None else r.trial} | {score} | {r.best.epoch if r.best else ''} | {stopped} | {values} |"
        )
    return "\n".join([f"`{launch.about.get('source', '')}`", "", *_scores(launch, winner), "", *lines])


def _scores(launch: Launch, winner: Winner | None) -> list[str]:
    """The winner's scores on test, what the baseline has, and what can be had at most."""
    if winner is None:
        return ["Test of the best: none"]
    name = launch.about.get("baseline", {}).get("name", "")
    lines = [f"Test of the best: {_listed(winner.test.scores)}"]
    if protocol := launch.about.get("protocol"):
        lines += ["", f"Measured: {protocol}"]
    if winner.test.baseline:
        lines += ["", f"Baseline ({name}): {_listed(winner.test.baseline)}"]
    if optimum := launch.about.get("data", {}).get("optimum"):
        lines += ["", f"The best that any model can reach: {_listed(optimum)}"]
    return lines


def _listed(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
