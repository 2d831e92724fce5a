"""`data show` before training: tables for a reader, one document for a program; and a leak is said again where a run is started."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from orchestrator.records.ledger import Ledger
from tests.e2e.conftest import Shell, Typed

PREPARE_KEYS = {"fingerprint", "path", "splits", "inputs", "target", "classes"}


def leaking(folder: Path) -> str:
    """An experiment on images of three classes, where rows 3 and 7 of test are rows 1 and 2 of train."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, (120, 8, 8), dtype=np.uint8)
    pixels[103], pixels[107] = pixels[1], pixels[2]
    labels = [f"c{row % 3}" for row in range(120)]
    labels[103], labels[107] = labels[1], labels[2]
    (folder / "data").mkdir()
    for part, rows in (("train", slice(0, 80)), ("validation", slice(80, 100)), ("test", slice(100, 120))):
        pq.write_table(
            pa.table({"image": pixels[rows].reshape(len(labels[rows]), -1).tolist(), "label": labels[rows]}),
            folder / "data" / f"{part}.parquet",
        )
    experiment = {
        "name": "leaking",
        "data": {"source": "table", "path": "data"},
        "model": {"family": "cnn", "channels": [4], "pool_after": [1]},
        "training": {"epochs": 1},
    }
    YAML().dump(experiment, folder / "leaking.yaml")
    return "leaking.yaml"


def test_the_document_holds_what_prepare_says_and_what_was_found(typed: Typed, tmp_path: Path) -> None:
    path = leaking(tmp_path)
    shown = typed("data", "show", path, "--json").json
    prepared = typed("data", "prepare", path, "--json").json
    assert {*prepared} == PREPARE_KEYS
    assert {key: shown[key] for key in PREPARE_KEYS} == prepared
    assert [(c["name"], c["kind"], c["missing"]["train"]) for c in shown["columns"]] == [("image", "image", 0), ("label", "class", 0)]
    assert sum(shown["counts"]["train"].values()) == 80
    assert shown["duplicates"]["across"] == {"train/test": 2, "train/validation": 0, "validation/test": 0}
    [problem] = shown["problems"]
    assert problem.startswith("test: 2 rows (10.00%) have the same inputs as rows of train, as row 3 of test and row 1 of train: ")


def test_a_reader_gets_tables_and_sentences(typed: Typed, tmp_path: Path) -> None:
    said = typed("data", "show", leaking(tmp_path)).out
    lines = [line.split() for line in said.splitlines()]
    assert lines[0] == ["split", "rows", "copies", "inside", "copies", "of", "train", "of", "validation", "files"]
    assert [line[:4] for line in lines[1:4]] == [
        ["train", "80", "0", lines[1][3]],
        ["validation", "20", "0", "0"],
        ["test", "20", "0", "2"],
    ]
    assert ["c0", "27", "7", "6"] in lines
    assert "problem: test: 2 rows (10.00%) have the same inputs" in said


def test_data_without_fault_are_said_to_be_so(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("{name: digits, data: {source: digits}, model: {family: cnn}}")
    assert typed("data", "show", "digits.yaml").out.endswith("no problems found\n")


def test_a_leak_is_one_warning_of_a_run_and_recorded_with_it(shell: Shell) -> None:
    said = shell.run("train", leaking(shell.folder), "--json")
    warned = [line for line in said.err.splitlines() if "have the same inputs" in line]
    assert len(warned) == 1
    assert "row 3 of test and row 1 of train" in warned[0]
    ledger = Ledger(shell.folder / ".orchestrator")
    try:
        [launch] = ledger.launches()
        assert ledger.find(launch).about["data"]["leaks"]["train/test"] == 2
    finally:
        ledger.close()


def test_a_command_that_trains_nothing_warns_of_nothing(typed: Typed, tmp_path: Path) -> None:
    path = leaking(tmp_path)
    assert typed("plan", path).err + typed("data", "prepare", path).err == ""
