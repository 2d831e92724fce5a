"""Names: a table's, a user's own, and the sentence for one that isn't there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import orchestrator
from models import FAMILIES
from orchestrator import names
from orchestrator.names import UnknownName, load, nearest, unknown
from orchestrator.training.optim import OPTIMIZERS
from pipelines import SOURCES

TABLE = {"path": "pathlib:Path", "ordered": "collections:OrderedDict"}


def test_a_name_of_the_table_is_the_object_behind_it() -> None:
    assert load("path", TABLE, "thing") is Path


def test_a_path_is_the_object_it_leads_to() -> None:
    assert load("pathlib:Path", {}, "thing") is Path


@pytest.mark.parametrize("entry", [*FAMILIES.items(), *SOURCES.items(), *OPTIMIZERS.items()], ids=lambda entry: entry[0])
def test_every_entry_of_every_table_leads_somewhere(entry: tuple[str, str]) -> None:
    name, path = entry
    assert callable(load(name, {name: path}, "thing"))


@pytest.mark.parametrize(("given", "guess"), [("adm", "adam"), ("ADAM", "adam"), ("adamww", "adamw"), ("zzz", None)])
def test_the_nearest_name_is_guessed_or_none(given: str, guess: str | None) -> None:
    assert nearest(given, ["sgd", "adam", "adamw"]) == guess


def test_an_unknown_name_says_the_nearest_and_all_there_are() -> None:
    assert unknown("optimizer", "adm", ["sgd", "adam"]) == "no optimizer 'adm'; did you mean 'adam'? there is: adam, sgd"
    assert unknown("optimizer", "zzz", ["sgd", "adam"]) == "no optimizer 'zzz'; there is: adam, sgd"


def test_a_name_that_the_table_lacks_is_refused_with_the_form_of_a_path() -> None:
    with pytest.raises(
        UnknownName, match=r"no thing 'pth'; did you mean 'path'\? there is: ordered, path \(or a path of your own, 'module:Th"
    ):
        load("pth", TABLE, "thing")


def test_an_unknown_attribute_names_those_of_the_module() -> None:
    with pytest.raises(UnknownName, match=r"no attribute in pathlib 'Pth'; did you mean 'Path'\?"):
        load("pathlib:Pth", {}, "thing")


def test_a_module_that_is_nowhere_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=f"no thing 'nowhere:X': .* looked in '{tmp_path}' and among the installed packages"):
        load("nowhere:X", {}, "thing", tmp_path)


def test_a_user_s_module_is_found_below_the_experiment_s_folder(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "nets.py").write_text("class Net: answer = 42\n")
    assert load("parts.nets:Net", {}, "family", tmp_path).answer == 42


def test_a_user_s_models_folder_is_not_ours_and_does_not_replace_ours(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    (tmp_path / "models" / "net.py").write_text("class Net: mine = True\n")
    net = load("models.net:Net", {}, "family", tmp_path)
    assert net.mine
    assert net.__module__ == f"{names.private_package(tmp_path)}.models.net"
    assert sys.modules["models"].FAMILIES is FAMILIES


def test_two_folders_with_modules_of_the_same_name_stay_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets.py").write_text(f"NAME = '{folder}'\n")
    assert [load("nets:NAME", {}, "family", tmp_path / folder) for folder in ("one", "two")] == ["one", "two"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("raise ValueError('not\\nnow')", "ValueError: not now"),
    ],
)
def test_what_goes_wrong_inside_a_user_s_module_is_one_line(code: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(UnknownName) as caught:
        load("broken:Net", {}, "family", tmp_path)
    assert str(caught.value).startswith(f"family 'broken:Net' can't be imported: {says}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [":", ":X", ".relative:X"])
def test_a_path_without_a_module_is_refused(path: str) -> None:
    with pytest.raises(UnknownName, match="can't be imported"):
        load(path, {}, "family")


def test_our_packages_are_ours_whoever_asks() -> None:
    root = Path(orchestrator.__file__).parents[1]
    assert [Path(sys.modules[name].__file__ or "").parent for name in ("models", "pipelines", "cluster")] == [
        root / "models",
        root / "pipelines",
        root / "cluster",
    ]


def test_a_package_that_took_one_of_our_names_first_is_refused_with_its_path(tmp_path: Path) -> None:
    for name in ("models", "pipelines", "cluster"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    with pytest.raises(
        ImportError, match=r"'models' is already .*models/__init__.py, but orchestrator needs its own: import orchestrator be"
    ):
        orchestrator._bind_packages(tmp_path)


def test_the_public_functions_are_a_fixed_list() -> None:
    names = """cluster_attach cluster_jobs cluster_status cluster_stop cluster_submit cluster_template data_prepare data_show doctor
        gc history logs plan predict promote rollback runs schema sweep sync train"""
    assert orchestrator.__all__ == names.split()
    assert all(callable(getattr(orchestrator, name)) for name in orchestrator.__all__)


def test_what_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'orchestrator' has no attribute 'swep'"):
        orchestrator.swep  # noqa: B018
