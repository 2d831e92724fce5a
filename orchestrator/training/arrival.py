"""A job on its way to a machine that may not have the driver's folders: what it needs of them travels with it, or lies in storage.

What was fetched there lies in a private folder below the system's temporary one, by its content, for every later trial on the machine.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.training.job import Job
from orchestrator.training.rows import local_copy, publish
from orchestrator.training.user_code import unpack

URI = "://"


@dataclass(frozen=True)
class Sent:
    """What a launch's jobs take along. `data`: where the prepared rows are for all nodes, if not in the driver's folder.

    `code`: the user's modules, packed. `base`: where files are put that the nodes don't see; None if they see the driver's folders.
    """

    data: str | None = None
    code: bytes | None = None
    base: str | None = None

    def __call__(self, job: Job) -> Job:
        """A job of the driver's -> the one to send."""
        if self.base is not None and job.origin is not None:
            weights = Path(job.origin.weights)
            put = publish(weights, self.base, "weights")
            where = f"{put}#{weights.name}" if URI in put else f"{put}/{weights.name}"
            job = replace(job, origin=replace(job.origin, weights=where))
        return replace(job, data=self.data or job.data, code=self.code, apart=self.base is not None)


def arrive(job: Job) -> Job:
    """The job with folders of this machine in it; the job itself if it names none of elsewhere. Raises StorageError, OSError."""
    if job.code is not None:
        job = replace(job, folder=str(unpack(job.code, cache("code"))), code=None)
    if URI in job.data:
        job = replace(job, data=str(local_copy(job.data, cache("data"))))
    if job.origin is not None and URI in job.origin.weights:
        uri, _, name = job.origin.weights.rpartition("#")
        job = replace(job, origin=replace(job.origin, weights=str(local_copy(uri, cache("weights")) / name)))
    return job


def cache(kind: str) -> Path:
    """This user's folder for what was fetched. Raises PermissionError if it is somebody else's: code is run from there."""
    folder = Path(tempfile.gettempdir()) / f"orchestrator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022 or folder.is_symlink():
        raise PermissionError(f"'{folder}' belongs to another user, or others may write there: remove it, or set TMPDIR")
    (folder / kind).mkdir(exist_ok=True)
    return folder / kind
