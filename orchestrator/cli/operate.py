"""logs, gc."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from orchestrator.cli import output
from orchestrator.cli.run import Json

Name = Annotated[str, typer.Argument(help="The experiment's name.")]


def logs(
    name: Name,
    trial: Annotated[Optional[int], typer.Option(min=0, help="The trial; without it, the newest run of train.")] = None,  # noqa: UP045
    sweep: Annotated[Optional[str], typer.Option(help="Of this sweep, by its id, not of the newest.")] = None,  # noqa: UP045
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    json: Json = False,
) -> None:
    """What every rank of a trial printed, live and afterwards."""
    from orchestrator import api

    shown = 0

    def write(rank: int | None, line: str) -> None:
        nonlocal shown
        shown += 1
        print(line if rank is None else f"[rank {rank}] {line}", flush=True)

    done = api.logs(name, trial=trial, sweep=sweep, follow=write if follow and not json else None)
    if json:
        output.result(done, json)
        return
    if not shown:
        for rank, line in done.lines():
            write(rank, line)
    if not shown:
        output.say("it has printed nothing" + ("" if done.files else " that is kept"))
    if done.trace:
        output.say(f"it failed; the whole trace: {done.trace}")


def gc(
    name: Name,
    keep: Annotated[Optional[str], typer.Option(metavar="top:N", help="All but the best N runs go.")] = None,  # noqa: UP045
    older: Annotated[Optional[str], typer.Option(metavar="AGE", help="What ended longer ago goes: 30d, 12h, 2w.")] = None,  # noqa: UP045
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    json: Json = False,
) -> None:
    """Remove runs with all that is kept of them, and data that no run uses; never what a registered version is made of."""
    from orchestrator import api

    done = api.gc(name, keep=keep, older=older, dry_run=dry_run)
    output.result(done, json, [done.summary()])
