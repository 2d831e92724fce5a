"""Who may import whom, third parties included: read from the source, imports inside functions too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("orchestrator", "models", "pipelines", "cluster")
FILES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))

BASE = {"errors", "events", "names"}
RIGHT_OF_EXECUTION = BASE | {"storage", "experiment", "training", "records"}
EVERYTHING = RIGHT_OF_EXECUTION | {"execution", "deployment", "models", "pipelines", "cluster"}
API = {  # one layer: the public functions and what they are made of
    "api", "asking", "beside", "catalog", "closing", "cluster_results", "clusters", "collecting", "launch", "outcome", "outputs", "results",
    "resuming", "trials",
}  # fmt: skip

# layer -> the layers it may import, beside itself
MAY_IMPORT = {
    "__init__": {"api"},
    "__main__": {"cli"},
    # the plan's type; where the store is that `ui` shows; `clusters` directly, without what api loads
    "cli": BASE | {"api", "clusters", "cluster_results", "results", "diagnosis", "experiment", "records"},
    "diagnosis": EVERYTHING | API,
    **dict.fromkeys(API, EVERYTHING | API | {"diagnosis", "__init__"}),
    "deployment": RIGHT_OF_EXECUTION | {"models", "pipelines", "results"},
    "execution": RIGHT_OF_EXECUTION | {"cluster"},
    "records": BASE | {"storage", "experiment"},
    "training": BASE | {"storage", "experiment", "models", "pipelines"},
    "storage": {"errors"},
    "experiment": BASE,
    "errors": {"events", "names"},
    "events": {"errors", "names"},
    "names": {"errors", "events"},
    "models": set(),
    "pipelines": set(),
    "cluster": set(),
}
THIRD_PARTIES = {
    "ray": ("orchestrator/execution/", "cluster/", "orchestrator/diagnosis.py"),
    "mlflow": ("orchestrator/records/tracking/", "orchestrator/deployment/", "orchestrator/diagnosis.py"),
    "optuna": ("orchestrator/execution/",),
    "torch": (
        "orchestrator/training/",
        "orchestrator/execution/",
        "orchestrator/deployment/",
        "orchestrator/diagnosis.py",
        "models/",
        "pipelines/",
    ),
    "typer": ("orchestrator/cli/",),
    "rich": ("orchestrator/cli/",),
    "sqlite3": ("orchestrator/records/",),
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, by its full name; `from a import b` may mean a.b."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def layer(module: str) -> str | None:
    """The layer of one of our modules; None for third parties."""
    first, *rest = module.split(".")
    if first != "orchestrator":
        return first if first in OURS else None
    modules = {p.stem for p in (ROOT / "orchestrator").iterdir() if p.suffix == ".py" or p.is_dir()}
    return rest[0] if rest and rest[0] in modules else "__init__"


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "orchestrator" else parts[0]


def test_every_folder_and_file_of_ours_has_its_layer() -> None:
    assert {layer_of(path) for path in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_imports_only_layers_below_its_own(path: Path) -> None:
    mine = layer_of(path)
    theirs = {found for module in imported(path) if (found := layer(module)) is not None}
    assert theirs - {mine} - MAY_IMPORT[mine] == set()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_imports_only_third_parties_of_its_layer(path: Path) -> None:
    libraries = {module.partition(".")[0] for module in imported(path)}
    wrong = {name for name, places in THIRD_PARTIES.items() if name in libraries and not relative(path).startswith(places)}
    assert wrong == set()


@pytest.mark.parametrize("path", [p for p in FILES if not relative(p).startswith("orchestrator")], ids=relative)
def test_models_pipelines_and_cluster_name_their_own_modules_relatively(path: Path) -> None:
    """So that a bundle can carry them under another name."""
    named = [
        module
        for node in ast.walk(ast.parse(path.read_text()))
        for module in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and node.level == 0
            else []
        )
    ]
    assert [module for module in named if module.partition(".")[0] in OURS] == []


def test_an_import_inside_a_function_counts() -> None:
    source = ROOT / "orchestrator" / "cli" / "look.py"
    assert "orchestrator.api" in set(imported(source))


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("orchestrator.cli.app", {"torch", "ray", "mlflow", "pydantic"}),
        ("orchestrator.experiment.read", {"torch", "ray", "mlflow", "models.cnn"}),
        ("orchestrator.experiment.plan", {"torch", "ray", "mlflow"}),
        ("orchestrator.records.ledger", {"torch", "ray", "mlflow"}),
        ("orchestrator.records.tracking", {"torch", "ray", "mlflow"}),
        ("orchestrator.execution", {"torch", "ray", "mlflow", "numpy", "pydantic"}),  # of which every Ray worker imports its setup
        ("orchestrator.execution.hub", {"torch", "ray", "mlflow"}),
        ("orchestrator.execution.worker", {"torch", "mlflow"}),
        ("orchestrator.execution.sweep", {"ray", "mlflow"}),
    ],
)
def test_importing_a_module_loads_nothing_heavy_that_it_does_not_need(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
