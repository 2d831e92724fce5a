"""The deployable folder: weights, model.json, encoder.json, an example, and MLflow's MLmodel at its root. No pickle.

It runs without this toolkit: the code it carries (models, encoder) lies under one package name of its own, made of its content's hash, so
that it neither shadows nor is shadowed by any `models`. Plain MLflow runs that code; our own commands never do, they read weights and
JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import models
import pipelines
from models import FAMILIES
from models.family import Family
from orchestrator import names
from orchestrator.errors import Failed, Refused
from orchestrator.records.tracking import quiet_mlflow
from orchestrator.training.trial import options
from pipelines.encode import Encoder
from pipelines.schema import Schema

FORMAT = 1
REQUIREMENTS = ("annotated-types", "mlflow", "numpy", "pandas", "pillow", "pyarrow", "safetensors", "torch")
CODE = {"models": None, "pipelines": ("__init__.py", "answer.py", "encode.py", "schema.py")}  # None: every module

SERVING = '''"""Loads this bundle in plain MLflow. Made by orchestrator; the code it runs lies in code/."""

import importlib
import json
from pathlib import Path

import mlflow
from mlflow.pyfunc import PythonModel

PACKAGE = "{package}"
FAMILY = "{family}"


class Bundle(PythonModel):
    def load_context(self, context):
        from safetensors.torch import load_file

        here = Path(__file__).resolve().parent
        pipelines = [importlib.import_module(f"{{PACKAGE}}.pipelines.{{name}}") for name in ("schema", "encode", "answer")]
        schema_module, encode, self.answering = pipelines
        about = json.loads((here / "model.json").read_text())
        schema = schema_module.Schema.from_plain(about["schema"])
        self.encoder = encode.Encoder.from_plain(schema, json.loads((here / "encoder.json").read_text()))
        module, _, name = FAMILY.partition(":")
        family = getattr(importlib.import_module(f"{{PACKAGE}}.{{module}}"), name)
        config = {{k: tuple(v) if isinstance(v, list) else v for k, v in about["config"].items()}}
        self.net = family(family.Config(**config), schema)
        self.net.load_state_dict(load_file(here / "weights.safetensors"))
        self.net.eval()

    def predict(self, context, model_input, params=None):
        import pyarrow as pa

        answers, errors = self.answering.answer(self.net, self.encoder, pa.Table.from_pandas(model_input, preserve_index=False))
        if errors:
            row, says = min(errors.items())
            raise ValueError(f"row {{row}}: {{says}}")
        return answers.to_pandas()


mlflow.models.set_model(Bundle())
'''


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read: the network with its weights, the encoder, and what model.json says."""

    folder: Path
    family: Family
    encoder: Encoder
    about: dict[str, Any]


def write(
    folder: Path,
    encoder: Encoder,
    weights: Mapping[str, Tensor],
    example: tuple[pa.Table, pa.Table],
    about: Mapping[str, Any],
    user_folder: Path,
) -> Path:
    """Write a bundle, whole or not at all; one that is there is replaced. `example`: rows of input, and their answers. Raises Failed."""
    quiet_mlflow()
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    made = beside / "bundle"
    try:
        with tempfile.TemporaryDirectory() as staging:
            package, path = _stage_code(Path(staging), about["family"], user_folder)
            serving = Path(staging) / "serving.py"
            serving.write_text(SERVING.format(package=package, family=path))
            _save_mlflow_model(made, serving, Path(staging) / package, example)
        save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, made / "weights.safetensors")
        (made / "model.json").write_text(json.dumps({"format": FORMAT, **about, "schema": encoder.schema.to_plain()}, indent=1))
        (made / "encoder.json").write_text(json.dumps(encoder.to_plain(), indent=1))
        pq.write_table(example[0], made / "example.parquet")
        for file in made.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors writes 0600
        made.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    except OSError as error:
        raise Failed(f"can't write the bundle '{folder}': {error}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def read(folder: Path) -> Bundle:
    """Read a bundle without running its code. Raises Refused if it isn't one, or isn't whole."""
    try:
        about = json.loads((folder / "model.json").read_text())
        schema = Schema.from_plain(about["schema"])
        encoder = Encoder.from_plain(schema, json.loads((folder / "encoder.json").read_text()))
        cls = names.load(about["family"], FAMILIES, "family", Path(about.get("folder", ".")))
        family: Family = cls(options(cls.Config, about["config"]), schema)
        family.load_state_dict(load_file(folder / "weights.safetensors"))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:300]
        raise Refused(f"'{folder}' is no whole bundle of orchestrator: {said}") from None
    family.eval()
    return Bundle(folder, family, encoder, about)


def _stage_code(staging: Path, family: str, user_folder: Path) -> tuple[str, str]:
    """Copy the code that a bundle needs below one package; (the package's name, the family's path in it)."""
    files: dict[str, bytes] = {}
    for package, chosen in CODE.items():
        root = Path((models if package == "models" else pipelines).__file__ or "").parent
        for path in sorted(root.glob("*.py")):
            if chosen is None or path.name in chosen:
                files[f"{package}/{path.name}"] = path.read_bytes()
    family_path = FAMILIES.get(family)
    if family_path is None:
        files |= _user_files(family, user_folder)
        family_path = f"user.{family}"
    digest = hashlib.sha256(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()
    name = f"orchestrator_bundle_{digest[:12]}"
    for relative, content in {"__init__.py": b"", **files}.items():
        target = staging / name / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_rebased(content, name) if relative.startswith("user/") else content)
    return name, family_path


def _rebased(content: bytes, package: str) -> bytes:
    """A user's module whose `from models ...` and `from pipelines ...` mean the bundle's own."""
    return re.sub(rb"(?m)^(\s*from )(models|pipelines)\b", rb"\1" + package.encode() + rb".\2", content)


def _user_files(family: str, folder: Path) -> dict[str, bytes]:
    """A user's own module, or the whole package that it is in."""
    top, *rest = family.partition(":")[0].split(".")
    if not rest:
        path = folder / f"{top}.py"
        return {f"user/{top}.py": path.read_bytes()} if path.is_file() else {}
    return {f"user/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in sorted((folder / top).rglob("*.py"))}


def _save_mlflow_model(path: Path, serving: Path, code: Path, example: tuple[pa.Table, pa.Table]) -> None:
    import mlflow.pyfunc
    from mlflow.models.signature import infer_signature

    given, answers = (table.to_pandas() for table in example)
    mlflow.pyfunc.save_model(
        path=str(path),
        python_model=str(serving),
        code_paths=[str(code)],
        signature=infer_signature(given, answers),
        input_example=given,
        pip_requirements=[f"{name}=={metadata.version(name)}" for name in REQUIREMENTS],
    )
