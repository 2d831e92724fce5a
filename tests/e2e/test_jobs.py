"""Experiments sent to a cluster as jobs, which outlive the terminals that watch them."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import EXPERIMENT, PROJECT, Said, Shell, Typed, epochs_in_ledger, open_shell, wait_for
from tests.e2e.nodes import Nodes, cluster
from tests.mlflow_server import server

pytestmark = pytest.mark.slow
TRIALS, EPOCHS = 4, 20
PACED = """
import time
from pathlib import Path
from models.cnn import CNN


class Paced(CNN):
    def forward(self, *inputs):
        if self.training and not Path({fast!r}).exists():  # not beside this file: jobs have copies of it
            time.sleep(0.1)
        return super().forward(*inputs)
"""
EXPERIMENT_OF_IT = f"""
name: paced
data: {{source: digits}}
model: {{family: "paced:Paced", channels: [4, 6], pool_after: [1, 2]}}
training: {{epochs: {EPOCHS}}}
sweep: {{trials: {TRIALS}, scheduler: none, space: {{optimizer.lr: {{loguniform: [1e-3, 1e-2]}}}}}}
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster(nodes=1, cpus=2, dashboard=True) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def shell(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    shell = open_shell(tmp_path_factory.mktemp("jobs"))
    shell.env |= nodes.env | {"RAY_ADDRESS": str(nodes.jobs_address)}
    (shell.folder / "paced.py").write_text(PACED.format(fast=str(shell.folder / "fast")))
    (shell.folder / "paced.yaml").write_text(EXPERIMENT_OF_IT)
    return shell


def jobs(shell: Shell) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = shell.run("cluster", "jobs", "--json").json["jobs"]
    return found


@pytest.fixture(scope="module")
def running(shell: Shell) -> str:
    """A job whose terminal was lost while it trains: its id."""
    follower = shell.start("cluster", "submit", "paced.yaml")
    try:
        wait_for("the first epochs", lambda: epochs_in_ledger(shell.folder) >= 2, 300)
    finally:
        os.killpg(follower.process.pid, signal.SIGKILL)
        follower.process.wait()
    said = (follower.said / "err").read_text()
    (job,) = jobs(shell)
    assert f"job {job['id']}" in said
    return str(job["id"])


def test_a_job_goes_on_without_the_terminal_that_sent_it(shell: Shell, running: str) -> None:
    before = epochs_in_ledger(shell.folder)
    wait_for("more epochs", lambda: epochs_in_ledger(shell.folder) > before)
    (job,) = jobs(shell)
    assert (job["id"], job["experiment"], job["state"]) == (running, "paced", "running")
    assert job["started"].startswith("20")


def test_the_status_says_what_is_free_and_which_job_holds_the_rest(shell: Shell, running: str) -> None:
    found = shell.run("cluster", "status", "--json").json["nodes"]
    assert [(node["alive"], node["head"], node["cpus"], node["gpus"]) for node in found] == [(True, True, 2, 0)]
    held = [each for node in found for each in node["held"]]
    assert {each["by"] for each in held} == {running}
    assert sum(each["cpus"] for each in held) == 2
    assert [node["free"]["CPU"] for node in found] == [0]
    assert running in shell.run("cluster", "status").out


def test_ctrl_c_only_stops_following_and_says_how_to_come_back(shell: Shell, running: str) -> None:
    follower = shell.start("cluster", "attach", running)
    wait_for("the log", lambda: "trials, 2 at a time" in (follower.said / "err").read_text())
    follower.process.send_signal(signal.SIGINT)
    said = follower.finish(60)
    assert said.code == 130
    assert said.errors == [
        f"error: no longer following job {running}, which goes on. follow it: orchestrator cluster attach {running}; "
        f"end it: orchestrator cluster stop {running}"
    ]
    assert jobs(shell)[0]["state"] == "running"


@pytest.fixture(scope="module")
def resumed(shell: Shell, running: str) -> Said:
    """The job was stopped, and sent again with --resume; what its follower said."""
    stopped = shell.run("cluster", "stop", running, "--json").json
    assert (stopped["id"], stopped["state"]) == (running, "stopped")
    (shell.folder / "fast").touch()
    return shell.run("cluster", "submit", "paced.yaml", "--resume", "--json", timeout_s=480)


def test_a_stopped_job_that_is_sent_again_goes_on_and_repeats_nothing(shell: Shell, running: str, resumed: Said) -> None:
    assert resumed.json["state"] == "finished"
    assert resumed.json["exit_code"] == 0
    assert [job["state"] for job in jobs(shell)] == ["finished", "stopped"]
    runs = shell.run("runs", "paced", "--json").json["runs"]
    assert sorted(run["trial"] for run in runs) == list(range(TRIALS))
    assert {(run["state"], run["epochs"]) for run in runs} == {("finished", EPOCHS)}
    client = shell.client()
    for run in runs:
        assert [m.step for m in client.get_metric_history(run["run_id"], "val_loss")] == list(range(1, EPOCHS + 1))


def test_attaching_to_what_has_ended_shows_its_log_and_has_its_exit_code(shell: Shell, running: str, resumed: Said) -> None:
    said = shell.run("cluster", "attach", resumed.json["id"], "--json")
    assert said.json["state"] == "finished"
    assert said.err.count("best: trial") == 1
    said = shell.run("cluster", "attach", running, code=130)
    assert "all that was done is recorded. To go on: orchestrator sweep paced.yaml " in said.errors[0], "it was killed"
    assert said.errors[-1] == f"error: job {running} was stopped; submit it again with --resume, and it goes on"  # after the job's own


def test_a_job_that_is_refused_there_is_refused_here(shell: Shell, nodes: Nodes) -> None:
    refused = shell.run("cluster", "submit", EXPERIMENT, "scaling.workers=500", "--for", "train", "--json", code=2)
    assert (refused.json["state"], refused.json["exit_code"]) == ("failed", 2)
    assert "scaling.workers" in refused.err


def test_the_clusters_own_address_leads_to_its_jobs(shell: Shell, nodes: Nodes) -> None:
    assert shell.run("cluster", "jobs", "--address", nodes.address, "--json").json["jobs"] == jobs(shell)


def test_a_token_in_its_usual_place_is_sent_without_any_setting(shell: Shell, nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(Path(nodes.env["RAY_AUTH_TOKEN_PATH"]).read_text())
    env = {name: value for name, value in shell.env.items() if not name.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    without = Shell(shell.folder, env)
    assert jobs(without) == jobs(shell)
    assert without.run("cluster", "jobs", "--address", nodes.address, "--json").json["jobs"] == jobs(shell)
    assert "Token authentication" not in without.run("cluster", "status").err


def test_an_unknown_job_is_told_the_known_ones(shell: Shell, running: str) -> None:
    for command in ("attach", "stop"):
        refused = shell.run("cluster", command, "nobody", code=2)
        assert len(refused.errors) == 1
        assert "no job 'nobody'" in refused.errors[0]
        assert running in refused.errors[0]


@pytest.mark.parametrize(
    ("token", "says"), [("f" * 64, "refuses the token (Authentication failed"), (None, "refuses the token (RAY_AUTH_TOKEN_PATH is set but")]
)
def test_a_wrong_or_missing_token_is_one_line(shell: Shell, tmp_path: Path, token: str | None, says: str) -> None:
    path = tmp_path / "token"
    if token is not None:
        path.write_text(token)
        path.chmod(0o600)
    other = Shell(shell.folder, shell.env | {"RAY_AUTH_TOKEN_PATH": str(path)})
    refused = other.run("cluster", "jobs", code=2)
    assert len(refused.err.splitlines()) == 1
    assert says in refused.errors[0]
    assert "is its token set here" in refused.errors[0]


# elsewhere: a head that isn't this machine, as its boot id says ----------------------------------------------------------------

ELSEWHERE = """
import orchestrator
from cluster import submit
from orchestrator.cli import app
submit._boot = lambda: "of another machine"
app.main()
"""


@pytest.fixture
def elsewhere(shell: Shell, tmp_path: Path) -> Callable[..., Said]:
    """A command in a folder with modules of one's own, where the cluster's head is another machine."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise RuntimeError('the package of the user')\n")
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "mine.py").write_text("from models.cnn import CNN\nfrom .part import NAME\nclass Mine(CNN):\n    name = NAME\n")
    (tmp_path / "nets" / "part.py").write_text("NAME = 'mine'\n")
    (tmp_path / "mine.yaml").write_text("name: mine\ndata: {source: digits}\nmodel: {family: 'nets.mine:Mine'}\n")

    def type_(*words: str, env: dict[str, str], code: int) -> Said:
        command = [sys.executable, "-c", ELSEWHERE, *words]
        done = subprocess.run(command, cwd=tmp_path, env=shell.env | env, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr[-3000:]
        return Said(code, done.stdout, done.stderr)

    return type_


def test_elsewhere_a_tracking_server_and_shared_storage_are_demanded(elsewhere: Callable[..., Said], nodes: Nodes) -> None:
    refused = elsewhere("cluster", "submit", "mine.yaml", "model.init_from=nets", env={}, code=2)
    why = f"the head at '{nodes.jobs_address}' doesn't see this folder"
    assert refused.errors == [
        f"error: MLFLOW_TRACKING_URI: {why}: set it to a tracking server (http://...) that both reach",
        f"error: storage.path: {why}: give a shared one, such as s3://BUCKET/FOLDER, for checkpoints and the ledger",
        f"error: model.init_from: {why}: 'nets' must be an absolute path that the cluster's nodes see",
    ]


def test_elsewhere_a_job_runs_with_the_file_the_modules_and_the_toolkit_that_travelled(
    elsewhere: Callable[..., Said], nodes: Nodes, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        server = f"http://127.0.0.1:{held.getsockname()[1]}"  # down: what is recorded is sent when it is there
    words = ("cluster", "submit", "mine.yaml", "training.epochs=1", f"storage.path={tmp_path}/shared", "--json")
    said = elsewhere(*words, env={"MLFLOW_TRACKING_URI": server}, code=0)
    assert said.json["state"] == "finished"
    assert f"note: MLFLOW_TRACKING_URI: {server} is the head's own loopback there" in said.err
    assert "best epoch 1" in said.err
    assert list((tmp_path / "shared").rglob("*")), "no checkpoint in the shared storage"
    assert not (tmp_path / ".orchestrator").exists(), "it worked in the folder that it was sent from"


def test_a_job_whose_head_died_goes_on_when_sent_to_another_head(elsewhere: Callable[..., Said], nodes: Nodes, tmp_path: Path) -> None:
    """Nothing is left of the first one but the storage and what the tracking server was told."""
    from mlflow import MlflowClient

    fast, shared, folder = tmp_path / "fast", tmp_path / "shared", tmp_path / "server"
    (tmp_path / "paced.py").write_text(PACED.format(fast=str(fast)))
    (tmp_path / "paced.yaml").write_text(EXPERIMENT_OF_IT)
    folder.mkdir()
    words = ("cluster", "submit", "paced.yaml", "sweep.trials=2", f"storage.path={shared}", "--json")
    with server(folder) as port:
        env = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
        with cluster(nodes=1, cpus=2, dashboard=True) as first:
            elsewhere(*words, "--detach", env=env | first.env | {"RAY_ADDRESS": str(first.jobs_address)}, code=0)
            wait_for("checkpoints", lambda: len(list(shared.rglob("checkpoint-2.safetensors"))) == 2, 240)
            first.kill(0)
        fast.touch()
        done = elsewhere(*words, "--resume", env=env, code=0)
        assert "goes on: " in done.err
        client = MlflowClient(tracking_uri=env["MLFLOW_TRACKING_URI"])
        [experiment] = [each for each in client.search_experiments() if each.name == "paced"]
        runs = [run for run in client.search_runs([experiment.experiment_id]) if run.data.tags["orchestrator.trial"]]
        assert [run.info.status for run in runs] == ["FINISHED"] * 2
        for run in runs:
            assert [m.step for m in client.get_metric_history(run.info.run_id, "val_loss")] == list(range(1, EPOCHS + 1))


# refusals that need no cluster -------------------------------------------------------------------------------------------------


def test_an_address_where_no_cluster_answers_is_one_line(typed: Typed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    for address in (f"http://127.0.0.1:{port}", f"127.0.0.1:{port}"):
        refused = typed("cluster", "jobs", "--address", address)
        assert refused.code == 2
        assert len(refused.err.splitlines()) == 1
        assert f"no Ray cluster answers at '{address}'" in refused.err


def test_what_answers_but_is_no_dashboard_is_said(typed: Typed, tmp_path: Path) -> None:
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *given: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, contextlib.ExitStack() as end:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        end.callback(server.shutdown)
        refused = typed("cluster", "status", "--address", f"http://127.0.0.1:{server.server_port}")
    assert refused.code == 2
    assert "is no Ray dashboard (HTTP 404); is the port right?" in refused.err


def test_without_an_address_and_with_a_ray_clients_one_it_is_said_what_is_needed(typed: Typed) -> None:
    refused = typed("cluster", "stop", "some-job")
    assert refused.code == 2
    assert refused.errors == ["error: --address: which cluster? Give its head's address, http://HOST:8265 or HOST:6379, or set RAY_ADDRESS"]
    refused = typed("cluster", "attach", "some-job", env={"RAY_ADDRESS": "ray://head:10001"})
    assert "'ray://head:10001' is a Ray Client's address" in refused.errors[0]


def test_a_template_is_written_or_printed_and_what_is_left_to_fill_in_is_said(typed: Typed, tmp_path: Path) -> None:
    experiment = str(PROJECT / EXPERIMENT)
    said = typed("cluster", "template", "slurm", experiment, "sweep.max_concurrent=2")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("#!/bin/bash\n")
    said = typed("cluster", "template", "aws", experiment, "--output", str(tmp_path / "aws.yaml"), "--json")
    document = json.loads(said.out)
    assert (document["kind"], document["experiment"]) == ("aws", "digits-cnn")
    assert (tmp_path / "aws.yaml").read_text() == document["text"]
    assert any("s3://BUCKET/FOLDER" in line for line in document["edit"])
    refused = typed("cluster", "template", "azure", experiment)
    assert (refused.code, refused.errors) == (2, ["error: no template 'azure'; there is: aws, gcp, kuberay, slurm"])
