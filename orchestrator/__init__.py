"""From a short YAML file to the best model in production: Ray trains and searches, MLflow records and promotes.

`models`, `pipelines` and `cluster` are top-level packages of this project. Almost every ML repository has a `models/` of its own, so
the three names are bound here, once, to this project's folders: whatever comes first on `sys.path`, our code imports ours.

Threads that wait are told to sleep rather than to spin, before torch is imported: where cores are shared, a step of two spinning threads
took ten times as long.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "cluster_attach",
    "cluster_jobs",
    "cluster_status",
    "cluster_stop",
    "cluster_submit",
    "cluster_template",
    "data_prepare",
    "data_show",
    "doctor",
    "gc",
    "history",
    "logs",
    "plan",
    "predict",
    "promote",
    "rollback",
    "runs",
    "schema",
    "sweep",
    "sync",
    "train",
]

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch loads its OpenMP


def _bind_packages(root: Path) -> None:
    """Bind the project's top-level packages to `root`; raises ImportError if another package already has the name."""
    for name in ("models", "pipelines", "cluster"):
        init, loaded = root / name / "__init__.py", sys.modules.get(name)
        if loaded is not None:
            if Path(loaded.__file__ or "").resolve() != init.resolve():
                raise ImportError(f"'{name}' is already {loaded.__file__}, but orchestrator needs its own: import orchestrator before it")
            continue
        spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(init.parent)])
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


_bind_packages(Path(__file__).resolve().parent.parent)

if TYPE_CHECKING:
    from orchestrator.api import (
        cluster_attach,
        cluster_jobs,
        cluster_status,
        cluster_stop,
        cluster_submit,
        cluster_template,
        data_prepare,
        data_show,
        doctor,
        gc,
        history,
        logs,
        plan,
        predict,
        promote,
        rollback,
        runs,
        schema,
        sweep,
        sync,
        train,
    )


def __getattr__(name: str) -> Any:
    if name in __all__:
        from orchestrator import api

        return getattr(api, name)
    raise AttributeError(f"module 'orchestrator' has no attribute '{name}'")
