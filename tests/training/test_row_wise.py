"""Embedding tables by row: the optimizers' own formulas row for row, nothing that reads a whole table, resuming, and two ranks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.family import Batch, Family, FamilyConfig
from orchestrator import names
from orchestrator.training import row_wise, state_file
from orchestrator.training.loop import Settings, Training
from orchestrator.training.optim import OPTIMIZERS, OptimizerConfig, build
from pipelines.batches import Batches, Held
from pipelines.encode import Encoder
from pipelines.schema import Column, Schema

RANKS = 2
USERS, ITEMS, ROWS = 60, 40, 90
SCHEMA = Schema((Column("user", "id"), Column("item", "id")), Column("rating", "number"))
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05},
    "adam": {"lr": 0.05, "betas": (0.8, 0.95)},
    "adamw": {"lr": 0.05},
    "rmsprop": {"lr": 0.05, "momentum": 0.5},
}


def kind(name: str) -> Any:
    return names.load(name, OPTIMIZERS, "optimizer")


class Factors(Family):
    """Matrix factorisation; the tables may be sparse, the bias is a parameter like any other."""

    Config = FamilyConfig
    task, metrics = "regression", ()

    def __init__(self, sparse: bool = True, biased: bool = True) -> None:
        super().__init__(FamilyConfig(), SCHEMA)
        self.users, self.items = nn.Embedding(USERS, 4, sparse=sparse), nn.Embedding(ITEMS, 4, sparse=sparse)
        self.bias = nn.Parameter(torch.zeros(1)) if biased else None

    @classmethod
    def misfit(cls, schema: Any) -> None:
        return None

    def forward(self, batch: Batch) -> Tensor:
        scores = (self.users(batch["user"]) * self.items(batch["item"])).sum(1)
        return scores if self.bias is None else scores + self.bias

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs - batch["rating"]).square()

    def decode(self, outputs: Tensor, batch: Batch) -> dict[str, Any]:
        return {"prediction": outputs}


def rows() -> Held:
    generator = torch.Generator().manual_seed(1)
    users, items = (torch.randint(0, most, (ROWS,), generator=generator) for most in (USERS, ITEMS))
    return Held({"user": users, "item": items, "rating": torch.randn(ROWS, generator=generator)})


def training_of(family: Family, name: str = "adam", rank: int = 0, world_size: int = 1, **settings: Any) -> Training:
    given = {"epochs": 4, "batch_size": 31, "seed": 0, "rank": rank, "world_size": world_size} | settings
    config = kind(name).Config(**OPTIONS[name], schedule="linear")
    batches = Batches(rows(), given["batch_size"], 0, rank, world_size, given.get("accumulate", 1))
    return Training(family, Encoder(SCHEMA, {}), batches, rows(), (kind(name), config), Settings(**given))


def made(sparse: bool = True, biased: bool = True) -> Factors:
    torch.manual_seed(0)
    return Factors(sparse, biased)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("name", OPTIONS)
def test_each_row_takes_the_steps_of_torch_s_optimizer_in_the_batches_that_name_it(name: str, decay: float) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(7, 3, sparse=True)
    apart = nn.ParameterList([row.detach().clone()[None] for row in table.weight])
    config = kind(name).Config(**OPTIONS[name], weight_decay=decay)
    optimizer, theirs = build(kind(name), config, table), [build(kind(name), config, nn.ParameterList([row])) for row in apart]
    for named in ([0, 1, 1, 4], [4], [1, 5, 5, 5], [0, 1, 2, 3, 4, 5], [4, 0]):
        wanted = torch.randn(len(named), 3)
        for place, row in enumerate(named):
            (apart[row][0] * wanted[place]).sum().backward()  # type: ignore[no-untyped-call]
        (table(torch.tensor(named)) * wanted).sum().backward()
        for each in (optimizer, *(theirs[row] for row in set(named))):
            each.step()
            each.zero_grad(set_to_none=True)
    assert torch.allclose(table.weight, torch.cat(list(apart)), atol=1e-6)
    assert torch.equal(table.weight[6], apart[6][0])


@pytest.mark.parametrize("name", OPTIONS)
def test_where_every_batch_names_every_row_it_is_the_dense_optimizer(name: str) -> None:
    torch.manual_seed(0)
    sparse = nn.Embedding(6, 3, sparse=True)
    dense = nn.Embedding.from_pretrained(sparse.weight.detach().clone(), freeze=False)  # type: ignore[no-untyped-call]
    config = kind(name).Config(**OPTIONS[name], weight_decay=0.1)
    optimizers = [build(kind(name), config, table) for table in (sparse, dense)]
    for _ in range(5):
        order, wanted = torch.randperm(6), torch.randn(6, 3)
        for table, optimizer in zip((sparse, dense), optimizers, strict=True):
            (table(order) * wanted).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert torch.allclose(sparse.weight, dense.weight, atol=1e-6)


def test_a_gradient_that_comes_dense_after_all_moves_every_row() -> None:
    weights = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(6, 3, sparse=sparse)
        optimizer = build(kind("adam"), kind("adam").Config(), table)
        for _ in range(3):
            table.weight.square().sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        weights.append(table.weight.detach())
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


class _Whole(TorchDispatchMode):
    """The operations that give dense tensors of so many cells."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells, self.found = cells, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, list | tuple) else [out]:
            if isinstance(value, Tensor) and not value.is_sparse and value.numel() >= self.cells:
                self.found.add(str(func))
        return out


