"""Where output lies, and what of it MLflow gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import Failed
from orchestrator.records import tracking
from orchestrator.records.ledger import Ledger
from orchestrator.records.logs import LogFile, files, folder_of, places
from orchestrator.records.tracking.logs import LARGEST, send_logs, stored_logs
from orchestrator.storage import below, write_file
from tests.records.conftest import Record
from tests.s3 import bucket


def write(folder: Path, **content: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in content.items():
        (folder / f"{name.replace('_', '-')}.log").write_text(text)
    return folder


def test_a_run_s_files_are_found_by_rank_and_others_are_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "logs" / "run", rank_10="ten", rank_2="two", other="no")
    assert files([str(folder)]) == [LogFile(2, f"{folder}/rank-2.log", b"two"), LogFile(10, f"{folder}/rank-10.log", b"ten")]
    assert files([folder.as_uri()])[0].content == b"two"
    assert files([str(tmp_path / "nowhere")]) == []


def test_of_a_long_file_the_end_is_what_counts_and_the_rest_is_said(tmp_path: Path) -> None:
    [file] = files([str(write(tmp_path / "run", rank_0="0123456789"))], largest=4)
    assert file.content == b"... 6 bytes before this are left out\n6789"


def test_a_storage_that_can_not_be_read_is_one_line() -> None:
    with pytest.raises(Failed, match=r"can't list 'nosuch://bucket/run'"):
        files(["nosuch://user:secret@bucket/run"])


def test_output_lies_beside_the_ledger_and_a_cluster_s_nodes_copy_it_to_the_storage(begin: Record, ledger: Ledger) -> None:
    home, launch = ledger.path.parent, begin()
    assert places(home, launch, 3) == [str(home / "logs" / "sweep-1-3")]
    assert folder_of(home, "a-train", None) == home / "logs" / "a-train"
    launch.experiment["storage"] = {"path": "s3://bucket/all/"}
    assert places(home, launch, 3) == [str(home / "logs" / "sweep-1-3"), "s3://bucket/all/sweep-1-3"]
    launch.experiment["storage"] = {"path": "/shared"}
    assert places(home, launch, 3)[1:] == ["/shared/sweep-1-3"]


def test_of_a_rank_that_lies_in_two_places_the_longer_counts_and_one_that_can_not_be_read_hides_no_other(tmp_path: Path) -> None:
    here = write(tmp_path / "here", rank_0="all of it", rank_1="its beginning", rank_2="here")
    there = write(tmp_path / "there", rank_0="not all", rank_1="its beginning, and what came elsewhere", rank_3="there")
    found = files([str(here), "nosuch://bucket/run", str(there)], largest=19)
    cut = b"... 19 bytes before this are left out\nwhat came elsewhere"
    assert [(file.rank, file.content) for file in found] == [(0, b"all of it"), (1, cut), (2, b"here"), (3, b"there")]


def test_in_a_bucket_that_is_named_with_options_a_file_has_its_own_name_here_and_in_mlflow(
    run_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id = run_of
    with bucket() as s3:
        for name, value in s3.env.items():
            monkeypatch.setenv(name, value)
        place = below(s3.uri, "run")
        write_file(place, "rank-0.log", b"said\n")
        assert [(file.path, file.content) for file in files([place])] == [(below(place, "rank-0.log"), b"said\n")]
        send_logs(client, run_id, [place])
    assert [file.content for file in stored_logs(client, run_id)] == [b"said\n"]


@pytest.fixture
def run_of(record: Record, ledger: Ledger) -> Any:
    """(client, the MLflow id of trial 0) of a recorded sweep."""
    record()
    tracking.sync(ledger.path.parent)
    return tracking.client(), ledger.identities(tracking.destination(), "sweep-1")[0]


def test_mlflow_keeps_every_rank_s_output_without_lines_that_name_a_secret(run_of: Any, folder: Path) -> None:
    client, run_id = run_of
    own = write(folder / "logs", rank_0="epoch 1\nAWS_SECRET_ACCESS_KEY=abc\nepoch 2\n", rank_1="other rank\n")
    send_logs(client, run_id, [str(folder / "nowhere"), str(own)])
    first, second = stored_logs(client, run_id)
    assert first.content.decode() == "epoch 1\n(left out: it names a secret)\nepoch 2\n"
    assert (second.rank, second.content) == (1, b"other rank\n")
    assert second.path.endswith(f"{run_id}/artifacts/logs/rank-1.log")


def test_output_that_grew_replaces_what_was_sent_before(run_of: Any, folder: Path) -> None:
    client, run_id = run_of
    own = write(folder / "logs", rank_0="first\n")
    send_logs(client, run_id, [str(own)])
    (own / "rank-0.log").write_text("first\nsecond\n")
    send_logs(client, run_id, [str(own)])
    assert [file.content for file in stored_logs(client, run_id)] == [b"first\nsecond\n"]
    (own / "rank-0.log").write_text("x" * (LARGEST + 5))
    send_logs(client, run_id, [str(own)])
    assert stored_logs(client, run_id)[0].content.startswith(b"... 5 bytes before this are left out\nxxx")


def test_a_storage_that_does_not_answer_holds_nothing_up(run_of: Any) -> None:
    client, run_id = run_of
    send_logs(client, run_id, ["nosuch://bucket/run"])
    assert stored_logs(client, run_id) == []
