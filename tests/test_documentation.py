"""What is documented exists: commands, keys, experiment files; and the surface is a list here, so that adding to it is a decision."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement

import orchestrator
from orchestrator import api
from orchestrator.catalog import catalog
from orchestrator.cli.app import app
from orchestrator.errors import ExperimentError
from orchestrator.experiment.config import Experiment
from orchestrator.experiment.file import parse_file
from orchestrator.experiment.read import resolve

PROJECT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((PROJECT / "configs").glob("*.yaml"))
COMMANDS = [
    "cluster attach", "cluster jobs", "cluster status", "cluster stop", "cluster submit", "cluster template",
    "data prepare", "data show", "doctor", "gc", "history", "logs", "plan", "predict", "promote", "rollback", "runs", "schema",
    "sweep", "sync", "train", "ui",
]  # fmt: skip
KEYS = ["name", "data", "model", "optimizer", "training", "scaling", "sweep", "registry", "storage", "budget", "notify"]
PUBLIC = [
    "cluster_attach", "cluster_jobs", "cluster_status", "cluster_stop", "cluster_submit", "cluster_template",
    "data_prepare", "data_show", "doctor", "gc", "history", "logs", "plan", "predict", "promote", "rollback", "runs", "schema",
    "sweep", "sync", "train",
]  # fmt: skip


def commands(group: Any = None, prefix: str = "") -> Iterator[str]:
    group = typer.main.get_command(app) if group is None else group
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}"


def documents() -> dict[str, str]:
    found = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
    return {path.name: path.read_text() for path in found if path.exists()}


def typed_in_documents() -> list[str]:
    """Every `orchestrator …` command in code of the documents."""
    found = []
    for text in documents().values():
        for block in re.findall(r"```.*?```|`[^`\n]+`", text, re.S):
            found += re.findall(r"(?m)(?:^|[`$>]\s*|\s{2,})orchestrator ([a-z]+(?: [a-z]+)?)", block)
    return found


def test_the_commands_are_these() -> None:
    assert sorted(commands()) == COMMANDS


def test_the_public_functions_are_these() -> None:
    assert orchestrator.__all__ == PUBLIC
    assert all(callable(getattr(api, name)) for name in PUBLIC)


def test_the_public_functions_stay_what_they_are_when_they_were_called(tmp_path: Path) -> None:
    code = (
        "import orchestrator\norchestrator.doctor(), orchestrator.schema()\n"
        "print([name for name in orchestrator.__all__ if not callable(getattr(orchestrator, name))])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr[-2000:]


def test_every_command_says_what_it_does_and_takes_json_where_it_has_a_result() -> None:
    root = typer.main.get_command(app)
    for words in COMMANDS:
        command: Any = root
        for word in words.split():
            command = command.commands[word]
        assert (command.help or "").strip(), words
        assert ("--json" in [o for p in command.params for o in p.opts]) == (words != "ui"), words


def test_the_keys_of_an_experiment_file_are_these() -> None:
    assert [name for name in Experiment.model_fields if name not in ("metric", "mode")] == KEYS


def test_every_key_is_described_in_the_schema() -> None:
    schema = orchestrator.schema()
    assert sorted(schema["properties"]) == sorted(KEYS)
    for section in ("TrainingConfig", "ScalingConfig", "SchedulerConfig", "StorageConfig", "BudgetConfig", "NotifyConfig"):
        for key, value in schema["$defs"][section]["properties"].items():
            assert value.get("description") or key == "name", f"{section}.{key}"


def test_every_key_is_documented() -> None:
    text = "\n".join(documents().values())
    if "```" not in text:
        pytest.skip("README.md documents nothing yet")
    assert [key for key in KEYS if not re.search(rf"(?m)(`{key}[`:.]|^\s*{key}:)", text)] == []


def test_every_command_in_the_documents_exists() -> None:
    known = set(COMMANDS) | {words.split()[0] for words in COMMANDS if " " not in words}
    wrong = [words for words in typed_in_documents() if words not in known and words.split()[0] not in known]
    assert wrong == []


def test_every_command_is_run_by_a_test_of_the_command_line() -> None:
    source = "\n".join(path.read_text() for path in (PROJECT / "tests" / "e2e").glob("*.py"))
    untried = [c for c in COMMANDS if not re.search(r'(?:run|typed|start)\(\s*"' + '", "'.join(c.split()) + '"', source)]
    assert untried == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_file_resolves_and_is_named_by_its_file(path: Path) -> None:
    tree, lines = parse_file(path)
    made = resolve(tree, catalog(path.parent), lines)
    assert made.name == path.stem
    assert resolve(made.plain(), catalog(path.parent)) == made


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_file_holds_no_value_equal_to_its_default(path: Path) -> None:
    tree, _ = parse_file(path)
    whole = resolve(tree, catalog(path.parent))
    assert [".".join(keys) for keys in _leaves(tree) if _without(tree, keys, path.parent) == whole] == []


def test_there_are_experiment_files_to_start_from() -> None:
    assert "digits-cnn" in [path.stem for path in CONFIGS]


def _leaves(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of values; a split's shares belong together."""
    for key, value in tree.items():
        if isinstance(value, dict) and value and (*keys, key) not in {("data", "split"), ("sweep", "space"), ("registry", "require")}:
            yield from _leaves(value, (*keys, key))
        else:
            yield (*keys, key)


def _without(tree: dict[str, Any], keys: tuple[str, ...], folder: Path) -> Experiment | None:
    cut = copy.deepcopy(tree)
    node = cut
    for key in keys[:-1]:
        node = node[key]
    del node[keys[-1]]
    try:
        return resolve(cut, catalog(folder))
    except ExperimentError:
        return None


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_a_page_names_only_files_that_are_there_and_is_finished(page: str) -> None:
    text = (PROJECT / page).read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in linked if not (PROJECT / page).parent.joinpath(link).exists()] == []
    assert not re.search(r"\bMEASURED\b|\bTODO\b|\bTBD\b", text)


def test_what_is_pinned_lies_within_the_ranges_of_the_project() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    asked = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    assert [str(one) for one in asked if not one.specifier.contains(pinned[one.name])] == []


def test_every_folder_of_tests_is_run() -> None:
    named = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"]
    folders = {f"tests/{path.parent.name}" for path in (PROJECT / "tests").glob("*/test_*.py")}
    assert folders == {name for name in named if "*" not in name}
