"""Bundles of every kind of column answer in plain MLflow, where this toolkit isn't installed, what they answer here."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

import orchestrator
from orchestrator.cli import output
from orchestrator.deployment import bundle as bundles
from orchestrator.deployment import predict as predicting
from orchestrator.errors import Note
from orchestrator.results import Trained
from pipelines.answer import answer
from pipelines.encode.pictures import decode_mask, encode_png

SHORT = "training: {epochs: 1}\n"
FILES = {
    "texts": "data: {source: table, path: texts.csv}\nmodel: {family: lstm, embedding: 4, hidden: 4}\n",
    "walks": "data: {source: table, path: walks.parquet}\nmodel: {family: lstm-regression, hidden: 4}\n",
    "codes": "data: {source: hmm, rows: 200}\nmodel: {family: lstm, embedding: 4, hidden: 4}\n",
    "tones": "data: {source: audio, path: tones, rate: 8000, mels: 8}\nmodel: {family: lstm, hidden: 4}\n",
    "ratings": "data: {source: synthetic_ratings, rows: 2000}\nmodel: {family: recommender, dim: 4}\n",
    "ranks": "data: {source: synthetic_ranking, rows: 2000, split: {by: leave_one_out}}\nmodel: {family: ranker, dim: 4}\n",
    "masks": "data: {source: shapes, rows: 20, any_size: true}\nmodel: {family: unet, channels: [4, 8]}\n",
    "squares": "data: {source: shapes, rows: 20}\nmodel: {family: unet, channels: [4, 8]}\n",
}
SERVE = """
import json, sys
import mlflow.pyfunc
import numpy as np
import pandas as pd

answers = {}
for name, (folder, rows) in json.loads(sys.argv[1]).items():
    found = mlflow.pyfunc.load_model(folder).predict(pd.read_json(rows, orient="split", dtype=False))
    answers[name] = found.to_dict("records")
ours = [m for m in sys.modules if m.split(".")[0] in ("orchestrator", "models", "pipelines")]
print(json.dumps({"answers": answers, "ours": ours}, default=repr))
"""


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    texts = pd.DataFrame({"text": ["a good film", "a bad film", "", "good, good!"] * 15, "label": ["pos", "neg", "neg", "pos"] * 15})
    texts.to_csv(folder / "texts.csv", index=False)
    walks = [rng.normal(size=(int(n), 2)).tolist() for n in rng.integers(2, 6, 60)]
    pq.write_table(pa.table({"sequence": walks, "target": [float(np.sum(walk)) for walk in walks]}), folder / "walks.parquet")
    for name, pitch in (("high", 1500), ("low", 300)):
        (folder / "tones" / name).mkdir(parents=True)
        for number in range(10):
            tone = np.sin(np.arange(2000 + 50 * number) * pitch * 2 * np.pi / 8000)
            soundfile.write(folder / "tones" / name / f"{number}.wav", tone, 8000)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Trained]]:
    """A run of each, barely trained, and the folder that it is in."""
    folder = tmp_path_factory.mktemp("made")
    write_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody: what is sent is not what is tested here
        patch.setattr("orchestrator.launch.FINISH_S", 0.0)
        patch.delenv("RAY_ADDRESS", raising=False)
        found = {}
        for name, text in FILES.items():
            (folder / f"{name}.yaml").write_text(f"name: {name}\n{text}{SHORT}")
            with pytest.warns(Note):  # that MLflow doesn't answer
                found[name] = (folder, orchestrator.train(f"{name}.yaml"))
    return found


@pytest.fixture(scope="module")
def made(trained: dict[str, tuple[Path, Trained]]) -> dict[str, Path]:
    """A bundle of each."""
    return {name: folder / str(run.bundle) for name, (folder, run) in trained.items()}


@pytest.fixture(scope="module")
def served(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What plain MLflow answers to each bundle's own example, as JSON brings it, in one process without this toolkit."""
    bare, elsewhere = tmp_path_factory.mktemp("bare"), tmp_path_factory.mktemp("elsewhere")
    ours = ("orchestrator", "models", "pipelines", "cluster", "_editable_impl_orchestrator")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(ours):
            (bare / path.name).symlink_to(path)
    asked = {}
    for name, folder in made.items():
        copy = shutil.copytree(folder, elsewhere / name)
        rows = elsewhere / f"{name}.json"
        pq.read_table(folder / "example.parquet").to_pandas().to_json(rows, orient="split", index=False)
        asked[name] = (str(copy), str(rows))
    env = {"PATH": "/usr/bin:/bin", "HOME": str(elsewhere), "PYTHONPATH": str(bare), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", SERVE, json.dumps(asked)], cwd=elsewhere, env=env, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", FILES)
