"""The deployable folder: weights, model.json, encoder.json, an example, and MLflow's MLmodel at its root. No pickle.

It runs without this toolkit: the code it carries (models, encoder) lies under one package name of its own, made of its content's hash, so
that it neither shadows nor is shadowed by any `models`. Plain MLflow runs that code; our own commands never do, they read weights and
JSON.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
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
from orchestrator.training.user_code import files_of
from pipelines.encode import HISTORY, Encoder
from pipelines.schema import Schema

FORMAT = 1
REQUIREMENTS = ("annotated-types", "mlflow", "numpy", "pandas", "pyarrow", "safetensors", "torch")  # and what the encoders need
CODE = {"models": ("*.py",), "pipelines": ("__init__.py", "answer.py", "encode/*.py", "ragged.py", "schema.py")}

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
        tables = here / "tables.safetensors"
        self.net.bind(load_file(tables) if tables.exists() else {{}})
        self.net.eval()

    def predict(self, context, model_input, params=None):
        import numpy as np
        import pyarrow as pa

        def listed(value):  # MLflow makes arrays of lists of lists, which Arrow takes only as lists
            return value.tolist() if isinstance(value, np.ndarray) else value

        columns = {{name: [listed(v) for v in model_input[name]] for name in model_input.columns}}
        table = pa.table({{name: pa.array(values, from_pandas=True) for name, values in columns.items()}})  # NaN: missing
        answers, errors = self.answering.answer(self.net, self.encoder, table)
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
    tables: Mapping[str, Tensor],
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
            _save_mlflow_model(made, serving, Path(staging) / package, example, encoder)
        save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, made / "weights.safetensors")
        if tables:
            save_file({k: v.contiguous() for k, v in tables.items()}, made / "tables.safetensors")
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
        cls = _family_class(about["family"], Path(about.get("folder", ".")))
        family: Family = cls(options(cls.Config, about["config"]), schema)
        family.load_state_dict(load_file(folder / "weights.safetensors"))
        family.bind(load_file(folder / "tables.safetensors") if (folder / "tables.safetensors").exists() else {})
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:500]
        raise Refused(f"'{folder}' is no whole bundle of orchestrator: {said}") from None
    family.eval()
    return Bundle(folder, family, encoder, about)


def _family_class(family: str, recorded: Path) -> Any:
    """A family by name; a user's own lies in the folder that it was trained from, or, on another machine, in the working folder."""
    places = list(dict.fromkeys((recorded, Path.cwd())))
    folder = next((place for place in places if _lies_in(place, family)), None)
    if ":" in family and folder is None and not _installed(_top(family)):
        looked = ", ".join(f"'{place}'" for place in places)
        raise names.UnknownName(f"no family '{family}'; looked in {looked} and among the installed packages")
    try:
        return names.load(family, FAMILIES, "family", folder or recorded)
    except names.UnknownName as error:
        raise names.UnknownName(f"{error} (looked in '{folder or recorded}')" if ":" in family else str(error)) from None