IN_PLACE = {"aten.index_copy_.default", "aten.detach.default"}  # writes only rows; looks at nothing


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("sparse", [True, False])
def test_no_operation_of_a_step_is_as_large_as_a_table(name: str, sparse: bool) -> None:
    """With dense tables some are, so that the test would see them."""
    training = training_of(made(sparse), name, batch_size=5, clip_norm=0.1)
    steps = training.train.epoch(1)
    training._step(next(steps))  # moments are made in the first
    with _Whole(4 * ITEMS) as whole:
        training._step(next(steps))
    assert (whole.found <= IN_PLACE) is sparse


@pytest.mark.parametrize("most", [0.05, 1e6])
def test_clipping_is_torch_s_and_counts_a_row_that_is_named_twice_once(most: float) -> None:
    clipped = []
    for sparse in (True, False):
        family = made(sparse)
        batch = {"user": torch.tensor([3, 3, 7]), "item": torch.tensor([1, 2, 2]), "rating": torch.zeros(3)}
        family.loss(family(batch), batch).sum().backward()  # type: ignore[no-untyped-call]
        if sparse:
            row_wise.clip_norm(list(family.parameters()), most)
        else:
            nn.utils.clip_grad_norm_(family.parameters(), most)
        clipped.append([p.grad.to_dense() for p in family.parameters() if p.grad is not None])
    assert len(clipped[0]) == 3
    assert all(torch.allclose(ours, theirs, rtol=1e-5) for ours, theirs in zip(*clipped, strict=True))


def test_clipping_where_nothing_has_a_gradient_changes_nothing() -> None:
    family = made()
    row_wise.clip_norm(list(family.parameters()), 1.0)
    assert all(parameter.grad is None for parameter in family.parameters())


@pytest.mark.parametrize("broken", [False, True])
def test_scaled_gradients_are_unscaled_and_a_step_with_an_infinite_one_is_left_out(broken: bool) -> None:
    family = made()
    before = copy.deepcopy(family.state_dict())
    plain = made()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    batch = {"user": torch.tensor([3, 3]), "item": torch.tensor([1, 2]), "rating": torch.tensor([0.0, torch.inf if broken else 1.0])}
    for net in (family, plain):
        optimizer = build(kind("adam"), kind("adam").Config(), net)
        loss = net.loss(net(batch), batch).sum()
        if net is plain:
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        else:
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    expected = before if broken else plain.state_dict()
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in family.state_dict().items())
    assert broken or not torch.equal(family.users.weight, before["users.weight"])


