"""The public functions of a running cluster: an experiment sent to it as a job, what became of it, and what the cluster has left."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import cluster
import models
import orchestrator
import pipelines
from cluster import jobs, submit, template
from cluster.connect import ClusterError
from orchestrator.cluster_results import ClusterStatus, Job, JobList, Template
from orchestrator.errors import ExperimentError, Failed, Interrupted, Lost, Note, Problem, Refused, shown

if TYPE_CHECKING:
    from orchestrator.experiment.config import Experiment
    from orchestrator.experiment.plan import Command

Show = Callable[[str], None]
NEWEST = "newest"


def _silent(text: str) -> None:
    """No log."""


def cluster_submit(
    experiment: str,
    overrides: Sequence[str] = (),
    *,
    address: str | None = None,
    resume: str | None = None,
    command: Command | None = None,
) -> Job:
    """Send an experiment to a cluster as a job, which goes on whatever becomes of this process.

    `command`: sweep where the file has a space, else train; `resume`: the id of an earlier launch to go on with, "newest" or "if-any".
    Raises Refused.
    """
    from orchestrator.catalog import catalog  # with all that an experiment may name: seconds, which the other commands don't need
    from orchestrator.experiment.read import read
    from orchestrator.records.ledger import new_id
    from orchestrator.training import user_code

    path = Path(experiment)
    asked = read(path, overrides, catalog(path.resolve().parent))
    command = command or ("sweep" if asked.sweep.space else "train")
    options = [] if resume is None else ["--resume"] if resume == NEWEST else [f"--resume={resume}"]
    _look_at_secrets()
    with _sentences(), tempfile.TemporaryDirectory() as folder:
        there = jobs.Jobs(_address(address))
        if submit.on_this_machine(there, Path.cwd()):
            entrypoint = submit.entrypoint_here(Path.cwd(), [command, experiment, *overrides, *options])
            environment = submit.environment(os.environ, ["PYTHONPATH"])
        else:
            _refuse_local(asked, there.given)
            entrypoint = submit.entrypoint_there([command, path.name, *overrides, *options])
            packages = {m.__name__: Path(m.__file__ or "").parent for m in (orchestrator, models, pipelines, cluster)}
            files = user_code.files_of(path.resolve().parent, [*user_code.names_of(asked), *_of_the_driver(asked)])
            packed = submit.pack(path.resolve(), files, packages, orchestrator.__version__, Path(folder))
            environment = submit.environment(os.environ) | packed
        id = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', asked.name)}-{new_id()}"
        metadata = {jobs.OURS: orchestrator.__version__, "experiment": asked.name, "command": command}
        return _result(there.submit(id, entrypoint, environment, metadata))


def _look_at_secrets() -> None:
    """What is secret stays here: a job's environment is read by others. Raises Refused where it is part of a URI that would travel."""
    from orchestrator.records import notify

    for name in submit.TRAVELLING:
        if shown(os.environ.get(name, "")) != os.environ.get(name, ""):
            raise Refused(
                "a user or a password stands in it, and a job's environment is read by others: give the URI without, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where `ray start` runs",
                key=name,
            )
    told = [name for name in (notify.URL, notify.SECRET) if os.environ.get(name)]
    if told:
        says = f"{' and '.join(told)} doesn't travel with the job: it belongs into the environment in which `ray start` runs"
        warnings.warn(says, Note, stacklevel=2)


def _of_the_driver(asked: Experiment) -> list[str]:
    """The dotted paths of a user's own parts that no trial loads, but the command that drives them."""
    return [name for name in (asked.data.source, asked.sweep.search, asked.sweep.scheduler.name) if ":" in name]


def _refuse_local(asked: Experiment, address: str) -> None:
    """Raises ExperimentError for all that names a place on this machine, which the cluster's head isn't."""
    why = f"the head at '{address}' doesn't see this folder"
    problems = []
    if not os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("http://", "https://")):
        problems.append(Problem("MLFLOW_TRACKING_URI", None, f"{why}: set it to a tracking server (http://...) that both reach"))
    storage = asked.storage.path
    if storage is None or not ("://" in storage or Path(storage).is_absolute()):
        problems.append(
            Problem("storage.path", None, f"{why}: give a shared one, such as s3://BUCKET/FOLDER, for checkpoints and the ledger")
        )
    given = {f"data.{key}": value for key, value in asked.data.options.items()} | {"model.init_from": asked.model.init_from}
    for key, value in given.items():
        if isinstance(value, str) and not Path(value).is_absolute() and Path(value).exists():
            problems.append(Problem(key, None, f"{why}: '{value}' must be an absolute path that the cluster's nodes see"))
    if problems:
        raise ExperimentError(problems)
    if urlsplit(os.environ["MLFLOW_TRACKING_URI"]).hostname in ("localhost", "127.0.0.1", "::1"):
        says = f"MLFLOW_TRACKING_URI: {os.environ['MLFLOW_TRACKING_URI']} is the head's own loopback there, not this machine's"
        warnings.warn(says, Note, stacklevel=2)


