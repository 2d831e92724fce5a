"""Recordings -> log-mel features -> normalised tensors: WAV files as bytes or by name, or the features themselves."""

from __future__ import annotations

import base64
import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ..ragged import Ragged
from ..schema import DataError
from .arrow import is_bytes, is_list, is_text
from .column import MISSING, Errors
from .sequences import SequenceEncoder, sequence_array

SUFFIX = ".wav"
RATES = (4_000, 384_000)  # samples a second that are believed
FRAME_MS, STEP_MS = 25, 10  # a step of the features: a window of 25 ms, every 10 ms


@dataclass
class AudioEncoder(SequenceEncoder):
    """Recordings [T, mels]: WAV files' bytes (in base64 too), their names where a folder is given, or lists of features.

    The column's `rate` says to how many samples a second they are brought, its shape (mels,) how many channels the features have.
    `mean`, `std`: of each channel over all steps of the training rows.
    """

    kind: ClassVar[str] = "audio"
    requires: ClassVar[tuple[str, ...]] = ("soundfile", "soxr", "kaldi-native-fbank")

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[Ragged, Errors]:
        """Cells [T, mels] float32 a row; rows that don't fit have no cells. File names are read only where `folder` says from where."""
        if pa.types.is_struct(raw.type) and raw.type.get_field_index("bytes") >= 0:  # as Hugging Face's datasets store recordings
            raw = pc.struct_field(raw, "bytes")
        if is_list(raw.type):
            return super().array(raw, folder)
        rows, errors = [], Errors()
        for row, value in enumerate(raw):
            try:
                rows.append(self._row(value.as_py(), folder))
            except DataError as error:
                rows.append(np.zeros((0, *self.column.shape), np.float32))
                errors[row] = str(error)
        return Ragged.from_rows(rows, 1, np.zeros((0, *self.column.shape), np.float32)), errors

    def example(self, raw: pa.ChunkedArray) -> pa.Array:
        """Features as JSON's lists in text: of text, too, is a WAV file in base64, so that a model that takes the one takes the other."""
        found, _ = self.array(raw)
        rows = torch.split(found.values, found.cells.tolist())
        texts = [", ".join(f"[{', '.join(step)}]" for step in row.numpy().astype(str)) for row in rows]
        return pa.array([f"[{text}]" for text in texts], pa.string())

    def _row(self, value: Any, folder: Path | None) -> np.ndarray:
        if isinstance(value, str) and value.lstrip().startswith("["):
            found, errors = sequence_array(pa.array([value]), self.column.shape[0])
            if errors:
                raise DataError(errors[0])
            return found.values.numpy()
        return log_mels(wav_bytes(value, folder), self.column.rate, self.column.shape[0])


def holds_audio(raw: pa.ChunkedArray) -> bool:
    """Whether a column's first values are WAV files' bytes or names."""
    if pa.types.is_struct(raw.type) and raw.type.get_field_index("bytes") >= 0:
        raw = pc.struct_field(raw, "bytes")
    first = raw.slice(0, 100).drop_null().to_pylist()
    if not first or not (is_bytes(raw.type) or is_text(raw.type)):
        return False
    return all(_is_wav(value) if isinstance(value, bytes) else value.lower().endswith(SUFFIX) for value in first)


def wav_bytes(value: Any, folder: Path | None = None) -> bytes:
    """A WAV file as it comes in a table: its bytes, these in base64, or its name relative to `folder`. Raises DataError."""
    if value is None or value in ("", b""):
        raise DataError(MISSING)
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise DataError(f"{type(value).__name__} is neither a WAV file nor a list of features")
    if value.lower().endswith(SUFFIX):
        if folder is None:
            raise DataError(f"the name of a file, '{value}'; give the file's bytes")
        try:
            return (folder / value).read_bytes()
        except OSError as error:
            raise DataError(f"no file '{value}' in '{folder}' ({error.strerror})") from None
    with contextlib.suppress(ValueError):
        if _is_wav(data := base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)):
            return data
    raise DataError(f"text ('{value[:20]}') that is neither a WAV file's name, nor one in base64, nor a list of features")


def _is_wav(data: bytes) -> bool:
    return data[:4] in (b"RIFF", b"RIFX", b"RF64") and data[8:12] == b"WAVE"


def read_wav(data: bytes) -> tuple[np.ndarray, int]:
    """(samples of all channels' mean [n] float32, between -1 and 1 unless they are floats beyond; samples a second).

    Any bit depth that libsndfile reads (http://libsndfile.github.io/libsndfile/formats.html). Raises DataError.
    """
    import soundfile

    if not _is_wav(data):
        raise DataError("no WAV file" if data else "it is empty")
    lacking = _cut_off(data)
    if lacking:
        raise DataError(f"a WAV file that was cut off: {lacking} bytes are missing; get it again")
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        says = str(error).partition(">: ")[2] or str(error)  # without the address of a BytesIO
        raise DataError(f"a WAV file that can't be read ({says.rstrip('.')}); PCM of 8, 16, 24 or 32 bits can") from None
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"{rate} samples a second; from {RATES[0]} to {RATES[1]} are taken")
    if not np.isfinite(samples).all():
        raise DataError("it holds NaN or infinity")
    return np.ascontiguousarray(samples.mean(1, dtype=np.float32)), int(rate)


def _cut_off(data: bytes) -> int:
    """Bytes of samples that the header promises and the file hasn't got; a stream's header, which promises none or all, says nothing."""
    order: Any = "big" if data[:4] == b"RIFX" else "little"
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], order)
        if data[at : at + 4] == b"data":
            return 0 if size in (0, 0xFFFFFFFF) else max(0, at + 8 + size - len(data))
        at += 8 + size + size % 2
    return 0


def log_mels(data: bytes, rate: int, mels: int) -> np.ndarray:
    """A WAV file -> [T, mels] float32: logarithms of the energies in `mels` bands, a step every 10 ms. Raises DataError.

    Resampled by soxr to `rate`; bands and windows as Kaldi's (https://kaldi-asr.org/doc/feat.html), without dither: the same file
    always gives the same features. Silence is log(1.2e-7) = -15.9.
    """
    import kaldi_native_fbank
    import soxr

    samples, own = read_wav(data)
    if own != rate:
        samples = soxr.resample(samples, own, rate)
    made = kaldi_native_fbank.OnlineFbank(_options(rate, mels))
    made.accept_waveform(rate, samples)
    made.input_finished()
    if made.num_frames_ready == 0:
        raise DataError(f"{1000 * len(samples) / rate:.0f} ms long; a step of the features takes {FRAME_MS} ms")
    return np.stack([made.get_frame(step) for step in range(made.num_frames_ready)])


def _options(rate: int, mels: int) -> Any:
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither = rate, 0
    options.frame_opts.frame_length_ms, options.frame_opts.frame_shift_ms = FRAME_MS, STEP_MS
    options.mel_opts.num_bins = mels
    return options


def check_bands(rate: int, mels: int) -> None:
    """Raise DataError where so many bands can't be told apart at a rate."""
    import kaldi_native_fbank

    try:
        kaldi_native_fbank.OnlineFbank(_options(rate, mels)).accept_waveform(rate, np.zeros(rate, np.float32))
    except ValueError:
        raise DataError(f"{mels} bands are too many at {rate} samples a second; 40 are usual", "data.mels") from None
