"""Experiments from text, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.catalog import catalog
from orchestrator.errors import ExperimentError
from orchestrator.experiment.config import Experiment
from orchestrator.experiment.read import read

SHORTEST = "name: small\ndata: {source: digits}\nmodel: {family: cnn}\n"
Read = Callable[..., Experiment]
Problems = Callable[..., list[str]]


def space(*domains: str) -> str:
    return SHORTEST + "sweep:\n  space:\n" + "".join(f"    {domain}\n" for domain in domains)


@pytest.fixture
def read_text(tmp_path: Path) -> Read:
    """`read_text(yaml, "KEY=VALUE", ...)`."""

    def made(text: str, *overrides: str) -> Experiment:
        path = tmp_path / "experiment.yaml"
        path.write_text(text)
        return read(path, overrides, catalog(tmp_path))

    return made


@pytest.fixture
def problems(read_text: Read) -> Problems:
    """What is wrong with a file, a sentence each."""

    def made(text: str, *overrides: str) -> list[str]:
        with pytest.raises(ExperimentError) as caught:
            read_text(text, *overrides)
        return str(caught.value).split("\n")

    return made
