"""Texts -> words -> codes, by a tokenizer that has read the training rows only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from torch import Tensor

from ..ragged import Ragged
from ..schema import Column
from .arrow import is_text
from .column import Errors

PADDING, UNKNOWN = "[PAD]", "[UNK]"  # codes 0 and 1
MOST_WORDS = 30_000  # of a vocabulary, where the column doesn't say
LEAST_ROWS = 2  # a word must come so often in training; rarer ones teach what an unknown word is worth
AT_ONCE = 4096  # texts


@dataclass
class TextEncoder:
    """Texts -> codes of words [T] int32: lower case, split at spaces and punctuation; padding is 0, a word not seen in training 1.

    A missing text is an empty one, and an empty one has no words; both get an answer. `tokenizer`: as the Hugging Face library
    writes it (https://huggingface.co/docs/tokenizers).
    """

    column: Column
    tokenizer: Mapping[str, Any]
    _made: list[Any] = field(default_factory=list, repr=False, compare=False)

    kind: ClassVar[str] = "text"
    requires: ClassVar[tuple[str, ...]] = ("tokenizers",)

    @classmethod
    def fit(cls, column: Column, raw: pa.ChunkedArray) -> TextEncoder:
        """From the training rows. The column's `vocabulary` is the most codes before, the codes that there are after."""
        from tokenizers import trainers

        made = _untrained()
        trainer = trainers.WordLevelTrainer(
            vocab_size=column.vocabulary or MOST_WORDS, min_frequency=LEAST_ROWS, special_tokens=[PADDING, UNKNOWN], show_progress=False
        )
        made.train_from_iterator(_some(raw), trainer, length=len(raw))
        return cls(replace(column, vocabulary=made.get_vocab_size()), json.loads(made.to_str()))

    def array(self, raw: pa.ChunkedArray, folder: Path | None = None) -> tuple[Ragged, Errors]:
        """Codes of each row's words. Numbers are the texts that they are written as: a CSV of '12' and '13.5' holds numbers."""
        if pa.types.is_integer(raw.type) or pa.types.is_floating(raw.type):
            raw = raw.cast(pa.string())
        if not (is_text(raw.type) or pa.types.is_null(raw.type)):
            return Ragged.of(np.zeros(0, np.int32), np.zeros(len(raw), np.int64)), dict.fromkeys(range(len(raw)), f"{raw.type} is no text")
        if not self._made:
            from tokenizers import Tokenizer

            self._made.append(Tokenizer.from_str(json.dumps(self.tokenizer)))
            self._made[0].encode_special_tokens = True  # a text that holds '[PAD]' holds a word like others
        codes, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for texts in _some(raw):
            found = [encoding.ids for encoding in self._made[0].encode_batch_fast(texts, add_special_tokens=False)]
            lengths.append(np.array([len(ids) for ids in found], np.int64))
            codes.append(np.fromiter((code for ids in found for code in ids), np.int32, int(lengths[-1].sum())))
        return Ragged.of(np.concatenate(codes), np.concatenate(lengths)), {}

    def tensor(self, batch: Tensor, sizes: Tensor | None = None) -> Tensor:
        """[B, T] int64."""
        return batch.long()

    def example(self, raw: pa.ChunkedArray) -> pa.Array:
        return pa.array([text or "" for text in raw.to_pylist()], pa.string())

    def to_plain(self) -> dict[str, Any]:
        return {"tokenizer": dict(self.tokenizer)}

    @classmethod
    def from_plain(cls, column: Column, data: Mapping[str, Any]) -> TextEncoder:
        return cls(column, data["tokenizer"])


def _untrained() -> Any:
    """A word-level tokenizer: compatible characters unified, control characters dropped, lower case, punctuation split off."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    made = Tokenizer(models.WordLevel({}, unk_token=UNKNOWN))
    bert = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True)
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), bert])
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def _some(raw: pa.ChunkedArray) -> Iterator[list[str]]:
    """Texts, some at a time; a missing one is empty."""
    for start in range(0, len(raw), AT_ONCE):
        yield [text or "" for text in raw.slice(start, AT_ONCE).to_pylist()]
