"""The deployable folder: what is in it, and that it runs anywhere."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from orchestrator.deployment import bundle as bundles
from orchestrator.deployment import predict as predicting
from orchestrator.errors import Failed, Refused
from orchestrator.training import checkpoint
from pipelines import batches
from pipelines.prepare import Prepared
from tests.deployment.conftest import Train

MYNETS = """
from dataclasses import dataclass

import torch
from torch import nn

from models.family import Family, FamilyConfig


class Net(Family):
    @dataclass(frozen=True)
    class Config(FamilyConfig):
        width: int = 16

    task = "classification"
    metrics = ("accuracy",)

    def __init__(self, config, schema):
        super().__init__(config, schema)
        column = schema.inputs[0]
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(column.shape[0] * column.shape[1] * column.shape[2], config.width), nn.ReLU())
        self.head = nn.Linear(config.width, len(schema.classes))

    @classmethod
    def misfit(cls, schema):
        return None if [c.kind for c in schema.inputs] == ["image"] else "it takes one image"

    def forward(self, batch):
        return self.head(self.body(batch[self.schema.inputs[0].name]))

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch[self.schema.target.name], reduction="none")

    def decode(self, outputs, batch):
        best = outputs.softmax(1).max(1)
        return {"prediction": best.indices, "probability": best.values}
"""
PACKAGE = {
    "__init__.py": "",
    "parts/__init__.py": "",
    "parts/head.py": "from torch import nn\n\n\ndef head(inputs, classes):\n    return nn.Linear(inputs, classes)\n",
    "net.py": "from models.cnn import CNN\n\nfrom .parts.head import head\n\n\nclass Net(CNN):\n"
    "    def __init__(self, config, schema):\n        super().__init__(config, schema)\n"
    "        self.classifier[-1] = head(self.classifier[-1].in_features, len(schema.classes))\n",
}
SERVE = """
import importlib.util, json, sys
import mlflow.pyfunc, pandas
found = {name: importlib.util.find_spec(name) is not None for name in ("orchestrator", "models", "pipelines", "cluster")}
answers = {}
for name, folder in json.loads(sys.argv[1]).items():
    model = mlflow.pyfunc.load_model(folder)
    example = pandas.DataFrame({"image": json.loads(sys.argv[2])})
    answers[name] = model.predict(example).to_dict("list")
print(json.dumps({"found": found, "answers": answers, "ours": sorted(m for m in sys.modules if m.split(".")[0] in found)}))
"""


@pytest.fixture(scope="module")
def made(folder: Path, train: Train) -> dict[str, Path]:
    """A bundle of a family of ours, of a user's module and of a user's package."""
    (folder / "mynets.py").write_text(MYNETS)
    for name, text in PACKAGE.items():
        path = folder / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    models = {
        "cnn": (),
        "module": ("model={class: mynets:Net, width: 24}",),
        "package": ("model={class: own.net:Net, channels: [4], pool_after: [1]}",),
    }
    return {name: folder / str(train(*overrides).bundle) for name, overrides in models.items()}


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[list[float]]:
    """Five images of the test part, as lists."""
    table = pq.read_table(next((folder / ".orchestrator" / "data").glob("*/test.parquet")))
    return [list(map(float, value)) for value in table["image"].to_pylist()[:5]]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed packages without this toolkit's own."""
    farm = tmp_path_factory.mktemp("bare")
    ours = ("orchestrator", "models", "pipelines", "cluster", "_editable_impl_orchestrator")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(ours):
            (farm / path.name).symlink_to(path)
    return farm


