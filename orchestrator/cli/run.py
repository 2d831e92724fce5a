"""train, sweep, plan."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from orchestrator.cli import output

File = Annotated[str, typer.Argument(metavar="EXPERIMENT.yaml", help="The experiment file.")]
Overrides = Annotated[Optional[list[str]], typer.Argument(metavar="[KEY=VALUE ...]", help="Keys to set, e.g. training.epochs=3")]  # noqa: UP045
Address = Annotated[Optional[str], typer.Option(help="A running Ray cluster (default: RAY_ADDRESS; none: this machine).")]  # noqa: UP045
Resume = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="[ID|if-any]",
        help="Go on with the newest of this experiment (if-any: or begin anew), or with ID: what has ended isn't run again.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def train(experiment: File, overrides: Overrides = None, address: Address = None, resume: Resume = None, json: Json = False) -> None:
    """Train one run, evaluate its best epoch once on test, write its bundle."""
    from orchestrator import api

    done = api.train(experiment, overrides or [], address=address, resume=resume, show=output.Progress())
    best = ""
    if done.best is not None:
        metrics = {k: v for k, v in done.best.metrics.items() if k.startswith("val_")} | done.test
        best = f"best epoch {done.best.epoch}: {output.scores(metrics, 8)}"
    output.result(
        done,
        json,
        [
            best,
            *_baseline(done.baseline, done.margin),
            *output.measured(done.protocol),
            *([f"bundle: {done.bundle}", f"next: orchestrator promote {done.experiment}"] if done.bundle else []),
        ],
    )


def sweep(experiment: File, overrides: Overrides = None, address: Address = None, resume: Resume = None, json: Json = False) -> None:
    """Search the space: Ray runs the trials, MLflow records every one."""
    from orchestrator import api

    done = api.sweep(experiment, overrides or [], address=address, resume=resume, show=output.Progress())
    lines = []
    if done.best is not None:
        lines = [
            f"best: trial {done.best['trial']}  {output.scores(done.best['test'])}",
            *_baseline(done.best["baseline"], done.best["margin"]),
            *output.measured(done.protocol),
            f"next: orchestrator promote {done.experiment}",
        ]
    output.result(done, json, lines)


def plan(
    experiment: File,
    overrides: Overrides = None,
    command: Annotated[str, typer.Option("--for", help="train or sweep; default: sweep where the file has a space")] = "auto",
    json: Json = False,
) -> None:
    """What would run, and why; prepares the data, trains nothing."""
    from orchestrator import api

    if command not in ("train", "sweep", "auto"):
        raise typer.BadParameter(f"'{command}' is neither train nor sweep", param_hint="--for")
    asked: Any = None if command == "auto" else command
    done = api.plan(experiment, overrides or [], command=asked)
    output.result(done, json, [f"note: {note}" for note in done.notes])


def _baseline(scores: dict[str, float], margin: tuple[float, float] | None) -> list[str]:
    """What knowing nothing of the inputs scores on test (loss and first metrics), and by how much the model is better."""
    if not scores:
        return []
    better = ""
    if margin is not None and margin[1] < 0:
        better = f"; the model is worse, by {-margin[1]:.4f} to {-margin[0]:.4f} (95 %)"
    elif margin is not None:
        better = f"; better by {margin[0]:.4f} to {margin[1]:.4f} (95 %)" if margin[0] > 0 else "; no better by more than noise"
    return [f"baseline: {'  '.join(f'{k} {v:.4f}' for k, v in list(scores.items())[:3])}{better}"]
