"""Which runs may go: a policy, and a function of it and of what is recorded. Nothing is read or removed here."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import Refused
from orchestrator.events import best_first
from orchestrator.records.driving import Activity, ended_ms
from orchestrator.records.tracking.read import RecordedRun

UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
FORMS = "give --keep top:3 (all but the best three), --older 30d (what ended before that; s, m, h, d, w), or both (what is neither)"
DONE = ("finished", "stopped")


@dataclass(frozen=True)
class Policy:
    """What may go: all but the best `top` runs, what ended more than `older_ms` ago; of both, what is neither kept by rank nor by age."""

    top: int | None
    older_ms: int | None


def policy(keep: str | None, older: str | None) -> Policy:
    """The policy that the options are. Raises Refused."""
    if keep is None and older is None:
        raise Refused(FORMS)
    top = re.fullmatch(r"top:(\d+)", keep) if keep is not None else None
    if keep is not None and top is None:
        raise Refused(f"'{keep}' is no rule: {FORMS}", key="--keep")
    age = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", older) if older is not None else None
    if older is not None and age is None:
        raise Refused(f"'{older}' is no age: {FORMS}", key="--older")
    return Policy(int(top[1]) if top else None, int(float(age[1]) * UNITS_MS[age[2]]) if age else None)


def going(
    runs: Sequence[RecordedRun], rule: Policy, registered: Mapping[str, str], active: Mapping[str, Activity], now_ms: int
) -> tuple[list[RecordedRun], dict[str, str]]:
    """(the runs that go: trials, then sweeps none of whose trials stay; of those that stay by other reasons than the policy: why, by run).

    `registered`: why a run is needed by the registry; `active`: the launches that aren't over.
    """
    runs = sorted(runs, key=lambda run: (run.launch, -1 if run.result.trial is None else run.result.trial))
    own = [run for run in runs if run.kind in ("trial", "train")]
    limit = None if rule.older_ms is None else now_ms - rule.older_ms
    top = _top(own, rule.top)
    goes, stays = [], {}
    for run in own:
        run_id = str(run.result.run_id)
        if run_id in top or (limit is not None and ended_ms(run) > limit):
            continue
        if why := registered.get(run_id) or _holds(active.get(run.launch), limit):
            stays[run_id] = why
        else:
            goes.append(run)
    return [*goes, *_parents(runs, goes, registered, active, limit)], stays


def _top(runs: Sequence[RecordedRun], count: int | None) -> Collection[str]:
    """The best runs by the newest one's metric, as `runs` ranks them, and the best on the newest one's data, of which `promote` takes one.

    Of those that came to an end, which alone can be promoted.
    """
    newest = max(runs, key=lambda run: run.started_ms, default=None)
    if newest is None or count is None:
        return ()
    done = [run for run in runs if run.result.state in DONE and run.result.best and newest.metric in run.result.best.metrics]
    of_now = [run for run in done if run.fingerprint == newest.fingerprint]
    ranked = [best_first([run.result for run in some], newest.metric, newest.mode)[:count] for some in (done, of_now)]
    return {str(result.run_id) for best in ranked for result in best}


def _holds(activity: Activity | None, limit: int | None) -> str | None:
    """Why a launch's runs stay."""
    if activity is None or (activity.resumable and limit is not None and activity.last_ms <= limit):
        return None
    return activity.why


def _parents(
    runs: Sequence[RecordedRun],
    goes: Sequence[RecordedRun],
    registered: Mapping[str, str],
    active: Mapping[str, Activity],
    limit: int | None,
) -> list[RecordedRun]:
    """The sweeps' own runs that go: none of their trials stays."""
    leave = {run.result.run_id for run in goes}
    kept = {run.launch for run in runs if run.kind == "trial" and run.result.run_id not in leave}
    return [
        run
        for run in runs
        if run.kind == "sweep"
        and run.launch not in kept
        and run.result.run_id not in registered
        and _holds(active.get(run.launch), limit) is None
        and (limit is None or ended_ms(run) <= limit)
    ]