@pytest.fixture(scope="module")
def served(made: dict[str, Path], rows: list[list[float]], bare: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What plain MLflow says, in one process for all bundles, without this toolkit, in a folder with packages that raise."""
    hostile = tmp_path_factory.mktemp("hostile")
    for name in ("models", "pipelines", "cluster"):
        (hostile / name).mkdir()
        (hostile / name / "__init__.py").write_text("raise RuntimeError('the package of the user')\n")
    copies = {name: str(shutil.copytree(path, hostile / f"copy of {name}")) for name, path in made.items()}
    done = subprocess.run(
        [sys.executable, "-S", "-c", SERVE, json.dumps(copies), json.dumps(rows)],
        cwd=hostile,
        env={"PATH": "/usr/bin:/bin", "HOME": str(hostile), "PYTHONPATH": str(bare), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def ours(folder: Path, rows: list[list[float]]) -> dict[str, list[Any]]:
    """What our own `predict` says of the same rows."""
    source, target = folder.parent / "rows.parquet", folder.parent / "answers.parquet"
    pd.DataFrame({"image": rows}).to_parquet(source)
    assert predicting.predict(bundles.read(folder), source, target) == (len(rows), 0)
    return pq.read_table(target).to_pydict()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["cnn", "module", "package"])
def test_plain_mlflow_answers_what_we_answer_without_this_toolkit(
    served: dict[str, Any], made: dict[str, Path], rows: list[list[float]], name: str
) -> None:
    expected = ours(made[name], rows)
    assert served["answers"][name]["prediction"] == expected["prediction"]
    assert served["answers"][name]["probability"] == pytest.approx(expected["probability"], abs=1e-6)


def test_serving_imports_none_of_this_toolkits_packages_and_none_of_the_folders(served: dict[str, Any]) -> None:
    assert served["found"] == {"orchestrator": False, "models": True, "pipelines": True, "cluster": True}, "the folder's own, not ours"
    assert served["ours"] == []


def test_a_bundle_reads_back_with_the_weights_of_the_best_epoch(made: dict[str, Path]) -> None:
    for folder in made.values():
        read = bundles.read(folder)
        state = checkpoint.load(str(folder.parent.parent / "checkpoints" / folder.name))
        weights = read.family.state_dict()
        assert weights.keys() == state["weights"].keys()
        assert all(torch.equal(weights[name], state["weights"][name]) for name in weights)
        assert read.about["best"] == state["best"]
        assert read.about["format"] == 1


def test_nothing_in_a_bundle_is_pickled_and_everybody_may_read_it(made: dict[str, Path]) -> None:
    for folder in made.values():
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {"weights.safetensors", "model.json", "encoder.json", "example.parquet", "MLmodel"} <= {path.name for path in files}
        assert not [p.name for p in files if p.suffix in (".pkl", ".pickle", ".pt", ".pth", ".pyc") or zipfile.is_zipfile(p)]
        assert not [p.name for p in files if p.suffix != ".safetensors" and p.read_bytes()[:2] in (b"\x80\x03", b"\x80\x04", b"\x80\x05")]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o644}
        assert {path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*/"))} == {0o755}


def test_serving_code_lies_below_one_package_whose_name_says_its_content(made: dict[str, Path]) -> None:
    names = {name: [path.name for path in (folder / "code").iterdir() if path.is_dir()] for name, folder in made.items()}
    assert all(len(found) == 1 and found[0].startswith("orchestrator_bundle_") for found in names.values())
    assert len({found[0] for found in names.values()}) == 3
    assert sorted(p.name for p in (made["package"] / "code" / names["package"][0] / "user" / "own").rglob("*.py")) == [
        "__init__.py", "__init__.py", "head.py", "net.py",
    ]  # fmt: skip


def test_the_encoder_in_serving_is_bit_for_bit_the_one_in_training(
    made: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = made["cnn"] / "code"
    [package] = [path.name for path in code.iterdir() if path.is_dir()]
    monkeypatch.syspath_prepend(str(code))
    encode, schema = (importlib.import_module(f"{package}.pipelines.{name}") for name in ("encode", "schema"))
    about = json.loads((made["cnn"] / "model.json").read_text())
    serving = encode.Encoder.from_plain(schema.Schema.from_plain(about["schema"]), json.loads((made["cnn"] / "encoder.json").read_text()))
    prepared = Prepared.open(folder / ".orchestrator" / "data" / about["fingerprint"])
    trained = prepared.encoder.tensors(batches.load(prepared, "test").rows(slice(None)))["image"]
    arrays, errors = serving.arrays(pq.read_table(prepared.file("test")), ["image"])
    served = serving.tensors({"image": torch.from_numpy(np.array(arrays["image"]))})["image"]
    assert errors == {}
    assert encode.__file__.startswith(str(code))
    assert torch.equal(served, trained)


def test_a_bundle_that_is_there_is_replaced_whole_and_nothing_is_left_beside(made: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    read, target = bundles.read(made["cnn"]), tmp_path / "bundles" / "one"
    target.mkdir(parents=True)
    (target / "old.txt").write_text("of the bundle before")
    example = pq.read_table(made["cnn"] / "example.parquet")
    answers = pa.table({"prediction": ["1"] * example.num_rows})
    about = {k: v for k, v in read.about.items() if k not in ("schema", "format")}
    bundles.write(target, read.encoder, read.family.state_dict(), {}, (example, answers), about, folder)
    assert [path.name for path in target.parent.iterdir()] == ["one"]
    assert not (target / "old.txt").exists()
    assert bundles.read(target).encoder.to_plain() == read.encoder.to_plain()


@pytest.mark.parametrize("harm", ["weights.safetensors", "model.json", "encoder.json"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_bundle_that_is_not_whole_is_refused(made: dict[str, Path], tmp_path: Path, harm: str, how: str) -> None:
    broken = shutil.copytree(made["cnn"], tmp_path / "broken")
    if how == "missing":
        (broken / harm).unlink()
    else:
        (broken / harm).write_bytes((broken / harm).read_bytes()[:100])
    with pytest.raises(Refused, match="is no whole bundle of orchestrator"):
        bundles.read(broken)


def test_reading_a_bundle_runs_none_of_its_code(made: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(made["cnn"], tmp_path / "copy")
    for path in copy.rglob("*.py"):
        path.write_text("raise RuntimeError('code of a bundle')\n")
    assert bundles.read(copy).about["family"] == "cnn"


def test_a_bundle_from_a_later_version_may_say_more(made: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(made["cnn"], tmp_path / "copy")
    about = json.loads((copy / "model.json").read_text())
    about["later"] = about["schema"]["later"] = about["schema"]["inputs"][0]["later"] = 1
    (copy / "model.json").write_text(json.dumps(about))
    assert set(load_file(copy / "weights.safetensors")) == set(bundles.read(copy).family.state_dict())


def edited(bundle: Path, target: Path, **facts: Any) -> Path:
    """A copy of a bundle whose model.json says something else."""
    copy = Path(shutil.copytree(bundle, target))
    about = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(about | facts))
    return copy


def test_a_family_that_is_gone_or_has_changed_is_one_line_that_says_where_it_was_looked_for(
    made: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    gone = edited(made["module"], tmp_path / "gone", family="gonenets:Net", folder=str(tmp_path))
    with pytest.raises(Refused, match=f"no family 'gonenets:Net'; looked in '{tmp_path}', '{folder}' and among") as refused:
        bundles.read(gone)
    assert "\n" not in str(refused.value)
    with pytest.raises(Refused, match=r"is no whole bundle of orchestrator: .*unexpected keyword"):
        bundles.read(edited(made["module"], tmp_path / "changed", config={"height": 3}))


def test_a_users_family_is_looked_for_in_the_working_folder_where_its_own_is_gone(made: dict[str, Path], tmp_path: Path) -> None:
    for name in ("module", "package"):
        moved = edited(made[name], tmp_path / name, folder=str(tmp_path / "of another machine"))
        assert type(bundles.read(moved).family).__name__ == "Net"


def test_the_neighbours_that_a_users_module_imports_come_with_it(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("from . import tricks\nfrom .shared.heads import head\n")
    (tmp_path / "tricks.py").write_text("")
    (tmp_path / "unused.py").write_text("")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "heads.py").write_text("head = 1\n")
    assert set(bundles.user_files("nets:Net", tmp_path)) == {"user/nets.py", "user/tricks.py", "user/shared/heads.py"}


def test_the_code_of_an_installed_family_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    for name, text in PACKAGE.items():
        path = site / "installednets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("from .parts", "from installednets.parts"))
    (site / "onenet.py").write_text(MYNETS)
    monkeypatch.syspath_prepend(str(site))
    found = bundles.user_files("installednets.net:Net", tmp_path)
    assert set(found) == {f"user/installednets/{name}" for name in PACKAGE}
    assert set(bundles.user_files("onenet:Net", tmp_path)) == {"user/onenet.py"}
    rebased = bundles._rebased(found["user/installednets/net.py"], "bundle_1", "installednets").decode()
    assert "from bundle_1.models.cnn import CNN" in rebased
    assert "from bundle_1.user.installednets.parts.head import head" in rebased
    with pytest.raises(Failed, match="no code of family 'nowhere:Net'"):
        bundles.user_files("nowhere:Net", tmp_path)


@pytest.mark.parametrize(
    ("line", "way"),
    [
        ("import models.cnn", "from models import cnn"),
        ("import os, pipelines.schema as s", "from pipelines import schema"),
        ("import models", "from models import ..."),
    ],
)
def test_an_import_that_finds_nothing_in_a_bundle_is_refused_with_the_line_to_write(tmp_path: Path, line: str, way: str) -> None:
    (tmp_path / "net.py").write_text(f"import torch\n{line}\n")
    with pytest.raises(Failed, match=rf"^'net.py', line 2: 'import (models|pipelines).*' finds nothing in a bundle: write '{way}'$"):
        bundles.user_files("net:Net", tmp_path)


@pytest.mark.slow
def test_mlflows_own_predict_command_takes_a_bundle(made: dict[str, Path], rows: list[list[float]], tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps({"dataframe_split": {"columns": ["image"], "data": [[row] for row in rows]}}))
    words = ["-m", "mlflow", "models", "predict", "-m", str(made["cnn"]), "--env-manager", "local", "-t", "json"]
    done = subprocess.run(
        [sys.executable, *words, "-i", str(tmp_path / "in.json"), "-o", str(tmp_path / "out.json")],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert [row["prediction"] for row in said] == ours(made["cnn"], rows)["prediction"]
