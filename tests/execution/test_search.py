"""Searchers and schedulers as ask and tell: the same calls, the same answers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ExperimentError
from orchestrator.execution.search import Search, best_so_far
from orchestrator.experiment.config import Experiment
from orchestrator.experiment.plan import trial_count
from orchestrator.experiment.read import space_of
from tests.execution.conftest import MakeExperiment

SPACE = (
    "sweep.space={optimizer.lr: {loguniform: [1e-4, 1.0]}, optimizer.name: {choice: [sgd, adam]}, "
    "optimizer.momentum: {uniform: [0.5, 0.99], when: {optimizer.name: [sgd]}}, model.dropout: {quniform: [0.0, 0.5, 0.1]}, "
    "training.batch_size: {randint: [16, 65]}}"
)
GRID = "sweep.space={optimizer.name: {choice: [sgd, adam]}, model.channels: {choice: [[4], [8, 8], [4]]}}"
OWN = '''
from ray.tune.search import Searcher
from ray.tune.schedulers import FIFOScheduler


class Counting(Searcher):
    """0.1, 0.2, ...; notes what it is told."""

    def __init__(self):
        super().__init__()
        self.told, self.space = [], None

    def set_search_properties(self, metric, mode, config, **spec):
        self.told.append(("properties", metric, mode, sorted(config)))
        return True

    def suggest(self, trial_id):
        return {"model.dropout": int(trial_id) / 10} if int(trial_id) < 4 else Searcher.FINISHED

    def on_trial_result(self, trial_id, result):
        self.told.append((trial_id, result["training_iteration"], result["score"]))

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.told.append((trial_id, "error" if error else result["score"]))


class Learning(Counting):
    """Takes a seed, and what others tried."""

    def __init__(self, seed=None):
        super().__init__()
        self.seed, self.learnt = seed, []

    def add_evaluated_point(self, parameters, value, error=False, pruned=False, intermediate_values=None):
        self.learnt.append((parameters, value))


class Impatient(FIFOScheduler):
    """Stops everything after two epochs."""

    def on_trial_result(self, controller, trial, result):
        return "STOP" if result["training_iteration"] >= 2 else "CONTINUE"


class Pausing(FIFOScheduler):
    def on_trial_result(self, controller, trial, result):
        return "PAUSE"
'''


def searching(experiment: Experiment, trials: int | None = None, folder: Path | None = None) -> Search:
    return Search(experiment, space_of(experiment), experiment.training.epochs, trials or experiment.sweep.trials, folder)


def answers(search: Search) -> list[dict[str, Any]]:
    """Every trial's values; each trial ends with a score that its values say."""
    found = []
    while (asked := search.ask()) is not None:
        trial, values = asked
        search.tell(trial, 1, float(values.get("model.dropout", len(found))))
        search.end(trial, failed=False)
        found.append(values)
    return found


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_the_same_seed_suggests_the_same_trials_and_another_seed_others(experiment: MakeExperiment, name: str) -> None:
    asked = (f"sweep.search={name}", SPACE, "sweep.trials=14")
    one, two = (answers(searching(experiment(*asked, "sweep.seed=3"))) for _ in range(2))
    assert len(one) == 14
    assert one == two
    assert answers(searching(experiment(*asked, "sweep.seed=4")))[1:] != one[1:]


def test_the_searcher_is_seeded_by_the_training_seed_where_it_has_none_of_its_own(experiment: MakeExperiment) -> None:
    given, default = experiment(SPACE, "sweep.seed=7"), experiment(SPACE, "training.seed=7")
    assert answers(searching(given, 4)) == answers(searching(default, 4))


def test_every_suggested_value_lies_in_its_domain(experiment: MakeExperiment) -> None:
    space = space_of(experiment(SPACE))
    found = answers(searching(experiment(SPACE, "sweep.trials=20")))
    for values in found:
        for domain in space:
            assert domain.active(values) == (domain.key in values)
            assert domain.key not in values or domain.contains(values[domain.key])
    assert {values["optimizer.name"] for values in found} == {"sgd", "adam"}


def test_trial_0_has_the_values_of_the_file(experiment: MakeExperiment) -> None:
    asked = experiment(SPACE, "optimizer={name: sgd, lr: 0.02}", "model.dropout=0.1", "training.batch_size=64")
    file = {"optimizer.lr": 0.02, "optimizer.name": "sgd", "optimizer.momentum": 0.9, "model.dropout": 0.1, "training.batch_size": 64}
    assert searching(asked).ask() == (0, file)


def test_values_of_the_file_outside_the_space_are_left_out(experiment: MakeExperiment) -> None:
    search = searching(experiment(SPACE, "training.batch_size=256"))
    assert search.first is None
    asked = search.ask()
    assert asked is not None
    assert asked[1]["training.batch_size"] in range(16, 65)


def test_a_grid_gives_every_combination_once_and_then_ends(experiment: MakeExperiment) -> None:
    asked = experiment("sweep.search=grid", GRID, "sweep.trials=50")
    found = answers(searching(asked, trial_count(asked)))
    assert len(found) == 6
    assert sorted(map(repr, found)) == sorted(
        repr({"optimizer.name": name, "model.channels": channels})
        for name, channels in itertools.product(["sgd", "adam"], [[4], [8, 8], [4]])
    )


