"""cluster submit, jobs, attach, stop, status, template."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from orchestrator.cli import output
from orchestrator.cli.run import File, Json, Overrides, Resume
from orchestrator.errors import Interrupted

if TYPE_CHECKING:
    from orchestrator.cluster_results import Job

Address = Annotated[Optional[str], typer.Option(help="The cluster's head: http://HOST:8265 or HOST:6379 (default: RAY_ADDRESS).")]  # noqa: UP045
Id = Annotated[str, typer.Argument(help="The job's id, as `jobs` shows it.")]

commands = typer.Typer(no_args_is_help=True, help="Send experiments to a Ray cluster, and look after them there.")


@commands.command()
def submit(
    experiment: File,
    overrides: Overrides = None,
    address: Address = None,
    resume: Resume = None,
    command: Annotated[str, typer.Option("--for", help="train or sweep; default: sweep where the file has a space")] = "auto",
    detach: Annotated[bool, typer.Option("--detach", help="Don't follow its log.")] = False,
    json: Json = False,
) -> None:
    """Send an experiment to a cluster, and follow it; it goes on without this terminal."""
    from orchestrator import clusters

    if command not in ("train", "sweep", "auto"):
        raise typer.BadParameter(f"'{command}' is neither train nor sweep", param_hint="--for")
    asked: Any = None if command == "auto" else command
    job = clusters.cluster_submit(experiment, overrides or [], address=address, resume=resume, command=asked)
    output.say(f"job {job.id}; Ctrl-C leaves it running")
    if detach:
        output.result(job, json, _afterwards(job.id, address))
    else:
        _follow(job.id, address, json, job)


@commands.command()
def jobs(address: Address = None, json: Json = False) -> None:
    """The jobs that were sent to the cluster, newest first."""
    from orchestrator import clusters

    done = clusters.cluster_jobs(address=address)
    output.result(done, json, [] if done.jobs else ["no jobs"])


@commands.command()
def attach(id: Id, address: Address = None, json: Json = False) -> None:
    """Follow a job's log to its end; the exit code is the job's."""
    _follow(id, address, json)


@commands.command()
def stop(id: Id, address: Address = None, json: Json = False) -> None:
    """End a job as Ctrl-C would: its runs keep their checkpoints, and it can be resumed."""
    from orchestrator import clusters

    output.result(clusters.cluster_stop(id, address=address), json)


@commands.command()
def status(address: Address = None, json: Json = False) -> None:
    """The nodes: what is free, and who holds the rest."""
    from orchestrator import clusters

    done = clusters.cluster_status(address=address)
    held = [f"{each['by']} holds {_amount(each)} ({each['what']}) on {node['id'][:12]}" for node in done.nodes for each in node["held"]]
    output.result(done, json, held)


@commands.command()
def template(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="aws, gcp, kuberay or slurm")],
    experiment: File,
    overrides: Overrides = None,
    write: Annotated[Optional[str], typer.Option("--output", help="The file to write; default: stdout.")] = None,  # noqa: UP045
    json: Json = False,
) -> None:
    """A complete, commented file for a cluster that holds the experiment."""
    from orchestrator import clusters

    done = clusters.cluster_template(kind, experiment, overrides or [], output=write)
    if json:
        output.result(done, json)
        return
    print(done.text if write is None else f"{write}: look at its first lines", end="" if write is None else "\n")
    for line in done.edit:
        output.say(f"to fill in: {line}")


def _amount(held: dict[str, Any]) -> str:
    return " and ".join(f"{held[key]:g} {name}" for key, name in (("cpus", "CPU"), ("gpus", "GPU")) if held[key])


def _follow(id: str, address: str | None, json: bool, job: Job | None = None) -> None:
    """To the job's end; who is interrupted here only stops watching."""
    from orchestrator import clusters

    try:
        output.result(clusters.cluster_attach(id, address=address, show=_log), json)
    except KeyboardInterrupt:
        after = "; ".join(_afterwards(id, address))
        raise Interrupted(f"no longer following job {id}, which goes on. {after}", result=job) from None


def _afterwards(id: str, address: str | None) -> list[str]:
    at = "" if address is None else f" --address {shlex.quote(address)}"
    return [f"follow it: orchestrator cluster attach {id}{at}", f"end it: orchestrator cluster stop {id}{at}"]


def _log(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
