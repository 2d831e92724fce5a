"""What a rank prints, in a file of its own."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from orchestrator.events import EpochEnded, RunEnded
from orchestrator.training import output
from orchestrator.training.job import Job, Place
from orchestrator.training.output import captured
from tests.conftest import MakeJob

OWN = '''
import os

from models.cnn import CNN


class Net(CNN):
    """Says that it was made, and what it does."""

    def __init__(self, config, schema):
        print("made")
        os.write(2, b"from descriptor 2\\n")
        super().__init__(config, schema)
'''


@dataclass(frozen=True)
class Logged(Job):
    """A job whose ranks' output is kept."""

    logs: str | None = None


def job_of(make_job: MakeJob, folder: Path, *overrides: str, resume: bool = False) -> Logged:
    (folder / "own_net.py").write_text(OWN)
    made = make_job("model={class: own_net:Net, channels: [4], pool_after: [1]}", *overrides, folder=folder, resume=resume)
    plain = {name: getattr(made, name) for name in Job.__dataclass_fields__}
    return Logged(**(plain | {"logs": str(folder / "logs")}))


def drive(job: Job) -> list[EpochEnded | RunEnded]:
    steps = output.run(job, Place())
    events = [next(steps)]
    while isinstance(events[-1], EpochEnded):
        events.append(steps.send(True))
    return events


def test_what_python_a_child_process_and_c_code_print_goes_to_the_file_in_order(tmp_path: Path) -> None:
    with captured(str(tmp_path / "logs"), 3):
        print("to stdout")
        print("to stderr", file=sys.stderr)
        subprocess.run(["sh", "-c", "echo a child; echo its error >&2"], check=True)
        os.write(1, b"a descriptor\n")
        print("no newline, a lone surrogate \udc80", end="")
    said = (tmp_path / "logs" / "rank-3.log").read_text()
    assert said == "to stdout\nto stderr\na child\nits error\na descriptor\nno newline, a lone surrogate \\udc80"


def test_afterwards_everything_goes_where_it_went_before(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(ValueError, match="theirs"), captured(str(tmp_path)):
        raise ValueError("theirs")
    assert (sys.stdout, sys.stderr) == before
    os.write(1, b"out")
    os.write(2, b"err")
    assert capfd.readouterr() == ("out", "err")
    assert (tmp_path / "rank-0.log").read_bytes() == b""


def test_without_a_folder_nothing_changes(capfd: pytest.CaptureFixture[str]) -> None:
    with captured(None):
        os.write(1, b"as ever\n")
    assert capfd.readouterr().out == "as ever\n"


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with captured(str(tmp_path)):
            print(word)
    assert (tmp_path / "rank-0.log").read_text() == "first\nsecond\n"


def test_a_logger_that_holds_a_stream_of_the_run_writes_to_the_terminal_afterwards(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with captured(str(tmp_path)):
        handler = logging.StreamHandler(sys.stderr)
        handler.emit(logging.makeLogRecord({"msg": "in the run"}))
    handler.emit(logging.makeLogRecord({"msg": "after it"}))
    assert (tmp_path / "rank-0.log").read_text() == "in the run\n"
    assert capfd.readouterr().err == "after it\n"


def test_a_full_disk_loses_what_is_printed_and_fails_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rank-0.log").symlink_to("/dev/full")
    with captured(str(tmp_path)):
        print("lost", flush=True)
        sys.stderr.write("lost too\n")
    print("after it")
    assert capfd.readouterr() == ("after it\n", "")


def test_where_the_folder_can_not_be_made_the_temporary_one_is_used(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    with captured(str(tmp_path / "a file" / tmp_path.name)):
        print("kept")
    kept = Path(tempfile.gettempdir()) / "orchestrator-logs" / tmp_path.name / "rank-0.log"
    assert kept.read_text() == "kept\n"
    kept.unlink()
    kept.parent.rmdir()


def test_where_nobody_else_may_see_this_node_s_disk_the_file_is_copied_to_the_storage_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: dict[str, bytes] = {}
    monkeypatch.setattr(output, "write_file", lambda uri, name, content: stored.update({f"{uri}/{name}": content}))
    monkeypatch.setattr(output, "read_file", lambda uri, name: stored.get(f"{uri}/{name}"))
    for node in ("one", "other"):
        with captured(str(tmp_path / node), 1, keep="s3://bucket/run"):
            print(f"on node {node}")
    assert stored == {"s3://bucket/run/rank-1.log": b"on node one\non node other\n"}


def test_in_the_driver_s_own_process_all_of_it_is_shown_on_stderr_too_and_stdout_is_left_alone(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom orchestrator.training.output import captured\nfrom pathlib import Path\n"
        f"with captured({str(tmp_path)!r}, echo=True):\n"
        "    print('printed'); os.write(1, b'written\\n'); print('an error', file=sys.stderr)\n"
        "print('the result')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("the result\n", "printed\nwritten\nan error\n")
    assert (tmp_path / "rank-0.log").read_text() == "printed\nwritten\nan error\n"


def test_in_a_notebook_or_a_test_it_is_shown_by_python_s_own_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with captured(str(tmp_path), echo=True):
        print("printed")
        os.write(1, b"written\n")
    assert capsys.readouterr() == ("", "printed\nwritten\n")


def test_a_trial_s_output_is_whole_when_its_end_is_told(make_job: MakeJob, tmp_path: Path) -> None:
    *epochs, ended = drive(job_of(make_job, tmp_path))
    assert [type(event) for event in (*epochs, ended)] == [EpochEnded, EpochEnded, RunEnded]
    assert (tmp_path / "logs" / "rank-0.log").read_text() == "made\nfrom descriptor 2\n"


def test_the_events_are_those_of_the_trial_itself(make_job: MakeJob, tmp_path: Path) -> None:
    job = job_of(make_job, tmp_path, "training.epochs=1")
    [epoch, ended] = drive(job)
    assert isinstance(epoch, EpochEnded)
    assert (epoch.epoch, epoch.last) == (1, True)
    assert {key: asdict(ended)[key] for key in ("state", "error", "trace")} == {"state": "finished", "error": None, "trace": None}


def test_a_run_that_goes_on_goes_on_in_its_file(make_job: MakeJob, tmp_path: Path) -> None:
    steps = output.run(job_of(make_job, tmp_path), Place())
    next(steps)
    steps.close()
    drive(job_of(make_job, tmp_path, resume=True))
    first, second, goes_on, *rest = (tmp_path / "logs" / "rank-0.log").read_text().splitlines()
    assert (first, second, rest) == ("made", "from descriptor 2", ["made", "from descriptor 2"])
    assert goes_on.startswith("--- goes on, 20")
    assert goes_on.endswith("node local ---")