def test_plain_mlflow_answers_what_we_answer(name: str, made: dict[str, Path], served: dict[str, Any]) -> None:
    bundle = bundles.read(made[name])
    expected, errors = answer(bundle.family, bundle.encoder, pq.read_table(made[name] / "example.parquet"))
    assert errors == {}
    assert len(served["answers"][name]) == expected.num_rows >= 2
    for found, row in zip(served["answers"][name], expected.to_pylist(), strict=True):
        for key, value in row.items():
            if isinstance(value, float):
                assert found[key] == pytest.approx(value, abs=1e-5), key
            elif not isinstance(value, bytes):
                assert found[key] == value, key


def test_none_of_this_toolkit_s_packages_is_imported(served: dict[str, Any]) -> None:
    assert served["ours"] == []


def test_a_missing_text_is_answered_by_plain_mlflow_too(made: dict[str, Path]) -> None:
    import mlflow.pyfunc

    found = mlflow.pyfunc.load_model(str(made["texts"])).predict(pd.DataFrame({"text": ["a good film", None]}))
    assert len(found) == 2
    assert found["prediction"].notna().all()


def test_what_a_request_knows_of_an_unknown_user_reaches_the_model_in_plain_mlflow(made: dict[str, Path]) -> None:
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(made["ranks"]))
    item = pq.read_table(made["ranks"] / "example.parquet")["item"].to_pylist()[0]
    alone = model.predict(pd.DataFrame({"user": [10**9], "item": [item]}))
    listed = model.predict(pd.DataFrame({"user": [10**9], "item": [item], "history": [[item]]}))
    assert list(alone["answered_by"]) == ["popularity"]
    assert list(listed["answered_by"]) == ["items"]


SIZES = [(33, 47), (32, 32), (5, 64)]
PNGS = [encode_png(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)) for size in SIZES]


@pytest.mark.parametrize("rows", [slice(0, 1), slice(1, 2), slice(None)])
@pytest.mark.parametrize("form", ["bytes", "file names", "lists"])
def test_a_unet_trained_on_one_size_answers_masks_of_the_images_own_sizes(
    made: dict[str, Path], tmp_path: Path, rows: slice, form: str
) -> None:
    for place, png in enumerate(PNGS):
        (tmp_path / f"{place}.png").write_bytes(png)
    lists = [np.random.default_rng(1).integers(0, 256, (*size, 3)).tolist() for size in SIZES]
    given = {"bytes": PNGS, "file names": [f"{place}.png" for place in range(3)], "lists": lists}[form]
    pq.write_table(pa.table({"image": given[rows]}), tmp_path / "in.parquet")
    assert predicting.predict(bundles.read(made["squares"]), tmp_path / "in.parquet", tmp_path / "out.parquet") == (len(SIZES[rows]), 0)
    masks = pq.read_table(tmp_path / "out.parquet")["prediction"].to_pylist()
    assert [decode_mask(mask, None).shape for mask in masks] == SIZES[rows]


def test_plain_mlflow_answers_masks_of_the_images_own_sizes(made: dict[str, Path]) -> None:
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(made["squares"]))
    together = model.predict(pd.DataFrame({"image": [base64.b64encode(png).decode() for png in PNGS]}))["prediction"]
    assert [decode_mask(mask, None).shape for mask in together] == SIZES
    for png, mask in zip(PNGS, together, strict=True):
        [alone] = model.predict(pd.DataFrame({"image": [base64.b64encode(png).decode()]}))["prediction"]
        assert (decode_mask(alone, None) != decode_mask(mask, None)).mean() < 0.01


def test_prepared_rows_are_answered_as_they_lie_in_their_file(made: dict[str, Path], tmp_path: Path) -> None:
    bundle = bundles.read(made["squares"])
    source = made["squares"].parents[1] / "data" / bundle.about["fingerprint"] / "test.parquet"
    assert predicting.predict(bundle, source, tmp_path / "out.parquet") == (2, 0)


def test_a_ranking_says_how_it_was_measured_in_its_json_and_on_a_terminal(trained: dict[str, tuple[Path, Trained]]) -> None:
    said = "hr, ndcg, mrr, recall: held-out items among 99 that the user has never had; full_*, coverage: among all items not seen before"
    run = trained["ranks"][1]
    assert json.loads(json.dumps(run.document()))["protocol"] == run.protocol == said
    assert output.measured(run.protocol) == [f"measured: {said}"]
    assert (trained["texts"][1].document()["protocol"], output.measured("")) == ("", [])