def cluster_jobs(*, address: str | None = None) -> JobList:
    """The jobs that were sent to a cluster, newest first. Raises Refused."""
    with _sentences():
        return JobList([_result(job) for job in jobs.Jobs(_address(address)).ours()])


def cluster_attach(id: str, *, address: str | None = None, show: Show = _silent) -> Job:
    """Follow a job's log from its beginning to its end. Raises what the job's command raised, by its exit code, with the job as result."""
    with _sentences():
        job = jobs.Jobs(_address(address)).follow(id, show)
    done = _result(job)
    if job.state == "finished":
        return done
    if job.state in ("interrupted", "stopped"):
        raise Interrupted(f"job {id} was {job.state}; submit it again with --resume, and it goes on", result=done)
    if job.exit_code == Refused.exit_code:
        raise Refused(f"job {id} was refused as given; its log says why", result=done)
    said = "" if job.exit_code is not None else f": {job.message[:300]}"  # no exit code: Ray itself couldn't run it
    raise Failed(f"job {id} failed{said}; its log says more", result=done)


def cluster_stop(id: str, *, address: str | None = None) -> Job:
    """End a job as Ctrl-C would, resumable, and wait until it has ended. Raises Refused."""
    with _sentences():
        return _result(jobs.Jobs(_address(address)).stop(id))


def cluster_status(*, address: str | None = None) -> ClusterStatus:
    """The nodes of a cluster, what is free on each, and who holds the rest. Raises Refused."""
    with _sentences():
        return ClusterStatus([dataclasses.asdict(node) for node in jobs.Jobs(_address(address)).nodes()])


def _address(given: str | None) -> str:
    address = given or os.environ.get("RAY_ADDRESS")
    if not address:
        raise Refused("which cluster? Give its head's address, http://HOST:8265 or HOST:6379, or set RAY_ADDRESS", key="--address")
    return address


def _result(job: jobs.Job) -> Job:
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(job.started_ms / 1000))
    return Job(job.id, job.experiment, job.state, started, job.exit_code)


@contextlib.contextmanager
def _sentences() -> Iterator[Any]:
    """What is wrong with a cluster, as an error of ours."""
    try:
        yield
    except jobs.ClusterGone as error:
        raise Lost(f"{error}; submit it again with --resume, and it goes on") from None
    except ClusterError as error:
        raise Refused(str(error), key="--address") from None


def cluster_template(kind: str, experiment: str, overrides: Sequence[str] = (), *, output: str | None = None) -> Template:
    """A complete, commented file for a cluster that holds the experiment: aws, gcp, kuberay or slurm. Raises Refused.

    `output`: the file to write; without it nothing is written.
    """
    from orchestrator.catalog import catalog
    from orchestrator.experiment.read import read

    path = Path(experiment)
    asked = read(path, overrides, catalog(path.resolve().parent))
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    sweep = bool(asked.sweep.space)
    needs = template.Needs(
        name=asked.name,
        file=experiment,
        text=path.read_text(),
        overrides=overrides,
        command="sweep" if sweep else "train",
        trials=asked.sweep.trials if sweep else 1,
        at_once=asked.sweep.max_concurrent,
        workers=asked.scaling.most,
        cpus=asked.scaling.cpus_per_worker,
        gpus=asked.scaling.gpus_per_worker,
        storage=asked.storage.path,
        tracking=shown(tracking) if tracking.startswith("http") else None,
    )
    try:
        text = template.render(kind, needs, _versions(), output or template.FILES.get(kind, ""))
    except ClusterError as error:
        raise Refused(str(error)) from None
    if output is not None:
        try:
            Path(output).write_text(text)
        except OSError as error:
            raise Refused(f"can't write '{output}': {error.strerror}", key="--output") from None
    return Template(kind, asked.name, text, output, template.to_edit(text))


def _versions() -> template.Versions:
    installed = {d.name.lower(): d.version for d in importlib.metadata.distributions() if d.name}
    requirements = template.pinned(importlib.metadata.requires("orchestrator") or [], installed)
    return template.Versions(orchestrator.__version__, installed["ray"], sys.version_info[:2], requirements)
