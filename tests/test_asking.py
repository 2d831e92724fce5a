"""What the jobs of a cluster take along, by what its nodes see of this machine's folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import asking
from orchestrator.asking import Asked, sent_to_cluster
from orchestrator.errors import ExperimentError
from orchestrator.training.arrival import Sent
from pipelines.prepare import Prepared
from tests.conftest import MakeExperiment


@pytest.fixture
def asked(prepared: Prepared, make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Asked(tmp_path / "corners.yaml", make_experiment(f"storage.path={tmp_path}/shared"), prepared, tmp_path)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """What the nodes see: `folder` (this one), `shared`, `data`."""
    seen = {"folder", "shared", "data"}

    def not_sharing(place: str) -> dict[str, str]:
        [what] = {"shared"} if place == f"{tmp_path}/shared" else {"folder"}
        return {} if what in seen else {"node": "there is no such place"}

    monkeypatch.setattr(asking.shared, "not_sharing", not_sharing)
    monkeypatch.setattr(asking.shared, "without", lambda file: [] if "data" in seen else ["node"])
    return seen


def test_nodes_that_see_this_folder_need_nothing_of_it(asked: Asked, nodes: set[str]) -> None:
    assert sent_to_cluster(asked) == Sent()


def test_nodes_that_do_not_see_it_read_the_data_from_the_storage_and_put_what_they_print_there(
    asked: Asked, nodes: set[str], tmp_path: Path
) -> None:
    nodes -= {"folder", "data"}
    sent = sent_to_cluster(asked)
    assert sent.base == f"{tmp_path}/shared"
    assert sent.data is not None
    assert (Path(sent.data) / "data.json").read_bytes() == (asked.prepared.folder / "data.json").read_bytes()


def test_nodes_that_have_the_same_data_of_their_own_still_do_not_see_this_folder(asked: Asked, nodes: set[str], tmp_path: Path) -> None:
    nodes -= {"folder"}
    assert sent_to_cluster(asked) == Sent(base=f"{tmp_path}/shared")


def test_a_storage_that_a_node_does_not_see_is_refused(asked: Asked, nodes: set[str]) -> None:
    nodes -= {"shared"}
    with pytest.raises(ExperimentError, match=r"storage\.path: node node doesn't share"):
        sent_to_cluster(asked)