def _lies_in(folder: Path, family: str) -> bool:
    path = folder.joinpath(*family.partition(":")[0].split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _stage_code(staging: Path, family: str, user_folder: Path) -> tuple[str, str]:
    """Copy the code that a bundle needs below one package; (the package's name, the family's path in it)."""
    files: dict[str, bytes] = {}
    for package, patterns in CODE.items():
        root = Path((models if package == "models" else pipelines).__file__ or "").parent
        for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
            files[f"{package}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    family_path = FAMILIES.get(family)
    if family_path is None:
        files |= user_files(family, user_folder)
        family_path = f"user.{family}"
    digest = hashlib.sha256(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()
    name = f"orchestrator_bundle_{digest[:12]}"
    for relative, content in {"__init__.py": b"", **files}.items():
        target = staging / name / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_rebased(content, name, _top(family)) if relative.startswith("user/") else content)
    return name, family_path


def _top(family: str) -> str:
    """The top-level module of a family's path."""
    return family.partition(":")[0].partition(".")[0]


def _rebased(content: bytes, package: str, top: str) -> bytes:
    """A user's module whose `from models ...`, `from pipelines ...` and imports from itself mean the bundle's own."""
    content = re.sub(rb"(?m)^(\s*from\s+)(models|pipelines)\b", rb"\1" + package.encode() + rb".\2", content)
    if top in CODE:
        return content
    return re.sub(rb"(?m)^(\s*from\s+)(" + re.escape(top.encode()) + rb")\b", rb"\1" + package.encode() + rb".user.\2", content)


def user_files(family: str, folder: Path) -> dict[str, bytes]:
    """A user's own module with the neighbours that it imports, or the whole package that it is in.

    Raises Failed if it isn't there, or can't run below another name.
    """
    top, files = _top(family), dict[str, bytes]()
    lies = _lies_in(folder, family)
    for place in [folder] if lies else _installed(top):
        one = (place / f"{top}.py").is_file() and f"{top}:" in family
        paths = files_of(folder, [family]) if lies else [place / f"{top}.py"] if one else sorted((place / top).rglob("*.py"))
        files |= {f"user/{path.relative_to(place).as_posix()}": path.read_bytes() for path in paths}
    if not files:
        raise Failed(f"no code of family '{family}' in '{folder}' or among the installed packages: it can't be put in a bundle")
    for name, content in files.items():
        _refuse_absolute(name.removeprefix("user/"), content, {*CODE, top})
    return files


def _installed(top: str) -> list[Path]:
    """The folders that hold an installed package's, or module's, top level."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(place).parent for place in spec.submodule_search_locations]
    return [Path(spec.origin).parent] if spec.origin else []


def _refuse_absolute(name: str, content: bytes, moved: set[str]) -> None:
    """Refuse `import models.cnn`: in a bundle these packages have another name, which only `from ... import ...` can be given."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return  # a module that nobody can import
    for node in [node for node in ast.walk(tree) if isinstance(node, ast.Import)]:
        for alias in node.names:
            top, _, rest = alias.name.partition(".")
            if top in moved:
                way = f"from {'.'.join([top, *rest.split('.')[:-1]])} import {rest.split('.')[-1] or '...'}"
                raise Failed(f"'{name}', line {node.lineno}: 'import {alias.name}' finds nothing in a bundle: write '{way}'")


def _save_mlflow_model(path: Path, serving: Path, code: Path, example: tuple[pa.Table, pa.Table], encoder: Encoder) -> None:
    import mlflow.pyfunc

    given, answers = (table.to_pandas() for table in example)
    mlflow.pyfunc.save_model(
        path=str(path),
        python_model=str(serving),
        code_paths=[str(code)],
        signature=_signature(given, answers, encoder),
        input_example=given,
        pip_requirements=[f"{name}=={metadata.version(name)}" for name in sorted({*REQUIREMENTS, *encoder.requires})],
    )


def _signature(given: Any, answers: Any, encoder: Encoder) -> Any:
    """MLflow's signature: what the example holds is required; what users and items are known by may come beside."""
    from mlflow.models.signature import ModelSignature, infer_signature
    from mlflow.types import ColSpec, DataType
    from mlflow.types import Schema as Columns
    from mlflow.types.schema import Array

    made = infer_signature(given, answers)
    features = [column for columns in encoder.schema.features.values() for column in columns]
    beside = [ColSpec(DataType.double if c.kind == "measure" else DataType.string, c.name, required=False) for c in features]
    if len(made.inputs.inputs) > 1 and encoder.schema.inputs[1].kind == "id":
        beside.append(ColSpec(Array(made.inputs.inputs[1].type), HISTORY, required=False))
    return made if not beside else ModelSignature(Columns([*made.inputs.inputs, *beside]), made.outputs)
