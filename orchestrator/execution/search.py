"""Ray Tune's searcher and scheduler as ask/tell: deterministic, the same calls give the same answers.

Tune's own algorithms, without its Tuner: see docs/why-not-tuner.md for what was measured. `random`, `grid` and `tpe` are OptunaSearch with
Optuna's samplers; any other Tune searcher can be named, and any scheduler that only goes on or stops.
"""

from __future__ import annotations

import inspect
import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator import names
from orchestrator.execution.domains import choices, decode, define_by_run, distribution, encode, tune_domain
from orchestrator.experiment.config import Experiment, flatten
from orchestrator.experiment.space import Space

SEARCHERS = {"random": "RandomSampler", "grid": "GridSampler", "tpe": "TPESampler"}
SCHEDULERS = ("none", "asha")
SEEDS = ("seed", "random_seed", "random_state_seed", "random_state")  # as Tune's searchers have it


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

    def repeats(self, trial: None, values: dict[str, Any]) -> bool:
        """It has no other answer."""
        self.asked = True
        return True

    def take(self, trial: None, values: dict[str, Any]) -> None:
        """The run has begun before."""
        self.asked = True

    def learn(self, values: dict[str, Any], score: float) -> bool:
        """Nothing to learn."""
        return False

    def tell(self, trial: None, epoch: int, score: float) -> bool:
        """Never stops."""
        return False

    def end(self, trial: None, failed: bool) -> None:
        """Nothing to learn."""


class Search:
    """Asks for a trial's values, is told each epoch's score, says whether to stop. Scores are the best so far, as `mode` has it.

    `folder`: below which a user's own searcher or scheduler lies. `goes_on`: it takes over trials of another search, which had the
    file's own values.
    """

    def __init__(
        self, experiment: Experiment, space: Space, epochs: int, trials: int, folder: Path | None = None, goes_on: bool = False
    ) -> None:
        sweep, self.space, self.trials, self.mode = experiment.sweep, space, trials, experiment.mode
        seed = sweep.seed if sweep.seed is not None else experiment.training.seed
        self.first = None if sweep.search == "grid" or goes_on else space.point(flatten(experiment.plain()))
        self.searcher = _searcher(sweep.search, space, seed, self.mode, self.first, folder)
        self.foreign = sweep.search not in SEARCHERS
        self.scheduler = _scheduler(sweep.scheduler, epochs, self.mode, folder)
        self.grid = sweep.search == "grid"
        self.asked = 0
        self._trials: dict[int, _Stub] = {}
        self._taken: set[int] = set()  # trials that the searcher doesn't know: it didn't suggest them
        self._tried: list[dict[str, Any]] = []  # their values
        self._points = 0  # of the space, that a trial has
        self._names: dict[int, str] = {}  # by which the searcher knows a trial

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """The next trial's number and values, or None if there is none to come."""
        return self._suggest() if self.asked < self.trials else None

    def _suggest(self) -> tuple[int, dict[str, Any]] | None:
        trial = self.asked
        if self.grid and self._points >= self.space.size():
            return None
        if self.foreign and trial == 0 and self.first is not None:
            self._taken.add(trial)
            values = self.first
        elif (suggested := self._untried(str(trial))) is None:
            return None
        else:
            values = suggested
        self._begin(trial, values)
        return trial, values

    def _untried(self, name: str) -> dict[str, Any] | None:
        """What the searcher suggests; of a grid, what no trial had: the searcher doesn't know those that were taken."""
        for again in range(self.space.size() if self.grid else 1):
            asked = f"{name}.{again}" if again else name
            suggested = self.searcher.suggest(asked)
            if suggested is None or suggested == "FINISHED":
                return None
            values = decode(suggested, self.space)
            if not (self.grid and values in self._tried):
                self._names[int(name)] = asked
                return values
            self._tried.remove(values)
            self.searcher.on_trial_complete(asked, error=True)
        return None

    def _begin(self, trial: int, values: dict[str, Any]) -> None:
        self.asked = max(self.asked, trial + 1)
        self._points += self.space.point(values) == values
        self._trials[trial] = stub = _Stub(trial, values)
        if self.scheduler is not None:
            self.scheduler.on_trial_add(None, stub)

    def repeats(self, trial: int, values: dict[str, Any]) -> bool:
        """Ask again as it was asked before: whether the answer is the same."""
        return self._suggest() == (trial, values)

    def take(self, trial: int, values: dict[str, Any]) -> None:
        """Go on with a trial of another search: it is scheduled with the others, and the searcher hears nothing of it."""
        self._taken.add(trial)
        self._tried.append(values)
        self._begin(trial, values)

    def learn(self, values: dict[str, Any], score: float) -> bool:
        """Whether the searcher could take an ended trial of another search as evidence: its point must lie in the space."""
        if self.space.point(values) != values:
            return False
        params = {d.key: encode(d, values[d.key]) for d in self.space if d.key in values}
        if self.foreign:
            try:
                self.searcher.add_evaluated_point(params, score)
            except NotImplementedError:  # Tune's Searcher raises it, and most leave it at that
                return False
            return True
        import optuna

        distributions = {d.key: distribution(d) for d in self.space if d.key in values}
        self.searcher._ot_study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
        return True

    def tell(self, trial: int, epoch: int, score: float) -> bool:
        """Whether to stop the trial, given its score (the best of its epochs so far)."""
        stub = self._trials[trial]
        stub.result = {"training_iteration": epoch, "score": score}
        verdict = "CONTINUE" if self.scheduler is None else self.scheduler.on_trial_result(None, stub, stub.result)
        if verdict not in ("CONTINUE", "STOP"):
            raise ValueError(f"sweep.scheduler: it answered {verdict}; only schedulers that go on or stop can be used")
        if verdict == "CONTINUE" and self._known(trial):
            self.searcher.on_trial_result(self._names[trial], stub.result)
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
            self.searcher.on_trial_complete(self._names.pop(trial), result=None if failed else stub.result or None, error=failed)

    def _known(self, trial: int) -> bool:
        return trial not in self._taken


