"""Ledger -> MLflow: batched, in the background, idempotent; and reading runs back.

A run's identity is a tag, `orchestrator.key`, looked up before a run is created, so that sending twice changes nothing. Time stamps come
from the ledger: the same row sent again is the same row. Only who holds the lock beside the ledger sends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sqlite3
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import Any

import filelock

from orchestrator.errors import Failed, Refused
from orchestrator.events import KINDS, Best, TrialResult, from_plain, summarise
from orchestrator.experiment.config import parameters
from orchestrator.records.ledger import Entry, Launch, Ledger, by_run, shown

STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
EXPERIMENT_FILE = "experiment.yaml"
POLL_S = 2.0
LAST_WAIT_S = 15.0  # for another command's sending, when there is no next time


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
        raise Failed(f"MLflow at {shown_destination()}: {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
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


# sending ------------------------------------------------------------------------------------------------------------------


@dataclass
class _Rows:
    """What some entries say of one run."""

    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)
    metrics: list[Any] = field(default_factory=list)
    ended: tuple[str, int] | None = None


class Sender:
    """Sends a ledger's entries to MLflow. One instance a thread."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.destination = ledger, destination()
        self.client = client()
        self._experiments: dict[str, str] = {}
        self._launches: dict[str, Launch] = {}
        self._runs: dict[tuple[str, int | None], str] = {}
        self._deleted: set[tuple[str, int | None]] = set()  # by the user, of the launch looked up last: they get nothing more
        self._fresh: set[str] = set()  # runs that were made here, and have no rows yet

    def send(self) -> int:
        """Everything that isn't there yet; the number of entries sent. A launch that is refused holds no other up: raised at the end."""
        sent, problem = 0, None
        for launch in self.ledger.unsent(self.destination):
            try:
                sent += self._send_launch(self._launch(launch))
            except Exception as error:
                if _is_silence(error):
                    raise
                problem = problem or error
        if problem is not None:
            raise problem
        return sent

    def _send_launch(self, launch: Launch) -> int:
        """What isn't there of one launch, a batch a run; the number of entries sent."""
        sent = 0
        self._look_up(launch)  # every time: another command may have sent meanwhile
        while entries := self.ledger.entries(launch.id, after=self.ledger.sent(self.destination, launch.id), limit=2000):
            for (_, trial), group in by_run(entries).items():
                if (launch.id, trial) not in self._deleted:
                    self._send_run(launch, trial, group)
            self.ledger.mark_sent(self.destination, launch.id, entries[-1].seq)
            sent += len(entries)
        return sent

    def _launch(self, launch: str) -> Launch:
        if launch not in self._launches:
            self._launches[launch] = self.ledger.find(launch)
        return self._launches[launch]

    def _send_run(self, launch: Launch, trial: int | None, entries: Sequence[Entry]) -> None:
        """What these entries say of one run. Every part of it may be sent again."""
        run_id = self._run(launch, trial, entries[0].at_ms)
        rows = _Rows()
        for entry in entries:
            self._collect(rows, launch, entry)
        self._send_rows(run_id, rows)
        for entry in entries:
            if entry.kind == "launched":
                self._send_files(run_id, launch)
            if entry.kind == ("launched" if trial is None else "started"):
                self.client.log_inputs(run_id, [_dataset(launch)])
            elif entry.kind == "kept":
                self._send_kept(launch, run_id, entry)
        if rows.ended is not None:
            self.client.set_terminated(run_id, *rows.ended)

    def _collect(self, rows: _Rows, launch: Launch, entry: Entry) -> None:
        from mlflow.entities import Metric

        data = entry.data
        if entry.kind == "launched":
            rows.params |= parameters(launch.experiment)
        elif entry.kind == "started":
            rows.params |= data["params"]
            rows.tags |= {"orchestrator.values": data["values"]} | {f"orchestrator.{k}": v for k, v in data["env"].items()}
        elif entry.kind == "epoch":
            rows.metrics += [Metric(key, value, entry.at_ms, data["epoch"]) for key, value in data["metrics"].items()]
        elif entry.kind == "ended":
            rows.tags |= self._result_tags(launch, entry.trial, data)
            if entry.trial is not None or launch.command == "train":
                rows.ended = (STATUS[data["state"]], entry.at_ms)
        elif entry.kind == "closed":
            rows.tags |= {f"orchestrator.{key}": value for key, value in data["tags"].items()} | {"mlflow.note.content": data["note"]}
            rows.ended = (STATUS[data["state"]], entry.at_ms)
            if launch.command == "sweep":
                rows.metrics += [Metric(key, value, entry.at_ms, 0) for key, value in data["metrics"].items()]

    def _send_rows(self, run_id: str, rows: _Rows) -> None:
        """A new run's rows in one call; else parameters apart: one that changed is refused, and what is sent with it is lost."""
        from mlflow.entities import Param, RunTag

        params, tags, metrics = rows.params, [RunTag(key, _text(value)) for key, value in rows.tags.items()], rows.metrics
        if run_id not in self._fresh and params:
            there = self.client.get_run(run_id).data.params
            params = {key: value for key, value in params.items() if key not in there}
        given = [Param(key, _text(value)) for key, value in params.items()]
        if run_id in self._fresh and len(given) <= 100 and len(metrics) <= 800:
            self._fresh.discard(run_id)
            self.client.log_batch(run_id, metrics=metrics, params=given, tags=tags)
            return
        for start in range(0, len(given), 100):
            self.client.log_batch(run_id, params=given[start : start + 100])
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[start : start + 1000])
        if tags:
            self.client.log_batch(run_id, tags=tags)

    def _send_files(self, run_id: str, launch: Launch) -> None:
        self.client.log_text(run_id, to_yaml(launch.experiment), EXPERIMENT_FILE)
        if launch.about.get("diff"):
            self.client.log_text(run_id, launch.about["diff"], "uncommitted.diff")

    def _result_tags(self, launch: Launch, trial: int | None, data: dict[str, Any]) -> dict[str, str]:
        """What `runs` needs of a run beside its metrics; computed from all of its events, not from this batch's."""
        entries = self.ledger.run_entries(launch.id, trial)
        result = summarise((from_plain(e.kind, e.data) for e in entries if e.kind in KINDS), launch.metric, launch.mode)
        tags = {
            "orchestrator.state": data["state"],
            "orchestrator.stopped_by": data["stopped_by"] or "",
            "orchestrator.error": data["error"] or "",
            "orchestrator.trace": data["trace"] or "",
            "orchestrator.nodes": json.dumps(data["nodes"]),
            "orchestrator.wall_s": str(result.wall_s),
            "orchestrator.epochs": str(result.epochs),
            "orchestrator.best": json.dumps(result.best.__dict__) if result.best else "",
        }
        return {name: value for name, value in tags.items() if value}

    def _run(self, launch: Launch, trial: int | None, at_ms: int) -> str:
        """The run's MLflow id: known, or new."""
        if (launch.id, trial) not in self._runs:
            self._remember(launch, {trial: self._create(launch, trial, launch.at_ms if trial is None else at_ms)})
        return self._runs[launch.id, trial]

    def _look_up(self, launch: Launch) -> None:
        """Every run of a launch that MLflow has, by the tags that identify it: one question a launch. Deleted ones must not come back."""
        live: dict[int | None, str] = {}
        deleted: dict[int | None, str] = {}
        for run in self._search(launch):
            _, _, trial = run.data.tags["orchestrator.key"].partition("/")
            of = deleted if run.info.lifecycle_stage == "deleted" else live
            of[None if trial == "parent" else int(trial)] = run.info.run_id
        self._deleted = {(launch.id, trial) for trial in deleted.keys() - live.keys()}
        self._remember(launch, deleted | live)

    def _search(self, launch: Launch) -> Iterator[Any]:
        """The runs of a launch, deleted ones too."""
        from mlflow.entities import ViewType

        asked = [self._experiment(launch.name)], f"tags.`orchestrator.launch` = '{launch.id}'", ViewType.ALL
        token = None
        while True:
            page = self.client.search_runs(*asked, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _remember(self, launch: Launch, runs: dict[int | None, str]) -> None:
        self.ledger.identify(self.destination, launch.id, runs)
        self._runs |= {(launch.id, trial): run_id for trial, run_id in runs.items()}

    def _create(self, launch: Launch, trial: int | None, at_ms: int) -> str:
        parent = None if trial is None else self._run(launch, None, launch.at_ms)
        kind = "trial" if trial is not None else launch.command
        key = f"{launch.id}/{'parent' if trial is None else trial}"
        name = f"{kind if trial is None else f'trial {trial}'} {launch.id}"
        made = self.client.create_run(self._experiment(launch.name), at_ms, _run_tags(launch, trial, key, kind, parent), name)
        self._fresh.add(made.info.run_id)
        return str(made.info.run_id)

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name)
            if found is not None and found.lifecycle_stage == "deleted":
                raise Failed(
                    f"MLflow experiment '{name}' is deleted: restore it (mlflow experiments restore), or give the experiment another name"
                )
            self._experiments[name] = str(found.experiment_id if found is not None else self.client.create_experiment(name))
        return self._experiments[name]

    def _send_kept(self, launch: Launch, run_id: str, entry: Entry) -> None:
        """The bundle as a logged model of the run, and its test scores, linked to model and data; once."""
        from mlflow.entities import LoggedModelOutput, Metric

        run = self.client.get_run(run_id)
        model_id = run.data.tags.get("orchestrator.model_id")
        bundle = Path(entry.data["bundle"])
        if model_id is None and bundle.exists():
            model_id = log_model(self.client, run_id, launch.name, bundle)
            self.client.log_outputs(run_id, [LoggedModelOutput(model_id, entry.data["epoch"])])
        data = _dataset(launch).dataset
        metrics = [
            Metric(
                key,
                value,
                entry.at_ms,
                entry.data["epoch"],
                model_id=model_id,
                dataset_name=data.name,
                dataset_digest=data.digest,
                run_id=run_id,
            )
            for key, value in entry.data["test"].items()
        ]
        self.client.log_batch(run_id, metrics=metrics)


