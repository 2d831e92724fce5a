"""Ray Tune's searcher and scheduler as ask/tell: deterministic, the same calls give the same answers.

Tune's own algorithms, without its Tuner: see docs/why-not-tuner.md for what was measured. `random`, `grid` and `tpe` are OptunaSearch with
Optuna's samplers; any other Tune searcher can be named, and any scheduler that only goes on or stops.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator import names
from orchestrator.experiment.config import Experiment, flatten
from orchestrator.experiment.space import Domain, Space

SEARCHERS = {"random": "RandomSampler", "grid": "GridSampler", "tpe": "TPESampler"}
SCHEDULERS = ("none", "asha")
SCALARS = (str, int, float, bool, type(None))


def check_searcher(name: str, folder: Path | None = None) -> bool:
    """Whether a searcher understands `when:`; raises names.UnknownName if there is none of that name. `folder`: of a user's own."""
    if name in SEARCHERS:
        return name != "grid"
    if ":" in name:
        names.load(name, {}, "searcher", folder)
        return False
    from ray.tune.search import SEARCH_ALG_IMPORT

    theirs = sorted(set(SEARCH_ALG_IMPORT) - {"variant_generator", "random", "optuna"})
    if name not in theirs:
        raise names.UnknownName(names.unknown("searcher", name, [*SEARCHERS, *theirs]))
    try:
        SEARCH_ALG_IMPORT[name]()()
    except Exception as error:  # each of them says in its own way that its library isn't installed
        raise names.UnknownName(f"searcher '{name}' can't be used: {' '.join(str(error).split())}") from None
    return False


def check_scheduler(name: str, folder: Path | None = None) -> None:
    """Raises names.UnknownName if there is no scheduler of that name."""
    if name in SCHEDULERS:
        return
    if ":" not in name:
        raise names.UnknownName(names.unknown("scheduler", name, SCHEDULERS) + " (or a path, 'module:Class')")
    names.load(name, {}, "scheduler", folder)


class OneRun:
    """The search of `train`: the experiment as it is, once."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self) -> tuple[None, dict[str, Any]] | None:
        """The one run, then nothing."""
        if self.asked:
            return None
        self.asked = True
        return None, {}

    def tell(self, trial: None, epoch: int, score: float) -> bool:
        """Never stops."""
        return False

    def end(self, trial: None, failed: bool) -> None:
        """Nothing to learn."""


class Search:
    """Asks for a trial's values, is told each epoch's score, says whether to stop. Scores are the best so far, as `mode` has it.

    `folder`: below which a user's own searcher or scheduler lies.
    """

    def __init__(self, experiment: Experiment, space: Space, epochs: int, trials: int, folder: Path | None = None) -> None:
        sweep, self.space, self.trials, self.mode = experiment.sweep, space, trials, experiment.mode
        seed = sweep.seed if sweep.seed is not None else experiment.training.seed
        self.first = None if sweep.search == "grid" else space.point(flatten(experiment.plain()))
        self.searcher = _searcher(sweep.search, space, seed, self.mode, self.first, folder)
        self.foreign = sweep.search not in SEARCHERS
        self.scheduler = _scheduler(sweep.scheduler, epochs, self.mode, folder)
        self.asked = 0
        self._trials: dict[int, _Stub] = {}

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """The next trial's number and values, or None if there is none to come."""
        if self.asked >= self.trials:
            return None
        trial = self.asked
        if self.foreign and trial == 0 and self.first is not None:
            values = self.first
        else:
            suggested = self.searcher.suggest(str(trial))
            if suggested is None or suggested == "FINISHED":
                return None
            values = _decode(suggested, self.space)
        self.asked += 1
        self._trials[trial] = stub = _Stub(trial, values)
        if self.scheduler is not None:
            self.scheduler.on_trial_add(None, stub)
        return trial, values

    def tell(self, trial: int, epoch: int, score: float) -> bool:
        """Whether to stop the trial, given its score (the best of its epochs so far)."""
        stub = self._trials[trial]
        stub.result = {"training_iteration": epoch, "score": score}
        verdict = "CONTINUE" if self.scheduler is None else self.scheduler.on_trial_result(None, stub, stub.result)
        if verdict not in ("CONTINUE", "STOP"):
            raise ValueError(f"sweep.scheduler: it answered {verdict}; only schedulers that go on or stop can be used")
        if verdict == "CONTINUE" and self._known(trial):
            self.searcher.on_trial_result(str(trial), stub.result)
        return bool(verdict == "STOP")

    def end(self, trial: int, failed: bool) -> None:
        """The trial is over: finished, stopped, or failed."""
        stub = self._trials.pop(trial)
        if self.scheduler is not None:
            if failed or not stub.result:
                self.scheduler.on_trial_remove(None, stub)
            else:
                self.scheduler.on_trial_complete(None, stub, stub.result)
        if self._known(trial):
            self.searcher.on_trial_complete(str(trial), result=None if failed else stub.result or None, error=failed)

    def _known(self, trial: int) -> bool:
        return not (self.foreign and trial == 0 and self.first is not None)