class _Stub:
    """What schedulers look at in Tune's Trial."""

    status = "RUNNING"

    def __init__(self, trial: int, config: dict[str, Any]) -> None:
        self.trial_id, self.config = str(trial), config
        self.result: dict[str, Any] = {}


def _searcher(name: str, space: Space, seed: int, mode: str, first: Mapping[str, Any] | None, folder: Path | None) -> Any:
    if name not in SEARCHERS:
        return _foreign(name, space, seed, mode, folder)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger(OptunaSearch.__module__).setLevel(logging.ERROR)  # it warns at each grid's end
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if name == "grid":
        sampler = optuna.samplers.GridSampler({d.key: choices(d) for d in space}, seed=seed)
    elif name == "random":
        sampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
    points = [{d.key: encode(d, first[d.key]) for d in space if d.key in first}] if first else None
    return OptunaSearch(define_by_run(space), metric="score", mode=mode, sampler=sampler, points_to_evaluate=points)


def _foreign(name: str, space: Space, seed: int, mode: str, folder: Path | None) -> Any:
    """A searcher of Ray Tune's by name, or by path; seeded, where it takes a seed."""
    from ray.tune.search import SEARCH_ALG_IMPORT

    cls = names.load(name, {}, "searcher", folder) if ":" in name else SEARCH_ALG_IMPORT[name]()
    takes = inspect.signature(cls).parameters
    searcher = cls(**{key: seed for key in SEEDS if key in takes})
    searcher.set_search_properties("score", mode, {d.key: tune_domain(d) for d in space})
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


def best_so_far(scores: list[float], mode: str) -> float:
    """The best of a trial's scores; of none, the worst there is."""
    worst = -math.inf if mode == "max" else math.inf
    return max(scores, default=worst) if mode == "max" else min(scores, default=worst)
