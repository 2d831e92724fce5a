"""What the public functions of clusters return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.results import Result


@dataclass(frozen=True)
class Job(Result):
    """A job on a cluster. `state`: pending, running, finished, failed, interrupted, stopped; `started`: UTC."""

    id: str
    experiment: str
    state: str
    started: str
    exit_code: int | None = None


@dataclass(frozen=True)
class JobList(Result):
    """The jobs of a cluster, newest first."""

    jobs: list[Job] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        return {"jobs": [{k: v for k, v in job.document().items() if k != "exit_code"} for job in self.jobs]}

    def rows(self) -> list[dict[str, Any]]:
        return [job.document() for job in self.jobs]


@dataclass(frozen=True)
class ClusterStatus(Result):
    """The nodes of a cluster: what is free on each, and who holds the rest."""

    nodes: list[dict[str, Any]] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "node": node["id"][:12],
                "address": node["address"],
                "state": ("head" if node["head"] else "alive") if node["alive"] else "dead",
                "cpus": node["cpus"],
                "free cpus": node["free"]["CPU"],
                **({"gpus": node["gpus"], "free gpus": node["free"]["GPU"]} if node["gpus"] else {}),
                "held by": ", ".join(dict.fromkeys(held["by"] for held in node["held"])),
            }
            for node in self.nodes
        ]


@dataclass(frozen=True)
class Template(Result):
    """A file for a cluster: its text, and where it was written, if it was."""

    kind: str
    experiment: str
    text: str
    output: str | None
    edit: list[str] = field(default_factory=list)  # what is still to be filled in
