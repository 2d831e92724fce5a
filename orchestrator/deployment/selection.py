"""The bundle of a run: of its best checkpoint, not of its last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from models.family import Family
from orchestrator.errors import Failed
from orchestrator.experiment.config import Experiment
from orchestrator.training.trial import best_weights, build_family
from pipelines.answer import answer
from pipelines.prepare import Prepared

from . import bundle as bundles

EXAMPLE_ROWS = 3


def compose(
    folder: Path, experiment: Experiment, prepared: Prepared, checkpoints: str, user_folder: Path, about: dict[str, Any]
) -> tuple[Path, int]:
    """Write the bundle of a run's best checkpoint; (its folder, the best epoch). Raises Failed if the checkpoint is gone."""
    found = best_weights(checkpoints)
    if found is None:
        raise Failed(f"no checkpoint at '{checkpoints}': it was deleted, so this run can't be deployed; train it again")
    record, weights = found
    torch.manual_seed(0)
    family = build_family(experiment, prepared.schema, str(user_folder))
    family.load_state_dict(weights)
    tables = prepared.tables()
    family.bind(tables)
    example = example_rows(prepared, family)
    answers, _ = answer(family, prepared.encoder, example)
    facts = {
        "name": experiment.name,
        "family": experiment.model.family,
        "config": experiment.model.options,
        "folder": str(user_folder),
        "fingerprint": prepared.fingerprint,
        "best": record,
        "experiment": experiment.plain(),
        **about,
    }
    path = bundles.write(folder, prepared.encoder, weights, tables, (example, answers), facts, user_folder)
    return path, int(record["epoch"])


def example_rows(prepared: Prepared, family: Family) -> pa.Table:
    """A few rows of the input columns, in the form that JSON can carry too."""
    encoder = prepared.encoder.for_network(family)
    table = pq.read_table(prepared.file("validation"), columns=encoder.input_names).slice(0, EXAMPLE_ROWS)
    return pa.table({name: encoder.columns[name].example(table[name]) for name in table.column_names})
