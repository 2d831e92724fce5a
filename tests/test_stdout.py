"""With --json stdout is the document's alone, whoever prints."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.cli.stdout import documents, kept_for_the_document

CODE = """
import os, sys
from orchestrator.cli.stdout import documents, kept_for_the_document
with kept_for_the_document({as_json}):
    print("theirs", flush=True)
    os.system("echo a child")
    os.write(1, b"a library\\n")
    print("the document", file=documents(), flush=True)
print("afterwards")
"""


@pytest.mark.parametrize(
    ("as_json", "out", "err"),
    [
        (True, "the document\nafterwards\n", "theirs\na child\na library\n"),
        (False, "theirs\na child\na library\nthe document\nafterwards\n", ""),
    ],
)
def test_what_is_printed_beside_a_document_goes_to_stderr(as_json: bool, out: str, err: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(as_json=as_json)], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == (out, err)


def test_in_a_test_or_a_notebook_it_is_python_s_own_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with kept_for_the_document(True):
        print("theirs")
        print("the document", file=documents())
    assert (sys.stdout, documents()) == (before, before)
    assert capsys.readouterr() == ("the document\n", "theirs\n")
