"""The decision of `promote`: the best run by validation, evaluated once on test, gated, and compared with the champion."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.deployment import bundle as bundles
from orchestrator.deployment import scoring, selection
from orchestrator.deployment.registry import Registry, Version, compare, gate
from orchestrator.errors import Failed, Note, Refused
from orchestrator.events import TrialResult, best_first
from orchestrator.experiment.config import Experiment
from orchestrator.records.tracking import RecordedRun, log_model, recorded_run, said_by_mlflow, test_tags
from orchestrator.results import Promoted
from orchestrator.training import checkpoint
from pipelines.prepare import Prepared
from pipelines.schema import DataError


def run_of(client: Any, run_id: str, name: str) -> RecordedRun:
    """One run of an experiment, by its id. Raises Refused if there is none, or it is another experiment's."""
    run = recorded_run(client, run_id)
    with said_by_mlflow():
        owner = client.get_experiment(client.get_run(run_id).info.experiment_id).name
    if owner != name:
        raise Refused(f"run '{run_id}' is of experiment '{owner}', not of '{name}'", key="--run")
    return run


def choose(runs: Sequence[RecordedRun], name: str) -> RecordedRun:
    """The best run by validation among those on the newest data. Raises Refused if none has come to an end."""
    ended = [run for run in runs if run.kind in ("trial", "train") and run.result.best and run.result.state in ("finished", "stopped")]
    if not ended:
        under_way = sum(run.kind in ("trial", "train") and run.result.state in ("running", "interrupted") for run in runs)
        todo = f"{under_way} can go on (--resume), or do so now" if under_way else "train or sweep first"
        raise Refused(f"experiment '{name}' has no run that ended with a score; {todo}")
    newest = max(ended, key=lambda run: run.started_ms)
    same = [run for run in ended if (run.fingerprint, run.metric) == (newest.fingerprint, newest.metric)]
    same.sort(key=lambda run: run.started_ms)  # of equals the earlier one stays
    ranked = best_first([run.result for run in same], newest.metric, newest.mode)
    _say_what_is_left_out(runs, ranked[0], newest)
    return next(run for run in same if run.result is ranked[0])


def _say_what_is_left_out(runs: Sequence[RecordedRun], chosen: TrialResult, newest: RecordedRun) -> None:
    """A note where the leaderboard has a better run that isn't considered."""
    scored = {id(run.result): run for run in runs if run.kind in ("trial", "train") and run.metric == newest.metric and run.result.best}
    on_other_data = []
    for result in best_first([run.result for run in scored.values()], newest.metric, newest.mode):
        if result is chosen:
            break
        if result.state not in ("finished", "stopped"):
            warnings.warn(f"not considered, though it scored higher: run {result.run_id}, {result.state}", Note, stacklevel=2)
        elif scored[id(result)].fingerprint != newest.fingerprint:
            on_other_data.append(result)
    if on_other_data:
        count = "1 run" if len(on_other_data) == 1 else f"{len(on_other_data)} runs"
        said = f"not considered: {count} on other data than the newest run's, with higher scores on that; --run {on_other_data[0].run_id}"
        warnings.warn(f"{said} takes the best of them", Note, stacklevel=2)


@dataclass(frozen=True)
class Challenger:
    """A recorded run that wants to be the champion, with the experiment that it recorded."""

    client: Any
    run: RecordedRun
    experiment: Experiment
    folder: Path
    home: Path

    @property
    def metric(self) -> str:
        """The metric on test."""
        return f"test_{self.experiment.metric.removeprefix('val_')}"

    def local_bundle(self) -> Path | None:
        """The run's bundle in this folder, if it is there."""
        folder = self.home / "bundles" / self.key
        return folder if (folder / "model.json").exists() else None

    @property
    def key(self) -> str:
        """The name of the run's folders."""
        return checkpoint.run_key(self.run.launch, self.run.result.trial)

    def checkpoints(self) -> str:
        """The URI of the run's checkpoints."""
        return checkpoint.folder_of(self.experiment.storage.path, self.home, self.run.launch, self.run.result.trial)

    def data(self, prepare: Callable[[], Prepared]) -> Prepared:
        """The data that the run was trained on. Raises Failed where it isn't there any more: other data would give other scores."""
        wanted = self.run.fingerprint
        kept = self.home / "data" / wanted
        if wanted and (kept / "data.json").exists():
            with contextlib.suppress(DataError):  # not whole: made anew
                return Prepared.open(kept)
        prepared = prepare()
        if prepared.fingerprint != wanted:
            raise Failed(
                f"the data changed since run '{self.run.result.run_id}': its fingerprint was {wanted or 'not recorded'}, "
                f"now it is {prepared.fingerprint}; put the data back, or train again"
            )
        return prepared


