"""Recordings in folders and in tables; and a network learns what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from models.lstm import LSTM
from pipelines import batches
from pipelines.encode.audio import log_mels
from pipelines.prepare import prepare
from pipelines.schema import DataError
from pipelines.sources import audio
from pipelines.splits import SplitConfig
from tests.contracts.source_contract import SourceContract

RATES, SUBTYPES = (8_000, 16_000, 22_050, 44_100, 48_000), ("PCM_U8", "PCM_16", "PCM_24")
PITCH = {"low": 300, "middle": 800, "high": 1800}


def tone(path: Path, hz: float = 440, row: int = 0, seconds: float = 0.1) -> Path:
    """A WAV file whose rate, depth, channels and length depend on the row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng, rate = np.random.default_rng(row), RATES[row % 5]
    samples = 0.4 * np.sin(2 * np.pi * hz * np.arange(round(seconds * (1 + row % 3 / 2) * rate)) / rate)
    samples += rng.normal(size=len(samples)) * 0.01
    soundfile.write(path, np.stack([samples] * (1 + row % 2), 1), rate, subtype=SUBTYPES[row % 3])
    return path


def fill(folder: Path, rows: int = 8, start: int = 0) -> Path:
    for label, hz in PITCH.items():
        for row in range(start, start + rows):
            tone(folder / label / f"{row:02}.wav", hz * (0.9 + row % 5 / 20), row)
    return folder


def load(path: Path, **options: Any) -> Any:
    return audio.load(audio.Config(str(path), **options))


class TestRecordingsInFolders(SourceContract):
    split_config = SplitConfig(train=0.6, validation=0.2, test=0.2)

    @pytest.fixture
    def load(self) -> object:
        return audio.load

    @pytest.fixture
    def config(self, tmp_path: Path) -> audio.Config:
        return audio.Config(str(fill(tmp_path / "data")), mels=12)


class TestRecordingsInOfficialParts(SourceContract):
    @pytest.fixture
    def load(self) -> object:
        return audio.load

    @pytest.fixture
    def config(self, tmp_path: Path) -> audio.Config:
        for start, (part, rows) in zip((0, 6, 8), (("train", 6), ("val", 2), ("test", 3)), strict=True):
            fill(tmp_path / "data" / part, rows, start)
        return audio.Config(str(tmp_path / "data"), mels=12)


class TestRecordingsThatATableNames(SourceContract):
    @pytest.fixture
    def load(self) -> object:
        return audio.load

    @pytest.fixture
    def config(self, tmp_path: Path) -> audio.Config:
        fill(tmp_path / "data" / "wavs")
        names = [path.relative_to(tmp_path / "data").as_posix() for path in sorted((tmp_path / "data").rglob("*.wav"))]
        table = pa.table({"clip": names, "word": [name.split("/")[1] for name in names], "speaker": [name[-6:-4] for name in names]})
        pyarrow.csv.write_csv(table, tmp_path / "data" / "clips.csv")
        return audio.Config(str(tmp_path / "data" / "clips.csv"), target="word", mels=12)


def test_a_folders_recordings_become_features_and_its_name_their_class(tmp_path: Path) -> None:
    raw = load(fill(tmp_path, rows=2), mels=12, rate=8_000)
    assert raw.table["label"].to_pylist() == ["high", "high", "low", "low", "middle", "middle"]
    [column] = raw.inputs
    assert (column.name, column.kind, column.shape, column.rate) == ("audio", "audio", (12,), 8_000)
    expected = log_mels((tmp_path / "low" / "01.wav").read_bytes(), 8_000, 12)
    assert np.array_equal(np.array(raw.table["audio"][3].as_py(), np.float32), expected)
    assert raw.official is None


def test_official_parts_are_kept_under_any_of_their_names(tmp_path: Path) -> None:
    for part, rows in (("Training", 4), ("dev", 2), ("test", 3)):
        fill(tmp_path / part, rows)
    raw = load(tmp_path)
    assert [int((raw.official == part).sum()) for part in ("train", "validation", "test")] == [12, 6, 9]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for label in ("bus", "train"):
        tone(tmp_path / label / "1.wav")
    raw = load(tmp_path)
    assert (raw.official, raw.table["label"].to_pylist()) == (None, ["bus", "train"])


