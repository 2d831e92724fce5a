"""The search space: which values lie in it, which keys are searched, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.experiment.read import space_of
from orchestrator.experiment.space import Domain, Space, SpaceError, in_order, parse, same
from tests.conftest import MakeExperiment

NAME = Domain("optimizer.name", "choice", ("sgd", "adam", "rmsprop"))
MOMENTUM = Domain("optimizer.momentum", "uniform", (0.8, 0.99), {"optimizer.name": ("sgd", "rmsprop")})


@pytest.mark.parametrize(
    ("kind", "args", "inside", "outside"),
    [
        ("uniform", (0.0, 0.5), [0, 0.25, 0.5], [-0.1, 0.51, "0.2", True, None]),
        ("loguniform", (1e-4, 1e-1), [1e-4, 0.01, 0.1], [0, 1e-5, 0.2]),
        ("quniform", (0.0, 1.0, 0.25), [0, 0.25, 1.0], [0.1, 1.25]),
        ("randint", (1, 4), [1, 3, 2.0], [0, 4, 2.5, True]),
        ("lograndint", (1, 100), [1, 99], [100, 0.5]),
        ("choice", ("a", 1, None, (1, 2)), ["a", 1, 1.0, None, (1, 2)], ["b", True, (1,)]),
    ],
)
def test_a_domain_contains_its_values_and_no_others(kind: str, args: tuple[Any, ...], inside: list[Any], outside: list[Any]) -> None:
    domain = Domain("key", kind, args)
    assert [domain.contains(value) for value in inside] == [True] * len(inside)
    assert [domain.contains(value) for value in outside] == [False] * len(outside)


@pytest.mark.parametrize(("a", "b", "answer"), [(1, 1.0, True), (True, 1, False), (False, 0, False), (True, True, True), ("1", 1, False)])
def test_true_is_not_one(a: Any, b: Any, answer: bool) -> None:
    assert same(a, b) is answer


@pytest.mark.parametrize(
    ("values", "answer"),
    [({"optimizer.name": "sgd"}, True), ({"optimizer.name": "adam"}, False), ({}, False), ({"optimizer.name": "rmsprop", "x": 1}, True)],
)
def test_a_domain_is_active_where_its_condition_holds(values: dict[str, Any], answer: bool) -> None:
    assert MOMENTUM.active(values) is answer


def test_a_domain_without_a_condition_is_always_active() -> None:
    assert NAME.active({})


def test_all_conditions_of_a_domain_must_hold() -> None:
    domain = Domain("c", "choice", (1,), {"a": (1,), "b": (2, 3)})
    assert domain.active({"a": 1, "b": 3})
    assert not domain.active({"a": 1, "b": 4})


@pytest.mark.parametrize(
    ("kind", "args", "examples"),
    [("uniform", (0, 1), [0, 1]), ("randint", (1, 4), [1, 3]), ("lograndint", (1, 9), [1, 8]), ("choice", ("a", "b"), ["a", "b"])],
)
def test_a_domain_s_examples_are_its_ends_or_all_its_choices(kind: str, args: tuple[Any, ...], examples: list[Any]) -> None:
    assert Domain("key", kind, args).examples() == examples


@pytest.mark.parametrize(
    ("values", "point"),
    [
        ({"optimizer.name": "sgd", "optimizer.momentum": 0.9, "x": 1}, {"optimizer.name": "sgd", "optimizer.momentum": 0.9}),
        ({"optimizer.name": "adam", "optimizer.momentum": 0.9}, {"optimizer.name": "adam"}),
        ({"optimizer.name": "adam"}, {"optimizer.name": "adam"}),
        ({"optimizer.name": "sgd", "optimizer.momentum": 0.5}, None),
        ({"optimizer.name": "sgd"}, None),
        ({"optimizer.name": "adamw"}, None),
        ({}, None),
    ],
)
def test_a_point_is_the_searched_part_of_values_or_none_where_one_lies_outside(
    values: dict[str, Any], point: dict[str, Any] | None
) -> None:
    assert Space((NAME, MOMENTUM)).point(values) == point


def test_the_file_s_own_values_are_a_point_of_a_space_around_them(make_experiment: MakeExperiment) -> None:
    experiment = make_experiment("sweep.space={optimizer.lr: {loguniform: [1e-3, 1e-1]}, model.pool_after: {choice: [[1], [1, 2]]}}")
    assert space_of(experiment).point(experiment.flat()) == {"optimizer.lr": 0.01, "model.pool_after": [1, 2]}


def test_each_domain_comes_after_those_of_its_condition() -> None:
    last = Domain("last", "choice", (1,), {"optimizer.momentum": (0.9,)})
    assert [domain.key for domain in in_order([last, MOMENTUM, NAME])] == ["optimizer.name", "optimizer.momentum", "last"]


def test_domains_without_conditions_keep_the_file_s_order() -> None:
    assert [domain.key for domain in in_order([Domain(key, "choice", (1,)) for key in "cab"])] == ["c", "a", "b"]


@pytest.mark.parametrize("waits", [{"a": "b", "b": "a"}, {"a": "a"}, {"a": "b", "b": "c", "c": "a"}])
def test_conditions_that_wait_for_each_other_are_refused(waits: dict[str, str]) -> None:
    domains = [Domain(key, "choice", (1,), {other: (1,)}) for key, other in waits.items()]
    with pytest.raises(SpaceError, match="conditions that wait for each other"):
        in_order(domains)


def test_a_condition_on_a_key_that_is_not_searched_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"optimizer.momentum: when: names 'optimizer.name', which is not in the space"):
        in_order([MOMENTUM])


def test_a_space_knows_its_size_and_whether_it_has_conditions() -> None:
    grid = Space((NAME, Domain("b", "choice", (1, 2))))
    assert (len(grid), grid.size()) == (2, 6)
    assert Space().size() == 1


def test_a_domain_is_read_with_its_condition_of_one_value_or_of_several() -> None:
    assert parse("k", {"uniform": [0, 1], "when": {"a": 1, "b": [2, 3]}}) == Domain("k", "uniform", (0, 1), {"a": (1,), "b": (2, 3)})


@pytest.mark.parametrize("data", [{"uniform": [0, 1], "randint": [0, 1]}, {"when": {"a": 1}}, {}])
def test_a_domain_has_exactly_one_kind(data: dict[str, Any]) -> None:
    with pytest.raises(SpaceError, match=r"give one of uniform, .* e.g. \{uniform: \[0.0, 0.5\]\}"):
        parse("k", data)


@pytest.mark.parametrize(
    ("kind", "args", "says"),
    [
        ("uniform", [True, 2], "takes numbers"),
        ("uniform", [0, float("nan")], "takes numbers"),
        ("uniform", [0, float("inf")], "takes numbers"),
        ("randint", [1, 2.5], "takes whole numbers"),
        ("quniform", [0, 1, 0], "the step is 0; it must be above 0"),
        ("quniform", [0, 1], "takes 3 numbers, not 2"),
        ("lograndint", [0, 5], "the lower end is 0; it must be above 0"),
        ("randint", [3, 3], r"the range \[3, 3\] is empty"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(kind: str, args: list[Any], says: str) -> None:
    with pytest.raises(SpaceError, match=f"^{kind}:? .*{says}|^{kind}:? ?{says}"):
        parse("k", {kind: args})
