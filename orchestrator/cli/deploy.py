"""promote, rollback, history, predict."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from orchestrator.cli import output
from orchestrator.cli.run import Json, Overrides

Alias = Annotated[str, typer.Option(help="The alias to move.")]
Model = Annotated[str, typer.Argument(help="The registered model's name.")]


def promote(
    name: Annotated[str, typer.Argument(help="The experiment's name.")],
    overrides: Overrides = None,
    run: Annotated[Optional[str], typer.Option(help="This run, not the best by validation.")] = None,  # noqa: UP045
    alias: Alias = "champion",
    force: Annotated[bool, typer.Option(help="Promote although the gate or the comparison says no.")] = False,
    json: Json = False,
) -> None:
    """Evaluate once, gate, register, move the alias."""
    from orchestrator import api

    done = api.promote(name, overrides or [], run=run, alias=alias, force=force)
    scores = "  ".join(f"{k} {v:.4f}" for k, v in done.challenger.items() if k.startswith("test_"))
    output.result(done, json, [f"scores: {scores}", f"next: orchestrator predict models:/{done.model}@{done.alias} INPUT OUTPUT"])


def rollback(model: Model, alias: Alias = "champion", json: Json = False) -> None:
    """Put the previous champion back."""
    from orchestrator import api

    output.result(api.rollback(model, alias=alias), json)


def history(model: Model, json: Json = False) -> None:
    """Who promoted what, when, against what, why."""
    from orchestrator import api

    output.result(api.history(model), json)


def predict(
    model: Annotated[str, typer.Argument(help="models:/NAME@alias, models:/NAME/VERSION, or a bundle's folder.")],
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A Parquet, CSV or TSV file.")],
    target: Annotated[str, typer.Argument(metavar="OUTPUT", help="A Parquet, CSV or TSV file to write.")],
    probabilities: Annotated[bool, typer.Option(help="A column for the probability of each class.")] = False,
    top_k: Annotated[Optional[int], typer.Option(metavar="K", help="The best K items for each user of INPUT: a row a user.")] = None,  # noqa: UP045
    json: Json = False,
) -> None:
    """Predict a file, a row for each row, in order."""
    from orchestrator import api

    output.result(api.predict(model, source, target, probabilities=probabilities, top_k=top_k), json)
