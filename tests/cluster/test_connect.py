"""Find a cluster, or say that there is none; what travels to it."""

from __future__ import annotations

import os
import re
import socket
import zipfile
from pathlib import Path

import filelock
import pytest

import cluster
import models
from cluster.connect import ClusterError, _own_folder, connect
from cluster.resources import Found, of_cluster, this_machine
from cluster.wheel import make_wheel


def test_an_address_where_nothing_listens_is_refused_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with (
        pytest.raises(ClusterError, match=f"no Ray cluster answers at '127.0.0.1:{port}'"),
        connect(f"127.0.0.1:{port}", "hook.not:called", {}, "0", {}, 0),
    ):
        pytest.fail("connected to nothing")
    assert not list(Path("/tmp").glob(f"orc-{os.getpid()}-*"))


def test_a_command_that_drives_without_a_node_beside_it_is_told_at_once_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.connect.greet", lambda where: None)
    monkeypatch.setattr("cluster.connect.nodes_here", lambda: False)
    with (
        pytest.raises(ClusterError, match=r"no node of the cluster at '10.0.0.1:6379' runs on this machine.*--num-cpus=0.*ray://HOST"),
        connect("10.0.0.1:6379", "hook.not:called", {}, "0", {}, 0),
    ):
        pytest.fail("connected to nothing")


def test_the_folders_of_processes_that_were_killed_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in ("orc-dead", "orc-lives", "orc-new", "other"):
        (tmp_path / name / "session").mkdir(parents=True)
    (tmp_path / "orc-dead" / "lock").touch()  # without who holds it
    with filelock.FileLock(tmp_path / "orc-lives" / "lock"), _own_folder(tmp_path) as own:
        assert {path.name for path in tmp_path.iterdir()} == {"orc-lives", "orc-new", "other", own.name}
    assert not own.exists()


def test_the_travelling_wheel_holds_every_file_of_the_packages_and_no_dependency(tmp_path: Path) -> None:
    packages = {m.__name__: Path(m.__file__ or "").parent for m in (cluster, models)}
    wheel = make_wheel("orchestrator", "1.2", packages, tmp_path)
    assert re.fullmatch(r"orchestrator-1\.2-0[0-9a-f]{16}-py3-none-any\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as opened:
        assert opened.testzip() is None
        names = opened.namelist()
        metadata = opened.read("orchestrator-1.2.dist-info/METADATA").decode()
        record = opened.read("orchestrator-1.2.dist-info/RECORD").decode()
    expected = {f"{n}/{p.relative_to(root).as_posix()}" for n, root in packages.items() for p in root.rglob("*.py")}
    assert expected <= set(names)
    assert not [name for name in names if "__pycache__" in name]
    assert "Requires-Dist" not in metadata
    assert {line.split(",")[0] for line in record.splitlines()} == set(names)


def test_the_same_files_make_the_same_wheel(tmp_path: Path) -> None:
    packages = {"models": Path(models.__file__ or "").parent}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, two = (make_wheel("orchestrator", "1", packages, tmp_path / name) for name in ("a", "b"))
    assert one.read_bytes() == two.read_bytes()
    assert one.name == two.name


def test_other_files_make_a_wheel_of_another_name_since_ray_keeps_wheels_by_their_names(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    names = set()
    for line in ("a = 1", "a = 2"):
        (package / "__init__.py").write_text(line)
        names.add(make_wheel("package", "1", {"package": package}, tmp_path).name)
    assert len(names) == 2


def test_nodes_that_are_dead_and_nodes_without_cpus_are_counted_for_what_they_have() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 8e9}},
        {"Alive": True, "Resources": {"memory": 4e9}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    found = of_cluster(nodes)
    assert (found.per_node, found.cpus, found.gpus, found.memory_bytes) == (((4.0, 1.0), (0.0, 0.0)), 4.0, 1.0, 4_000_000_000)


def test_this_machine_has_the_cpus_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = this_machine()
    assert isinstance(found, Found)
    assert (found.cpus, found.gpus) == (3.0, 0.0)
    assert found.memory_bytes > 100_000_000
