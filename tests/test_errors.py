"""Errors: one tree, an exit code each, and a document with every problem."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from orchestrator import errors
from orchestrator.errors import ExperimentError, Failed, GateFailed, Interrupted, OrchestratorError, Problem, Refused


@pytest.mark.parametrize(
    ("kind", "parent", "code"),
    [
        (Refused, OrchestratorError, 2),
        (ExperimentError, Refused, 2),
        (Failed, OrchestratorError, 1),
        (GateFailed, Failed, 1),
        (Interrupted, OrchestratorError, 130),
    ],
)
def test_each_error_has_its_place_and_its_exit_code(kind: type[OrchestratorError], parent: type[OrchestratorError], code: int) -> None:
    assert kind.__bases__ == (parent,)
    assert kind.exit_code == code


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = dict(re.findall(r"── (\w+)\s+(\d+) ", errors.__doc__ or ""))
    made = {
        cls.__name__: str(cls.exit_code) for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, OrchestratorError)
    }
    assert drawn == {name: code for name, code in made.items() if name != "OrchestratorError"}


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (Problem("data.path", 2, "no file"), "data.path (line 2): no file"),
        (Problem("data.path", None, "no file"), "data.path: no file"),
        (Problem(None, None, "no file"), "no file"),
    ],
)
def test_a_problem_says_key_and_line_where_it_has_them(problem: Problem, says: str) -> None:
    assert str(problem) == says


def test_every_problem_is_a_line_and_an_entry_of_the_document() -> None:
    error = ExperimentError([Problem("a", 1, "one"), Problem("b.c", None, "two")])
    assert str(error) == "a (line 1): one\nb.c: two"
    assert error.document() == {"errors": [{"key": "a", "line": 1, "message": "one"}, {"key": "b.c", "line": None, "message": "two"}]}


def test_an_error_carries_its_key_and_what_there_is_to_show_all_the_same() -> None:
    error = Failed("it broke", key="--run", result="half of it")
    assert (str(error), error.result) == ("--run: it broke", "half of it")
    assert error.document() == {"errors": [{"key": "--run", "line": None, "message": "it broke"}]}


def test_an_error_that_nobody_foresaw_is_one_line_and_its_trace_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from orchestrator import api
    from orchestrator.cli import app

    def broken() -> None:
        raise ZeroDivisionError("nobody\nforesaw it")

    monkeypatch.setattr(api, "schema", broken)
    monkeypatch.setattr("sys.argv", ["orchestrator", "schema"])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        app.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.startswith("error: ZeroDivisionError: nobody foresaw it; the whole trace: ")
    trace = Path(said.strip().rpartition(" ")[2])
    assert "in broken" in trace.read_text()
    trace.unlink()
