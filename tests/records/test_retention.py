"""Which runs may go: a function of a policy and of what is recorded."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import Refused
from orchestrator.events import Best, State, TrialResult
from orchestrator.records.driving import Activity
from orchestrator.records.retention import Policy, going, policy
from orchestrator.records.tracking import RecordedRun

DAY = 86_400_000
NOW = 100 * DAY


def run(
    launch: str,
    trial: int | None,
    score: float | None,
    *,
    state: State = "finished",
    days: float = 1,
    kind: str = "trial",
    wall_s: float = 0,
    metric: str = "val_accuracy",
    data: str = "f",
    ended_days: float | None = None,
) -> RecordedRun:
    """A run that began so many days ago; its id is like `a/0`."""
    best = None if score is None else Best(1, {"val_loss": 1.0, metric: score})
    result = TrialResult(trial, f"{launch}/{'parent' if trial is None else trial}", state, None, {}, 1, best, None, wall_s)
    ended_ms = None if ended_days is None else int(NOW - ended_days * DAY)
    return RecordedRun(result, kind, launch, data, metric, "max", int(NOW - days * DAY), {}, {}, None, {}, ended_ms)


SWEEP = [
    run("a", None, None, kind="sweep"),
    run("a", 0, 0.5), run("a", 1, 0.9), run("a", 2, 0.7), run("a", 3, 0.99, state="failed"), run("a", 4, None, state="failed"),
]  # fmt: skip


def gone(runs: list[RecordedRun], rule: Policy, registered: Any = None, active: Any = None) -> list[str | None]:
    return [one.result.run_id for one in going(runs, rule, registered or {}, active or {}, NOW)[0]]


@pytest.mark.parametrize(
    ("keep", "older", "rule"),
    [
        ("top:3", None, Policy(3, None)),
        (None, "30d", Policy(None, 30 * DAY)),
        (None, "12h", Policy(None, DAY // 2)),
        ("top:0", "1.5w", Policy(0, int(10.5 * DAY))),
        (None, "90s", Policy(None, 90_000)),
    ],
)
def test_a_policy_is_read(keep: str | None, older: str | None, rule: Policy) -> None:
    assert policy(keep, older) == rule


@pytest.mark.parametrize(
    ("keep", "older", "key", "says"),
    [
        (None, None, None, "give --keep top:3"),
        ("3", None, "--keep", "'3' is no rule: give --keep top:3"),
        ("top:-1", None, "--keep", "'top:-1' is no rule"),
        (None, "30", "--older", "'30' is no age: give --keep top:3"),
        (None, "soon", "--older", "'soon' is no age"),
    ],
)
def test_anything_else_is_refused_with_the_two_forms(keep: str | None, older: str | None, key: str | None, says: str) -> None:
    with pytest.raises(Refused) as refused:
        policy(keep, older)
    [problem] = refused.value.problems
    assert (problem.key, problem.message.startswith(says)) == (key, True)
    assert "--older 30d" in problem.message


def test_the_best_that_came_to_an_end_stay_and_the_sweep_with_them() -> None:
    assert gone(SWEEP, Policy(1, None)) == ["a/0", "a/2", "a/3", "a/4"]
    assert gone(SWEEP, Policy(2, None)) == ["a/0", "a/3", "a/4"]


def test_the_sweep_itself_goes_last_and_only_when_none_of_its_trials_stays() -> None:
    assert gone([*SWEEP, run("b", None, 0.95, kind="train")], Policy(1, None)) == ["a/0", "a/1", "a/2", "a/3", "a/4", "a/parent"]


def test_what_is_smaller_is_better_where_the_metric_says_so() -> None:
    runs = [run("a", n, score, metric="val_loss") for n, score in enumerate([0.5, 0.2])]
    runs = [RecordedRun(**{**one.__dict__, "mode": "min"}) for one in runs]
    assert gone(runs, Policy(1, None)) == ["a/0"]


def test_age_counts_from_the_end() -> None:
    runs = [run("a", 0, 0.5, days=31), run("a", 1, 0.5, days=31, wall_s=2 * 86_400), run("a", 2, 0.5, days=29)]
    assert gone(runs, Policy(None, 30 * DAY)) == ["a/0"]


def test_of_both_only_what_is_neither_among_the_best_nor_young_goes() -> None:
    runs = [run("a", 0, 0.9, days=40), run("a", 1, 0.5, days=40), run("a", 2, 0.4, days=1)]
    assert gone(runs, Policy(1, 30 * DAY)) == ["a/1"]


def test_what_the_registry_needs_stays_with_its_sweep_and_says_why() -> None:
    chosen, stays = going(SWEEP, Policy(0, None), {"a/0": "it is version 1 of model m"}, {}, NOW)
    assert [one.result.run_id for one in chosen] == ["a/1", "a/2", "a/3", "a/4"]
    assert stays == {"a/0": "it is version 1 of model m"}


def test_a_launch_under_way_is_never_touched_and_one_that_can_be_resumed_only_when_it_is_old() -> None:
    old = [run("a", None, None, kind="sweep", days=60), run("a", 0, 0.5, days=60)]
    running, resumable = Activity("running", NOW - 50 * DAY, False), Activity("resumable", NOW - 50 * DAY, True)
    for rule in (Policy(0, None), Policy(None, 30 * DAY)):
        assert gone(old, rule, active={"a": running}) == []
    assert gone(old, Policy(0, None), active={"a": resumable}) == []
    assert gone(old, Policy(None, 55 * DAY), active={"a": resumable}) == []
    assert gone(old, Policy(None, 30 * DAY), active={"a": resumable}) == ["a/0", "a/parent"]


def test_nothing_recorded_is_nothing_to_remove() -> None:
    assert going([], Policy(3, None), {}, {}, NOW) == ([], {})


def test_of_a_run_that_was_resumed_later_the_last_end_counts() -> None:
    runs = [run("a", 0, 0.5, days=4, wall_s=3600, ended_days=0.1), run("a", 1, 0.6, days=4, wall_s=3600, ended_days=3.9)]
    assert gone(runs, Policy(None, DAY)) == ["a/1"]


def test_of_the_newest_data_the_best_stay_too_since_one_of_them_is_promoted() -> None:
    runs = [run("a", 0, 0.99, days=4, data="old"), run("a", 1, 0.98, days=4, data="old"), run("b", 0, 0.97), run("b", 1, 0.96)]
    assert gone(runs, Policy(1, None)) == ["a/1", "b/1"]
