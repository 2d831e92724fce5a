"""Going on with an earlier launch: which one, whether it may, and how its search is brought to where it was."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.asking import Asked, home
from orchestrator.catalog import catalog
from orchestrator.errors import ExperimentError, Note, Problem, Refused
from orchestrator.events import RunStarted
from orchestrator.execution.budget import Meter
from orchestrator.execution.search import OneRun, Search
from orchestrator.execution.sweep import Judge, Rules, adopt, replay, under_way
from orchestrator.experiment.config import Experiment, flatten
from orchestrator.experiment.plan import Command, Plan
from orchestrator.experiment.read import resolve, space_of
from orchestrator.records.ledger import Launch, Ledger
from orchestrator.records.mirror import has_more, mirror_of, mirrored, restore

NEWEST, IF_ANY = "newest", "if-any"
MAY_DIFFER = ("sweep.trials", "sweep.space", "sweep.max_concurrent", "sweep.executor", "training.executor", "scaling", "budget", "notify")


@dataclass(frozen=True)
class Begun:
    """A launch as the driving loop takes it up: its judge, and the runs that go on."""

    judge: Judge
    under_way: list[RunStarted]


class Nothing(Refused):
    """There is no launch to go on with."""


def earlier(command: Command, asked: Asked, which: str) -> Launch | None:
    """The launch to go on with, by this folder's ledger; a folder without one takes that launch's from `storage.path`. Raises Refused.

    `which`: its id, or NEWEST, or IF_ANY: the newest that is asked for as it was begun, None where there is none.
    """
    try:
        if not (home() / "ledger.sqlite").exists() and not _restored(command, asked, which):
            raise _nothing(command, asked)
        ledger = Ledger(home())
        try:
            return find(ledger, command, asked, which)
        finally:
            ledger.close()
    except Nothing:
        if which == IF_ANY:
            return None
        raise


def _restored(command: Command, asked: Asked, which: str) -> bool:
    """Whether the ledger of the launch that is meant was in `storage.path`, and is here now."""
    where = _copies(asked.experiment, command)
    if where is None:
        return False
    there = mirrored(where)
    if which not in (NEWEST, IF_ANY) and there and which not in there:
        raise _unknown(command, which, there)
    if which == IF_ANY:
        there = [launch for launch in there if _is_asked_in_copy(command, asked, where, launch)]
    return bool(there) and restore(where, home(), there[-1] if which in (NEWEST, IF_ANY) else which)


def _is_asked_in_copy(command: Command, asked: Asked, copies: str, launch: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        if not restore(copies, Path(folder), launch):
            return False
        with contextlib.closing(Ledger(Path(folder))) as copy:
            return _is_asked(command, asked, copy.find(launch))


def find(ledger: Ledger, command: Command, asked: Asked, which: str) -> Launch:
    """The launch to go on with, as it is asked for now.

    Raises Refused if there is none, if it is another experiment by now, or if another machine has gone on with it since.
    """
    experiment = asked.experiment
    launches = [launch for launch in map(ledger.find, ledger.launches()) if (launch.command, launch.name) == (command, experiment.name)]
    if which == IF_ANY:
        launches = [launch for launch in launches if _is_asked(command, asked, launch)]
    elif which != NEWEST:
        known, launches = [launch.id for launch in launches], [launch for launch in launches if launch.id == which]
        if not launches:
            raise _unknown(command, which, known)
    if not launches:
        raise _nothing(command, asked)
    launch = launches[-1]
    if launch.fingerprint != asked.prepared.fingerprint:
        raise Refused(f"the data are no longer those of {command} {launch.id}: start it anew, without --resume", key="--resume")
    if differing := _differing(command, asked, launch):
        raise ExperimentError([Problem(key, None, _differs(command, launch, *both)) for key, both in differing.items()])
    copies = _copies(asked.experiment, command)
    if copies is not None and has_more(copies, launch.id, ledger):
        raise Refused(_behind(command, launch), key="--resume")
    return replace(launch, experiment=experiment.plain(), metric=experiment.metric, mode=experiment.mode, folder=str(asked.folder))


def _is_asked(command: Command, asked: Asked, launch: Launch) -> bool:
    with contextlib.suppress(Refused):  # of another version
        return launch.fingerprint == asked.prepared.fingerprint and not _differing(command, asked, launch)
    return False


def _differing(command: Command, asked: Asked, launch: Launch) -> dict[str, tuple[Any, Any]]:
    """What may not differ and does: before, and now. The storage of its copy is the same one, however it is spelt from here."""
    before, now = flatten(_as_read_now(launch, asked)), flatten(asked.experiment.plain())
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key) and not key.startswith(MAY_DIFFER)]
    if "storage.path" in keys and (copies := _copies(asked.experiment, command)) and launch.id in mirrored(copies):
        keys.remove("storage.path")
    return {key: (before.get(key), now.get(key)) for key in keys}


def _copies(experiment: Experiment, command: Command) -> str | None:
    """Where the copies of the ledgers of a command's launches are, if there is a `storage.path`."""
    storage = experiment.storage.path
    return None if storage is None else mirror_of(storage, experiment.name, command)


