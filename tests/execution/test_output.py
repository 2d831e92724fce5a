"""What real workers print, each rank's in a file of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.resources import Found
from orchestrator.events import EpochEnded
from orchestrator.execution.ddp import Gangs
from orchestrator.execution.inline import Inline
from orchestrator.execution.pool import Pool
from tests.conftest import MakeJob

OWN = '''
import os
import sys
import warnings

from models.cnn import CNN


class Net(CNN):
    """Says that it was made."""

    def __init__(self, config, schema):
        super().__init__(config, schema)
        print("printed")
        print("an error", file=sys.stderr)
        os.system("echo a child")
        os.write(2, b"a library\\n")
        warnings.warn("a warning")
'''
Run = Callable[[Any, int], Path]


@pytest.fixture
def run(make_job: MakeJob, tmp_path: Path) -> Run:
    """`run(executor, trial)`: a trial that prints, to its end; the folder of what its ranks printed."""
    (tmp_path / "own_net.py").write_text(OWN)

    def finish(executor: Any, trial: int) -> Path:
        net = "model={class: own_net:Net, channels: [4], pool_after: [1], norm: none}"
        job = make_job(net, folder=tmp_path, trial=trial, checkpoints=f"run-{trial}")
        logs = tmp_path / "logs" / f"run-{trial}"
        executor.start(0, dataclasses.replace(job, logs=str(logs)))
        while True:
            for slot, event in executor.wait():
                if not isinstance(event, EpochEnded):
                    assert (event.state, event.error) == ("finished", None)
                    return logs
                executor.verdict(slot, True)

    return finish


@pytest.mark.slow
def test_an_actor_s_output_is_kept_by_trial(local_ray: Found, run: Run) -> None:
    pool = Pool(1, 0.5, 0)
    try:
        first, second = run(pool, 1), run(pool, 2)
    finally:
        pool.close()
    for folder in (first, second):
        found = (folder / "rank-0.log").read_text()
        assert found.startswith("printed\nan error\na child\na library\n")
    assert "own_net.py:" in (first / "rank-0.log").read_text()
    assert "UserWarning: a warning" in (first / "rank-0.log").read_text()


@pytest.mark.slow
def test_each_rank_of_a_gang_has_a_file(local_ray: Found, run: Run) -> None:
    gangs = Gangs(1, (2, 2), 0.5, 0)
    try:
        folder = run(gangs, 1)
    finally:
        gangs.close()
    assert sorted(path.name for path in folder.iterdir()) == ["rank-0.log", "rank-1.log"]
    for rank in (0, 1):
        said = (folder / f"rank-{rank}.log").read_text().splitlines()
        assert [said.count(line) for line in ("printed", "an error", "a child", "a library")] == [1, 1, 1, 1]


def test_this_process_shows_what_a_trial_prints_on_stderr_and_keeps_it(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="a warning"):
        folder = run(Inline(), 1)
    assert (folder / "rank-0.log").read_text() == "printed\nan error\na child\na library\n"
    assert capfd.readouterr() == ("", "printed\nan error\na child\na library\n")
