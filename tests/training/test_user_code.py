"""A user's modules on their way: what is named and what that imports, and nothing else of the folder."""

from __future__ import annotations

import os
import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from orchestrator import names
from orchestrator.errors import Refused
from orchestrator.training import arrival, user_code
from orchestrator.training.arrival import Sent, arrive
from orchestrator.training.user_code import files_of, names_of, pack, unpack
from tests.conftest import MakeExperiment, MakeJob, drive

NET = """
from models.cnn import CNN
from .layers.blocks import WIDTH
from . import tricks

class Net(CNN):
    width = WIDTH + tricks.more()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An experiment's folder of 5 GB: a module, the package and the module that it imports, and much else."""
    made = tmp_path / "experiment"
    (made / "layers").mkdir(parents=True)
    (made / "nets.py").write_text(NET)
    (made / "tricks.py").write_text("def more():\n    return 2\n")
    (made / "layers" / "__init__.py").write_text("")
    (made / "layers" / "blocks.py").write_text("from ..deep import unused\nWIDTH = 40\n")
    (made / "deep.py").write_text("unused = None\n")
    (made / "other.py").write_text("raise RuntimeError('not asked for')\n")
    (made / "layers" / "notes.txt").write_text("not code")
    with (made / "train.parquet").open("wb") as data:
        data.truncate(5_000_000_000)  # sparse
    return made


def inside(code: bytes | None) -> list[str]:
    assert code is not None
    return sorted(zipfile.ZipFile(BytesIO(code)).namelist())


def test_what_is_named_and_what_that_imports_travels_and_nothing_else(folder: Path) -> None:
    code = pack(folder, ["nets:Net"])
    assert inside(code) == ["deep.py", "layers/__init__.py", "layers/blocks.py", "nets.py", "tricks.py"]
    assert len(code or b"") < 2000


def test_imports_are_followed_from_packages_deep_down_with_or_without_an_init(tmp_path: Path) -> None:
    for name, text in {
        "nets/deep/blocks.py": "import torch\nfrom ...helpers import tidy\n",
        "nets/deep/weights.bin": "w",
        "helpers.py": "import elsewhere\nfrom elsewhere import more\nfrom .shapes import square\n",
        "shapes.py": "def broken(:\n",
        "elsewhere.py": "raise RuntimeError('only its neighbours by relative imports')\n",
        "models/__init__.py": "raise RuntimeError('the package of the user')\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [path.relative_to(tmp_path).as_posix() for path in files_of(tmp_path, ["nets.deep.blocks:Net"])] == [
        "helpers.py",
        "nets/deep/blocks.py",
        "shapes.py",
    ]


def test_the_same_files_are_the_same_bytes_whenever_they_were_written(folder: Path) -> None:
    before = pack(folder, ["nets:Net"])
    os.utime(folder / "nets.py", (1, 1))
    assert pack(folder, ["nets:Net"]) == before
    (folder / "tricks.py").write_text("def more():\n    return 3\n")
    assert pack(folder, ["nets:Net"]) != before


def test_names_of_ours_and_of_installed_packages_need_nothing(folder: Path) -> None:
    assert pack(folder, ["torch.optim:SGD"]) is None


def test_code_that_is_too_large_is_refused_with_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_code, "LIMIT_BYTES", 100)
    with pytest.raises(Refused, match=r"too large to travel.*the largest is 'nets\.py'"):
        pack(folder, ["nets:Net"])


def test_it_is_loaded_where_the_folder_is_not(folder: Path, tmp_path: Path) -> None:
    code = pack(folder, ["nets:Net"]) or b""
    shutil.rmtree(folder)
    (tmp_path / "cache").mkdir()
    there = unpack(code, tmp_path / "cache")
    assert names.load("nets:Net", {}, "family", there).width == 42
    assert unpack(code, tmp_path / "cache") == there
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [there.name]


def test_a_trial_may_load_its_family_its_optimizer_and_what_is_searched(make_experiment: MakeExperiment) -> None:
    experiment = make_experiment("sweep.space={optimizer.name: {choice: [adam, sgd]}}")
    assert names_of(experiment) == []
    searched = experiment.model_copy(
        update={"sweep": experiment.sweep.model_copy(update={"space": {"optimizer.name": {"choice": ["adam", "mine:Opt"]}}})}
    )
    assert names_of(searched) == ["mine:Opt"]


def test_a_trial_runs_where_neither_the_data_nor_the_code_of_the_driver_are(
    make_job: MakeJob, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival.tempfile, "gettempdir", lambda: str(tmp_path))
    job = make_job("model={family: 'nets:Net', channels: [4, 6], pool_after: [1, 2]}", folder=folder)
    expected = drive(make_job(checkpoints="here"))
    copied = shutil.copytree(job.data, tmp_path / "driver" / "abc")
    sent = Sent(arrival.publish(copied, f"file://{tmp_path}/storage", "data"), pack(folder, ["nets:Net"]))(job)
    shutil.rmtree(folder)
    shutil.rmtree(copied)
    events = drive(sent)
    assert [event.metrics["val_loss"] for event in events[:-1]] == [event.metrics["val_loss"] for event in expected[:-1]]
    assert events[-1].state == "finished"


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_job: MakeJob) -> None:
    monkeypatch.setattr(arrival.tempfile, "gettempdir", lambda: str(tmp_path))
    theirs = tmp_path / f"orchestrator-{os.getuid()}"
    theirs.mkdir()
    theirs.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write there"):
        arrive(Sent(code=b"code")(make_job()))
