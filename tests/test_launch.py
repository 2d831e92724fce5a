"""What is said of a launch: what it would run on, and how it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator import api, launch
from orchestrator.beside import Beside
from orchestrator.errors import Failed, Interrupted, OrchestratorError

DIGITS = """
name: digits
data: {source: digits}
model: {family: cnn, channels: [4], pool_after: [1]}
"""


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An experiment file, and no cluster."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    Path("digits.yaml").write_text(DIGITS)
    return "digits.yaml"


@pytest.mark.parametrize(
    ("raised", "error", "state"), [(KeyboardInterrupt(), Interrupted, "interrupted"), (OSError("no"), Failed, "failed")]
)
def test_who_is_told_of_a_launch_hears_of_an_interrupt_as_such(
    experiment: str, monkeypatch: pytest.MonkeyPatch, raised: BaseException, error: type[OrchestratorError], state: str
) -> None:
    told: list[str] = []

    def drive(*given: Any) -> None:
        raise raised

    monkeypatch.setattr(launch, "_drive", drive)
    monkeypatch.setattr(Beside, "start", lambda self: None)
    monkeypatch.setattr(Beside, "finish", lambda self, state, *given, **more: told.append(state))
    with pytest.raises(error, match=r"to go on: orchestrator train digits\.yaml --resume "):
        api.train(experiment)
    assert told == [state]


def test_an_interrupt_before_anything_had_begun_promises_no_resume(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "_begin", begin)
    monkeypatch.setattr(Beside, "start", lambda self: None)
    monkeypatch.setattr(Beside, "finish", lambda self, state, *given, **more: (0, None))
    with pytest.raises(Interrupted, match="before anything had begun: there is nothing to resume"):
        api.train(experiment)


@pytest.mark.parametrize(("said", "error"), [(Interrupted("interrupted; to go on: so"), Interrupted), (None, KeyboardInterrupt)])
def test_a_second_interrupt_while_a_command_ends_takes_nothing_away_of_what_it_was_to_say(
    experiment: str, monkeypatch: pytest.MonkeyPatch, said: Exception | None, error: type[BaseException]
) -> None:
    def run(*given: Any) -> None:
        try:
            if said is not None:
                raise said
        finally:
            raise KeyboardInterrupt

    monkeypatch.setattr(launch, "_run", run)
    with pytest.raises(error) as raised:
        api.train(experiment)
    assert said is None or raised.value is said


def test_the_plan_of_a_run_that_may_have_more_workers_or_fewer_says_how_many_it_needs(experiment: str) -> None:
    planned = api.plan(experiment, ["scaling.workers=[1,2]"], command="train").document()
    assert list(planned)[-1] == "fewest"
    assert (planned["fewest"], planned["workers"]) == (1, 2)
    assert api.plan(experiment, ["scaling.workers=2"], command="train").fewest == 2