def _is_silence(error: Exception) -> bool:
    """Whether nobody answers: the other launches needn't try, each would wait as long."""
    from requests.exceptions import ConnectionError, RetryError, Timeout

    nobody = (ConnectionError, RetryError, Timeout)
    return isinstance(error, nobody) or isinstance(error.__cause__ or error.__context__, nobody)


def log_model(client: Any, run_id: str, name: str, bundle: Path) -> str:
    """Log a bundle as a model of a run; its id, which the run keeps as a tag once the model is whole."""
    run = client.get_run(run_id)
    tags = {"orchestrator.key": run.data.tags["orchestrator.key"]}
    model_id = str(client.create_logged_model(run.info.experiment_id, name, run_id, tags, None, "bundle").model_id)
    client.log_model_artifacts(model_id, str(bundle))
    client.finalize_logged_model(model_id, "READY")
    client.set_tag(run_id, "orchestrator.model_id", model_id)
    return model_id


def _run_tags(launch: Launch, trial: int | None, key: str, kind: str, parent: str | None) -> dict[str, str]:
    about = launch.about
    tags = {
        "orchestrator.key": key,
        "orchestrator.kind": kind,
        "orchestrator.launch": launch.id,
        "orchestrator.trial": "" if trial is None else str(trial),
        "orchestrator.metric": launch.metric,
        "orchestrator.mode": launch.mode,
        "orchestrator.fingerprint": launch.fingerprint,
        "orchestrator.state": "running",
        "orchestrator.seed": str(launch.experiment["training"]["seed"]),
        "orchestrator.dirty": str(about.get("dirty", False)).lower(),
        "orchestrator.versions": json.dumps(about.get("versions", {})),
        "orchestrator.machine": str(about.get("machine", "")),
        "mlflow.source.name": str(about.get("source", "orchestrator")),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": str(about.get("user", "")),
    }
    if about.get("commit"):
        tags["mlflow.source.git.commit"] = about["commit"]
    if parent is not None:
        tags["mlflow.parentRunId"] = parent
    return tags


