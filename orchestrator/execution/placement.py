"""Which free worker takes which waiting trial. Pure functions of what is free, what runs and what waits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Wants:
    """A trial that waits for a worker. `alone`: with nothing beside it, on `node` where that has a worker."""

    slot: int
    alone: bool = False
    node: str | None = None


@dataclass(frozen=True)
class Seat:
    """A worker that is up, by its number. `slot`: whose trial it runs, if any; `alone`: that trial wants nothing beside it."""

    number: int
    node: str
    slot: int | None = None
    alone: bool = False


def assign(waiting: Sequence[Wants], seats: Sequence[Seat], leaving: Collection[str] = ()) -> list[tuple[int, int]]:
    """(slot, worker's number) of each trial that can start now; who waits longest comes first. `leaving`: nodes that take nothing new.

    A node with a trial that wants to be alone, or for which such a trial waits, takes no other.
    """
    open_ = [seat for seat in seats if seat.node not in leaving]
    busy = {seat.node for seat in seats if seat.slot is not None}
    reserved = {seat.node for seat in seats if seat.alone}
    homes: dict[int, str] = {}
    for want in (w for w in waiting if w.alone):
        homes[want.slot] = node = _home(want, open_, busy)
        if node:
            reserved.add(node)
    made, taken = list[tuple[int, int]](), set[int]()
    for want in waiting:
        for seat in open_:
            if seat.slot is not None or seat.number in taken:
                continue
            fits = seat.node == homes[want.slot] and seat.node not in busy if want.alone else seat.node not in reserved
            if fits:
                made.append((want.slot, seat.number))
                taken.add(seat.number)
                busy.add(seat.node)
                break
    return made


def _home(want: Wants, seats: Sequence[Seat], busy: Collection[str]) -> str:
    """Its own node where that has a worker, else one where nothing runs, else any; none: ''."""
    nodes = [seat.node for seat in seats]
    if want.node in nodes:
        return want.node or ""
    return next((node for node in nodes if node not in busy), nodes[0] if nodes else "")
