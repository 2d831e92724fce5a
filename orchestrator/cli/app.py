"""The typer app: one place that catches our errors, prints them and sets the exit code."""

from __future__ import annotations

import re
import signal
import sys
import tempfile
import traceback
import warnings
from typing import Any

import typer

from orchestrator.cli import cluster, deploy, look, operate, output, run
from orchestrator.cli.stdout import kept_for_the_document
from orchestrator.errors import Failed, Interrupted, Note, OrchestratorError, Refused

WHICH = re.compile(r"\d{8}-\d{6}-[0-9a-f]+|if-any")  # records.ledger.new_id, resuming.IF_ANY

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From a short YAML file to the best model in production: Ray trains and searches, MLflow records and promotes.",
)
data = typer.Typer(no_args_is_help=True, help="Prepare an experiment's data, or look at them.")
app.command()(run.train)
app.command()(run.sweep)
app.command()(run.plan)
app.command()(look.runs)
app.command()(look.ui)
app.command()(look.doctor)
app.command()(look.schema)
app.command()(deploy.promote)
app.command()(deploy.rollback)
app.command()(deploy.history)
app.command()(deploy.predict)
app.command()(look.sync)
app.command()(operate.logs)
app.command()(operate.gc)
data.command("prepare")(look.data_prepare)
data.command("show")(look.data_show)
app.add_typer(data, name="data")
app.add_typer(cluster.commands, name="cluster")


def main() -> None:
    """The `orchestrator` command."""
    with kept_for_the_document("--json" in sys.argv):
        _main()


def _main() -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", Note)
    warnings.showwarning = _show_warning
    as_json = "--json" in sys.argv
    try:
        code = (
            app(_with_resume(sys.argv[1:]), standalone_mode=False) or 0
        )  # a command's typer.Exit comes back as its code, and Ctrl-C as 130
        if code == 130:
            raise Interrupted("interrupted")
        sys.exit(code)
    except OrchestratorError as error:
        output.error(error, as_json)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        output.error(Interrupted("interrupted"), as_json)
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own: a missing argument, an unknown option
            if error.format_message():  # none where the help was printed
                output.error(Refused(f"{error.format_message()} (see orchestrator --help)"), as_json)
            sys.exit(2)
        output.error(_unforeseen(error), as_json)
        sys.exit(1)


def _with_resume(words: list[str]) -> list[str]:
    """`--resume` without an id means the newest: an option's value is never optional to typer."""
    said = list(words)
    for place, word in enumerate(words):
        if word == "--resume" and not WHICH.fullmatch("".join(words[place + 1 : place + 2])):
            said[place] = "--resume=newest"
    return said


def _unforeseen(error: Exception) -> Failed:
    """An error that nobody foresaw, in one line; its trace is kept in a file."""
    with tempfile.NamedTemporaryFile("w", prefix="orchestrator-error-", suffix=".txt", delete=False) as kept:
        traceback.print_exception(error, file=kept)
    said = " ".join(str(error).split())[:300] or "no message"
    return Failed(f"{type(error).__name__}: {said}; the whole trace: {kept.name}")


def _interrupt(signum: int, frame: Any) -> None:
    """SIGTERM ends a command as Ctrl-C does: what was done is recorded."""
    raise KeyboardInterrupt


def _show_warning(message: Any, category: Any, *rest: Any, **more: Any) -> None:
    if isinstance(message, Note):
        output.say(f"note: {message}")