class _Stub:
    """What schedulers look at in Tune's Trial."""

    status = "RUNNING"

    def __init__(self, trial: int, config: dict[str, Any]) -> None:
        self.trial_id, self.config = str(trial), config
        self.result: dict[str, Any] = {}


def _searcher(name: str, space: Space, seed: int, mode: str, first: Mapping[str, Any] | None, folder: Path | None) -> Any:
    if name not in SEARCHERS:
        return _foreign(name, space, mode, folder)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if name == "grid":
        sampler = optuna.samplers.GridSampler({d.key: _choices(d) for d in space}, seed=seed)
    elif name == "random":
        sampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
    points = [{d.key: _encode(d, first[d.key]) for d in space if d.key in first}] if first else None
    return OptunaSearch(_define_by_run(space), metric="score", mode=mode, sampler=sampler, points_to_evaluate=points)


def _foreign(name: str, space: Space, mode: str, folder: Path | None) -> Any:
    """A searcher of Ray Tune's by name, or by path."""
    from ray.tune.search import SEARCH_ALG_IMPORT

    cls = names.load(name, {}, "searcher", folder) if ":" in name else SEARCH_ALG_IMPORT[name]()
    searcher = cls()
    searcher.set_search_properties("score", mode, {d.key: _tune_domain(d) for d in space})
    return searcher


def _scheduler(config: Any, epochs: int, mode: str, folder: Path | None) -> Any:
    if config.name == "none":
        return None
    if config.name == "asha":
        from ray.tune.schedulers import ASHAScheduler

        grace = min(config.grace_period, epochs)
        made = ASHAScheduler(max_t=epochs, grace_period=grace, reduction_factor=config.reduction_factor, stop_last_trials=False)
    else:
        made = names.load(config.name, {}, "scheduler", folder)()
    made.set_search_properties("score", mode)
    return made


def _define_by_run(space: Space) -> Any:
    """The space as a function of an Optuna trial; a condition is an `if`. (https://optuna.readthedocs.io, "Pythonic Search Space")"""

    def define(trial: Any) -> None:
        values: dict[str, Any] = {}
        for domain in space:
            if domain.active(values):
                values[domain.key] = _value(domain, _suggest(trial, domain))

    return define


def _suggest(trial: Any, domain: Domain) -> Any:
    key, args = domain.key, domain.args
    if domain.kind == "choice":
        return trial.suggest_categorical(key, _choices(domain))
    if domain.kind in ("randint", "lograndint"):
        return trial.suggest_int(key, args[0], args[1] - 1, log=domain.kind == "lograndint")
    if domain.kind == "quniform":
        return trial.suggest_float(key, args[0], args[1], step=args[2])
    return trial.suggest_float(key, args[0], args[1], log=domain.kind == "loguniform")


def _choices(domain: Domain) -> list[Any]:
    """Optuna's choices are scalars: others go by their place in the list."""
    return list(domain.args) if all(isinstance(a, SCALARS) for a in domain.args) else list(range(len(domain.args)))


def _value(domain: Domain, raw: Any) -> Any:
    return domain.args[raw] if domain.kind == "choice" and _choices(domain) != list(domain.args) else raw


def _encode(domain: Domain, value: Any) -> Any:
    return list(domain.args).index(value) if domain.kind == "choice" and _choices(domain) != list(domain.args) else value


def _decode(suggested: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Flat keys again (Tune nests by '/', which no key of ours has), in the space's order, numbers as Python's own."""
    return {d.key: _plain(_value(d, suggested[d.key])) for d in space if d.key in suggested}


def _plain(value: Any) -> Any:
    if isinstance(value, bool | str | list) or value is None:
        return value
    return int(value) if isinstance(value, int) or (hasattr(value, "dtype") and value.dtype.kind == "i") else float(value)


def _tune_domain(domain: Domain) -> Any:
    from ray import tune

    if domain.kind == "choice":
        return tune.choice(list(domain.args))
    return getattr(tune, domain.kind)(*domain.args)


def best_so_far(scores: list[float], mode: str) -> float:
    """The best of a trial's scores; of none, the worst there is."""
    worst = -math.inf if mode == "max" else math.inf
    return max(scores, default=worst) if mode == "max" else min(scores, default=worst)
