"""What a launch came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.closing import Winner, best_ended
from orchestrator.errors import Failed
from orchestrator.events import RunEnded, TrialResult
from orchestrator.experiment.plan import Plan
from orchestrator.records.ledger import Launch, Ledger
from orchestrator.records.tracking import destination


@dataclass(frozen=True)
class Outcome:
    """The end of a `train` or `sweep`. `why`: what cut it short, `again`: the command that goes on with it, if this folder's may."""

    launch: Launch
    plan: Plan
    state: str
    results: list[TrialResult]
    winner: Winner | None
    best: TrialResult | None
    run_id: str | None
    nodes: tuple[str, ...]
    trace: str | None  # the file of the first failed run's traceback
    wall_s: float
    left: int  # entries that MLflow hasn't got
    problem: str | None
    why: str | None
    again: str

    @property
    def test(self) -> dict[str, float]:
        return self.winner.test.scores if self.winner else {}

    @property
    def baseline(self) -> dict[str, float]:
        return self.winner.test.baseline if self.winner else {}

    @property
    def margin(self) -> tuple[float, float] | None:
        """By how much test beats the baseline: its 95 % interval."""
        return self.winner.test.margin if self.winner else None

    @property
    def bundle(self) -> Path | None:
        return self.winner.bundle if self.winner else None

    def raise_if_all_failed(self) -> None:
        """Raises Failed if no run of the launch came to an end."""
        if self.state == "failed":
            raise Failed(failure(self.results) + (f"; the whole trace: {self.trace}" if self.trace else ""))


def failure(results: Sequence[TrialResult]) -> str:
    """What is said of a launch of which every run failed."""
    errors = list(dict.fromkeys(r.error for r in results if r.error))
    return errors[0] if len(results) == 1 and errors else f"every trial failed: {'; '.join(errors[:3])}"


@dataclass(frozen=True)
class Ended:
    """How the driving of a launch ended, before MLflow has everything. `error`: what is wrong, if something is."""

    state: str
    winner: Winner | None
    why: str | None
    error: str | None


def outcome(ledger: Ledger, launch: Launch, plan: Plan, ended: Ended, sent: tuple[int, str | None], wall_s: float, again: str) -> Outcome:
    """The outcome by the ledger, with the MLflow ids that the runs have got. `sent`: (entries left, what MLflow said)."""
    results, winner = ledger.results(launch.id, destination()), ended.winner
    ends = [event for event in ledger.events(launch.id) if isinstance(event, RunEnded)]
    of_winner = [event for event in ends if winner is None or event.trial == winner.run.trial]
    return Outcome(
        launch=launch,
        plan=plan,
        state=ended.state,
        results=results,
        winner=winner,
        best=best_ended(ledger, launch, results),
        run_id=ledger.identities(destination(), launch.id).get(None),
        nodes=of_winner[-1].nodes if of_winner else (),
        trace=next((event.trace for event in ends if event.state == "failed" and event.trace), None),
        wall_s=round(wall_s, 3),
        left=sent[0],
        problem=sent[1],
        why=ended.why,
        again=again,
    )
