"""What promotion looks at before it decides: whose run it is, which data, where the checkpoint lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import orchestrator
from orchestrator.deployment.promotion import Challenger, _doubt, choose
from orchestrator.deployment.registry import Registry
from orchestrator.errors import Failed, Note, Refused
from orchestrator.events import Best, TrialResult
from orchestrator.records.tracking import RecordedRun
from orchestrator.training import checkpoint
from tests.deployment.conftest import Train


def moves(*steps: tuple[str, int]) -> dict[int, dict[str, str]]:
    """The history tags of each version after these actions."""
    tags: dict[int, dict[str, str]] = {}
    for time, (action, version) in enumerate(steps):
        entry = {"action": action, "alias": "champion", "version": version}
        tags.setdefault(version, {})[f"orchestrator.history.{time}"] = json.dumps(entry)
    return tags


def registry(tags: dict[int, dict[str, str]], alias: int, others: tuple[int, ...] = ()) -> Registry:
    """A registry whose alias points to a version, whatever the history says."""
    made = [SimpleNamespace(version=str(n), run_id=f"run{n}", source="", tags=tags.get(n, {})) for n in sorted({*tags, *others, alias})]
    client = SimpleNamespace(
        search_model_versions=lambda _: made,
        get_model_version_by_alias=lambda _, __: next(v for v in made if v.version == str(alias)),
    )
    return Registry(client, "m")


THREE = (("promote", 1), ("promote", 2), ("promote", 3))


@pytest.mark.parametrize(
    ("steps", "alias", "earlier"),
    [
        (THREE, 3, 2),
        (THREE, 4, 3),
        (THREE, 1, 3),
        ((*THREE, ("rollback", 3)), 3, 2),
    ],
)
def test_rolling_back_goes_one_back_also_where_the_alias_was_moved_outside(steps: Any, alias: int, earlier: int) -> None:
    assert registry(moves(*steps), alias, (4,)).earlier("champion") == (alias, earlier)


def challenger(home: Path, fingerprint: str, path: str | None = None, trial: int | None = None) -> Challenger:
    run: Any = SimpleNamespace(fingerprint=fingerprint, launch="l1", result=SimpleNamespace(run_id="r1", trial=trial))
    experiment: Any = SimpleNamespace(storage=SimpleNamespace(path=path))
    return Challenger(None, run, experiment, home, home)


def never() -> Any:
    raise AssertionError("nothing is prepared where the data of the run is there")


def test_the_data_of_the_run_is_taken_where_it_is_kept(folder: Path, train: Train) -> None:
    train("training.epochs=1")
    home = folder / ".orchestrator"
    kept = list((home / "data").iterdir())  # other modules' too
    assert kept
    assert [challenger(home, path.name).data(never).folder for path in kept] == kept


@pytest.mark.parametrize(("was", "says"), [("old", "was old, now it is new"), ("", "was not recorded, now it is new")])
def test_data_that_changed_since_the_run_is_not_scored(tmp_path: Path, was: str, says: str) -> None:
    prepare: Callable[[], Any] = lambda: SimpleNamespace(fingerprint="new")  # noqa: E731
    with pytest.raises(Failed, match=f"the data changed since run 'r1': its fingerprint {says}"):
        challenger(tmp_path, was).data(prepare)
    assert challenger(tmp_path, "new").data(prepare).fingerprint == "new"


def test_a_checkpoint_is_looked_for_where_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert challenger(tmp_path, "f", None).checkpoints() == str(tmp_path / "checkpoints" / "l1")
    assert challenger(tmp_path, "f", "kept/", 3).checkpoints() == str(tmp_path / "kept" / "l1-3")
    assert challenger(tmp_path, "f", "~/kept").checkpoints() == str(tmp_path / "me" / "kept" / "l1")
    assert checkpoint.folder_of("s3://bucket/kept/", tmp_path, "l1", 0) == "s3://bucket/kept/l1-0"


def recorded(run_id: str, score: float, fingerprint: str, state: str = "finished", started_ms: int = 0) -> RecordedRun:
    best = Best(1, {"val_accuracy": score})
    result = TrialResult(None, run_id, state, None, {}, 1, best, None, 1.0)  # type: ignore[arg-type]
    return RecordedRun(result, "train", run_id, fingerprint, "val_accuracy", "max", started_ms, {}, {}, None, {})


def test_better_runs_that_are_not_considered_are_said_with_the_reason() -> None:
    newest = recorded("newest", 0.5, "new", started_ms=9)
    others = [recorded("best", 0.9, "old"), recorded("other", 0.8, "old"), recorded("cut", 0.7, "new", "interrupted"), newest]
    with pytest.warns(Note) as said:
        assert choose(others, "digits") is newest
    assert [str(each.message) for each in said] == [
        "not considered, though it scored higher: run cut, interrupted",
        "not considered: 2 runs on other data than the newest run's, with higher scores on that; --run best takes the best of them",
    ]
    with pytest.raises(Refused, match=r"no run that ended with a score; 1 can go on \(--resume\), or do so now"):
        choose([others[2]], "digits")


def test_a_run_of_another_experiment_is_refused(folder: Path, train: Train) -> None:
    run = train("name=mine", "training.epochs=1")
    with pytest.raises(Refused, match=f"^--run: run '{run.run_id}' is of experiment 'mine', not of 'yours'$") as refused:
        orchestrator.promote("yours", run=run.run_id)
    assert refused.value.problems[0].key == "--run"


@pytest.mark.parametrize(
    ("own", "margin", "mode", "says"),
    [
        (0.4, None, "max", "test_score 0.4000 is worse than the baseline (popularity: 0.5000)"),
        (0.5, None, "max", "test_score 0.5000 is not better than the baseline (popularity: 0.5000)"),
        (0.6, None, "max", None),
        (0.6, None, "min", "test_score 0.6000 is worse than the baseline (popularity: 0.5000)"),
        (0.4, None, "min", None),
        (float("nan"), None, "max", "test_score nan is not better than the baseline (popularity: 0.5000)"),
        (0.6, [0.05, 0.15], "max", None),
        (
            0.6,
            [-0.05, 0.15],
            "max",
            "test_score 0.6000 is not better than the baseline (popularity: 0.5000) by more than its noise: 95 % of",
        ),
        (0.4, [-0.15, -0.05], "max", "test_score 0.4000 is worse than the baseline (popularity: 0.5000): 95 % of"),
    ],
)
def test_a_score_that_is_no_better_than_the_baseline_is_doubted_also_where_it_has_no_margin(
    tmp_path: Path, own: float, margin: Any, mode: str, says: str | None
) -> None:
    tags = {"margin": margin, "baseline.test": {"test_score": 0.5}, "baseline": {"name": "popularity"}}
    run: Any = SimpleNamespace(tags={f"orchestrator.{name}": json.dumps(value) for name, value in tags.items()})
    experiment: Any = SimpleNamespace(metric="val_score", mode=mode)
    said = _doubt(Challenger(None, run, experiment, tmp_path, tmp_path), {"test_score": own})
    assert (said or "").startswith(says or "")
    assert (said is None) == (says is None)


def test_nothing_is_doubted_of_a_run_without_a_baseline(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(tags={"orchestrator.margin": "null", "orchestrator.baseline.test": "null"})
    experiment: Any = SimpleNamespace(metric="val_score", mode="max")
    assert _doubt(Challenger(None, run, experiment, tmp_path, tmp_path), {"test_score": 0.1}) is None