def _dataset(launch: Launch) -> Any:
    """The data set as MLflow shows it: name, digest, source, schema."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = launch.about.get("data", {})
    made = Dataset(
        name=str(data.get("source", "data")),
        digest=launch.fingerprint[:36],
        source_type="local",
        source=json.dumps({"uri": data.get("path") or data.get("source", "")}),
        schema=json.dumps({"mlflow_colspec": data.get("columns", [])}),
        profile=json.dumps(data.get("rows", {})),
    )
    return DatasetInput(made, [InputTag("mlflow.data.context", "training")])


def to_yaml(data: dict[str, Any]) -> str:
    """Plain data as YAML."""
    import io

    from ruamel.yaml import YAML

    out, yaml = io.StringIO(), YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(data, out)
    return out.getvalue()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class BackgroundSender:
    """Sends while a command runs, in a thread of low priority; tries again when MLflow doesn't answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problem: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send what is there, then end."""
        self._stop.set()

    def finish(self, patience_s: float) -> int:
        """Send the rest, or give up after so many seconds without an answer; how many entries are left."""
        self.stop()
        self._thread.join(patience_s)
        ledger = Ledger(self.folder)
        try:
            return ledger.left(destination())
        finally:
            ledger.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # Linux: of this thread
        ledger, sender, wait_s = Ledger(self.folder), None, POLL_S
        try:
            while True:
                stopping = self._stop.is_set()
                try:
                    with sending_lock(self.folder, LAST_WAIT_S if stopping else 0):
                        sender = sender or Sender(ledger)
                        sender.send()
                    self.problem, wait_s = None, POLL_S
                except Exception as error:  # MLflow, its server, its database: said at the end, and tried again
                    self.problem = _one_line(error)
                    sender, wait_s = None, min(wait_s * 2, 10.0)
                if stopping:
                    return
                self._stop.wait(wait_s)
        finally:
            ledger.close()


