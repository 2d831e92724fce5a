"""Where MLflow is: the destination, a client on it, and a sqlite store that is made whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib import util
from pathlib import Path
from typing import Any

from orchestrator.errors import Failed, Refused, shown
from orchestrator.storage import put_new


def destination() -> str:
    """Where runs are recorded: MLFLOW_TRACKING_URI, or mlflow.db in the working folder (MLflow's own default)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def shown_destination() -> str:
    """The destination as messages name it: without user and password."""
    return shown(destination())


# MLflow's own defaults hold a command for up to 16 minutes (8 tries of 120 s), and for as long as a server's Retry-After says. What the
# user has set stays. A server in front of slow storage may need a longer timeout, for large models: it answers once all is stored.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # it logs the trace of what it raises
    "GIT_PYTHON_REFRESH": "quiet",
}
FIRST_QUESTION = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}  # whether the server is there at all


def quiet_mlflow() -> None:
    """MLflow's settings that are read from the environment; a server that doesn't answer must not hold a command for minutes."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="mlflow")


def client(step: Callable[[], None] = lambda: None) -> Any:
    """An MlflowClient on the destination; a sqlite store is made if there is none. Raises Refused for a store of another version.

    `step` is called after each of its parts, which take seconds.
    """
    check_store(destination())
    quiet_mlflow()
    from mlflow import MlflowClient

    step()
    make_store(destination())
    step()
    with said_by_mlflow():
        return MlflowClient(tracking_uri=destination(), registry_uri=os.environ.get("MLFLOW_REGISTRY_URI"))


def reachable_client() -> Any:
    """A client for a command that reads; raises Failed if the server doesn't answer within 10 s, or answers with an error."""
    made = client()
    ours = {name: value for name, value in FIRST_QUESTION.items() if os.environ[name] == SETTINGS[name]}  # not the user's own
    with said_by_mlflow(), _settings(ours):
        made.search_experiments(max_results=1)
    return made


def asked_once() -> AbstractContextManager[None]:
    """For a request that makes something: MLflow's client would repeat one whose answer was lost, and make it twice."""
    return _settings({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"})


@contextlib.contextmanager
def _settings(wanted: dict[str, str]) -> Iterator[None]:
    """Other settings for a while; MLflow reads them at every request."""
    before = {name: os.environ.get(name, SETTINGS[name]) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.update(before)


@contextlib.contextmanager
def said_by_mlflow() -> Iterator[None]:
    """What MLflow raises becomes one line; what its requests raise too (requests' exceptions are OSErrors)."""
    try:
        yield
    except mlflow_errors() as error:
        raise Failed(f"MLflow at {shown_destination()}: {one_line(error)}") from None


def mlflow_errors() -> tuple[type[Exception], ...]:
    """What MLflow raises, and what its requests, its database driver and its disk raise through it."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def one_line(error: BaseException) -> str:
    """What an exception says, short: the cause of a request's failure, a database's word without its statement; no password of a URI."""
    said = " ".join(str(error).split()).partition(" [SQL: ")[0]
    request, caused, cause = said.partition(" (Caused by ")
    if caused:
        said = f"{re.sub(r' failed with exception .*', '', request)}: {cause.removesuffix(')')}"
    return shown(said)[:300]


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def check_store(uri: str) -> None:
    """Raises Refused if a sqlite store has the schema of another MLflow; cheap, without importing MLflow."""
    path = _sqlite_file(uri)
    if path is None or not path.exists():
        return
    try:
        # not mode=ro: where a process was killed while it wrote, the first to open the file rolls that back
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True)) as db:
            rows = db.execute("select version_num from alembic_version").fetchall()
    except sqlite3.Error as error:
        if error.sqlite_errorname in ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL"):
            return  # it is one, which can't be looked at now: no reason to refuse anything
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
            put_new(made, path)
    except mlflow_errors() as error:
        raise Failed(f"can't make the MLflow store '{path}': {one_line(error)}") from None