def decide(challenger: Challenger, alias: str, force: bool, prepare: Callable[[], Prepared]) -> Promoted:
    """Promote, refuse or leave as it is. A refusal changes nothing. `prepare`: the data as they lie now."""
    registry = Registry(challenger.client, challenger.experiment.registered_model)
    run_id = str(challenger.run.result.run_id)
    champion = registry.at(alias)
    data = functools.cache(lambda: challenger.data(prepare))
    scores = _scores(challenger, data)
    if doubt := _doubt(challenger, scores):
        warnings.warn(doubt, Note, stacklevel=2)

    def result(decision: str, reason: str, version: int | None, against: dict[str, float] | None) -> Promoted:
        return Promoted(registry.model, version, alias, run_id, decision, reason, scores, against)

    if champion is not None and champion.run_id == run_id:
        return result(
            "unchanged",
            f"version {champion.number} is the champion already, and there is no better run on the newest data",
            champion.number,
            champion.scores,
        )
    against, reason = None, "there was no champion"
    missed = gate(scores, challenger.experiment.registry.require)
    if champion is not None:
        against, stays = _against(challenger, champion, registry, scores, data)
        missed += [stays] if stays else []
        was = against.get(challenger.metric) if against else None
        reason = (
            f"{challenger.metric} {scores[challenger.metric]:.4f} against {was:.4f}"
            if was is not None
            else "the champion could not be scored"
        )
    if missed and not force:
        return result("refused", "; ".join(missed), None, against)
    if missed:
        reason = f"forced, although {'; '.join(missed)}"
    version = registry.of_run(run_id) or _register(challenger, registry, scores)
    both = {"challenger": scores, "champion": against}
    registry.move(alias, version.number, "promote", reason, champion.number if champion else None, both)
    return result("promoted", reason, version.number, against)


def _scores(challenger: Challenger, data: Callable[[], Prepared]) -> dict[str, float]:
    """The challenger's test scores: recorded once, or evaluated now and recorded."""
    run = challenger.run
    assert run.result.best is not None
    validation = {k: v for k, v in run.result.best.metrics.items() if k.startswith("val_")}
    stored = {k: v for k, v in run.metrics.items() if k.startswith("test_")}
    if challenger.metric in stored:
        return stored | validation
    from mlflow.entities import Metric

    folder = _bundle(challenger, data)
    test = scoring.score(bundles.read(folder), data(), run.metric)
    now = int(time.time() * 1000)
    with said_by_mlflow():
        metrics = [Metric(k, v, now, run.result.best.epoch) for k, v in test.scores.items()]
        challenger.client.log_batch(run.result.run_id, metrics, tags=test_tags(test.baseline, test.margin))
    run.tags.update({tag.key: tag.value for tag in test_tags(test.baseline, test.margin)})
    return test.scores | validation


def _doubt(challenger: Challenger, scores: dict[str, float]) -> str | None:
    """Why the challenger may be no better than knowing nothing: the margin over its baseline, if that includes 0.

    A metric of no rows (coverage) has no margin: its two values are compared.
    """
    margin, baseline = (json.loads(challenger.run.tags.get(f"orchestrator.{name}") or "null") for name in ("margin", "baseline.test"))
    if not baseline or challenger.metric not in baseline:
        return None
    own, known = scores[challenger.metric], baseline[challenger.metric]
    better, worse = (own > known, own < known) if challenger.experiment.mode == "max" else (own < known, own > known)
    if margin is not None:
        better, worse = margin[0] > 0, margin[1] < 0
    if better:
        return None
    name = json.loads(challenger.run.tags.get("orchestrator.baseline") or "{}").get("name") or "the baseline"
    said = f"{challenger.metric} {own:.4f} is {'worse than' if worse else 'not better than'} the baseline ({name}: {known:.4f})"
    if margin is None:
        return said
    noise = "" if worse else " by more than its noise"
    return f"{said}{noise}: 95 % of the resampled differences lie between {margin[0]:.4f} and {margin[1]:.4f}"


def _bundle(challenger: Challenger, data: Callable[[], Prepared]) -> Path:
    """The challenger's bundle: in this folder, or composed from its checkpoint while that is there."""
    there = challenger.local_bundle()
    if there is not None:
        return there
    about = {"run": challenger.key, "metric": challenger.run.metric}
    folder, _ = selection.compose(
        challenger.home / "bundles" / challenger.key,
        challenger.experiment,
        data(),
        challenger.checkpoints(),
        challenger.folder,
        about,
    )
    return folder


def _against(
    challenger: Challenger, champion: Version, registry: Registry, scores: dict[str, float], data: Callable[[], Prepared]
) -> tuple[dict[str, float] | None, str | None]:
    """The champion's scores on the challenger's test data, and why it stays, if it does."""
    if champion.fingerprint == challenger.run.fingerprint and challenger.metric in champion.scores:
        against = champion.scores
    else:
        try:
            with tempfile.TemporaryDirectory(prefix="orchestrator-") as folder:
                bundle = bundles.read(registry.download(champion, Path(folder)))
                against = scoring.score(bundle, data(), challenger.run.metric).scores
        except (ValueError, Refused) as error:
            return None, f"the champion (version {champion.number}) can't be scored on this data: {error}"
    if challenger.metric not in against:
        return against, f"the champion (version {champion.number}) has no {challenger.metric}"
    mode = challenger.experiment.mode
    return against, compare(scores[challenger.metric], against[challenger.metric], challenger.metric, mode)


def _register(challenger: Challenger, registry: Registry, scores: dict[str, float]) -> Version:
    """A new version from the run's logged model; logged now if it wasn't."""
    run, client = challenger.run, challenger.client
    model_id = run.model_id
    with said_by_mlflow():
        if model_id is None:
            folder = challenger.local_bundle()
            if folder is None:
                raise Failed(f"the bundle of run '{run.result.run_id}' is not here: run promote in the folder of its ledger")
            model_id = log_model(client, str(run.result.run_id), challenger.experiment.name, folder)
        model = client.get_logged_model(model_id)
    return registry.register(model.artifact_location, str(run.result.run_id), model_id, scores, run.fingerprint)
