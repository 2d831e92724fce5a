"""What of an experiment travels to a cluster, where it runs there, and the command that runs it.

A head that sees the folder it was sent from, on the same machine, works in that folder, so that its ledger, store and checkpoints are
where they would be without a cluster. Elsewhere only the experiment file, the user's modules that it names and the toolkit travel.
"""

from __future__ import annotations

import secrets
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .connect import ClusterError
from .jobs import Jobs
from .wheel import make_wheel

STOP_S = 60  # how long a job that is asked to end may take for its checkpoints; Ray's own default is 3 s
BOOT = Path("/proc/sys/kernel/random/boot_id")
# what a job takes over from the environment it is sent from; whatever is secret stays where it is: others read a job's environment
TRAVELLING = (
    "MLFLOW_TRACKING_URI", "MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION",
)  # fmt: skip


def on_this_machine(jobs: Jobs, folder: Path) -> bool:
    """Whether the head is this machine and sees the folder: it reads this boot's id, and what was just written there."""
    nonce = folder / f".orchestrator-{secrets.token_hex(4)}"
    try:
        nonce.write_text(secrets.token_hex(16))
        said = jobs.output_of(f"cat {BOOT} {shlex.quote(str(nonce))}")
        return _boot() in said and nonce.read_text() in said
    except OSError as error:
        raise ClusterError(f"can't write in '{folder}', which the job would work in: {error.strerror or error}") from None
    finally:
        nonce.unlink(missing_ok=True)


def _boot() -> str:
    return BOOT.read_text().strip()


def environment(given: Mapping[str, str], more: Iterable[str] = ()) -> dict[str, Any]:
    """The runtime environment of a job: what it takes over, and how long it may take to end."""
    kept = {name: given[name] for name in (*TRAVELLING, *more) if given.get(name)}
    # the driver's own wheel takes the place of the job's
    return {"env_vars": {**kept, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}}


def entrypoint_here(folder: Path, words: Sequence[str]) -> str:
    """The command on this machine: the same interpreter, in the folder."""
    return f"cd {shlex.quote(str(folder))} && exec {shlex.join([sys.executable, '-P', '-m', 'orchestrator', *words])}"


def entrypoint_there(words: Sequence[str]) -> str:
    """The command elsewhere: the cluster's Python, in the folder that has travelled. -P: a `models` in it isn't ours."""
    return f"exec {shlex.join(['python', '-P', '-m', 'orchestrator', *words])}"


def pack(experiment: Path, files: Iterable[Path], packages: Mapping[str, Path], version: str, folder: Path) -> dict[str, Any]:
    """Gather what travels below `folder`; the part of the runtime environment that names it.

    `files`: what else of the experiment's folder it needs; `packages`: the toolkit's own.
    """
    working = folder / "working"
    for path in (experiment, *files):
        copy = working / path.relative_to(experiment.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return {"working_dir": str(working), "py_modules": [str(make_wheel("orchestrator", version, packages, folder))]}