def test_the_end_of_a_grid_warns_of_nothing(experiment: MakeExperiment, capfd: pytest.CaptureFixture[str]) -> None:
    asked = experiment("sweep.search=grid", "sweep.space={model.dropout: {choice: [0.1, 0.2]}}", "sweep.scheduler=none")
    assert len(answers(searching(asked, trial_count(asked)))) == 2
    assert capfd.readouterr().err == ""


def test_a_grid_with_two_trials_under_way_repeats_none(experiment: MakeExperiment) -> None:
    asked_for = experiment("sweep.search=grid", GRID)
    search, running, found = searching(asked_for, trial_count(asked_for)), list[int](), list[str]()
    while (asked := search.ask()) is not None:
        running.append(asked[0])
        found.append(repr(asked[1]))
        if len(running) == 2:
            search.end(running.pop(0), failed=False)
    assert len(found) == 6
    assert len(set(found)) == 4, "the list [4] stands twice among the choices"


def test_choices_that_are_lists_come_back_as_lists(experiment: MakeExperiment) -> None:
    space = "sweep.space={model.channels: {choice: [[4], [8, 8]]}}"
    found = answers(searching(experiment(space, "sweep.search=random", "sweep.trials=12")))
    assert found[0] == {"model.channels": [4]}
    assert {repr(values["model.channels"]) for values in found} == {"[4]", "[8, 8]"}


def test_a_failed_trial_teaches_nothing_and_the_search_goes_on(experiment: MakeExperiment) -> None:
    search = searching(experiment(SPACE, "sweep.scheduler=asha"), 4)
    for failed in (True, False, True, False):
        asked = search.ask()
        assert asked is not None
        if not failed:
            search.tell(asked[0], 1, 0.5)
        search.end(asked[0], failed=failed)
    assert search.ask() is None
    states = [trial.state.name for trial in search.searcher._ot_study.trials]
    assert states == ["FAIL", "COMPLETE", "FAIL", "COMPLETE"]


def test_a_searcher_of_ones_own_is_found_beside_the_experiment(experiment: MakeExperiment, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    asked = experiment("sweep.search=own:Counting", "sweep.space={model.dropout: {uniform: [0.0, 0.5]}}", "sweep.scheduler=none")
    search = searching(asked, folder=tmp_path)
    found = []
    while (trial := search.ask()) is not None:
        search.tell(trial[0], 1, 0.25)
        search.end(trial[0], failed=trial[0] == 3)
        found.append(trial)
    assert found == [(n, {"model.dropout": n / 10}) for n in range(4)]
    assert search.searcher.told == [
        ("properties", "score", "max", ["model.dropout"]),
        *[("1", 1, 0.25), ("1", 0.25), ("2", 1, 0.25), ("2", 0.25), ("3", 1, 0.25), ("3", "error")],
    ], "trial 0 is the file's own and not the searcher's"


def test_a_foreign_searcher_gets_the_seed_and_the_evidence_of_an_earlier_search_if_it_takes_them(
    experiment: MakeExperiment, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    space = "sweep.space={model.dropout: {uniform: [0.0, 0.5]}}"
    taking = searching(experiment("sweep.search=own:Learning", "sweep.seed=7", space), folder=tmp_path)
    assert taking.searcher.seed == 7
    assert taking.learn({"model.dropout": 0.25}, 0.5) is True
    assert taking.learn({"model.dropout": 0.75}, 0.5) is False, "it lies outside the space"
    assert taking.searcher.learnt == [({"model.dropout": 0.25}, 0.5)]
    other = searching(experiment("sweep.search=own:Counting", space), folder=tmp_path)
    assert other.learn({"model.dropout": 0.25}, 0.5) is False


def test_a_scheduler_of_ones_own_stops_trials(experiment: MakeExperiment, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    search = searching(experiment(SPACE, "sweep.scheduler=own:Impatient"), folder=tmp_path)
    asked = search.ask()
    assert asked is not None
    assert [search.tell(asked[0], epoch, 0.5) for epoch in (1, 2)] == [False, True]


def test_a_scheduler_that_pauses_trials_is_refused(experiment: MakeExperiment, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    search = searching(experiment(SPACE, "sweep.scheduler=own:Pausing"), folder=tmp_path)
    asked = search.ask()
    assert asked is not None
    with pytest.raises(ValueError, match="it answered PAUSE; only schedulers that go on or stop"):
        search.tell(asked[0], 1, 0.5)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sweep.search=tpee", "did you mean 'tpe'"),
        ("sweep.search=own:Nothing", "no attribute in .* 'Nothing'"),
        ("sweep.search=nowhere:Searcher", "No module named 'nowhere'"),
        ("sweep.scheduler=ashaa", "did you mean 'asha'"),
        ("sweep.scheduler=own:Nothing", "no attribute in .* 'Nothing'"),
    ],
)
def test_a_searcher_or_scheduler_that_does_not_exist_is_refused(
    experiment: MakeExperiment, tmp_path: Path, override: str, says: str
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(ExperimentError, match=says):
        experiment(override)


def test_conditions_are_refused_for_a_foreign_searcher(experiment: MakeExperiment, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(ExperimentError, match=r"search 'own:Counting' knows no conditions"):
        experiment(SPACE, "sweep.search=own:Counting")


def test_the_best_of_no_scores_is_the_worst_there_is() -> None:
    assert best_so_far([], "max") == float("-inf")
    assert best_so_far([], "min") == float("inf")
    assert (best_so_far([0.1, 0.3, 0.2], "max"), best_so_far([0.1, 0.3, 0.2], "min")) == (0.3, 0.1)
