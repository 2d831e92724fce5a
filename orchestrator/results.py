"""What the public functions return: typed, JSON-ready, tables in a notebook."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.events import Best, State, TrialResult, best_first

MOST_CLASSES = 30  # in a table of them


class Result:
    """A result: `document()` is what `--json` prints; a notebook shows a table."""

    def document(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return plain(asdict(self))  # type: ignore[call-overload, no-any-return]

    def rows(self) -> list[dict[str, Any]]:
        """What a table of it shows, a row each."""
        return [{k: v for k, v in self.document().items() if not isinstance(v, list | dict)}]

    def _repr_html_(self) -> str:
        rows = self.rows()
        head = "".join(f"<th>{html.escape(str(k))}</th>" for k in (rows[0] if rows else {}))
        body = "".join("<tr>" + "".join(f"<td>{html.escape(text(v))}</td>" for v in row.values()) + "</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class Trained(Result):
    """What `train` did. `test`: evaluated once, on the best epoch; `bundle`: the deployable folder."""

    experiment: str
    run_id: str | None
    state: State
    epochs: int
    executor: str
    workers: int
    nodes: tuple[str, ...]
    best: Best | None
    test: dict[str, float]
    bundle: str | None
    wall_s: float
    error: str | None = None
    baseline: dict[str, float] = field(default_factory=dict)  # the same scores of what knows nothing of the inputs
    margin: tuple[float, float] | None = None  # by how much test beats it: the 95 % interval
    protocol: str = ""  # how its metrics are measured, where one name could mean two things

    def rows(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "protocol"} for row in super().rows()]


@dataclass(frozen=True)
class Swept(Result):
    """What `sweep` did; `best` is a trial with its test scores."""

    experiment: str
    sweep: str
    run_id: str | None
    state: State
    trials: list[TrialResult]
    best: dict[str, Any] | None
    wall_s: float
    metric: str = ""
    mode: str = "max"
    baseline: dict[str, Any] = field(default_factory=dict)
    optimum: dict[str, float] = field(default_factory=dict)
    protocol: str = ""

    def document(self) -> dict[str, Any]:
        data = {k: v for k, v in super().document().items() if k not in ("metric", "mode")}
        for trial in [*data["trials"], *([data["best"]] if data["best"] else [])]:
            trial.pop("sweep")
        return data

    def rows(self) -> list[dict[str, Any]]:
        ranked = best_first(self.trials, self.metric, self.mode)
        rows = [leaderboard_row(place, trial, self.metric) for place, trial in enumerate(ranked, start=1)]
        return rows + beside(self.metric, self.baseline, self.optimum)


@dataclass(frozen=True)
class Leaderboard(Result):
    """The runs of an experiment, best first. `baseline`, `optimum`: what knowing nothing is worth, and the best that can be had.

    Both are of the newest run's data: `{name, metrics}`, empty where there is none; `{metric: value}`.
    """

    experiment: str
    runs: list[TrialResult]
    metric: str = ""
    baseline: dict[str, Any] = field(default_factory=dict)
    optimum: dict[str, float] = field(default_factory=dict)
    protocol: str = ""

    def document(self) -> dict[str, Any]:
        data = super().document()
        return {k: v for k, v in data.items() if k != "metric"}

    def rows(self) -> list[dict[str, Any]]:
        rows = [leaderboard_row(place, run, self.metric) for place, run in enumerate(self.runs, start=1)]
        return rows + beside(self.metric, self.baseline, self.optimum)


@dataclass(frozen=True)
class Planned(Result):
    """What would run, and why."""

    executor: str
    why: str
    trials: int
    epochs: int
    workers: int
    resources: dict[str, Any]
    data: dict[str, Any]
    disk_bytes: int
    estimate_s: float | None
    notes: tuple[str, ...] = ()
    fewest: int = 1  # workers that a run begins with, or goes on with, where there is no room for all

    def rows(self) -> list[dict[str, Any]]:
        flat = {k: v for k, v in self.document().items() if not isinstance(v, dict | list)}
        flat["estimate_s"] = "unknown before a first run" if self.estimate_s is None else f"{self.estimate_s:g}, start-up not counted"
        nested = {f"{name} {k}": v for name in ("resources", "data") for k, v in getattr(self, name).items()}
        return [{"what": key, "value": value} for key, value in {**flat, **nested}.items()]


@dataclass(frozen=True)
class Promoted(Result):
    """A decision of `promote`: promoted, refused or unchanged."""

    model: str
    version: int | None
    alias: str
    run_id: str | None
    decision: str
    reason: str
    challenger: dict[str, float]
    champion: dict[str, float] | None


@dataclass(frozen=True)
class RolledBack(Result):
    """An alias that went back; `from_` is `from` in the document."""

    model: str
    alias: str
    from_: int
    to: int

    def document(self) -> dict[str, Any]:
        return {"model": self.model, "alias": self.alias, "from": self.from_, "to": self.to}


@dataclass(frozen=True)
class History(Result):
    """Who promoted what, when, against what, and why; oldest first."""

    model: str
    entries: list[dict[str, Any]]

    def rows(self) -> list[dict[str, Any]]:
        return [{**{k: text(v) for k, v in entry.items()}, "scores": _both(entry["scores"])} for entry in self.entries]


@dataclass(frozen=True)
class Predicted(Result):
    """What `predict` wrote. `failed`: rows that didn't fit, and have a null prediction and a sentence in `error`."""

    rows_: int
    failed: int
    output: str
    model: str
    version: int | None
    wall_s: float

    def document(self) -> dict[str, Any]:
        data = asdict(self)
        return {"rows": data.pop("rows_"), **data}