def test_a_rate_that_is_set_reaches_tables_and_the_rest_alike() -> None:
    family = made()
    optimizer = build(kind("sgd"), kind("sgd").Config(momentum=0.0), family)
    before = copy.deepcopy(family.state_dict())
    batch = rows().rows(slice(0, 9))
    family.loss(family(batch), batch).sum().backward()  # type: ignore[no-untyped-call]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in family.state_dict().items())


def test_what_has_no_large_table_or_nothing_else_is_one_plain_optimizer() -> None:
    assert isinstance(build(kind("adam"), kind("adam").Config(), made(sparse=False)), torch.optim.Adam)
    assert isinstance(build(kind("adam"), kind("adam").Config(), made(biased=False)), row_wise.RowWise)


def test_tables_of_two_names_and_frozen_ones_are_counted_rightly() -> None:
    family = made()
    family.again = family.users  # type: ignore[assignment]
    family.items.weight.requires_grad_(False)
    assert row_wise.tables_of(family) == [family.users.weight]
    assert row_wise.names_of(family) == ["users.weight", "items.weight"]
    optimizer = build(kind("adam"), kind("adam").Config(), family)
    assert [p.shape for group in optimizer.param_groups for p in group["params"]] == [(1,), (USERS, 4)]


def test_an_optimizer_without_a_rule_for_rows_is_refused_with_those_that_have_one() -> None:
    class Own:
        Config = OptimizerConfig

        @staticmethod
        def build(groups: Any, config: Any) -> Any:
            return torch.optim.Adagrad(groups)

    with pytest.raises(ValueError, match=r"optimizer Own has no rule for rows .* take sgd, adam, adamw, rmsprop, or set model.sparse"):
        build(Own, OptimizerConfig(), made())
    assert isinstance(build(Own, OptimizerConfig(), made(sparse=False)), torch.optim.Adagrad)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_that_went_on_from_a_checkpoint_ends_with_the_weights_of_one_that_was_not_cut_off(name: str) -> None:
    whole = training_of(made(), name)
    for _ in range(4):
        whole.run_epoch()
    cut = training_of(made(), name)
    for _ in range(2):
        cut.run_epoch()
    stored = state_file.to_bytes(cut.state_dict())
    resumed = training_of(Factors(), name)
    resumed.load_state_dict(state_file.from_bytes(stored, "the test's"))
    for _ in range(2):
        resumed.run_epoch()
    ends = [training.family.state_dict() for training in (whole, resumed)]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    assert resumed.optimizer.param_groups[0]["lr"] == resumed.optimizer.param_groups[-1]["lr"]


# two ranks ----------------------------------------------------------------------------------------------------------------------

# 90 rows: 31 + 31 + 28, uneven shares; 89 + 1: the second rank has no row of the last batch
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no row": {"batch_size": 89},
    "accumulate": {"accumulate": 3},
    "clipped": {"clip_norm": 0.05},
    "tables alone": {"biased": False},
}


def train(run: str, rank: int, world_size: int) -> dict[str, Tensor]:
    settings = dict(RUNS[run])
    training = training_of(made(biased=settings.pop("biased", True)), "sgd", rank, world_size, **settings)
    training.run_epoch()
    return training.family.state_dict()


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    torch.save({run: train(run, rank, RANKS) for run in RUNS}, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_main, (folder,), nprocs=RANKS)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("run", RUNS)
def test_two_ranks_end_with_the_tables_of_one_process_and_with_each_other_s_to_the_last_bit(
    run: str, ranks: list[dict[str, dict[str, Tensor]]]
) -> None:
    alone, first, second = train(run, 0, 1), *(rank[run] for rank in ranks)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert all(torch.allclose(value, alone[name], atol=1e-6) for name, value in first.items())
    assert not torch.equal(first["users.weight"], made().users.weight)
