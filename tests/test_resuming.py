"""Which launch `--resume` means where the folder that began it is gone, and all there is are the copies in `storage.path`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.asking import Asked
from orchestrator.beside import Beside
from orchestrator.cli.app import _with_resume
from orchestrator.errors import ExperimentError, Failed, Refused
from orchestrator.experiment.plan import Command
from orchestrator.records.ledger import Launch, Ledger
from orchestrator.records.mirror import mirror
from orchestrator.resuming import IF_ANY, NEWEST, earlier
from pipelines.prepare import Prepared
from tests.conftest import MakeExperiment

OLD, NEW, TRAIN = "20260101-000000-aaaa", "20260102-000000-bbbb", "20260103-000000-cccc"
Elsewhere = Callable[..., None]


@pytest.fixture
def asked(prepared: Prepared, make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """An experiment with a storage, asked in an empty folder."""
    (tmp_path / "head").mkdir()
    monkeypatch.chdir(tmp_path / "head")
    return Asked(tmp_path / "corners.yaml", make_experiment(f"storage.path={tmp_path}/shared"), prepared, tmp_path)


@pytest.fixture
def elsewhere(asked: Asked, tmp_path: Path, make_experiment: MakeExperiment) -> Elsewhere:
    """Begin a launch in a folder of its own, which is mirrored."""

    def made(name: str, command: Command, *overrides: str) -> None:
        experiment, home = make_experiment(f"storage.path={tmp_path}/shared", *overrides), tmp_path / name
        fingerprint = asked.prepared.fingerprint
        launch = Launch(name, command, experiment.name, experiment.plain(), experiment.metric, experiment.mode, fingerprint, str(tmp_path))
        ledger, beside = Ledger(home), Beside(home, experiment)
        ledger.launch(launch)
        beside.follow(ledger, launch)
        assert beside.mirror is not None
        assert beside.mirror.finish(60) is None
        ledger.close()

    return made


@pytest.fixture
def three(elsewhere: Elsewhere) -> None:
    """Two sweeps and a newer run of train, of one name and three folders; the older sweep is mirrored last."""
    elsewhere(NEW, "sweep")
    elsewhere(TRAIN, "train")
    elsewhere(OLD, "sweep")


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("command", "which", "meant"),
    [("sweep", NEWEST, NEW), ("train", NEWEST, TRAIN), ("sweep", OLD, OLD), ("sweep", IF_ANY, NEW)],
    ids=["sweep", "train", "by id", "if any"],
)
def test_a_folder_without_a_ledger_takes_that_of_the_newest_launch_of_the_command_or_of_the_one_that_is_named(
    asked: Asked, command: Command, which: str, meant: str
) -> None:
    found = earlier(command, asked, which)
    assert found is not None
    assert found.id == meant
    assert Ledger(Path.cwd() / ".orchestrator").launches() == [meant]


@pytest.mark.usefixtures("three")
def test_the_storage_may_be_spelt_as_it_is_seen_from_here_and_nothing_else(asked: Asked, make_experiment: MakeExperiment) -> None:
    spelt = replace(asked, experiment=make_experiment("storage.path=../shared"))
    found = earlier("sweep", spelt, NEWEST)
    assert found is not None
    assert (found.id, found.experiment["storage"]["path"]) == (NEW, "../shared")
    (Path.cwd() / ".orchestrator" / "ledger.sqlite").unlink()
    with pytest.raises(ExperimentError, match=r"optimizer\.lr"):
        earlier("sweep", replace(spelt, experiment=make_experiment("storage.path=../shared", "optimizer.lr=0.5")), NEWEST)


def test_a_ledger_that_is_behind_the_copy_is_refused_since_another_machine_went_on(elsewhere: Elsewhere, asked: Asked) -> None:
    elsewhere(OLD, "sweep")
    found = earlier("sweep", asked, NEWEST)
    assert found is not None
    there = Ledger(asked.folder / OLD)
    there.reopen(found, 0)
    mirror(there.path, str(asked.folder / "shared" / "ledgers" / "corners" / "sweep"), OLD)
    with pytest.raises(Refused, match=f"another machine has gone on with sweep {OLD}: its ledger's copy in storage.path has what "):
        earlier("sweep", asked, OLD)


def test_if_any_takes_the_newest_that_is_asked_for_as_it_was_begun(
    elsewhere: Elsewhere, asked: Asked, make_experiment: MakeExperiment
) -> None:
    elsewhere(OLD, "sweep")
    assert earlier("sweep", asked, NEWEST) is not None
    other = replace(asked, experiment=make_experiment(f"storage.path={asked.folder}/shared", "training.seed=7"))
    with pytest.raises(ExperimentError, match=r"training\.seed"):
        earlier("sweep", other, NEWEST)
    assert earlier("sweep", other, IF_ANY) is None


def test_if_any_looks_at_the_copies_too_for_the_newest_that_is_asked_for_as_it_was_begun(elsewhere: Elsewhere, asked: Asked) -> None:
    elsewhere(OLD, "sweep")
    elsewhere(NEW, "sweep", "training.seed=7")
    found = earlier("sweep", asked, IF_ANY)
    assert found is not None
    assert found.id == OLD


def test_a_launch_that_goes_on_finds_its_modules_where_the_experiment_lies_now(elsewhere: Elsewhere, asked: Asked, tmp_path: Path) -> None:
    elsewhere(OLD, "sweep")
    found = earlier("sweep", replace(asked, folder=tmp_path / "moved"), NEWEST)
    assert found is not None
    assert found.folder == str(tmp_path / "moved")


@pytest.mark.usefixtures("three")
def test_one_that_is_not_there_is_refused_with_those_that_are(asked: Asked) -> None:
    with pytest.raises(Refused, match=f"there is no train '{NEW}' of this experiment; the newest are: {TRAIN}$"):
        earlier("train", asked, NEW)
    assert not (Path.cwd() / ".orchestrator").exists()


def test_where_nothing_was_mirrored_there_is_nothing_to_go_on_with(asked: Asked) -> None:
    with pytest.raises(Refused, match="there is no sweep of 'corners' in "):
        earlier("sweep", asked, NEWEST)


def test_where_there_is_none_if_any_begins_but_not_where_that_can_not_be_told(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    assert earlier("sweep", asked, IF_ANY) is None

    def away(uri: str) -> list[str]:
        raise Failed("the storage doesn't answer")

    monkeypatch.setattr("orchestrator.resuming.mirrored", away)
    with pytest.raises(Failed, match="doesn't answer"):
        earlier("sweep", asked, IF_ANY)


def test_resume_takes_an_id_or_if_any_or_nothing() -> None:
    assert _with_resume(["sweep", "a.yaml", "--resume", "if-any"]) == ["sweep", "a.yaml", "--resume", "if-any"]
    assert _with_resume(["sweep", "a.yaml", "--resume", OLD]) == ["sweep", "a.yaml", "--resume", OLD]
    assert _with_resume(["sweep", "a.yaml", "--resume", "budget.trials=2"]) == ["sweep", "a.yaml", "--resume=newest", "budget.trials=2"]


def test_ctrl_c_ends_the_waiting_for_what_is_still_to_be_sent(asked: Asked, tmp_path: Path) -> None:
    def wait(patience_s: float) -> int:
        if patience_s > 0:
            raise KeyboardInterrupt
        return 7

    beside: Any = Beside(tmp_path, asked.experiment)
    beside.sender = SimpleNamespace(finish=wait, problem="no answer")
    assert beside.finish("interrupted", 20.0) == (7, "no answer")
