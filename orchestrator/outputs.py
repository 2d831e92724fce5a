"""What the ranks of a run printed, live and afterwards: from the files beside the ledger, the storage, or MLflow."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.asking import home
from orchestrator.errors import Note, Refused
from orchestrator.records import tracking
from orchestrator.records.driving import is_driven
from orchestrator.records.ledger import Launch, Ledger
from orchestrator.records.logs import LogFile, files, places
from orchestrator.records.tracking.logs import stored_logs
from orchestrator.results import Result

POLL_S = 0.5
Write = Callable[[int | None, str], None]  # a line, and its rank where there are several


@dataclass(frozen=True)
class RankOutput:
    """What a rank printed: the file (a path or URI) and its lines."""

    rank: int
    path: str
    lines: list[str]


@dataclass(frozen=True)
class Output(Result):
    """What the ranks of a run printed. `sweep`: its id, None for a run of `train`; `trace`: the file of its traceback, if it failed."""

    experiment: str
    trial: int | None
    files: list[RankOutput]
    sweep: str | None = None
    trace: str | None = None
    ranks: int = 1

    def document(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "ranks"}

    def lines(self) -> list[tuple[int | None, str]]:
        """Every line, rank by rank, with its rank where there are several."""
        several = self.ranks > 1 or len(self.files) > 1
        return [(file.rank if several else None, line) for file in self.files for line in file.lines]


@dataclass(frozen=True)
class Known:
    """A launch and its runs: where there is no trial, the one of `train` (under None). Each with its MLflow id, as far as it is known."""

    id: str
    command: str
    runs: dict[int | None, str | None] = field(default_factory=dict)
    launch: Launch | None = None  # None: MLflow has it, this folder's ledger hasn't


def logs(name: str, *, trial: int | None = None, sweep: str | None = None, follow: Write | None = None) -> Output:
    """What every rank of a trial printed (without `trial`: of the newest run of `train`); of the newest sweep, or of `sweep`.

    `follow` gets each line as soon as it is there, until the run has ended. Raises Refused if there is no such run.
    """
    ledger = Ledger(home()) if (home() / "ledger.sqlite").exists() else None
    try:
        known = _choose(name, (_in_ledger(ledger, name) if ledger else []) or _in_mlflow(name), trial, sweep)
        about = ledger.run_entries(known.id, trial) if ledger else []
        ranks = max([int(e.data["env"].get("world_size", 1)) for e in about if e.kind == "started"], default=1)
        if follow is not None and ledger is not None and known.launch is not None:
            _follow(ledger, known.launch, trial, lambda rank, line: follow(rank if ranks > 1 else None, line))
        trace = next((e.data["trace"] for e in reversed(about) if e.kind == "ended" and e.data.get("trace")), None)
    finally:
        if ledger is not None:
            ledger.close()
    found = [RankOutput(f.rank, f.path, f.content.decode(errors="replace").splitlines()) for f in _files(known, trial)]
    if not found:
        warnings.warn("no output of this run is kept: it hasn't begun, its node has it still, or it was removed", Note, stacklevel=2)
    return Output(name, trial, found, known.id if known.command == "sweep" else None, trace, ranks)


def _in_ledger(ledger: Ledger, name: str) -> list[Known]:
    """The launches of an experiment that began here, oldest first."""
    found = []
    for launch in map(ledger.find, ledger.launches()):
        if launch.name == name:
            ids = ledger.identities(tracking.destination(), launch.id)
            begun = {event.trial for event in ledger.events(launch.id)} - ledger.removed(launch.id)
            found.append(Known(launch.id, launch.command, {trial: ids.get(trial) for trial in begun}, launch))
    return found


def _in_mlflow(name: str) -> list[Known]:
    """The launches of an experiment that MLflow has, oldest first. Raises Refused if it has none."""
    runs = [run for run in tracking.recorded(tracking.reachable_client(), name) if run.kind in ("trial", "train")]
    found: dict[str, Known] = {}
    for run in sorted(runs, key=lambda run: run.started_ms):
        command = "train" if run.kind == "train" else "sweep"
        found.setdefault(run.launch, Known(run.launch, command)).runs[run.result.trial] = run.result.run_id
    return list(found.values())


def _choose(name: str, known: Sequence[Known], trial: int | None, sweep: str | None) -> Known:
    """The newest launch that is meant. Raises Refused with what there is."""
    sweeps = [one for one in known if one.command == "sweep"]
    if sweep is not None:
        meant = [one for one in sweeps if one.id == sweep]
        if not meant:
            there = ", ".join(one.id for one in sweeps[-5:]) or "none"
            raise Refused(f"no sweep '{sweep}' of '{name}'; the newest are: {there}", key="--sweep")
    else:
        meant = sweeps if trial is not None else [one for one in known if one.command == "train"]
    if meant and trial in meant[-1].runs:
        return meant[-1]
    if trial is None and sweeps:
        raise Refused(f"a sweep's output is kept by trial: {_said(meant or sweeps)}", key="--trial")
    if trial is not None and not sweeps:
        raise Refused(f"'{name}' has no sweep, only runs of train: leave --trial out", key="--trial")
    raise Refused(f"no such run of '{name}': {_said(meant)}" if meant else f"'{name}' has no run yet", key="--trial")


def _said(sweeps: Sequence[Known]) -> str:
    """What the newest of them has."""
    return f"sweep {sweeps[-1].id} has trials {_ranges(trial for trial in sweeps[-1].runs if trial is not None) or '(none yet)'}"


def _ranges(numbers: Iterable[int]) -> str:
    """0-3, 7 of 0, 1, 2, 3, 7."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _files(known: Known, trial: int | None) -> list[LogFile]:
    """Where the output lies now: beside the ledger, in the storage, in MLflow."""
    if known.launch and (found := files(places(home(), known.launch, trial))):
        return found
    run_id = known.runs[trial]
    return stored_logs(tracking.reachable_client(), run_id) if run_id is not None else []


def _follow(ledger: Ledger, launch: Launch, trial: int | None, write: Write) -> None:
    """Each line once it is whole, until the run has ended or nobody drives it any more."""
    read: dict[Path, int] = {}
    folder = Path(places(home(), launch, trial)[0])
    while True:
        ended = _has_ended(ledger, launch.id, trial) or not is_driven(home(), launch.id)  # first: what was printed before is read below
        for file in sorted(folder.glob("rank-*.log"), key=lambda path: int(path.stem.removeprefix("rank-"))):
            with file.open("rb") as opened:
                opened.seek(read.get(file, 0))
                new = opened.read()
            whole = len(new) if ended else new.rfind(b"\n") + 1
            read[file] = read.get(file, 0) + whole
            for line in new[:whole].decode(errors="replace").splitlines():
                write(int(file.stem.removeprefix("rank-")), line)
        if ended:
            return
        time.sleep(POLL_S)


def _has_ended(ledger: Ledger, launch: str, trial: int | None) -> bool:
    last = [e.kind for e in ledger.run_entries(launch, trial) if e.kind in ("started", "resumed", "ended")]
    return last[-1:] == ["ended"]
