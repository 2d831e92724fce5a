"""Where MLflow is: the destination, a client on it, and a sqlite store that is made whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

from orchestrator.errors import Failed, Refused
from orchestrator.records.ledger import shown


def destination() -> str:
    """Where runs are recorded: MLFLOW_TRACKING_URI, or mlflow.db in the working folder (MLflow's own default)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def shown_destination() -> str:
    """The destination as messages name it: without user and password."""
    return shown(destination())


def quiet_mlflow() -> None:
    """MLflow's settings that are read from the environment; a server that doesn't answer must not hold a command for minutes."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="mlflow")


def client() -> Any:
    """An MlflowClient on the destination; a sqlite store is made if there is none. Raises Refused for a store of another version."""
    check_store(destination())
    quiet_mlflow()
    from mlflow import MlflowClient

    make_store(destination())
    with said_by_mlflow():
        return MlflowClient(tracking_uri=destination(), registry_uri=os.environ.get("MLFLOW_REGISTRY_URI"))


def reachable_client() -> Any:
    """A client for a command that reads; raises Failed if the server doesn't answer."""
    made = client()
    with said_by_mlflow():
        made.search_experiments(max_results=1)
    return made


@contextlib.contextmanager
def said_by_mlflow() -> Iterator[None]:
    """What MLflow raises becomes one line; what its requests raise too (requests' exceptions are OSErrors)."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise Failed(f"MLflow at {shown_destination()}: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    """What an exception says, short and without the password of the URI that it may quote."""
    return shown(" ".join(str(error).split()))[:300]


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def check_store(uri: str) -> None:
    """Raises Refused if a sqlite store has the schema of another MLflow; cheap, without importing MLflow."""
    path = _sqlite_file(uri)
    if path is None or not path.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            rows = db.execute("select version_num from alembic_version").fetchall()
    except sqlite3.Error as error:
        raise Refused(f"'{path}' is no MLflow store ({error}); move it away, or set MLFLOW_TRACKING_URI to another one") from None
    found, needed = (rows[0][0] if rows else "none"), _schema_head()
    if found != needed:
        raise Refused(
            f"the MLflow store '{path}' has schema {found}, the installed MLflow needs {needed}: back it up and run "
            f"`mlflow db upgrade sqlite:///{path}`, or install the MLflow that wrote it"
        )


def _schema_head() -> str:
    """The newest schema of the installed MLflow: the migration that no other one follows."""
    spec = util.find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    texts = [p.read_text() for p in (Path(spec.origin).parent / "store" / "db_migrations" / "versions").glob("*.py")]
    revisions = {m[1] for text in texts if (m := re.search(r"^revision\s*=\s*[\"'](\w+)", text, re.M))}
    followed = {m[1] for text in texts if (m := re.search(r"^down_revision\s*=\s*[\"'](\w+)", text, re.M))}
    return next(iter(revisions - followed))


def make_store(uri: str) -> None:
    """A new sqlite store, made in a temporary file first: one that was killed while it was made never opens again."""
    path = _sqlite_file(uri)
    if path is None or path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    try:
        with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as beside:
            made = Path(beside) / "mlflow.db"
            store = SqlAlchemyStore(f"sqlite:///{made}", str(path.parent / "mlruns"))
            store._dispose_engine()
            _put(made, path)
    except OSError as error:
        raise Failed(f"can't make the MLflow store '{path}': {error}") from None


def _put(made: Path, path: Path) -> None:
    """The made file under its name, unless another process was first: its store may have runs already, and a link replaces nothing."""
    try:
        os.link(made, path)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        if not path.exists():
            made.rename(path)