def _behind(command: Command, launch: Launch) -> str:
    where = home() / "ledger.sqlite"
    return (
        f"another machine has gone on with {command} {launch.id}: its ledger's copy in storage.path has what '{where}' lacks; "
        "go on with it there, or in a folder without .orchestrator, which takes the copy"
    )


def _nothing(command: str, asked: Asked) -> Nothing:
    where = home() / "ledger.sqlite"
    return Nothing(f"there is no {command} of '{asked.experiment.name}' in {where}; start it without --resume", key="--resume")


def _as_read_now(launch: Launch, asked: Asked) -> dict[str, Any]:
    """What a launch recorded of its experiment file, with the defaults of what it doesn't know."""
    try:
        return resolve(launch.experiment, catalog(asked.folder)).plain()
    except ExperimentError as error:
        raise Refused(f"{launch.command} {launch.id} was started by another version ({error}): start it anew", key="--resume") from None


def _unknown(command: str, which: str, known: list[str]) -> Refused:
    there = ", ".join(known[-5:]) or "none"
    return Refused(f"there is no {command} '{which}' of this experiment; the newest are: {there}", key="--resume")


def _differs(command: str, launch: Launch, before: Any, now: Any) -> str:
    return (
        f"it was {before!r} in {command} {launch.id}, and is {now!r} now, in the file or by default: say on the command line what was said "
        f"then; only {', '.join(MAY_DIFFER)} may differ in what is resumed"
    )


def is_idle(command: Command, asked: Asked, plan: Plan, ledger: Ledger, launch: str) -> bool:
    """Whether nothing is left to run of a launch: every run has ended, or the budget is used up."""
    events = ledger.events(launch)
    meter = Meter(asked.experiment.budget, events, ledger.wall_s(launch))
    if meter.over() is not None:
        return True
    wanted = plan.trials if command == "sweep" else 1
    return not under_way(events) and (sum(isinstance(e, RunStarted) for e in events) >= wanted or meter.full() is not None)


def begin(command: Command, asked: Asked, plan: Plan, ledger: Ledger, launch: str) -> Begun:
    """The judge of a launch, brought to where the ledger has it: of a new one, at its beginning."""
    experiment, events = asked.experiment, ledger.events(launch)
    rules = Rules(experiment.metric, experiment.mode, experiment.training.patience)
    meter = Meter(experiment.budget, events, ledger.wall_s(launch))
    judge = Judge(_search(command, asked, plan, goes_on=False), rules)
    why = replay(judge, events)
    if why is not None:
        judge = Judge(_search(command, asked, plan, goes_on=True), rules)
        learnt, ended = adopt(judge, events)
        _say(f"the search begins afresh ({why}): {learnt} of {ended} ended trials are its evidence")
    judge.meter = meter
    runs = under_way(events)
    if events:
        ended = sum(isinstance(e, RunStarted) for e in events) - len(runs)
        _say(f"{launch} goes on: runs that had ended: {ended}, under way: {len(runs)}")
        if command == "sweep" and not runs and ended >= plan.trials:
            _say(f"no trial is left to run: {ended} have ended, and sweep.trials is {plan.trials}")
    elif isinstance(judge.search, Search) and judge.search.first is None and experiment.sweep.search != "grid":
        _say("the file's own values lie outside sweep.space: no trial has them")
    return Begun(judge, runs)


def _search(command: Command, asked: Asked, plan: Plan, goes_on: bool) -> OneRun | Search:
    if command == "train":
        return OneRun()
    trials = asked.experiment.sweep.trials if goes_on else plan.trials  # of a changed grid, points beside those that were tried
    return Search(asked.experiment, space_of(asked.experiment), plan.epochs, trials, asked.folder, goes_on)


def command_of(command: Command, asked: Asked, address: str | None, launch: str) -> str:
    """What a person types to go on with it."""
    words = ["orchestrator", command, str(asked.path), *asked.overrides, *(["--address", address] if address else [])]
    return shlex.join([*words, "--resume", launch])


def reopen(ledger: Ledger, launch: Launch) -> Launch:
    """Record that a launch goes on."""
    ledger.reopen(launch, int(time.time() * 1000))
    return launch


def _say(text: str) -> None:
    warnings.warn(text, Note, stacklevel=2)
