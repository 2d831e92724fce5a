"""Batches: every epoch sees every row once, whatever the number of ranks, and its order is a function of (seed, epoch)."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from pipelines.batches import Batches, Held, Step, shares
from pipelines.ragged import Ragged


def columns(rows: int) -> Held:
    return Held({"x": torch.arange(rows), "y": torch.arange(rows) * 10})


def rows_of(step: Step) -> list[int]:
    """The rows that count: a rank without a share gets one row that doesn't."""
    return torch.cat([piece["x"] for piece in step.pieces]).tolist()[: step.rows]


def epoch(batches: Batches, number: int, skip: int = 0) -> list[list[int]]:
    return [rows_of(step) for step in batches.epoch(number, skip)]


@pytest.mark.parametrize(("rows", "batch_size", "world_size"), [(24, 8, 2), (23, 8, 3), (10, 3, 4), (9, 8, 4)])
def test_the_ranks_together_take_the_batches_that_one_rank_takes(rows: int, batch_size: int, world_size: int) -> None:
    alone = epoch(Batches(columns(rows), batch_size, seed=5), 1)
    ranks = [epoch(Batches(columns(rows), batch_size, 5, rank, world_size), 1) for rank in range(world_size)]
    together = [[row for rank in ranks for row in rank[step]] for step in range(len(alone))]
    assert together == alone
    assert sorted(chain.from_iterable(together)) == list(range(rows))


def test_each_rank_s_share_of_an_uneven_batch_differs_by_one_row_at_most() -> None:
    counts = [[step.rows for step in Batches(columns(11), 7, 0, rank, 3).epoch(1)] for rank in range(3)]
    assert counts == [[3, 2], [2, 1], [2, 1]]


def test_every_rank_knows_the_rows_of_the_whole_batch() -> None:
    assert [[step.total for step in Batches(columns(11), 8, 0, rank, 4).epoch(1)] for rank in range(4)] == [[8, 3]] * 4


def test_a_rank_without_rows_gets_an_empty_piece_to_take_part_with() -> None:
    steps = list(Batches(columns(9), 8, 0, rank=3, world_size=4).epoch(1))
    assert [step.rows for step in steps] == [2, 0]
    assert [len(piece["x"]) for piece in steps[1].pieces] == [0]


def test_every_rank_has_as_many_pieces() -> None:
    pieces = [[len(step.pieces) for step in Batches(columns(23), 5, 0, rank, 2, accumulate=3).epoch(1)] for rank in range(2)]
    assert pieces[0] == pieces[1] == [3, 3, 3, 3, 2]


def test_all_ranks_take_the_same_number_of_steps() -> None:
    assert {len(list(Batches(columns(9), 4, 0, rank, 3).epoch(1))) for rank in range(3)} == {3}
    assert Batches(columns(9), 4, 0).steps == 3


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    batches = Batches(columns(50), 10, seed=1)
    first = epoch(batches, 1)
    assert epoch(batches, 2) != first
    assert epoch(batches, 1) == first
    assert epoch(Batches(columns(50), 10, seed=2), 1) != first


def test_skipped_steps_are_left_out_and_the_rest_is_the_same() -> None:
    batches = Batches(columns(25), 4, seed=1)
    assert epoch(batches, 3, skip=5) == epoch(batches, 3)[5:]
    assert epoch(batches, 3, skip=batches.steps) == []


def test_the_columns_of_a_batch_stay_together() -> None:
    for step in Batches(columns(20), 6, 0).epoch(1):
        assert all(torch.equal(piece["y"], piece["x"] * 10) for piece in step.pieces)


def test_accumulation_cuts_a_rank_s_share_into_pieces_of_the_same_rows() -> None:
    whole = list(Batches(columns(20), 10, 0, rank=1, world_size=2).epoch(1))
    cut = list(Batches(columns(20), 10, 0, rank=1, world_size=2, accumulate=3).epoch(1))
    assert [[len(piece["x"]) for piece in step.pieces] for step in cut] == [[2, 2, 1], [2, 2, 1]]
    assert [rows_of(step) for step in cut] == [rows_of(step) for step in whole]


def test_accumulation_makes_no_empty_pieces() -> None:
    steps = list(Batches(columns(10), 8, 0, accumulate=4).epoch(1))
    assert [[len(piece["x"]) for piece in step.pieces] for step in steps] == [[2, 2, 2, 2], [1, 1]]


@pytest.mark.parametrize(("rows", "size", "world_size"), [(10, 3, 1), (10, 3, 4), (3, 8, 4)])
def test_in_order_covers_each_row_once_in_order(rows: int, size: int, world_size: int) -> None:
    seen = [batch["x"].tolist() for rank in range(world_size) for batch in columns(rows).in_order(size, rank, world_size)]
    assert list(chain.from_iterable(seen)) == list(range(rows))
    assert max(len(batch) for batch in seen) <= size


def test_shares_add_up_and_the_first_take_one_more() -> None:
    assert shares(10, 4) == [3, 3, 2, 2]
    assert shares(2, 4) == [1, 1, 0, 0]


def test_large_rows_are_evaluated_a_few_at_a_time() -> None:
    """250 images of 1,024 x 1,024 would take gigabytes."""
    images = Held({"image": torch.zeros(5, 1024, 1024, 3, dtype=torch.uint8)})
    assert [len(batch["image"]) for batch in images.in_order(250)] == [1] * 5
    assert [len(batch["x"]) for batch in columns(600).in_order(250)] == [250, 250, 100]


def recordings(steps: list[int], bands: int) -> Ragged:
    return Ragged.of(torch.zeros(sum(steps), bands), torch.tensor(steps))


def test_rows_of_many_numbers_a_step_are_evaluated_a_few_at_a_time() -> None:
    """250 recordings of 16,000 steps of 40 bands would take 640 MB."""
    held = Held({"audio": recordings([20_000, 30_000, 70_000], 40)})
    assert [batch["audio"].shape[:2] for batch in held.in_order(250)] == [(2, 30_000), (1, 70_000)]


def test_every_column_of_an_evaluation_batch_is_bounded() -> None:
    """Also the one that holds less in all, and one whose rows have one size."""
    steps = Held({"audio": recordings([90_000, 10, 10], 40), "words": recordings([1, 3_000_000, 2_000_000], 1)})
    assert [len(batch["words"]) for batch in steps.in_order(250)] == [1, 1, 1]
    images = Held({"words": recordings([1, 2, 3], 1), "image": torch.zeros(3, 1024, 1024, 3, dtype=torch.uint8)})
    assert [len(batch["image"]) for batch in images.in_order(250)] == [1, 1, 1]


def test_a_training_batch_holds_all_its_rows_however_wide_their_steps() -> None:
    batches = Batches(Held({"audio": recordings([300_000] * 2, 40)}), 2, 0)
    assert [len(step.pieces[0]["audio"]) for step in batches.epoch(1)] == [2]
