"""What can go wrong, and the exit code of each.

OrchestratorError
├── Refused             2   refused as given: nothing was started, nothing was written
│   └── ExperimentError 2   the experiment file; every problem at once
├── Failed              1   failed or refused while running: a crash, every trial failed
│   └── GateFailed      1   a promotion that was refused; nothing changed
└── Interrupted       130   Ctrl-C or SIGTERM; what was done is recorded, and can be resumed
    └── Lost          130   the cluster, the disk: it can't go on now, and can be resumed
        └── Taken     130   another command goes on with it
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the key's dotted path (or None), its line in the file (or None), and a sentence."""

    key: str | None
    line: int | None
    message: str

    def __str__(self) -> str:
        where = f" (line {self.line})" if self.line is not None else ""
        return f"{self.key}{where}: {self.message}" if self.key else self.message


class OrchestratorError(Exception):
    """The root of what this toolkit raises on purpose. `result` is what there is to show all the same, if anything."""

    exit_code = 1

    def __init__(self, message: str, *, key: str | None = None, result: Any = None) -> None:
        super().__init__(message)
        self.problems: Sequence[Problem] = [Problem(key, None, message)]
        self.result = result

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)

    def document(self) -> dict[str, Any]:
        """The JSON form: `{errors: [{key, line, message}]}`."""
        return {"errors": [asdict(problem) for problem in self.problems]}


class Refused(OrchestratorError):
    """What was asked can't be done as given; nothing was started."""

    exit_code = 2


class ExperimentError(Refused):
    """An experiment file with one or more problems, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("the experiment is refused")
        self.problems = list(problems)


class Failed(OrchestratorError):
    """It failed, or was refused, while running."""


class GateFailed(Failed):
    """A promotion was refused; nothing changed."""


class Interrupted(OrchestratorError):
    """Ctrl-C or SIGTERM."""

    exit_code = 130


class Lost(Interrupted):
    """What it ran on is gone: Ray's head, the hub, the room on the disk."""


class Taken(Lost):
    """Another command, on another machine, goes on with it by now."""


class Note(UserWarning):
    """Something to know beside a result; the command line prints it on stderr."""


def shown(text: str) -> str:
    """A URI, or a text with URIs in it, without user:password@: messages and the ledger are read by others."""
    return re.sub(r"://[^\s/:@]*(:\S*)?@", "://", text)
