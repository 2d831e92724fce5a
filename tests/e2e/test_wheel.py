"""The installed wheel, bare: what is in it, and that it starts without the heavy libraries, whatever folder it is typed in."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.e2e.conftest import PROJECT

LOOK = """
import sys
from orchestrator.cli.app import main
sys.argv = ["orchestrator", "--help"]
try:
    main()
finally:
    heavy = sorted({"torch", "ray", "mlflow", "pandas", "numpy", "optuna"} & set(sys.modules))
    print(heavy, sys.modules["models"].__file__, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    words = ["-m", "pip", "wheel", str(PROJECT), "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", str(folder)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    [made] = folder.glob("*.whl")
    return made


def test_the_wheel_holds_the_four_packages_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        [points] = [opened.read(name).decode() for name in names if name.endswith("entry_points.txt")]
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"orchestrator", "models", "pipelines", "cluster"}
    sources = {
        path.relative_to(PROJECT).as_posix()
        for package in ("orchestrator", "models", "pipelines", "cluster")
        for path in (PROJECT / package).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == sources
    assert "orchestrator = orchestrator.cli.app:main" in points


def test_help_from_the_wheel_imports_nothing_heavy_in_a_folder_with_a_models_package_of_its_own(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise RuntimeError('the package of the user')\n")
    site, bare = tmp_path / "site", tmp_path / "bare"
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
    bare.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("orchestrator", "models", "pipelines", "cluster", "_editable")):
            (bare / path.name).symlink_to(path)
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{site}:{bare}"}
    done = subprocess.run([sys.executable, "-S", "-c", LOOK], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "sweep" in done.stdout
    assert done.stderr.splitlines()[-1] == f"[] {site / 'models' / '__init__.py'}"