@contextlib.contextmanager
def sending_lock(folder: Path, timeout_s: float = 0) -> Iterator[None]:
    """Held by who sends from a folder's ledger; raises Failed if another process holds it."""
    lock = filelock.FileLock(folder / "sending.lock", timeout=timeout_s)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise Failed("another command is sending from this folder's ledger to MLflow") from None
    except OSError as error:
        raise Failed(f"can't lock '{lock.lock_file}': {error}") from None
    try:
        yield
    finally:
        lock.release()


def sync(folder: Path, again: bool = False) -> tuple[int, int]:
    """(entries sent, entries left). `again`: look every run up and send what is missing, whatever was sent before."""
    if not (folder / "ledger.sqlite").exists():
        return 0, 0
    ledger = Ledger(folder)
    try:
        with sending_lock(folder, 30):
            if again:
                ledger.forget_sent(destination())
            elif not ledger.left(destination()):
                return 0, 0
            from mlflow.exceptions import MlflowException

            try:
                sent = Sender(ledger).send()
            except (MlflowException, OSError) as error:
                raise Failed(
                    f"MLflow at {shown_destination()} took not everything: {_one_line(error)}; run `orchestrator sync` again"
                ) from None
        return sent, ledger.left(destination())
    finally:
        ledger.close()


# reading back -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordedRun:
    """A run as MLflow has it."""

    result: TrialResult
    kind: str  # sweep, trial, train
    launch: str
    fingerprint: str
    metric: str
    mode: str
    started_ms: int
    metrics: dict[str, float]  # the last value of each, test scores among them
    params: dict[str, str]
    model_id: str | None
    tags: dict[str, str]


def recorded(client: Any, experiment: str) -> list[RecordedRun]:
    """Every run of an experiment that this toolkit recorded. Raises Refused if there is no such experiment."""
    with said_by_mlflow():
        found = client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage == "deleted":
            known = [e.name for e in client.search_experiments() if e.name != "Default"]
            there = f"; there is: {', '.join(sorted(known)[:12])}" if known else "; nothing has been recorded here yet"
            raise Refused(f"no experiment '{experiment}' at {shown_destination()}{there}")
        runs: list[Any] = []
        token = None
        while True:
            page = client.search_runs([found.experiment_id], max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                break
    return [_recorded(run) for run in runs if "orchestrator.key" in run.data.tags]


def recorded_run(client: Any, run_id: str) -> RecordedRun:
    """One run by its id. Raises Refused if there is none, or it isn't one of this toolkit's."""
    from mlflow.exceptions import MlflowException

    with said_by_mlflow():
        try:
            run = client.get_run(run_id)
        except MlflowException:
            raise Refused(f"no run '{run_id}' at {shown_destination()}", key="--run") from None
    if "orchestrator.key" not in run.data.tags:
        raise Refused(f"run '{run_id}' was not recorded by orchestrator", key="--run")
    return _recorded(run)


def _recorded(run: Any) -> RecordedRun:
    tags = run.data.tags

    def tag(name: str) -> str:
        return str(tags.get(f"orchestrator.{name}", ""))

    best = json.loads(tag("best")) if tag("best") else None
    result = TrialResult(
        trial=int(tag("trial")) if tag("trial") else None,
        run_id=run.info.run_id,
        state=tag("state") or "running",  # type: ignore[arg-type]
        stopped_by=tag("stopped_by") or None,
        params=json.loads(tag("values")) if tag("values") else {},
        epochs=int(tag("epochs") or 0),
        best=Best(best["epoch"], best["metrics"]) if best else None,
        error=tag("error") or None,
        wall_s=float(tag("wall_s") or 0),
        sweep=tag("launch") if tag("kind") == "trial" else None,
    )
    return RecordedRun(
        result, tag("kind"), tag("launch"), tag("fingerprint"), tag("metric"), tag("mode"), run.info.start_time,
        dict(run.data.metrics), dict(run.data.params), tags.get("orchestrator.model_id"), dict(tags),
    )  # fmt: skip


def experiment_file(client: Any, run: RecordedRun) -> str:
    """The text of the resolved experiment file that a run, or a trial's sweep, recorded."""
    owner = run.tags.get("mlflow.parentRunId", run.result.run_id)
    with said_by_mlflow(), tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(owner, EXPERIMENT_FILE, folder)).read_text()
