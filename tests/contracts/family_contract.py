"""What every family keeps, ours and a user's: subclass FamilyContract, name `family`, give the fixtures `config`, `schema`, `batch`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from models.family import Family
from models.metrics import METRICS
from orchestrator import names
from pipelines.schema import Column, Schema

Batch = dict[str, Tensor]


def rows(batch: Any, chosen: slice) -> Any:
    """Some rows of a batch, or of outputs."""
    return {name: values[chosen] for name, values in batch.items()} if isinstance(batch, dict) else batch[chosen]


def count(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def joined(parts: list[Any]) -> Any:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if isinstance(parts[0], dict) else torch.cat(parts)


def close(one: Any, two: Any, tolerance: float = 0.0) -> bool:
    """Whether outputs are equal, or nearly."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(close(one[name], two[name], tolerance) for name in one)
    return torch.equal(one, two) if tolerance == 0 else torch.allclose(one, two, atol=tolerance, equal_nan=True)


def inputs_of(net: Family, batch: Batch) -> Batch:
    """A batch as it comes in serving."""
    return {name: values for name, values in batch.items() if name.removesuffix(".sizes") in {column.name for column in net.schema.inputs}}


class FamilyContract:
    """`config`: an instance of its Config; `schema`: of data that it fits; `batch`: 6 or more encoded rows, target included."""

    family: type[Family]
    tolerance = 1e-5  # between a row's outputs in batches of different sizes

    @pytest.fixture
    def config(self) -> Any:
        return self.family.Config()

    @pytest.fixture
    def schema(self) -> Schema:
        raise NotImplementedError("give the fixture `schema`")

    @pytest.fixture
    def batch(self) -> Batch:
        raise NotImplementedError("give the fixture `batch`")

    @pytest.fixture
    def net(self, config: Any, schema: Schema) -> Family:
        torch.manual_seed(0)
        return self.family(config, schema)

    def test_its_config_is_a_frozen_dataclass_with_a_default_for_every_option(self, config: Any) -> None:
        assert isinstance(config, self.family.Config)
        assert self.family.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert TypeAdapter(self.family.Config).validate_python({}) == self.family.Config()

    def test_its_config_is_plain_data(self, config: Any) -> None:
        adapter = TypeAdapter(self.family.Config)
        assert adapter.validate_json(adapter.dump_json(config)) == config
        assert set(adapter.json_schema()["properties"]) == {f.name for f in dataclasses.fields(config)}

    def test_each_row_has_an_output_and_a_loss(self, net: Family, batch: Batch) -> None:
        for mode in (True, False):
            outputs = net.train(mode)(batch)
            loss = net.loss(outputs, batch)
            assert loss.shape == (count(batch),)
            assert loss.dtype == torch.float32
            assert torch.isfinite(loss).all()

    def test_gradients_reach_every_parameter(self, net: Family, batch: Batch) -> None:
        net.train()
        net.loss(net(batch), batch).sum().backward()
        without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert without == []

    def test_one_row_can_be_trained(self, net: Family, batch: Batch) -> None:
        """A last batch may have one row, and a rank without rows gets one that doesn't count."""
        one = rows(batch, slice(0, 1))
        loss = net.train().loss(net(one), one)
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())

    def test_a_batch_without_rows_gives_gradients_of_zero(self, net: Family, batch: Batch) -> None:
        """A rank may have none of a short batch's rows, and takes part in the exchange of gradients all the same."""
        net.train()
        net.loss(net(batch), batch).sum().backward()
        reached = [name for name, p in net.named_parameters() if p.grad is not None]
        net.zero_grad()
        none = rows(batch, slice(0, 0))
        loss = net.loss(net(none), none)
        assert loss.shape == (0,)
        loss.sum().backward()
        gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        assert list(gradients) == reached
        assert all(g.to_dense().abs().sum() == 0 for g in gradients.values())

    def test_a_batch_without_rows_has_outputs_in_evaluation(self, net: Family, batch: Batch) -> None:
        none = rows(batch, slice(0, 0))
        with torch.inference_mode():
            assert net.eval().loss(net(none), none).shape == (0,)

    def test_training_on_a_batch_lowers_its_loss(self, net: Family, batch: Batch) -> None:
        before = net.eval().loss(net(batch), batch).mean().item()
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        net.train()
        for _ in range(30):
            optimizer.zero_grad()
            net.loss(net(batch), batch).mean().backward()
            optimizer.step()
        for _ in range(30):
            net(batch)  # running statistics
        assert net.eval().loss(net(batch), batch).mean().item() < before

    def test_the_same_seed_builds_the_same_network(self, config: Any, schema: Schema) -> None:
        states = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            states.append(torch.cat([p.detach().flatten() for p in self.family(config, schema).parameters()]))
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])

    def test_evaluation_is_deterministic(self, net: Family, batch: Batch) -> None:
        net.eval()
        with torch.inference_mode():
            assert close(net(batch), net(batch))

    def test_in_evaluation_a_row_s_output_does_not_depend_on_the_other_rows(self, net: Family, batch: Batch) -> None:
        net.train()(batch)
        net.eval()
        with torch.inference_mode():
            whole = net(batch)
            parts = joined([net(rows(batch, slice(0, 1))), net(rows(batch, slice(1, None)))])
        assert close(whole, parts, self.tolerance)

    def test_in_evaluation_a_row_s_loss_does_not_depend_on_the_other_rows(self, net: Family, batch: Batch) -> None:
        net.eval()
        with torch.inference_mode():
            outputs = net(batch)
            alone = net.loss(rows(outputs, slice(0, 1)), rows(batch, slice(0, 1)))
            assert torch.allclose(net.loss(outputs, batch)[:1], alone, atol=self.tolerance)

    def test_the_target_is_not_looked_at(self, net: Family, batch: Batch) -> None:
        """In serving there is none."""
        net.eval()
        with torch.inference_mode():
            assert close(net(inputs_of(net, batch)), net(batch))

    def test_every_row_is_answered(self, net: Family, batch: Batch) -> None:
        with torch.inference_mode():
            answers = net.eval().decode(net(batch), batch)
        assert "prediction" in answers
        assert {len(values) for values in answers.values()} == {count(batch)}

    def test_a_class_is_answered_by_its_index_with_its_probability(self, net: Family, batch: Batch) -> None:
        if net.task != "classification":
            pytest.skip("it answers no classes")
        with torch.inference_mode():
            answers = net.eval().decode(net(batch), batch)
        probabilities = answers["probabilities"]
        assert probabilities.shape == (count(batch), len(net.schema.classes))
        assert torch.allclose(probabilities.sum(1), torch.ones(len(probabilities)), atol=1e-5)
        assert torch.equal(answers["prediction"], probabilities.argmax(1))
        assert torch.equal(answers["probability"], probabilities.max(1).values)

    def test_its_metrics_are_known_and_add_up_over_batches(self, net: Family, batch: Batch) -> None:
        assert net.metrics
        assert set(net.metrics) <= set(METRICS)
        with torch.inference_mode():
            outputs = net.eval()(batch)
        for name in net.metrics:
            metric = names.load(METRICS[name], {}, "metric")()
            whole = metric.sums(outputs, batch, net.schema)
            pieces = [metric.sums(rows(outputs, piece), rows(batch, piece), net.schema) for piece in (slice(0, 2), slice(2, None))]
            assert whole.dtype == torch.float64
            assert metric.mode in ("max", "min")
            assert math.isfinite(metric.value(whole))
            assert metric.value(pieces[0] + pieces[1]) == pytest.approx(metric.value(whole), abs=1e-12)

    def test_it_says_in_a_sentence_why_it_does_not_fit_other_data(self, schema: Schema) -> None:
        assert self.family.misfit(schema) is None
        inputs = (Column("a", "smell"), Column("b", "taste"))
        for other in (dataclasses.replace(schema, inputs=inputs), dataclasses.replace(schema, target=Column("t", "smell"))):
            said = self.family.misfit(other)
            assert said
            assert "\n" not in said

    def test_its_state_makes_another_one_the_same(self, net: Family, config: Any, schema: Schema, batch: Batch) -> None:
        net.train()(batch)
        torch.manual_seed(1)
        other = self.family(config, schema)
        other.load_state_dict(net.state_dict())
        with torch.inference_mode():
            assert close(other.eval()(batch), net.eval()(batch))

    def test_its_baseline_has_outputs_of_the_same_form_and_looks_at_no_input(self, net: Family, batch: Batch) -> None:
        net.eval()
        with torch.inference_mode():
            guessed = net.baseline(batch)
            assert net.loss(guessed, batch).shape == (count(batch),)
            assert torch.isfinite(net.loss(guessed, batch)).all()
            answers = net.decode(guessed, batch)
            changed = {name: torch.zeros_like(v) if name in {c.name for c in net.schema.inputs} else v for name, v in batch.items()}
            assert close(net.baseline(changed), guessed)
        assert net.baseline_name
        assert "prediction" in answers
        for name in net.metrics:
            metric = names.load(METRICS[name], {}, "metric")()
            assert math.isfinite(metric.value(metric.sums(guessed, batch, net.schema)))
