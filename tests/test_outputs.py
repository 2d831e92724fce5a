"""Whose output is meant: the newest launch that has such a run; else what there is."""

from __future__ import annotations

import pytest

from orchestrator.errors import Refused
from orchestrator.outputs import Known, Output, RankOutput, _choose

OLD = Known("old", "sweep", {0: "r0", 1: "r1", 2: None})
NEW = Known("new", "sweep", {0: "r3", 3: "r4", 4: None, 5: None, 9: None})
TRAIN = Known("t", "train", {None: "r5"})
ALL = [OLD, TRAIN, NEW]


@pytest.mark.parametrize(
    ("trial", "sweep", "meant"),
    [(0, None, NEW), (9, None, NEW), (2, "old", OLD), (None, None, TRAIN)],
    ids=["newest", "last", "by id", "train"],
)
def test_the_newest_launch_is_meant_or_the_sweep_that_is_named(trial: int | None, sweep: str | None, meant: Known) -> None:
    assert _choose("digits", ALL, trial, sweep) is meant


@pytest.mark.parametrize(
    ("known", "trial", "sweep", "key", "says"),
    [
        (ALL, 1, None, "--trial", "no such run of 'digits': sweep new has trials 0, 3-5, 9"),
        (ALL, None, "old", "--trial", "a sweep's output is kept by trial: sweep old has trials 0-2"),
        (ALL, 0, "older", "--sweep", "no sweep 'older' of 'digits'; the newest are: old, new"),
        ([OLD, NEW], None, None, "--trial", "a sweep's output is kept by trial: sweep new has trials 0, 3-5, 9"),
        ([TRAIN], 3, None, "--trial", "'digits' has no sweep, only runs of train: leave --trial out"),
        ([Known("begun", "sweep")], 0, None, "--trial", "no such run of 'digits': sweep begun has trials (none yet)"),
        ([], None, None, "--trial", "'digits' has no run yet"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(known: list[Known], trial: int | None, sweep: str | None, key: str, says: str) -> None:
    with pytest.raises(Refused) as refused:
        _choose("digits", known, trial, sweep)
    [problem] = refused.value.problems
    assert (problem.key, problem.message) == (key, says)


def test_lines_name_their_rank_where_there_are_several() -> None:
    files = [RankOutput(0, "/logs/rank-0.log", ["a", "b"]), RankOutput(1, "/logs/rank-1.log", ["c"])]
    assert Output("digits", 0, files).lines() == [(0, "a"), (0, "b"), (1, "c")]
    assert Output("digits", 0, files[:1]).lines() == [(None, "a"), (None, "b")]
    assert Output("digits", 0, files[:1], ranks=2).lines() == [(0, "a"), (0, "b")]


def test_the_document_has_a_file_a_rank() -> None:
    made = Output("digits", 3, [RankOutput(0, "/logs/rank-0.log", ["a"])], "sweep-1", None)
    file = {"rank": 0, "path": "/logs/rank-0.log", "lines": ["a"]}
    assert made.document() == {"experiment": "digits", "trial": 3, "files": [file], "sweep": "sweep-1", "trace": None}
