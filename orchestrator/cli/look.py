"""runs, ui, sync, data, schema, doctor."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from orchestrator.cli import output
from orchestrator.cli.run import File, Json, Overrides


def runs(
    name: Annotated[str, typer.Argument(help="The experiment's name.")],
    top: Annotated[Optional[int], typer.Option(min=1, help="Only so many.")] = None,  # noqa: UP045
    sweep: Annotated[Optional[str], typer.Option(help="Only this sweep's, by its id.")] = None,  # noqa: UP045
    json: Json = False,
) -> None:
    """The leaderboard, best first."""
    from orchestrator import api

    board = api.runs(name, top=top, sweep=sweep)
    output.result(board, json, output.measured(board.protocol))


def ui(port: Annotated[int, typer.Option(min=0, max=65535, help="The port, on this machine only.")] = 5000) -> None:
    """The MLflow UI on this folder's store."""
    from orchestrator.records import tracking

    uri = tracking.destination()
    if uri.startswith("http"):
        output.say(f"the tracking server has its own UI: {tracking.shown_destination()}/#/experiments?workflowType=machine_learning")
        return
    tracking.check_store(uri)
    tracking.quiet_mlflow()
    tracking.make_store(uri)
    output.say(f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning   (Ctrl-C ends it)")
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # else seven more processes of 235 MB each
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", uri]
    os.execv(sys.executable, words)


def sync(json: Json = False) -> None:
    """Look up every run of this folder's ledger in MLflow, and send what is missing."""
    from orchestrator import api

    done = api.sync()
    output.result(done, json)


def data_prepare(experiment: File, overrides: Overrides = None, json: Json = False) -> None:
    """Prepare the data: Parquet files, split, with a fingerprint."""
    from orchestrator import api

    done = api.data_prepare(experiment, overrides or [])
    output.result(done, json, [f"fingerprint: {done.fingerprint}"])


def data_show(experiment: File, overrides: Overrides = None, json: Json = False) -> None:
    """A look at the data: splits, columns, class balance, copies and leaks, outliers, the known optimum."""
    from orchestrator import api

    done = api.data_show(experiment, overrides or [])
    if json:
        output.result(done, json)
        return
    output.tables(done.tables())
    for metric, best in done.optimum.items():
        print(f"the best that any model can reach: {metric} {best:.4g}")
    print("\n".join(f"problem: {problem}" for problem in done.problems) or "no problems found")


def schema(json: Json = False) -> None:
    """JSON Schema of the experiment file."""
    from orchestrator import api

    output.document(api.schema())


def doctor(json: Json = False) -> None:
    """What works on this machine, what does not, what to do."""
    from orchestrator import api

    done = api.doctor()
    output.result(done, json)
    if any(check["state"] == "error" for check in done.checks):
        raise typer.Exit(1)
