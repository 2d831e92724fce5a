"""Streaming: rows of a part that is not held in memory, each once an epoch, whatever the ranks, and never more than two buffers of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import batches, stream
from pipelines import prepare as preparing
from pipelines.batches import Step, shares
from pipelines.encode import Encoder
from pipelines.prepare import Prepared
from pipelines.raw import Raw
from pipelines.schema import Column, DataError
from pipelines.splits import SplitConfig
from pipelines.stream import Streamed, StreamedBatches

ROWS, GROUP, AT_ONCE = 500, 30, 4  # 400 rows to train in 14 groups, of which the last one has 10; 4 in a buffer


@dataclass(frozen=True)
class Config:
    rows: int = ROWS


def numbers(config: Config) -> Raw:
    table = pa.table({"x": pa.array(np.arange(config.rows) * 1.0), "y": pa.array(np.arange(config.rows) * 10.0)})
    return Raw(table, (Column("x", "number"),), Column("y", "number"))


def texts(config: Config) -> Raw:
    """Texts of 1 to 40 words, the row's number among them."""
    rng = np.random.default_rng(0)
    lines = [" ".join([f"w{row}"] * int(rng.integers(1, 41))) for row in range(config.rows)]
    return Raw(pa.table({"text": lines, "label": ["a", "b"] * (config.rows // 2)}), (Column("text", "text"),), Column("label", "class"))


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "ROW_GROUP", GROUP)


@pytest.fixture
def prepared(small_groups: None, tmp_path: Path) -> Prepared:
    return preparing.prepare("numbers", numbers, Config(), SplitConfig(), tmp_path)


@pytest.fixture
def prepared_texts(small_groups: None, tmp_path: Path) -> Prepared:
    return preparing.prepare("texts", texts, Config(), SplitConfig(), tmp_path)


def streamed(prepared: Prepared, part: str = "train", encoder: Encoder | None = None) -> Streamed:
    """A part in buffers of a few groups."""
    found = Streamed.of(prepared, part, encoder)
    return Streamed(found.groups, AT_ONCE, found.cells, found.beside, found.device)


def rows_of(step: Step) -> list[float]:
    return list(chain.from_iterable(piece["x"].tolist() for piece in step.pieces))


def epoch(shuffled: StreamedBatches, number: int = 1, skip: int = 0) -> list[list[float]]:
    return [rows_of(step) for step in shuffled.epoch(number, skip)]


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


# training -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 64, 119, 250, 400, 5000])
def test_every_row_comes_once_an_epoch_in_batches_of_one_size(prepared: Prepared, batch_size: int) -> None:
    found = epoch(StreamedBatches(streamed(prepared), batch_size, 3))
    stored = pq.read_table(prepared.file("train"))["x"].to_pylist()
    assert sorted(chain.from_iterable(found)) == stored
    assert [len(batch) for batch in found] == [batch_size] * (400 // batch_size) + ([400 % batch_size] if 400 % batch_size else [])
    assert StreamedBatches(streamed(prepared), batch_size, 3).steps == len(found)


@pytest.mark.parametrize(("batch_size", "world_size", "accumulate"), [(7, 2, 1), (64, 3, 2), (3, 4, 1), (119, 2, 5), (5000, 2, 1)])
def test_the_ranks_together_take_the_batches_that_one_rank_takes(
    prepared: Prepared, batch_size: int, world_size: int, accumulate: int
) -> None:
    part = streamed(prepared)
    alone = epoch(StreamedBatches(part, batch_size, 5), 2)
    ranks = [list(StreamedBatches(part, batch_size, 5, rank, world_size, accumulate).epoch(2)) for rank in range(world_size)]
    assert [list(chain.from_iterable(rows_of(steps) for steps in rank)) for rank in zip(*ranks, strict=True)] == alone
    for steps in zip(*ranks, strict=True):
        assert len({len(step.pieces) for step in steps}) == 1  # as many on every rank, so that none waits for another
        assert [step.rows for step in steps] == shares(steps[0].total, world_size)


def test_the_order_is_a_function_of_seed_and_epoch_over_the_whole_part(prepared: Prepared) -> None:
    shuffled = StreamedBatches(streamed(prepared), 20, 1)
    first = epoch(shuffled, 1)
    assert epoch(shuffled, 1) == first
    assert epoch(shuffled, 2) != first
    assert epoch(StreamedBatches(streamed(prepared), 20, 2), 1) != first
    early = {row for number in range(1, 9) for row in epoch(shuffled, number)[0]}
    assert max(early) - min(early) > ROWS / 2  # the first batches of epochs come from anywhere


def test_the_columns_of_a_batch_stay_together(prepared: Prepared) -> None:
    for step in StreamedBatches(streamed(prepared), 64, 0).epoch(1):
        assert all(torch.equal(piece["y"], piece["x"] * 10) for piece in step.pieces)


@pytest.mark.parametrize("batch_size", [7, 64, 130])
@pytest.mark.parametrize("rank", [0, 1])
def test_skipped_steps_are_left_out_and_the_rest_is_the_same(prepared: Prepared, batch_size: int, rank: int) -> None:
    shuffled = StreamedBatches(streamed(prepared), batch_size, 1, rank, 2)
    whole = epoch(shuffled, 3)
    for skip in range(len(whole) + 1):
        assert epoch(shuffled, 3, skip) == whole[skip:]


def counting(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were encoded, call by call."""
    counts: list[int] = []
    arrays = Encoder.arrays

    def counted(self: Encoder, table: pa.Table, *args: Any) -> Any:
        counts.append(table.num_rows)
        return arrays(self, table, *args)

    monkeypatch.setattr(Encoder, "arrays", counted)
    return counts


def test_nothing_of_what_is_skipped_is_encoded(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counting(prepared, monkeypatch)
    rest = epoch(StreamedBatches(streamed(prepared), 50, 1), 1, skip=6)
    assert sum(counts) == sum(map(len, rest)) == 100


def test_a_rank_encodes_its_own_share_only(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counting(prepared, monkeypatch)
    epoch(StreamedBatches(streamed(prepared), 50, 1, rank=3, world_size=4))
    assert sum(counts) == 8 * 12  # of 50 rows each rank has 13, 13, 12, 12


def test_no_more_is_read_than_the_buffer_in_use_and_the_next_one(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counting(prepared, monkeypatch)
    most, used = AT_ONCE * GROUP, 0
    for step in StreamedBatches(streamed(prepared), 20, 1).epoch(1):
        used += step.rows
        in_use = -(-used // most)
        assert sum(counts) <= (in_use + 1) * most + 20


def test_a_buffer_is_a_few_groups_by_its_bytes_and_its_rows(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    row_bytes = 16 + stream.ROW_BYTES
    assert Streamed.of(prepared, "train", buffer_bytes=5 * GROUP * row_bytes).at_once == 5
    assert Streamed.of(prepared, "train", buffer_bytes=1).at_once == 1
    monkeypatch.setattr(stream, "BUFFER_ROWS", 3 * GROUP)
    assert Streamed.of(prepared, "train").at_once == 3


# evaluation -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "world_size"), [(7, 1), (64, 2), (250, 3), (1, 1), (64, 450)])
def test_in_order_gives_the_batches_of_a_part_in_memory(prepared: Prepared, size: int, world_size: int) -> None:
    part, held = streamed(prepared), batches.load(prepared, "train")
    for rank in range(0, world_size, max(1, world_size // 3)):
        pairs = list(zip(part.in_order(size, rank, world_size), held.in_order(size, rank, world_size), strict=True))
        assert all(torch.equal(mine[name], theirs[name]) for mine, theirs in pairs for name in ("x", "y"))
    assert len(part) == len(held) == 400


def test_rows_of_different_sizes_in_order_are_all_there_as_in_memory(prepared_texts: Prepared) -> None:
    def seen(parts: Iterator[Any]) -> list[tuple[int, ...]]:
        return sorted(
            tuple(row[:size].tolist())
            for batch in parts
            for row, size in zip(batch["text"], batch["text.sizes"][:, 0].tolist(), strict=True)
        )

    assert seen(streamed(prepared_texts).in_order(64)) == seen(batches.load(prepared_texts, "train").in_order(64))


# rows of different sizes ----------------------------------------------------------------------------------------------------------


def test_the_sizes_of_training_rows_are_known_before_they_are_encoded(prepared_texts: Prepared, prepared: Prepared) -> None:
    cells = prepared_texts.cells("train")
    assert cells is not None
    assert cells.tolist() == batches.load(prepared_texts, "train")["text"].cells.tolist()  # type: ignore[union-attr]
    assert prepared.cells("train") is None


def test_rows_are_batched_with_their_like_and_each_comes_once(prepared_texts: Prepared) -> None:
    part, words = streamed(prepared_texts), 0
    alone = list(StreamedBatches(part, 10, 0).epoch(1))
    for step in alone:
        words += sum(piece["text"].numel() for piece in step.pieces)
    held = batches.load(prepared_texts, "train")["text"]
    assert sum(step.rows for step in alone) == 400
    assert sum(int(piece["text.sizes"].sum()) for step in alone for piece in step.pieces) == int(held.sizes.sum())  # type: ignore[union-attr]
    assert words < 1.2 * int(held.sizes.sum())  # type: ignore[union-attr]
    ranks = [list(StreamedBatches(part, 10, 0, rank, 2).epoch(1)) for rank in range(2)]
    lengths = [[step.pieces[0]["text.sizes"].flatten().tolist() for step in steps] for steps in (alone, *ranks)]
    assert [a + b for a, b in zip(*lengths[1:], strict=True)] == lengths[0]


# threads and errors ---------------------------------------------------------------------------------------------------------------


def test_the_reader_s_thread_ends_with_the_epoch(prepared: Prepared) -> None:
    epoch(StreamedBatches(streamed(prepared), 20, 0))
    assert readers() == []


@pytest.mark.parametrize("steps", [1, 3])
def test_the_reader_s_thread_ends_where_training_stops_in_the_middle(prepared: Prepared, steps: int) -> None:
    running = StreamedBatches(streamed(prepared), 20, 0).epoch(1)
    for _ in range(steps):
        next(running)
    assert len(readers()) == 1
    running.close()  # type: ignore[attr-defined]
    assert readers() == []


def cut_off(path: Path) -> None:
    """All its rows away; the end, where the row groups are listed, stays."""
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\0" * (len(content) - 2000) + content[-1996:])


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:3000]), cut_off])
def test_a_file_that_is_gone_or_cut_under_the_reader_is_one_clear_line(prepared: Prepared, harm: Any) -> None:
    part = streamed(prepared)
    harm(prepared.file("train"))
    with pytest.raises(DataError, match=r"train.parquet' was deleted, cut or changed .*; delete the folder '.*' and it is made anew$"):
        epoch(StreamedBatches(part, 20, 0))
    assert readers() == []


def test_a_part_that_is_gone_is_one_clear_line(prepared: Prepared) -> None:
    prepared.file("train").unlink()
    with pytest.raises(DataError, match=r"was deleted, cut or changed"):
        Streamed.of(prepared, "train")


def test_a_row_that_does_not_fit_another_encoder_is_named(prepared: Prepared, tmp_path: Path) -> None:
    table = pq.read_table(prepared.file("test"))
    broken = table.set_column(0, "x", pa.array([*table["x"].to_pylist()[:-3], None, 1.0, 2.0]))
    pq.write_table(broken, prepared.file("test"), row_group_size=GROUP)
    with pytest.raises(ValueError, match=r"a row of the test data doesn't fit it; row 47: x: it is missing"):
        list(streamed(prepared, "test").in_order(10))
