"""The LSTMs keep the contract in every form; padding changes nothing; both directions are what packing gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from models.lstm import LSTM, LSTMRegression
from models.metrics import MAE, RMSE
from orchestrator.training.evaluation import Evaluation
from orchestrator.training.loop import Settings, Training
from orchestrator.training.optim import Adam
from pipelines import batches
from pipelines.prepare import prepare
from pipelines.raw import Raw
from pipelines.schema import Column, Schema
from pipelines.sources import hmm
from pipelines.splits import SplitConfig
from tests.contracts.family_contract import Batch, FamilyContract

LABEL, NUMBER = Column("label", "class", dtype="str"), Column("y", "number", mean=100.0, std=20.0)
TEXT, SEQUENCE = Column("x", "text", dtype="str", vocabulary=20), Column("x", "sequence", (3,))
LENGTHS = torch.tensor([5, 1, 7, 3, 7, 2, 4, 6])


def schema_of(column: Column, target: Column = LABEL) -> Schema:
    return Schema((column,), target, ("a", "b", "c") if target is LABEL else (), (5, 6, 7) if target is LABEL else ())


def batch_of(column: Column, target: Column = LABEL, lengths: Tensor = LENGTHS, seed: int = 0) -> Batch:
    """Rows of these lengths, padded as the data's are."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), int(lengths.max()))
    inside = torch.arange(shape[1]) < lengths[:, None]
    if column.kind == "sequence":
        values = torch.randn(*shape, *column.shape, generator=generator) * inside[..., None]
    else:
        values = torch.randint(1, column.vocabulary, shape, generator=generator) * inside
    answers = torch.arange(len(lengths)) % 3
    return {"x": values, "x.sizes": lengths[:, None], target.name: answers if target is LABEL else 100.0 + 20 * answers.double()}


def net_of(family: Any, column: Column, target: Column = LABEL, **options: Any) -> Any:
    torch.manual_seed(0)
    return family(family.Config(**{"hidden": 6, "embedding": 5, **options}), schema_of(column, target)).eval()


class LSTMContract(FamilyContract):
    family = LSTM
    column = TEXT
    target = LABEL
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def config(self) -> Any:
        return self.family.Config(**{"hidden": 6, "embedding": 5, **self.options})

    @pytest.fixture
    def schema(self) -> Schema:
        return schema_of(self.column, self.target)

    @pytest.fixture
    def batch(self) -> Batch:
        return batch_of(self.column, self.target)


class TestDefaultOnText(LSTMContract):
    @pytest.fixture
    def config(self) -> Any:
        return LSTM.Config()


class TestStackedBothWaysOnText(LSTMContract):
    options: ClassVar = {
        "layers": 2,
        "bidirectional": True,
        "dropout": 0.2,
        "word_dropout": 0.1,
        "feature_dropout": 0.1,
        "label_smoothing": 0.1,
    }


class TestMeanOnSymbols(LSTMContract):
    column = Column("x", "symbols", vocabulary=20)
    options: ClassVar = {"pooling": "mean", "class_weights": "balanced", "bidirectional": True}


class TestMaxOnSequences(LSTMContract):
    column = SEQUENCE
    options: ClassVar = {"pooling": "max", "bidirectional": True, "word_dropout": 0.1, "feature_dropout": 0.1}


class TestCutOffSequences(LSTMContract):
    column = SEQUENCE
    options: ClassVar = {"max_length": 4, "layers": 2}


class TestNumbersOfSequences(LSTMContract):
    family = LSTMRegression
    column = SEQUENCE
    target = NUMBER


