"""Provenance: commit, diff and versions, and nothing that looks like a secret."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from orchestrator.records.provenance import collect, without_secrets


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder under git with one commit."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "somebody@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    (tmp_path / "settings.py").write_text("LR = 0.1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def test_a_clean_folder_has_its_commit_and_no_diff(repository: Path) -> None:
    about = collect(repository)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True).stdout.strip()
    assert (about["commit"], about["dirty"], about["diff"]) == (head, False, None)


def test_a_change_is_recorded_without_the_lines_that_name_a_secret(repository: Path) -> None:
    (repository / "settings.py").write_text('LR = 0.2\nAPI_KEY = "abc123"\nDATABASE_PASSWORD = "hunter2"\n')
    about = collect(repository)
    assert about["dirty"]
    assert "+LR = 0.2" in about["diff"]
    assert "abc123" not in about["diff"]
    assert "hunter2" not in about["diff"]
    assert about["diff"].count("(left out: it names a secret)") == 2


@pytest.mark.parametrize(
    "line",
    [
        "password = 'x'",
        "MY_PASSWD=x",
        "client_secret: x",
        "HF_TOKEN=x",
        "api-key: x",
        "APIKEY=x",
        "credentials = x",
        "AWS_ACCESS_KEY_ID=AKIA0000",
        "Authorization: Bearer abcdef",
        "uri = 'postgresql://user:hunter2@host/db'",
    ],
)
def test_a_line_that_names_a_secret_is_left_out_and_the_others_stay(line: str) -> None:
    assert without_secrets(f"lr = 1\n{line}\nepochs = 2") == "lr = 1\n(left out: it names a secret)\nepochs = 2\n"


def test_a_private_key_is_left_out_whole() -> None:
    key = "+-----BEGIN RSA PRIVATE KEY-----\n+MIIEabc\n+def==\n+-----END RSA PRIVATE KEY-----"
    assert without_secrets(f"lr = 1\n{key}\nepochs = 2") == "lr = 1\n(left out: it names a secret)\nepochs = 2\n"
    assert "MIIE" not in without_secrets(key[:50])  # cut off by the limit of a diff


@pytest.mark.parametrize("line", ["learning_rate = 0.1", "path: https://example.org/data", "keys = list(table)", "author = 'me'"])
def test_a_line_that_names_none_stays(line: str) -> None:
    assert without_secrets(line) == f"{line}\n"


def test_a_folder_without_git_has_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    about = collect(tmp_path)
    assert (about["commit"], about["dirty"], about["diff"]) == (None, False, None)


def test_a_machine_without_git_has_neither(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert collect(repository)["commit"] is None


def test_versions_user_and_machine_are_there(tmp_path: Path) -> None:
    about = collect(tmp_path)
    assert about["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"python", "mlflow", "ray", "orchestrator"} <= set(about["versions"])
    assert about["user"]
    assert "CPUs" in about["machine"]
