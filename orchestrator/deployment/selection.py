"""What a run is worth: the bundle of its best checkpoint, not of its last, and its scores on test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from orchestrator.errors import Failed
from orchestrator.experiment.config import Experiment
from orchestrator.training.loop import Evaluation
from orchestrator.training.trial import best_weights, build_family
from pipelines import batches
from pipelines.answer import answer
from pipelines.encode import Encoder
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
    example = example_rows(prepared)
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
    path = bundles.write(folder, prepared.encoder, weights, (example, answers), facts, user_folder)
    return path, int(record["epoch"])


def example_rows(prepared: Prepared) -> pa.Table:
    """A few rows of the input columns, in the form that JSON can carry too."""
    table = pq.read_table(prepared.file("validation"), columns=prepared.encoder.input_names).slice(0, EXAMPLE_ROWS)
    columns = {}
    for column in prepared.schema.inputs:
        values, _ = prepared.encoder.columns[column.name].array(table[column.name])
        columns[column.name] = pa.array([row.reshape(-1).astype(float).tolist() for row in values])
    return pa.table(columns)


def score(bundle: bundles.Bundle, prepared: Prepared, part: str = "test") -> dict[str, float]:
    """`{part}_loss` and the family's metrics on a part of prepared data, encoded by the bundle's own encoder. Raises ValueError."""
    columns = load_with(bundle.encoder, prepared, part)
    return Evaluation(bundle.family, bundle.encoder)(columns, part)


def load_with(encoder: Encoder, prepared: Prepared, part: str) -> dict[str, torch.Tensor]:
    """The rows of a part, encoded by another encoder than the data's own."""
    if encoder.schema == prepared.schema:
        return batches.load(prepared, part)
    wanted = [*encoder.input_names, encoder.schema.target.name]
    arrays, errors = encoder.arrays(pq.read_table(prepared.file(part)), wanted)
    if errors:
        row, says = min(errors.items())
        raise ValueError(f"{len(errors)} rows of the {part} data don't fit it; row {row}: {says}")
    return {name: torch.from_numpy(values.copy()) for name, values in arrays.items()}
