"""Who is told how a launch goes, and what becomes of it where nobody answers."""

from __future__ import annotations

import hashlib
import hmac
import socket
import threading
import time
from typing import Any

import pytest

from orchestrator.errors import ExperimentError
from orchestrator.events import EpochEnded, RunEnded
from orchestrator.experiment.config import NotifyConfig
from orchestrator.records import notify
from orchestrator.records.ledger import Launch
from orchestrator.records.notify import Notifier, destination
from tests.receiver import Receiver

SECRET = b"a secret of both"
LAUNCH = Launch("20260101-000000-aaaa", "sweep", "digits", {}, "val_accuracy", "max", "f", "/x")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "WAITS_S", (0.01, 0.02))


def epoch(trial: int, number: int, value: float) -> EpochEnded:
    return EpochEnded(trial, number, {"val_accuracy": value}, 1)


def notifier(receiver: Receiver, *on: str, **more: Any) -> Notifier:
    config = NotifyConfig(url=receiver.url, on=on, **more)  # type: ignore[arg-type]
    return Notifier(config, LAUNCH, (receiver.url, SECRET))


def test_each_better_value_and_the_end_are_told_in_order_and_signed(receiver: Receiver) -> None:
    tell = notifier(receiver, "best", "finished", "failed")
    for event in (epoch(0, 1, 0.5), epoch(1, 1, 0.4), epoch(1, 2, 0.5), epoch(1, 3, 0.7), RunEnded(1, "finished", 2)):
        tell(event)
    tell.end("finished", trial=1)
    assert tell.finish(60) is None
    told = [(m["event"], m["trial"], m["value"]) for m in receiver.messages]
    assert told == [("best", 0, 0.5), ("best", 1, 0.7), ("finished", 1, 0.7)]
    assert receiver.messages[1] | {"at": ""} == {
        "event": "best", "experiment": "digits", "launch": LAUNCH.id, "command": "sweep", "metric": "val_accuracy",
        "trial": 1, "epoch": 3, "value": 0.7, "at": "",
    }  # fmt: skip
    for body, signature in zip(receiver.bodies, receiver.signatures, strict=True):
        assert signature == "sha256=" + hmac.new(SECRET, body, hashlib.sha256).hexdigest()


def test_only_what_was_asked_for_is_told(receiver: Receiver) -> None:
    tell = notifier(receiver, "failed")
    tell(epoch(0, 1, 0.5))
    tell.end("failed", error="ValueError: no 's3://me:hunter2@bucket'")
    assert tell.finish(60) is None
    assert [(m["event"], m["state"], m["error"]) for m in receiver.messages] == [("failed", "failed", "ValueError: no 's3://bucket'")]


def test_in_a_launch_that_goes_on_only_what_is_better_than_before_is_told(receiver: Receiver) -> None:
    tell = Notifier(NotifyConfig(on=("best",)), LAUNCH, (receiver.url, SECRET), best=0.6)
    tell(epoch(0, 1, 0.5))
    tell(epoch(0, 2, 0.65))
    tell.end("interrupted")
    assert tell.finish(60) is None
    assert [m["value"] for m in receiver.messages] == [0.65]


@pytest.mark.parametrize("answer", [500, 429, 302])
def test_what_the_receiver_refuses_at_first_is_sent_again(receiver: Receiver, answer: int) -> None:
    receiver.answers = [answer, answer]
    tell = notifier(receiver, "finished")
    tell.end("finished")
    assert tell.finish(60) is None
    assert [m["event"] for m in receiver.messages] == ["finished"] * 3
    assert len(set(receiver.bodies)) == 1


def test_a_receiver_that_always_refuses_is_a_note_without_the_path_of_its_url(receiver: Receiver) -> None:
    receiver.answers = [500] * 3
    tell = notifier(receiver, "finished")
    tell.end("finished")
    assert tell.finish(60) == "notify: not everything was taken by http://127.0.0.1: HTTP 500"


def test_a_receiver_that_never_answers_keeps_neither_the_launch_nor_its_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tell = Notifier(NotifyConfig(on=("best", "finished")), LAUNCH, (url, SECRET))
        began = time.monotonic()
        for number in range(1, 500):
            tell(epoch(0, number, number / 1000))
        tell.end("finished")
        assert "it doesn't answer in time" in str(tell.finish(0.2))
        assert time.monotonic() - began < notify.ANSWER_S, "it waited for the receiver"


def test_a_launch_in_which_nothing_happens_is_told_of_once_until_something_does(receiver: Receiver) -> None:
    tell = notifier(receiver, "stalled", stall_minutes=0.1 / 60)
    deadline = time.monotonic() + 60
    for count in (1, 2):
        while len(receiver.bodies) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        tell(epoch(0, count, 0.5))
    tell.end("finished")
    assert tell.finish(60) is None
    assert {m["event"] for m in receiver.messages} == {"stalled"}
    assert 2 <= len(receiver.bodies) <= 3


def test_without_a_url_nobody_is_told_and_no_thread_runs() -> None:
    before = threading.active_count()
    tell = Notifier(NotifyConfig(), LAUNCH, destination(NotifyConfig(), {}))
    tell(epoch(0, 1, 0.5))
    tell.end("finished")
    assert tell.finish(60) is None
    assert threading.active_count() == before


def test_a_url_without_a_secret_to_sign_with_is_refused() -> None:
    config = NotifyConfig(url="https://example.org/hook")
    with pytest.raises(ExperimentError, match=r"notify\.url: the messages are signed: set ORCHESTRATOR_NOTIFY_SECRET"):
        destination(config, {})
    assert destination(config, {"ORCHESTRATOR_NOTIFY_SECRET": "x"}) == ("https://example.org/hook", b"x")


def test_a_url_with_a_secret_in_it_comes_from_the_environment_and_not_from_the_file() -> None:
    env = {"ORCHESTRATOR_NOTIFY_URL": "https://example.org/hook?key=abc", "ORCHESTRATOR_NOTIFY_SECRET": "x"}
    assert destination(NotifyConfig(), env) == ("https://example.org/hook?key=abc", b"x")
    for url in ("https://example.org/hook?key=abc", "https://me:pw@example.org", "ftp://example.org"):
        with pytest.raises(ValueError, match="ORCHESTRATOR_NOTIFY_URL"):
            NotifyConfig(url=url)
