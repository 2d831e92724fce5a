"""Gate, register, alias, history, rollback."""

from __future__ import annotations

import getpass
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import orchestrator
from orchestrator.deployment.registry import Registry, compare, gate
from orchestrator.errors import Failed, GateFailed, Note, Refused
from orchestrator.experiment.config import Bound
from orchestrator.records import tracking
from orchestrator.results import Promoted, Trained
from tests.deployment.conftest import Train

EASY = "registry.require={}"
pytestmark = pytest.mark.filterwarnings("ignore:.* is not better than the baseline")  # a tiny network, trained for a moment


@pytest.mark.parametrize(
    ("bound", "says"),
    [
        ({"min": 0.9}, []),
        ({"min": 0.95}, []),
        ({"min": 0.96}, ["test_accuracy is 0.9500, required is at least 0.96"]),
        ({"max": 0.94}, ["test_accuracy is 0.9500, required is at most 0.94"]),
        ({"min": 0.9, "max": 1.0}, []),
        ({"min": 0.0, "max": 0.5}, ["test_accuracy is 0.9500, required is at most 0.5"]),
    ],
)
def test_the_gate_compares_with_both_bounds_and_says_both_numbers(bound: dict[str, float], says: list[str]) -> None:
    assert gate({"test_accuracy": 0.95}, {"test_accuracy": Bound(**bound)}) == says


def test_a_score_that_is_missing_or_no_number_does_not_pass_the_gate() -> None:
    assert gate({}, {"test_accuracy": Bound(min=0.1)}) == ["test_accuracy was not measured"]
    assert gate({"test_loss": float("nan")}, {"test_loss": Bound(max=1.0)}) == ["test_loss is nan, required is at most 1"]


@pytest.mark.parametrize(
    ("challenger", "champion", "mode", "stays"),
    [
        (0.9, 0.8, "max", None),
        (0.8, 0.9, "max", "better than"),
        (0.9, 0.9, "max", "as good as"),
        (0.8, 0.9, "min", None),
        (0.9, 0.8, "min", "better than"),
    ],
)
def test_a_champion_stays_unless_the_challenger_is_better(challenger: float, champion: float, mode: Any, stays: str | None) -> None:
    said = compare(challenger, champion, "test_score", mode)
    assert (said is None) == (stays is None)
    assert said is None or (stays in said and f"{champion:.4f} against {challenger:.4f}" in said)


class Racing:
    """A client whose alias is moved by somebody else between setting and looking."""

    def __init__(self) -> None:
        self.tags: list[tuple[str, str]] = []

    def set_registered_model_alias(self, model: str, alias: str, version: str) -> None:
        """Somebody is faster."""

    def set_model_version_tag(self, model: str, version: str, key: str, value: str) -> None:
        self.tags.append((version, json.loads(value)["action"]))

    def get_model_version_by_alias(self, model: str, alias: str) -> Any:
        return SimpleNamespace(version="7")


def test_an_alias_that_somebody_else_moved_at_the_same_time_is_noticed() -> None:
    with pytest.raises(Failed, match=r"somebody else moved 'm@champion' to version 7 .* `orchestrator history m`"):
        Registry(Racing(), "m").move("champion", 2, "promote", "better", 1, {})


# one model's life ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weak(train: Train) -> Trained:
    return train("name=life", "training.epochs=1", "optimizer.lr=0.0005")


@pytest.fixture(scope="module")
def client(folder: Path) -> Any:
    return tracking.reachable_client()


def promote(*overrides: str, **options: Any) -> Promoted:
    return orchestrator.promote("life", [EASY, *overrides], **options)  # type: ignore[no-any-return]


def champion(client: Any, model: str = "life", alias: str = "champion") -> int:
    return int(client.get_model_version_by_alias(model, alias).version)


def versions(client: Any, model: str = "life") -> int:
    return len(client.search_model_versions(f"name='{model}'"))


