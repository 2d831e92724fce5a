"""The script for Slurm, whole, with the real `ray symmetric-run`. There is no Slurm here: a line or two stand in for each of its commands.

In namespaces of its own, since `ray symmetric-run` stops every Ray that it sees when it ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import BIN, EXPERIMENT, Shell, epochs_in_ledger, wait_for
from tests.e2e.nodes import below, commands
from tests.e2e.test_resume import check_complete, recorded

pytestmark = pytest.mark.slow
ALONE = ("unshare", "--pid", "--net", "--fork", "--mount-proc")
COMMANDS = {
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi',
    "getent": "echo 127.0.1.1 STREAM localhost",
    # as Slurm's since 22.05: a step has one core unless it asks for more
    "srun": 'case "$1" in --cpus-per-task=2 | --overlap) ;; *) exit 9 ;; esac\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"',
}


@pytest.fixture
def slurm(shell: Shell) -> Iterator[dict[str, str]]:
    """The environment of a job of one node of two CPUs."""
    done = subprocess.run([*ALONE, "ip", "link", "set", "lo", "up"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no namespaces can be made here: {done.stderr.strip()}")
    for name, text in COMMANDS.items():
        path = shell.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(shell.folder), "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}
    folder = tempfile.mkdtemp(prefix="rn", dir="/tmp")  # short: unix sockets lie below it
    path = os.pathsep.join([str(shell.folder / "bin"), str(BIN), shell.env["PATH"]])
    yield shell.env | job | {"SLURM_CPUS_PER_TASK": "2", "RAY_TMPDIR": folder, "PATH": path}
    shutil.rmtree(folder, ignore_errors=True)


WORDS = ("sweep.trials=3", "training.epochs=30", "sweep.scheduler=none", "scaling.gpus_per_worker=0")


def test_a_job_whose_time_is_over_is_queued_again_and_goes_on(shell: Shell, slurm: dict[str, str]) -> None:
    shell.run("cluster", "template", "slurm", EXPERIMENT, *WORDS, "--output", "job.sh")
    first = started(shell.folder, slurm)
    wait_for("epochs", lambda: epochs_in_ledger(shell.folder) >= 6 or first.poll() is not None, 240)
    [script] = [pid for pid, words in commands().items() if words[:2] == ["bash", "job.sh"] and pid in below(first.pid)]
    os.kill(script, signal.SIGTERM)
    assert first.wait(120) == 130, (shell.folder / "log").read_text()[-3000:]
    assert (shell.folder / "requeued").read_text() == "requeue 7\n"
    before = recorded(shell)
    again = started(shell.folder, slurm | {"SLURM_RESTART_COUNT": "1"})
    assert again.wait(300) == 0, (shell.folder / "log").read_text()[-3000:]
    after = recorded(shell)
    assert all(after[trial][: len(epochs)] == epochs for trial, epochs in before.items()), "what was recorded was recorded again"
    assert {len(epochs) for epochs in after.values()} == {30}
    done = shell.run("sweep", EXPERIMENT, *WORDS, "--resume", "--json")
    check_complete(shell, done.json, 3)


def started(folder: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    words = [*ALONE, "bash", "-c", "ip link set lo up; bash job.sh; exit $?"]
    with (folder / "log").open("a") as log:
        return subprocess.Popen(words, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
