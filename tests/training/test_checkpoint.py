"""Checkpoints: what is read is what was saved, whole or not at all, and damage is noticed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.storage import StorageError
from orchestrator.training import checkpoint
from orchestrator.training.checkpoint import Writer, load, name_of
from orchestrator.training.state_file import Damaged, from_bytes, pieces, to_bytes

EVERY_DTYPE = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)


def state() -> dict[str, Any]:
    return {
        "tensors": {str(dtype): torch.tensor([[0, 1], [1, 3]]).to(dtype) for dtype in EVERY_DTYPE},
        "empty": torch.zeros(0, 3),
        "step": torch.tensor(5.0),
        "strided": torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last),
        "by number": {0: {"exp_avg": torch.ones(2)}, 1: {"lr": 0.1 + 0.2, "betas": [0.9, 0.999], "fused": True, "nothing": None}},
        "history": [{"epoch": 1, "metrics": {"val_loss": 1e-17}}],
    }


def same(a: Any, b: Any) -> bool:
    """Equal in values, types, dtypes and keys."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_a_state_survives_the_file_with_every_type_and_key(tmp_path: Path) -> None:
    writer = Writer(str(tmp_path))
    writer.save(state())
    writer.flush()
    assert same(load(str(tmp_path)), state())


@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop"])
def test_an_optimizer_s_state_survives_to_the_last_bit(name: str) -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2).to(torch.bfloat16)
    optimizer = getattr(torch.optim, name)(module.parameters(), lr=0.1, **({"momentum": 0.9} if name == "SGD" else {}))
    module(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    before = optimizer.state_dict()
    optimizer.load_state_dict(from_bytes(to_bytes(before), "it"))
    after = optimizer.state_dict()
    assert before["state"].keys() == after["state"].keys() == {0, 1}
    assert all(
        torch.equal(a, b) for k in before["state"] for a, b in zip(before["state"][k].values(), after["state"][k].values(), strict=True)
    )
    assert before["param_groups"][0]["params"] == after["param_groups"][0]["params"]


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(to_bytes(state()))
    theirs = load_file(tmp_path / "it")
    assert same(theirs["/strided"], state()["strided"])
    assert {theirs[f"/tensors/{dtype}"].dtype for dtype in EVERY_DTYPE} == set(EVERY_DTYPE)
    assert theirs["/empty"].shape == (0, 3)


def test_tensors_are_written_from_the_memory_that_they_lie_in() -> None:
    """A table of gigabytes has no room twice."""
    weights = torch.zeros(1000)
    buffers = pieces({"weights": weights})
    weights.fill_(1)
    assert bytes(buffers[-1]) == weights.numpy().tobytes()


def test_what_was_read_lies_in_memory_of_its_own() -> None:
    read = from_bytes(to_bytes({"a": torch.zeros(100), "b": torch.zeros(100)}), "it")
    assert read["a"].untyped_storage().nbytes() == 400


def test_something_behind_the_last_tensor_is_noticed() -> None:
    with pytest.raises(StorageError, match="it is too long"):
        from_bytes(to_bytes({"a": torch.zeros(3)}) + b"more", "it")


def test_there_is_none_where_none_was_written(tmp_path: Path) -> None:
    assert load(str(tmp_path / "nowhere")) is None


def test_one_changed_byte_anywhere_is_noticed() -> None:
    content = to_bytes({"weights": torch.arange(50.0), "epoch": 12345})
    undamaged = from_bytes(content, "it")
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        try:
            read = from_bytes(bytes(damaged), "it")
        except StorageError:
            continue
        assert same(read, undamaged), place  # a changed byte that changes nothing: the order of the header's keys, white space


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_noticed_by_its_name(length: int, tmp_path: Path) -> None:
    (tmp_path / name_of(1)).write_bytes(to_bytes({"weights": torch.arange(50.0)})[:length])
    with pytest.raises(StorageError, match=f"^checkpoint '{tmp_path}/checkpoint-1.safetensors' is damaged: "):
        load(str(tmp_path))


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_without_memory_for_it_a_checkpoint_is_not_damaged_but_can_not_be_read_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the run would begin anew, and delete what is whole."""
    writer = Writer(str(tmp_path))
    writer.save({"weights": torch.arange(50.0)})
    writer.flush()

    def no_memory(*size: int, **how: Any) -> torch.Tensor:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 200 bytes"
        )

    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", no_memory)
        with pytest.raises(StorageError, match="there is no memory for it") as failed:
            checkpoint.newest(str(tmp_path))
    assert not isinstance(failed.value, Damaged)
    assert checkpoint.newest(str(tmp_path)).number == 1


def test_a_length_that_the_file_does_not_have_is_damage_whatever_memory_there_is(tmp_path: Path) -> None:
    content = to_bytes({"weights": torch.arange(50.0)})
    assert content.count(b'"data_offsets": [0, 200]') == 1
    with pytest.raises(Damaged, match="it is cut off"):
        from_bytes(content.replace(b'"data_offsets": [0, 200]', b'"data_offsets":[0,9999]'.ljust(24)), "it")


def test_a_write_that_fails_leaves_the_one_before_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(str(tmp_path))
    writer.save({"epoch": 1})
    writer.flush()
    monkeypatch.setattr(os, "fsync", full)
    writer.save({"epoch": 2})
    with pytest.raises(StorageError, match=f"can't write '{tmp_path}/checkpoint-2.safetensors': No space left on device"):
        writer.flush()
    assert load(str(tmp_path)) == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1.safetensors"]


def test_a_write_that_failed_is_said_by_the_next_save_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(str(tmp_path))
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        writer.save({"epoch": 1})
        with pytest.raises(StorageError, match="No space left"):
            writer.save({"epoch": 2})
    writer.save({"epoch": 3})
    writer.flush()
    assert load(str(tmp_path)) == {"epoch": 3}


def test_a_state_that_can_t_be_written_is_said_too(tmp_path: Path) -> None:
    writer = Writer(str(tmp_path))
    writer.save({"path": Path()})
    with pytest.raises(StorageError, match="not JSON serializable"):
        writer.flush()


def test_what_is_written_is_the_state_when_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.ones(1000)
    monkeypatch.setattr(checkpoint, "pieces", lambda copied: (weights.zero_(), pieces(copied))[1])
    writer = Writer(str(tmp_path))
    writer.save({"weights": weights})
    writer.flush()
    assert weights.sum() == 0
    assert load(str(tmp_path))["weights"].sum() == 1000


def test_a_later_save_of_other_shapes_replaces_the_one_before(tmp_path: Path) -> None:
    writer = Writer(str(tmp_path))
    for tensor in (torch.ones(3), torch.ones(2, 2), torch.ones(2, 2, dtype=torch.int64)):
        writer.save({"a": tensor})
    writer.flush()
    assert same(load(str(tmp_path)), {"a": torch.ones(2, 2, dtype=torch.int64)})