class TestNumbersOfTextsBothWays(LSTMContract):
    family = LSTMRegression
    target = NUMBER
    options: ClassVar = {"bidirectional": True, "layers": 2, "pooling": "mean", "dropout": 0.1}


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("column", [TEXT, SEQUENCE], ids=["text", "sequence"])
def test_padding_changes_nothing_whatever_lies_in_it(pooling: str, bidirectional: bool, column: Column) -> None:
    net = net_of(LSTM, column, pooling=pooling, bidirectional=bidirectional, layers=2)
    batch = batch_of(column)
    rubbish = torch.full((len(LENGTHS), 30, *batch["x"].shape[2:]), 9, dtype=batch["x"].dtype)
    outside = (torch.arange(7) >= LENGTHS[:, None])[(..., *[None] * (batch["x"].ndim - 2))]
    longer = torch.cat([torch.where(outside, rubbish[:, :7], batch["x"]), rubbish], 1)
    with torch.inference_mode():
        together = net({"x": longer, "x.sizes": batch["x.sizes"]})
        alone = torch.cat([net({"x": batch["x"][row : row + 1, :length], "x.sizes": batch["x.sizes"][row : row + 1]})
                           for row, length in enumerate(LENGTHS.tolist())])  # fmt: skip
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_both_directions_are_those_of_a_packed_bidirectional_lstm(layers: int) -> None:
    net = net_of(LSTM, SEQUENCE, bidirectional=True, layers=layers)
    packed = nn.LSTM(3, 6, num_layers=layers, bidirectional=True, batch_first=True)
    weights = {}
    for layer in range(layers):
        for suffix, direction in (("", net.forwards[layer]), ("_reverse", net.backwards[layer])):
            weights |= {f"{name[:-1]}{layer}{suffix}": value for name, value in direction.state_dict().items()}
    packed.load_state_dict(weights)
    batch = batch_of(SEQUENCE)
    with torch.inference_mode():
        given = nn.utils.rnn.pack_padded_sequence(batch["x"], LENGTHS, batch_first=True, enforce_sorted=False)
        last = packed(given)[1][0][-2:]  # of the last layer: [2, B, hidden]
        assert torch.allclose(net(batch), net.head(torch.cat([last[0], last[1]], 1)), atol=1e-6)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_row_without_steps_gets_an_answer_and_a_gradient(pooling: str, bidirectional: bool) -> None:
    net = net_of(LSTM, TEXT, pooling=pooling, bidirectional=bidirectional).train()
    batch = batch_of(TEXT, lengths=torch.tensor([0, 4, 0]))
    outputs = net(batch)
    assert torch.allclose(outputs[0], net.head.bias)
    net.loss(outputs, batch).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    nothing = batch_of(TEXT, lengths=torch.tensor([1, 1])) | {"x.sizes": torch.zeros(2, 1, dtype=torch.int64)}
    assert torch.isfinite(net(nothing)).all()


def test_steps_beyond_the_longest_length_are_left_out() -> None:
    cut, whole = (net_of(LSTM, SEQUENCE, max_length=length, pooling="mean") for length in (4, None))
    batch = batch_of(SEQUENCE)
    with torch.inference_mode():
        assert torch.equal(cut(batch), whole({"x": batch["x"][:, :4], "x.sizes": batch["x.sizes"].clamp_max(4)}))
        assert not torch.allclose(cut(batch), whole(batch))


@pytest.mark.parametrize("option", ["dropout", "word_dropout", "feature_dropout"])
@pytest.mark.parametrize("column", [TEXT, SEQUENCE], ids=["text", "sequence"])
def test_dropout_acts_in_training_only(option: str, column: Column) -> None:
    net, plain, batch = net_of(LSTM, column, **{option: 0.5}), net_of(LSTM, column), batch_of(column)
    assert torch.equal(net(batch), plain(batch))
    assert not torch.allclose(net.train()(batch), plain(batch))


def test_dropped_words_count_as_unknown_and_padding_stays_padding() -> None:
    net = net_of(LSTM, TEXT, word_dropout=0.999999).train()
    batch = batch_of(TEXT)
    unknown = {**batch, "x": (batch["x"] > 0).long()}
    assert torch.equal(net._dropped(batch["x"]), net.embedding(unknown["x"]))


