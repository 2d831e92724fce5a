"""Batch recommendation: the best items for each user of a table, one row a user, in the order in which the users come.

A request may say more than who: rows of (user, item), an item column of lists, or a column `history` of lists (or of text, `a|b`) name
items that a user has, which are left out, and which speak for a user whom training hasn't seen; columns of user features do that too.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from orchestrator.deployment.bundle import Bundle
from orchestrator.deployment.predict import Writer, errors_of, read, text_columns, write_whole
from orchestrator.errors import Refused
from pipelines.encode import HISTORY
from pipelines.encode.arrow import is_list
from pipelines.encode.ids import as_ids
from pipelines.ragged import Columns, Ragged, by_size, in_memory, take
from pipelines.schema import DataError

BLOCK_SCORES = 1 << 24  # users x items that are scored at once: 64 MiB
BLOCK_ITEMS = 1 << 18  # of requests' lists, padded, at once
MOST_USERS = 1024
CHUNK = 8192  # users that are written at once
ANSWERS = ("items", "scores", "answered_by", "error")


def top_k(bundle: Bundle, source: Path, target: Path, k: int) -> tuple[int, int]:
    """(users, users whose row didn't fit): `items` and `scores`, best first, and `answered_by` for each user. Written whole or not at all.

    A user who hasn't k items left gets as many as there are. Raises Refused if the model recommends nothing, the target is a text file,
    a column is missing or no row fits.
    """
    if not hasattr(bundle.family, "top_k"):
        raise Refused(f"a model of family '{bundle.about['family']}' recommends no items: leave --top-k out", key="--top-k")
    if k < 1:
        raise Refused(f"{k} items for each user: take 1 or more", key="--top-k")
    if target.suffix.lower() in (".csv", ".tsv"):
        raise Refused(f"output '{target}': lists of items and scores don't fit in a {target.suffix} file: write .parquet")
    return write_whole(source, target, partial(_fill, bundle, source, k))


def _fill(bundle: Bundle, source: Path, k: int, writer: Writer) -> tuple[int, int, str | None]:
    """Write the answers; (users, users whose row didn't fit, what is wrong with the first of these)."""
    chunks = list(read(source, text_columns(bundle.encoder)))
    if not chunks:
        return 0, 0, None
    table = pa.concat_tables(chunks, promote_options="permissive")
    try:
        request = Request(bundle, table)
    except DataError as error:
        raise Refused(f"input '{source}': {error}") from None
    for start in range(0, len(request), CHUNK):
        rows = torch.arange(start, min(start + CHUNK, len(request)))
        writer.write(request.answers(rows, k))
    errors = request.errors
    return len(request), len(errors), f"row {request.first[min(errors)]}: {errors[min(errors)]}" if errors else None


class Request:
    """A table's users, each once, with what it says of them. Raises DataError if it has no user column.

    `first`: the row in which a user comes first ([U] int64); `errors`: what doesn't fit, by user.
    """

    def __init__(self, bundle: Bundle, table: pa.Table) -> None:
        self.net: Any = bundle.family
        self.encoder, self.user, self.item = bundle.encoder, *bundle.encoder.input_names[:2]
        features = [c.name for c in self.encoder.schema.features.get(self.user, ()) if c.name in table.column_names]
        if self.user not in table.column_names:
            raise DataError(f"no column '{self.user}'; the input has: {', '.join(table.column_names)}")
        self.first, user_of_row = _each_once(as_ids(table[self.user], self.user))
        once = table.take(pa.array(self.first))
        arrays, self.errors = self.encoder.arrays(once, [self.user, *features])
        columns = dict(in_memory(arrays))
        lists = self._lists(table, user_of_row)
        self.columns: Columns = columns | ({} if lists is None else {HISTORY: lists})
        self.kept = once.drop_columns([n for n in (self.item, HISTORY, *features, *ANSWERS) if n in once.column_names])

    def __len__(self) -> int:
        return len(self.first)

    def answers(self, users: torch.Tensor, k: int) -> pa.Table:
        """The answers to some users that lie side by side, in their order."""
        n_items = self.encoder.columns[self.item].column.vocabulary - 1
        most = max(1, min(MOST_USERS, BLOCK_SCORES // max(1, n_items)))
        wanted = min(k, n_items)
        items, scores = np.zeros((len(users), wanted), np.int64), np.zeros((len(users), wanted), np.float32)
        answered_by: list[str | None] = [None] * len(users)
        with torch.inference_mode():
            for block in by_size(self.columns, users, most, BLOCK_ITEMS):
                found = self.net.top_k(self.encoder.tensors(take(self.columns, block)), wanted)
                places = (block - users[0]).numpy()
                items[places], scores[places] = found["items"].cpu().numpy(), found["scores"].cpu().numpy()
                for place, source in zip(places.tolist(), found["answered_by"], strict=True):
                    answered_by[place] = source
        return self._table(int(users[0]), items, scores, answered_by)

    def _table(self, start: int, items: np.ndarray, scores: np.ndarray, answered_by: list[str | None]) -> pa.Table:
        errors = {user - start: says for user, says in self.errors.items() if start <= user < start + len(items)}
        broken = np.isin(np.arange(len(items)), list(errors))
        there = (items > 0) & ~broken[:, None]
        offsets = pa.array(np.concatenate([[0], there.sum(1).cumsum()]), pa.int32(), mask=np.append(broken, False))
        there_names = self.encoder.columns[self.item].names(items[there])
        columns = {
            "items": pa.ListArray.from_arrays(offsets, there_names),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(scores[there])),
            "answered_by": pa.array(answered_by, pa.string(), mask=broken),
            "error": errors_of(errors, len(items)),
        }
        kept = self.kept.slice(start, len(items))
        return pa.table({name: kept[name] for name in kept.column_names} | columns)

    def _lists(self, table: pa.Table, user_of_row: np.ndarray) -> Ragged | None:
        """Codes of the items that the rows of each user name; None where the table names none."""
        ids = self.encoder.columns[self.item]
        users, codes = [], []
        for name in [name for name in (self.item, HISTORY) if name in table.column_names]:
            if name == HISTORY or is_list(table[name].type):
                lists = ids.lists(table[name], name)
                users.append(np.repeat(user_of_row, lists.sizes[:, 0].numpy()))
                codes.append(lists.values.numpy())
            else:
                users.append(user_of_row)
                codes.append(ids.codes(table[name]))
        if not codes:
            return None
        whose = np.concatenate(users)
        return Ragged.of(np.concatenate(codes)[whose.argsort(kind="stable")], np.bincount(whose, minlength=len(self.first)))


def _each_once(users: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(the row in which each user comes first [U], each row's user [N]); rows without a user are users of their own."""
    codes = users.combine_chunks().dictionary_encode().indices
    missing = codes.is_null().to_numpy(zero_copy_only=False)
    numbers = codes.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    numbers[missing] = len(numbers) + np.arange(missing.sum())
    _, first, user_of_row = np.unique(numbers, return_index=True, return_inverse=True)
    order = first.argsort()
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[user_of_row]