@dataclass(frozen=True)
class PreparedData(Result):
    """Prepared data; `splits`: train, validation and test with their rows and files.

    A look at them adds: what each of `columns` holds, by split; `counts` of the classes; `duplicates`; `problems`, as sentences.
    """

    fingerprint: str
    path: str
    splits: dict[str, Any]
    inputs: list[str]
    target: str
    classes: list[str]
    columns: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    optimum: dict[str, float] = field(default_factory=dict)
    duplicates: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    shown: bool = False

    def document(self) -> dict[str, Any]:
        data = super().document()
        data.pop("shown")
        return data if self.shown else {k: data[k] for k in ("fingerprint", "path", "splits", "inputs", "target", "classes")}

    def rows(self) -> list[dict[str, Any]]:
        if not self.shown or not self.classes:
            return [{"split": name, "rows": part["rows"], "files": ", ".join(part["files"])} for name, part in self.splits.items()]
        return [{"class": c, **{part: self.counts.get(part, {}).get(c, 0) for part in self.splits}} for c in self.classes]

    def tables(self) -> list[list[dict[str, Any]]]:
        """What a look shows: the splits with their copies, the columns by split, the classes (the largest, where there are many)."""
        inside, across = self.duplicates.get("inside", {}), self.duplicates.get("across", {})
        splits = [
            {
                "split": name, "rows": part["rows"], "copies inside": inside.get(name), "copies of train": across.get(f"train/{name}"),
                "of validation": across.get(f"validation/{name}"), "files": ", ".join(part["files"]),
            }
            for name, part in self.splits.items()
        ]  # fmt: skip
        columns = [_column_row(column, split) for column in self.columns for split in self.splits]
        train = self.counts.get("train", {})
        classes = self.rows() if train else []
        return [splits, columns, sorted(classes, key=lambda row: -row["train"])[:MOST_CLASSES] if len(classes) > MOST_CLASSES else classes]


def _column_row(column: dict[str, Any], split: str) -> dict[str, Any]:
    """What a column holds in a split, as a row of a table."""
    measured = column.get("lengths") or column.get("numbers") or {}
    found = measured.get(split) or {}
    return {
        "column": column["name"],
        "kind": column["kind"],
        "split": split,
        **{key: column.get(key, {}).get(split) for key in ("missing", "distinct")},
        "not in train": column.get("unknown", {}).get(split, {}).get("ids"),
        "in": measured.get("unit"),
        **{key: found.get(key) for key in ("min", "median", "mean", "p95", "max")},
    }


@dataclass(frozen=True)
class Sent(Result):
    """What `sync` sent to MLflow, and what is left."""

    sent: int
    left: int


@dataclass(frozen=True)
class Checked(Result):
    """What `doctor` found: `{name, state: ok | warning | error, says, do}`."""

    checks: list[dict[str, Any]]

    def rows(self) -> list[dict[str, Any]]:
        return self.checks


def leaderboard_row(place: int, run: TrialResult, metric: str) -> dict[str, Any]:
    """A run as a row of a table."""
    score = run.best.metrics.get(metric) if run.best else None
    state = f"{run.state} ({run.stopped_by})" if run.stopped_by else run.state
    return {
        "": place,
        "trial": "train" if run.trial is None else run.trial,
        metric: "" if score is None else f"{score:.4f}",
        "epoch": f"{run.best.epoch}/{run.epochs}" if run.best else f"-/{run.epochs}",
        "state": state,
        **{key: text(value) for key, value in run.params.items()},
        "error": run.error or "",
    }


def beside(metric: str, baseline: dict[str, Any], optimum: dict[str, float]) -> list[dict[str, Any]]:
    """The rows below a leaderboard: the baseline's score, and the optimum."""
    rows = []
    if metric in baseline.get("metrics", {}):
        rows.append({"": "", "trial": f"baseline: {baseline['name']}", metric: f"{baseline['metrics'][metric]:.4f}"})
    if metric.removeprefix("val_") in optimum:
        rows.append({"": "", "trial": "optimum", metric: f"{optimum[metric.removeprefix('val_')]:.4f}"})
    return rows


def text(value: Any) -> str:
    """A value in a table's cell: numbers short."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {text(v)}" for k, v in value.items())
    return str(value)


def plain(value: Any) -> Any:
    """Tuples as lists, everything else as it is."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def _both(scores: dict[str, Any]) -> str:
    """The test scores of a challenger, and of the champion that it met."""
    sides = [(side, {k: v for k, v in (found or {}).items() if k.startswith("test_")}) for side, found in scores.items()]
    return "; ".join(f"{side} {text(found)}" for side, found in sides if found)