def test_the_class_may_be_what_comes_first_in_a_files_name(tmp_path: Path) -> None:
    for name in ("yes_0012.wav", "no-3.WAV", "sub/yes_7.wav"):
        tone(tmp_path / name)
    assert load(tmp_path, label="name").table["label"].to_pylist() == ["no", "yes", "yes"]


def test_names_say_the_class_in_official_parts_too(tmp_path: Path) -> None:
    for name in ("train/yes_1.wav", "train/no_1.wav", "test/yes_2.wav"):
        tone(tmp_path / name)
    raw = load(tmp_path, label="name")
    assert raw.table["label"].to_pylist() == ["yes", "no", "yes"]
    assert raw.official.tolist() == ["test", "train", "train"]


def test_a_pattern_finds_the_class_and_the_speaker_whose_recordings_stay_together(tmp_path: Path) -> None:
    for row in range(60):
        tone(tmp_path / "data" / f"s{row // 6}-{('yes', 'no')[row % 2]}-{row}.wav", 300 + row, row)
    pattern = r"^(?P<speaker>s\d+)-(?P<label>[a-z]+)"
    config = audio.Config(str(tmp_path / "data"), label="name", pattern=pattern, mels=12)
    raw = audio.load(config)
    assert set(raw.table["label"].to_pylist()) == {"yes", "no"}
    assert raw.table["speaker"].to_pylist()[:2] == ["s0", "s0"]
    prepared = prepare("audio", audio.load, config, SplitConfig(by="group", column="speaker"), tmp_path / "cache")
    assert all(rows % 6 == 0 for rows in prepared.rows.values())
    assert [column.name for column in prepared.schema.inputs] == ["audio"]


def test_a_pattern_beside_class_folders_gives_the_speaker_only(tmp_path: Path) -> None:
    tone(tmp_path / "yes" / "0a7c_nohash_0.wav")
    raw = load(tmp_path, pattern=r"^(?P<speaker>\w+?)_nohash")
    assert raw.table.select(["speaker", "label"]).to_pylist() == [{"speaker": "0a7c", "label": "yes"}]


def test_a_table_may_hold_the_recordings_themselves_and_numbers_to_predict(tmp_path: Path) -> None:
    wavs = [tone(tmp_path / f"{row}.wav", 200 + 50 * row, row).read_bytes() for row in range(6)]
    pq.write_table(pa.table({"clip": wavs, "target": [row + 0.5 for row in range(6)]}), tmp_path / "clips.parquet")
    raw = load(tmp_path / "clips.parquet", mels=12)
    assert (raw.inputs[0].name, raw.target.name, raw.target.kind) == ("clip", "target", "number")
    assert np.array_equal(np.array(raw.table["clip"][5].as_py(), np.float32), log_mels(wavs[5], 16_000, 12))


def test_tables_for_the_parts_name_recordings_beside_them(tmp_path: Path) -> None:
    fill(tmp_path / "wavs", rows=2)
    for part, row in (("train", 0), ("test", 1)):
        lines = "".join(f"wavs/{label}/0{row}.wav,{label}\n" for label in PITCH)
        (tmp_path / f"{part}.csv").write_text("file,label\n" + lines)
    raw = load(tmp_path)
    assert raw.official.tolist() == ["test"] * 3 + ["train"] * 3 or raw.official.tolist() == ["train"] * 3 + ["test"] * 3
    assert len(audio.Config(str(tmp_path)).files()) == 2 + 6


def test_a_changed_recording_rate_or_number_of_bands_is_another_fingerprint(tmp_path: Path) -> None:
    folder = fill(tmp_path / "data", rows=5)

    def fingerprint(**options: Any) -> str:
        config = audio.Config(str(folder), mels=12, **options)
        return prepare("audio", audio.load, config, SplitConfig(train=0.6, validation=0.2, test=0.2), tmp_path / "cache").fingerprint

    first = fingerprint()
    assert fingerprint(rate=8_000) != first
    tone(folder / "low" / "00.wav", 1000)
    assert fingerprint() != first


def broken(folder: Path) -> None:
    fill(folder, rows=2)
    (folder / "low" / "00.wav").write_text("<html>not found</html>")


def short(folder: Path) -> None:
    tone(folder / "low" / "1.wav", seconds=0.01)


def foreign(folder: Path) -> None:
    fill(folder, rows=1)
    (folder / "low" / "a.MP3").write_bytes(b"ID3")


