"""What every source keeps, ours and a user's: subclass SourceContract and give the fixtures `load` and `config`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import batches
from pipelines.encode import Encoder
from pipelines.prepare import Prepared, prepare
from pipelines.ragged import in_memory, sizes_of
from pipelines.raw import Load, Raw, config_class
from pipelines.schema import Schema
from pipelines.splits import NAMES, SplitConfig, split


class SourceContract:
    """`load`: the source's function; `config`: an instance of its Config for a small data set (rows in the tens or hundreds)."""

    split_config = SplitConfig()

    @pytest.fixture
    def load(self) -> Load:
        raise NotImplementedError("give the fixture `load`")

    @pytest.fixture
    def config(self) -> Any:
        raise NotImplementedError("give the fixture `config`")

    @pytest.fixture
    def prepared(self, load: Load, config: Any, tmp_path: Path) -> Prepared:
        return prepare("source", load, config, self.split_config, tmp_path / "cache")

    def test_its_config_is_a_frozen_dataclass_with_a_default_for_every_option(self, load: Load, config: Any) -> None:
        made = config_class(load)
        assert isinstance(config, made)
        assert made.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert isinstance(made(), made)

    def test_loading_twice_gives_the_same_table(self, load: Load, config: Any) -> None:
        assert load(config).table.equals(load(config).table)

    def test_the_table_holds_the_inputs_and_the_target(self, load: Load, config: Any) -> None:
        raw = load(config)
        assert {*(column.name for column in raw.inputs), raw.target.name} <= set(raw.table.column_names)
        assert raw.target.name not in {column.name for column in raw.inputs}
        assert raw.official is None or len(raw.official) == raw.table.num_rows

    def test_every_row_is_in_exactly_one_part(self, load: Load, config: Any) -> None:
        raw = load(config)
        parts = split(raw, self.split_config)
        assert sorted(np.concatenate([parts[name] for name in NAMES])) == list(range(raw.table.num_rows))

    def test_official_parts_stay_what_they_are(self, load: Load, config: Any) -> None:
        raw = load(config)
        if raw.official is None:
            pytest.skip("this source has no official parts")
        assert list(split(raw, self.split_config)["test"]) == list(np.flatnonzero(raw.official == "test"))

    def test_the_fingerprint_is_the_same_in_another_cache(self, load: Load, config: Any, prepared: Prepared, tmp_path: Path) -> None:
        assert prepare("source", load, config, self.split_config, tmp_path / "other").fingerprint == prepared.fingerprint

    def test_the_fingerprint_is_the_same_when_the_data_is_moved(self, load: Load, config: Any, prepared: Prepared, tmp_path: Path) -> None:
        if not getattr(config, "path", ""):
            pytest.skip("this source has no path")
        path, moved = Path(config.path), tmp_path / "moved"
        shutil.copytree(path if path.is_dir() else path.parent, moved, ignore=shutil.ignore_patterns("cache", "moved"))
        there = dataclasses.replace(config, path=str(moved if path.is_dir() else moved / path.name))
        assert prepare("source", load, there, self.split_config, tmp_path / "other").fingerprint == prepared.fingerprint

    def test_another_split_seed_is_another_fingerprint(self, load: Load, config: Any, prepared: Prepared, tmp_path: Path) -> None:
        other = dataclasses.replace(self.split_config, seed=self.split_config.seed + 1)
        assert prepare("source", load, config, other, tmp_path / "cache").fingerprint != prepared.fingerprint

    def test_prepared_files_hold_the_rows_that_were_loaded(self, load: Load, config: Any, prepared: Prepared) -> None:
        raw = load(config)
        for name, rows in split(raw, self.split_config).items():
            stored = pq.read_table(prepared.file(name))
            assert stored.num_rows == prepared.rows[name] == len(rows)
            assert stored.equals(raw.table.select(stored.column_names).take(pa.array(rows)))

    def test_a_prepared_file_is_encoded_exactly_as_batches_load_it(self, prepared: Prepared) -> None:
        stored = json.loads(json.dumps(prepared.encoder.to_plain()))
        encoder = Encoder.from_plain(prepared.schema, stored)
        for name in NAMES:
            loaded = batches.load(prepared, name)
            arrays, errors = encoder.arrays(pq.read_table(prepared.file(name)), encoder.names)
            assert errors == {}
            served = encoder.tensors(batches.Held(in_memory(arrays)).rows(slice(None)))
            trained = prepared.encoder.tensors(loaded.rows(slice(None)))
            assert {*encoder.names} <= {*served}
            assert all(torch.equal(served[column], trained[column]) for column in served)

    def test_tensors_have_the_shapes_that_the_schema_says(self, prepared: Prepared) -> None:
        tensors = prepared.encoder.tensors(batches.load(prepared, "test").rows(slice(None)))
        for column in prepared.schema.inputs:
            if column.shape and sizes_of(column.name) not in tensors:
                assert tensors[column.name].shape == (prepared.rows["test"], *column.shape)
        if prepared.schema.classes:
            assert 0 <= int(tensors[prepared.schema.target.name].min()) <= int(tensors[prepared.schema.target.name].max())
            assert int(tensors[prepared.schema.target.name].max()) < len(prepared.schema.classes)

    def test_the_schema_survives_json(self, prepared: Prepared) -> None:
        assert Schema.from_plain(json.loads(json.dumps(prepared.schema.to_plain()))) == prepared.schema

    def test_nothing_is_left_behind_when_loading_fails(self, load: Load, config: Any, tmp_path: Path) -> None:
        def broken(_: Any) -> Raw:
            raise RuntimeError("the disk is gone")

        with pytest.raises(RuntimeError, match="the disk is gone"):
            prepare("source", broken, config, self.split_config, tmp_path / "cache")
        assert list(_entries(tmp_path / "cache")) == []

    def test_nothing_is_left_behind_when_writing_fails(
        self, load: Load, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = pq.write_table

        def full(table: pa.Table, where: Path, **options: Any) -> None:
            if "test" in Path(where).name:
                raise OSError("no space left on device")
            write(table, where, **options)

        monkeypatch.setattr(pq, "write_table", full)
        with pytest.raises(OSError, match="no space left"):
            prepare("source", load, config, self.split_config, tmp_path / "cache")
        assert list(_entries(tmp_path / "cache")) == []

    def test_the_encoder_is_fitted_on_training_rows_only(self, load: Load, config: Any, prepared: Prepared, tmp_path: Path) -> None:
        raw = load(config)
        parts = split(raw, self.split_config)
        chosen = np.arange(raw.table.num_rows)
        chosen[np.concatenate([parts["validation"], parts["test"]])] = parts["train"][0]
        table = raw.table
        for column in raw.inputs:
            table = table.set_column(table.column_names.index(column.name), column.name, table[column.name].take(pa.array(chosen)))
        changed = dataclasses.replace(raw, table=table)
        other = prepare("source", _giving(changed, load), config, self.split_config, tmp_path / "other")
        assert not pq.read_table(other.file("test")).equals(pq.read_table(prepared.file("test")))
        assert other.encoder.to_plain() == prepared.encoder.to_plain()


def _giving(raw: Raw, load: Load) -> Load:
    return lambda config: raw


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.exists() else iter(())