@pytest.fixture(scope="module")
def life(weak: Trained, train: Train, client: Any) -> dict[str, Any]:
    """The first promotion, then a better run and its promotion, then what comes after; each step's answer by name."""
    steps: dict[str, Any] = {"weak": weak}
    with pytest.raises(GateFailed) as gated:
        orchestrator.promote("life", ["registry.require={test_accuracy: {min: 1.01}}"])
    steps["gated"], steps["gated versions"] = gated.value, versions(client)
    steps["first"] = promote()
    steps["again"] = promote()
    steps["strong"] = train("name=life", "training.epochs=4")
    steps["second"] = promote()
    with pytest.raises(GateFailed) as refused:
        promote(run=weak.run_id)
    steps["refused"], steps["champion after refusal"] = refused.value, champion(client)
    steps["twin"] = train("name=life", "training.epochs=4")
    with pytest.raises(GateFailed) as tied:
        promote(run=steps["twin"].run_id)
    steps["tied"] = tied.value
    steps["forced"], steps["versions"] = promote(run=weak.run_id, force=True), versions(client)
    steps["back"], steps["champion after back"] = orchestrator.rollback("life"), champion(client)
    steps["back again"] = orchestrator.rollback("life")
    with pytest.raises(Failed) as none:
        orchestrator.rollback("life")
    steps["none before"] = none.value
    steps["once more"], steps["versions after"] = promote(), versions(client)
    steps["history"] = orchestrator.history("life").entries
    return steps


def test_a_gate_that_fails_changes_nothing_and_says_both_numbers(life: dict[str, Any]) -> None:
    done = life["gated"].result
    assert (done.decision, done.version, life["gated versions"]) == ("refused", None, 0)
    assert re.fullmatch(r"test_accuracy is 0\.\d{4}, required is at least 1\.01", done.reason)


def test_the_first_run_becomes_version_1_and_the_champion(life: dict[str, Any]) -> None:
    first = life["first"]
    assert (first.decision, first.version, first.alias, first.champion) == ("promoted", 1, "champion", None)
    assert first.run_id == life["weak"].run_id
    assert first.challenger["test_accuracy"] == life["weak"].test["test_accuracy"]


def test_promoting_the_champion_again_changes_nothing(life: dict[str, Any]) -> None:
    assert (life["again"].decision, life["again"].version) == ("unchanged", 1)


def test_a_better_run_replaces_the_champion_and_the_answer_compares_them(life: dict[str, Any]) -> None:
    second = life["second"]
    assert (second.decision, second.version, second.run_id) == ("promoted", 2, life["strong"].run_id)
    assert second.champion["test_accuracy"] == life["weak"].test["test_accuracy"]
    assert second.challenger["test_accuracy"] > second.champion["test_accuracy"]


def test_a_worse_run_is_refused_and_the_champion_stays(life: dict[str, Any]) -> None:
    assert life["refused"].exit_code == 1
    assert "the champion is better than the challenger on the same test data: test_accuracy" in str(life["refused"])
    assert life["champion after refusal"] == 2


def test_a_tie_leaves_the_champion(life: dict[str, Any]) -> None:
    assert life["twin"].test == life["strong"].test
    assert "the champion is as good as the challenger" in str(life["tied"])


def test_force_promotes_all_the_same_says_why_not_and_makes_no_second_version_of_a_run(life: dict[str, Any]) -> None:
    assert (life["forced"].decision, life["forced"].version, life["versions"]) == ("promoted", 1, 2)
    assert life["forced"].reason.startswith("forced, although the champion is better than")


def test_rolling_back_works_as_often_as_there_was_a_champion_before(life: dict[str, Any]) -> None:
    assert (life["back"].from_, life["back"].to, life["champion after back"]) == (1, 2, 2)
    assert (life["back again"].from_, life["back again"].to) == (2, 1)
    assert "no earlier champion of 'life'" in str(life["none before"])
    assert life["none before"].exit_code == 1


def test_promoting_after_a_rollback_moves_the_alias_to_the_version_that_is_there(life: dict[str, Any]) -> None:
    assert (life["once more"].decision, life["once more"].version, life["versions after"]) == ("promoted", 2, 2)


def test_the_history_says_who_did_what_when_against_what_and_why(life: dict[str, Any]) -> None:
    entries = life["history"]
    moves = [(e["action"], e["from"], e["version"]) for e in entries]
    assert moves == [
        ("promote", None, 1), ("promote", 1, 2), ("promote", 2, 1), ("rollback", 1, 2), ("rollback", 2, 1), ("promote", 1, 2),
    ]  # fmt: skip
    assert {e["who"] for e in entries} == {getpass.getuser()}
    now = time.time()
    assert all(0 <= now - time.mktime(time.strptime(e["when"], "%Y-%m-%dT%H:%M:%SZ")) + time.timezone < 3600 for e in entries)
    assert entries[1]["scores"]["champion"]["test_accuracy"] == life["weak"].test["test_accuracy"]
    assert entries[2]["reason"].startswith("forced, although")
    assert all(e["reason"] for e in entries)


