"""What a death means, and who takes what: pure functions."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.execution.deaths import MAX_RESTARTS, Past, judge, with_output
from orchestrator.execution.placement import Seat, Wants, assign


def test_a_trial_goes_on_three_times_and_then_has_failed_with_the_words_of_its_last_death() -> None:
    past, errors = Past(), list[str | None]()
    for _ in range(4):
        sentence = judge(past, "died", "SIGKILL")
        past = sentence.past
        errors.append(sentence.error)
    assert errors == [None, None, None, "its worker died 4 times: SIGKILL"]


def test_a_node_that_is_taken_away_does_not_count() -> None:
    past = Past(deaths=3)
    assert all(judge(past, "moved", "").past == past for _ in range(9))
    assert judge(past, "moved", "").error is None


def test_a_trial_without_memory_gets_one_retry_alone() -> None:
    first = judge(Past(), "memory", "")
    assert (first.error, first.past.alone) == (None, True)
    between = judge(first.past, "died", "SIGKILL")
    assert (between.error, between.past.alone) == (None, True)
    again = judge(between.past, "memory", "")
    assert again.error is not None
    assert again.error.startswith("out of memory, and out of memory again when it was alone on its node")


A, B = "a", "b"


@pytest.mark.parametrize(
    ("waiting", "seats", "leaving", "made"),
    [
        ([Wants(0), Wants(1)], [Seat(0, A), Seat(1, B)], [], [(0, 0), (1, 1)]),
        ([Wants(3), Wants(1)], [Seat(7, A)], [], [(3, 7)]),  # who waits longest, whichever slot it is in
        ([Wants(0)], [Seat(0, A, slot=5), Seat(1, B)], [], [(0, 1)]),
        ([Wants(0)], [Seat(0, A)], [A], []),
        ([Wants(0), Wants(1)], [Seat(0, A), Seat(1, B)], [A], [(0, 1)]),
        # alone: its node is kept free for it, the other one isn't
        ([Wants(0, True, A), Wants(1)], [Seat(0, A, slot=2), Seat(1, A), Seat(2, B)], [], [(1, 2)]),
        ([Wants(0, True, A), Wants(1)], [Seat(0, A), Seat(1, A), Seat(2, B)], [], [(0, 0), (1, 2)]),
        ([Wants(1), Wants(0, True, A)], [Seat(0, A), Seat(1, A)], [], [(0, 0)]),
        ([Wants(1)], [Seat(0, A, slot=0, alone=True), Seat(1, A)], [], []),
        ([Wants(0, True, "gone"), Wants(1)], [Seat(0, A, slot=2), Seat(1, A), Seat(2, B)], [], [(0, 2), (1, 1)]),
        ([Wants(0, True, A), Wants(1, True, A)], [Seat(0, A), Seat(1, A)], [], [(0, 0)]),
        ([Wants(0, True, A)], [], [], []),
    ],
)
def test_free_workers_take_what_waits(waiting: list[Wants], seats: list[Seat], leaving: list[str], made: list[tuple[int, int]]) -> None:
    assert assign(waiting, seats, leaving) == made


def test_a_trial_that_gets_on_between_is_not_given_up_and_one_that_dies_at_the_same_epoch_is() -> None:
    past = Past()
    for epoch in range(1, 10):
        past = judge(past.after(epoch), "died", "SIGKILL").past
        assert past.deaths == 1
    for _ in range(MAX_RESTARTS - 1):
        sentence = judge(past.after(9), "died", "SIGKILL")
        assert sentence.error is None
        past = sentence.past
    assert judge(past.after(9), "died", "SIGKILL").error == f"its worker died {MAX_RESTARTS + 1} times: SIGKILL"
    assert judge(Past(memory=1).after(1), "memory", "").error is not None, "two are too many, whatever was between"


def test_an_error_without_a_traceback_names_the_output_that_is_here(tmp_path: Path) -> None:
    assert with_output("it died", None) == with_output("it died", str(tmp_path)) == "it died"
    (tmp_path / "rank-0.log").touch()
    assert with_output("it died", str(tmp_path)) == f"it died; what it printed: {tmp_path}/rank-0.log"
    assert with_output("it died", str(tmp_path), ranks=2) == f"it died; what it printed: {tmp_path}"