def test_a_dropped_feature_is_gone_from_all_steps_of_its_row() -> None:
    net = net_of(LSTM, SEQUENCE, feature_dropout=0.5).train()
    gone = net._dropped(torch.ones(50, 9, 3)) == 0
    assert torch.equal(gone, gone[:, :1].expand(-1, 9, -1))
    assert 0.2 < gone.float().mean() < 0.8


def test_numbers_are_answered_in_the_target_s_own_units() -> None:
    net, batch = net_of(LSTMRegression, SEQUENCE, NUMBER), batch_of(SEQUENCE, NUMBER)
    standardised = torch.tensor([0.0, 1.0, -2.0])
    assert net.decode(standardised, batch)["prediction"].tolist() == [100.0, 120.0, 60.0]
    exact = (batch["y"] - 100) / 20
    assert net.loss(exact.float(), batch).abs().max() < 1e-10
    assert net.loss(exact.float() + 1, batch).tolist() == pytest.approx([1.0] * 8)


def test_the_baseline_of_numbers_is_the_mean() -> None:
    net, batch = net_of(LSTMRegression, SEQUENCE, NUMBER), batch_of(SEQUENCE, NUMBER)
    guessed = net.baseline(batch)
    assert net.decode(guessed, batch)["prediction"].tolist() == [100.0] * 8
    errors = (batch["y"] - 100).abs()
    for metric, expected in ((RMSE(), errors.square().mean().sqrt()), (MAE(), errors.mean())):
        assert metric.value(metric.sums(guessed, batch, net.schema)) == pytest.approx(float(expected))


def test_what_it_cannot_learn_is_said_with_what_can() -> None:
    assert LSTM.misfit(schema_of(TEXT, NUMBER)) == "its target is a class; for a number take lstm-regression"
    assert LSTMRegression.misfit(schema_of(TEXT)) == "its target is a number; for a class take lstm"
    assert LSTM.misfit(Schema((TEXT, SEQUENCE), LABEL, ("a", "b"))) == "it takes one column of texts, symbols or sequences"


@pytest.mark.parametrize("options", [{"hidden": 0}, {"layers": 0}, {"pooling": "first"}, {"dropout": 1.0}, {"max_length": 0}])
def test_options_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(LSTM.Config).validate_python(options)


def longer_in_test(config: hmm.Config) -> Raw:
    """The two Markov models' sequences, those to test four times as long as any to train on."""
    lengths = {"train": config.length, "validation": config.length, "test": 4 * config.length}
    rows = {"train": config.rows, "validation": 200, "test": 400}
    raws = [hmm.load(hmm.Config(rows[part], lengths[part], seed=seed)) for seed, part in enumerate(lengths)]
    parts = np.repeat(list(rows), [raw.table.num_rows for raw in raws])
    return Raw(pa.concat_tables([raw.table for raw in raws]), raws[0].inputs, raws[0].target, parts)


@pytest.mark.slow
def test_what_was_learned_on_short_sequences_holds_on_longer_ones(tmp_path: Path) -> None:
    prepared = prepare("longer", longer_in_test, hmm.Config(rows=6000), SplitConfig(), tmp_path)
    rows = {part: batches.load(prepared, part) for part in ("train", "validation", "test")}
    longest = {part: int(held["sequence"].sizes.max()) for part, held in rows.items()}  # type: ignore[union-attr]
    assert longest == {"train": 16, "validation": 16, "test": 64}
    torch.manual_seed(0)
    net, shuffled = LSTM(LSTM.Config(embedding=16, hidden=32), prepared.schema), batches.Batches(rows["train"], 64, seed=0)
    optimizer = (Adam, Adam.Config(lr=1e-2, schedule="onecycle"))
    training = Training(net, prepared.encoder, shuffled, rows["validation"], optimizer, Settings(5, 64, seed=0))
    while not training.finished:
        training.run_epoch()
    evaluate = Evaluation(net, prepared.encoder)
    assert evaluate(rows["validation"], "val")["val_accuracy"] > 0.8
    assert evaluate(rows["test"], "test")["test_accuracy"] > 0.9, "chance is 0.5, and a longer sequence tells more than a short one"