def loose(folder: Path) -> None:
    tone(folder / "1.wav")


def nothing(folder: Path) -> None:
    (folder / "notes.txt").write_text("")


def no_train(folder: Path) -> None:
    fill(folder / "test", rows=1)


def beside(folder: Path) -> None:
    fill(folder / "train", rows=1)
    fill(folder / "extra", rows=1)


def unknown_class(folder: Path) -> None:
    fill(folder / "train", rows=1)
    tone(folder / "test" / "odd" / "1.wav")


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (broken, {}, "'low/00.wav': no WAV file; replace it or take it out"),
        (short, {}, "'low/1.wav': 10 ms long; a step of the features takes 25 ms; replace it or take it out"),
        (foreign, {}, "a.MP3' can't be read; convert it to WAV, or take it out"),
        (loose, {}, "'1.wav' lies in no folder of a class; move it into one, or set data.label: name"),
        (loose, {"label": "name", "pattern": "^([a-z]+)"}, r"'1.wav': the pattern '\^\(\[a-z\]\+\)' is not in its name; rename it or set"),
        (loose, {"label": "name", "pattern": "1"}, "the pattern '1' has no group for the class"),
        (loose, {"label": "name", "pattern": "("}, r"'\(' is no regular expression"),
        (nothing, {}, "holds no WAV file but: notes.txt; set data.path to where they are"),
        (no_train, {}, "has test/ but no train/; add it"),
        (beside, {}, "extra' lies beside train/; move what it holds into a part"),
        (unknown_class, {}, r"class 'odd' is in test/ \('test/odd/1.wav'\) but not in train/"),
        (loose, {"mels": 200}, "200 bands are too many at 16000 samples a second"),
    ],
)
def test_a_folder_that_can_t_be_used_says_why(make: Any, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=says):
        load(tmp_path, **options)


@pytest.mark.parametrize(
    ("text", "options", "says", "key"),
    [
        (
            "file,label\na.wav,x\nb.wav,y\n",
            {},
            r"'t.csv', column 'file', row 1: no file 'b.wav' in '.*' \(No such file or directory\); replace it",
            "data.path",
        ),
        ("file,label\na.wav,x\n,y\n", {}, "'t.csv', column 'file', row 1: it is missing", "data.path"),
        ("file,label\na.wav,x\na.wav,\n", {}, "'t.csv', column 'label', row 1: the label is missing", "data.path"),
        ("file,word\na.wav,x\n", {}, "name the column to predict; the columns are: file, word", "data.target"),
        ("file,word\na.wav,x\n", {"target": "label"}, "no column 'label'; the columns are: file, word", "data.target"),
        ("name,label\na,x\n", {}, "no column holds WAV files' names or bytes; name it in data.file", "data.file"),
        ("one,two,label\na.wav,a.wav,x\n", {}, "both 'one' and 'two' hold WAV files; name it in data.file", "data.file"),
        ("file,label\na.wav,x\n", {"file": "clip"}, "no column 'clip'; the columns are: file, label", "data.file"),
    ],
)
def test_a_table_that_can_t_be_used_says_why(text: str, options: dict[str, Any], says: str, key: str, tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        load(tmp_path / "t.csv", **options)
    assert caught.value.key == key


def test_one_recording_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is one recording; give the folder that holds all of them, or a table that names them"):
        load(tone(tmp_path / "a.wav"))


def test_an_lstm_learns_to_tell_tones_apart(tmp_path: Path) -> None:
    config = audio.Config(str(fill(tmp_path / "data", rows=15)), mels=12)
    prepared = prepare("audio", audio.load, config, SplitConfig(train=0.6, validation=0.2, test=0.2), tmp_path / "cache")
    torch.manual_seed(0)
    assert LSTM.misfit(prepared.schema) is None
    net = LSTM(LSTM.Config(hidden=16), prepared.schema)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    shuffled = batches.Batches(batches.load(prepared, "train"), 9, seed=0)
    for epoch in range(1, 6):
        for step in shuffled.epoch(epoch):
            batch = prepared.encoder.tensors(step.pieces[0])
            optimizer.zero_grad()
            net.loss(net(batch), batch).mean().backward()
            optimizer.step()
    net.eval()
    test = prepared.encoder.tensors(batches.load(prepared, "test").rows(slice(None)))
    assert (net(test).argmax(1) == test["label"]).float().mean() == 1
