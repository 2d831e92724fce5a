"""Recordings -> features: the same sound gives the same features whatever its file is like, in training and in serving."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from pipelines.encode import Encoder
from pipelines.encode.audio import AudioEncoder, check_bands, log_mels, read_wav
from pipelines.ragged import in_memory, take
from pipelines.schema import Column, DataError, Schema

BANDS = 20
COLUMN = Column("audio", "audio", (BANDS,), rate=16_000)


def wav(hz: float = 500, rate: int = 16_000, subtype: str = "PCM_16", channels: int = 1, seconds: float = 0.5, gain: float = 0.4) -> bytes:
    """A tone as a WAV file."""
    samples = gain * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return written(np.stack([samples] * channels, 1), rate, subtype)


def written(samples: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16") -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate, subtype=subtype, format="WAV")
    return sink.getvalue()


def encoder(column: Column = COLUMN) -> AudioEncoder:
    """Fitted on two tones."""
    features = [log_mels(wav(hz), column.rate, column.shape[0]).tolist() for hz in (300, 900)]
    return AudioEncoder.fit(column, pa.chunked_array([features]))


def cells(values: list[Any], folder: Path | None = None, kind: pa.DataType | None = None) -> tuple[list[np.ndarray], dict[int, str]]:
    """What an encoder makes of a column, row by row, and its errors."""
    found, errors = encoder().array(pa.chunked_array([pa.array(values, kind)]), folder)
    return [rows.numpy() for rows in torch.split(found.values, found.cells.tolist())], errors


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_same_tone_gives_nearly_the_same_features_at_any_rate_depth_and_number_of_channels(
    rate: int, subtype: str, channels: int
) -> None:
    expected, found = log_mels(wav(1000), 16_000, BANDS), log_mels(wav(1000, rate, subtype, channels), 16_000, BANDS)
    assert abs(len(found) - len(expected)) <= 1
    inner = slice(3, len(expected) - 3)  # resampling rings at both ends
    loud = expected[inner] > expected.max() - 4
    assert loud.any(1).all()
    assert np.abs(found[inner] - expected[inner])[loud].max() < 0.05


def test_features_have_a_step_every_10_ms_and_the_loudest_band_follows_the_pitch() -> None:
    found = [log_mels(wav(hz, seconds=1.0), 16_000, BANDS) for hz in (200, 600, 1800, 5000)]
    assert {(array.shape, array.dtype.name) for array in found} == {((98, BANDS), "float32")}
    loudest = [int(array.mean(0).argmax()) for array in found]
    assert loudest == sorted(set(loudest))


def test_features_are_logarithms_of_energies_and_silence_their_least() -> None:
    found = log_mels(written(np.zeros(16_000)), 16_000, BANDS)
    assert np.allclose(found, np.log(np.finfo(np.float32).eps))
    quiet, loud = (log_mels(wav(gain=gain, subtype="FLOAT"), 16_000, BANDS) for gain in (0.2, 0.4))
    top = loud > loud.max() - 4
    assert np.allclose((loud - quiet)[top], np.log(4), atol=1e-3)  # energies: the square of twice the amplitude


def test_the_same_file_always_gives_the_same_features() -> None:
    assert np.array_equal(log_mels(wav(), 16_000, BANDS), log_mels(wav(), 16_000, BANDS))


def test_stereo_is_the_mean_of_its_channels() -> None:
    rng = np.random.default_rng(0)
    both = rng.uniform(-0.5, 0.5, (4000, 2))
    samples, rate = read_wav(written(both, 8_000, "FLOAT"))
    assert rate == 8_000
    assert np.allclose(samples, both.mean(1), atol=1e-6)


def test_bytes_names_base64_features_and_their_json_are_encoded_alike(tmp_path: Path) -> None:
    data = wav(700, 22_050, "PCM_24", 2)
    (tmp_path / "a.WAV").write_bytes(data)
    features = log_mels(data, 16_000, BANDS)
    given = {
        "bytes": [data],
        "large bytes": pa.array([data], pa.large_binary()),
        "struct": [{"bytes": data, "path": None}],
        "name": ["a.WAV"],
        "base64": [base64.b64encode(data).decode()],
        "lists": [features.tolist()],
        "json": [json.dumps(features.tolist())],
    }
    for form, values in given.items():
        [found], errors = cells(values, tmp_path)
        assert errors == {}, form
        assert np.array_equal(found, features), form


def test_names_are_read_only_where_a_folder_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav())
    assert cells(["a.wav"])[1] == {0: "the name of a file, 'a.wav'; give the file's bytes"}
    assert cells(["b.wav"], tmp_path)[1] == {0: f"no file 'b.wav' in '{tmp_path}' (No such file or directory)"}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "it is missing"),
        (b"", "it is missing"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "no WAV file"),
        (wav()[:40], r"a WAV file that can't be read \(Error in WAV file. No 'data' chunk marker\)"),
        (written(np.zeros(0)), "0 ms long; a step of the features takes 25 ms"),
        (wav(seconds=0.02), "20 ms long; a step of the features takes 25 ms"),
        (written(np.array([0.1, np.nan] * 4000), subtype="FLOAT"), "it holds NaN or infinity"),
        (
            wav()[:34] + (40).to_bytes(2, "little") + wav()[36:],
            r"a WAV file that can't be read \(.* unimplemented format\); PCM of 8, 16, 24 or 32 bits can",
        ),
        (wav(rate=1_000), "1000 samples a second; from 4000 to 384000 are taken"),
    ],
    ids=["null", "empty", "a picture", "cut off", "no samples", "short", "NaN", "40 bits", "slow"],
)
def test_what_is_no_recording_is_an_error_of_its_row(value: bytes | None, says: str) -> None:
    found, errors = cells([wav(), value, wav()])
    assert [*errors] == [1]
    assert re.fullmatch(says + ".*", errors[1])
    assert [len(rows) for rows in found] == [48, 0, 48]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("hello", r"text ('hello') that is neither a WAV file's name, nor one in base64, nor a list of features"),
        ("[[1, 2]]", "step 0 holds 2 values; it must hold 20"),
    ],
)
def test_text_that_is_no_recording_is_an_error_of_its_row(value: str, says: str) -> None:
    assert cells([value])[1][0].startswith(says)


def test_tensors_are_normalised_by_the_training_rows_and_padded_with_zeros() -> None:
    made = encoder()
    long, short = wav(300), wav(900, seconds=0.2)
    batch = take(in_memory({"audio": made.array(pa.chunked_array([[long, short]]))[0]}), torch.arange(2))
    tensor = made.tensor(batch["audio"], batch["audio.sizes"])
    assert tensor.shape == (2, 48, BANDS)
    assert batch["audio.sizes"].tolist() == [[48], [18]]
    features = torch.from_numpy(log_mels(long, 16_000, BANDS))
    assert torch.allclose(tensor[0], (features - torch.tensor(made.mean)) / torch.tensor(made.std), atol=1e-4)
    assert tensor[1, 18:].abs().max() == 0


def test_rate_and_bands_travel_through_json() -> None:
    column = Column("audio", "audio", (12,), rate=8_000)
    features = [log_mels(wav(hz), 8_000, 12).tolist() for hz in (300, 900)]
    made = Encoder.fit((column,), Column("label", "class"), pa.table({"audio": features, "label": ["a", "b"]}))
    schema, plain = json.loads(json.dumps([made.schema.to_plain(), made.to_plain()]))
    again = Encoder.from_plain(Schema.from_plain(schema), plain)
    table = pa.table({"audio": [wav(rate=44_100)]})
    one, two = (e.arrays(table, ["audio"])[0]["audio"] for e in (made, again))
    assert one.values.shape == (48, 12)
    assert torch.equal(one.values, two.values)
    assert torch.equal(made.tensors({"audio": one.values[None]})["audio"], again.tensors({"audio": two.values[None]})["audio"])


def test_an_example_is_text_as_a_recording_in_base64_is() -> None:
    [example] = encoder().example(pa.chunked_array([[wav()]])).to_pylist()
    [found, same], errors = cells([example, base64.b64encode(wav()).decode()])
    assert errors == {}
    assert np.array_equal(found, same)


def test_more_bands_than_a_rate_can_tell_apart_are_refused() -> None:
    check_bands(8_000, 80)
    with pytest.raises(DataError, match="128 bands are too many at 8000 samples a second; 40 are usual") as caught:
        check_bands(8_000, 128)
    assert caught.value.key == "data.mels"


def test_a_recording_that_was_cut_off_is_no_shorter_recording() -> None:
    made = io.BytesIO()
    soundfile.write(made, np.zeros(8000), 8000, format="WAV", subtype="PCM_16")
    whole = made.getvalue()
    with pytest.raises(DataError, match="cut off: 8000 bytes are missing"):
        read_wav(whole[:-8000])
    assert len(read_wav(whole)[0]) == 8000
    streamed = whole[:40] + b"\xff\xff\xff\xff" + whole[44:]  # a header that was written before the length was known
    assert len(read_wav(streamed)[0]) > 0