def test_scores_and_data_are_tags_of_the_version(life: dict[str, Any], client: Any) -> None:
    version = client.get_model_version("life", "2")
    assert json.loads(version.tags["orchestrator.scores"])["test_accuracy"] == life["strong"].test["test_accuracy"]
    run = client.get_run(version.run_id)
    assert version.tags["orchestrator.fingerprint"] == run.data.tags["orchestrator.fingerprint"]


def test_another_alias_has_a_champion_and_a_history_of_its_own(life: dict[str, Any], client: Any) -> None:
    before = champion(client)
    done = promote(run=life["weak"].run_id, alias="staging")
    assert (done.decision, done.version, champion(client, alias="staging"), champion(client)) == ("promoted", 1, 1, before)
    with pytest.raises(Failed, match="no earlier champion"):
        orchestrator.rollback("life", alias="staging")


@pytest.mark.parametrize("alias", ["latest", "v3", "a b", "", "a:b"])
def test_a_name_that_mlflow_keeps_for_itself_can_not_be_an_alias(life: dict[str, Any], alias: str) -> None:
    with pytest.raises(Refused, match="can't be an alias"):
        promote(alias=alias)


def test_a_champion_from_other_data_is_scored_again_on_the_challengers_test_data(train: Train, folder: Path, client: Any) -> None:
    train("name=moved", "training.epochs=1", "optimizer.lr=0.0005")
    orchestrator.promote("moved", [EASY])
    before = json.loads(client.get_model_version_by_alias("moved", "champion").tags["orchestrator.scores"])
    train("name=moved", "training.epochs=3", "data.split.seed=5")
    done = orchestrator.promote("moved", [EASY])
    assert done.decision == "promoted"
    assert done.champion["test_accuracy"] != before["test_accuracy"]
    assert done.challenger["test_accuracy"] > done.champion["test_accuracy"]


def test_the_history_tells_two_aliases_apart(life: dict[str, Any]) -> None:
    promote(run=life["weak"].run_id, alias="shadow")
    aliases = [entry["alias"] for entry in orchestrator.history("life").document()["entries"]]
    assert aliases[0] == "champion"
    assert aliases[-1] == "shadow"


def test_what_is_not_there_is_named(life: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=r"no experiment 'liff'.*life"):
        orchestrator.promote("liff")
    with pytest.raises(Refused, match=r"no model 'liff' in the registry.*life"):
        orchestrator.rollback("liff")
    with pytest.raises(Refused, match="no run 'nothing'"):
        promote(run="nothing")
    with pytest.raises(Refused, match="has no alias 'champio'; it has: champion"):
        orchestrator.predict("models:/life@champio", "in.csv", "out.csv")
    with pytest.raises(Refused, match="has no version '9'; it has: 1, 2"):
        orchestrator.predict("models:/life/9", "in.csv", "out.csv")
    with pytest.raises(Refused, match="is no model: give models:/NAME@alias"):
        orchestrator.predict("life", "in.csv", "out.csv")


def test_a_champion_that_does_not_beat_its_baseline_by_more_than_noise_is_promoted_with_a_warning(train: Train, folder: Path) -> None:
    train("name=guesses", "optimizer.lr=1e-9", "training.epochs=1")
    with pytest.warns(
        Note, match=r"test_accuracy 0\.\d+ is not better than the baseline \(majority class: 0\.1\d+\) by more than its noise"
    ):
        done = orchestrator.promote("guesses", [EASY])
    assert done.decision == "promoted"


def test_the_leaderboard_and_every_run_carry_the_baseline(train: Train, folder: Path, client: Any) -> None:
    done = train("name=beside", "training.epochs=1")
    board = orchestrator.runs("beside")
    assert board.baseline["name"] == "majority class"
    assert board.baseline["metrics"]["val_accuracy"] == pytest.approx(0.1, abs=0.02)
    assert [row["trial"] for row in board.rows()] == ["train", "baseline: majority class"]
    tags = client.get_run(done.run_id).data.tags
    assert json.loads(tags["orchestrator.baseline"]) == board.baseline
    assert json.loads(tags["orchestrator.baseline.test"]) == done.baseline
    assert json.loads(tags["orchestrator.margin"]) == list(done.margin or ())


def test_the_pictures_of_the_test_are_artifacts_of_the_run(train: Train, folder: Path, client: Any) -> None:
    done = train("name=pictures", "training.epochs=1")
    names = {Path(item.path).name for item in client.list_artifacts(done.run_id, "test")}
    assert {
        "confusion_matrix.png",
        "confusion_matrix.json",
        "per_class.json",
        "calibration.png",
        "roc.png",
        "precision_recall.png",
    } <= names
