"""How the benchmarks measure: contenders in fresh processes, in turn, medians of several repetitions, one plain table.

A time here is wall time around a process, from before it is started until it has ended. Before the next contender starts, every process
that the last one left behind has ended too (this process adopts orphans, so it sees them): nobody pays for another's ending.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sys.executable).parent
ORCHESTRATOR = str(SCRIPTS / "orchestrator")
CONFIG = ROOT / "configs" / "digits-cnn.yaml"
ENDING_S = 30.0  # what a contender left behind may live on for so long
ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)

Row = tuple[str, str, str, str, str]  # what, ours, theirs, ratio, bar


class ContenderFailed(RuntimeError):
    """A contender's process didn't end well; the message holds the end of what it printed."""


def test_data() -> Path:
    """The folder of the real data sets: ORCHESTRATOR_TEST_DATA, or ../shared/data beside the project."""
    return Path(os.environ.get("ORCHESTRATOR_TEST_DATA") or ROOT.parent / "shared" / "data").resolve()


def environment(threads: int) -> dict[str, str]:
    """This process's environment, with so many intra-op threads a process, modules compiled once, and none of Ray's messages home."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "PYTHONWARNINGS": "ignore"}
    return {**own, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(Path(__file__).parent), **quiet}


def adopt_orphans() -> None:
    """Become the parent of whatever a contender leaves behind (Linux only; elsewhere nothing is waited for)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)


def run(command: Sequence[str], folder: Path, threads: int = 1) -> tuple[float, str]:
    """Run a contender in a folder; (seconds until it ended, what it printed). Raises ContenderFailed."""
    return run_with_peak(command, folder, threads)[:2]


def run_with_peak(command: Sequence[str], folder: Path, threads: int = 1) -> tuple[float, str, int]:
    """The same, and the most bytes of memory that the process itself held at a time: its children's aren't in it."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment(threads), stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        wait_for_orphans()
        out.seek(0), err.seek(0)
        said, wrong = out.read(), err.read()
    if process.returncode:
        raise ContenderFailed(f"{' '.join(command)} ended with {process.returncode}:\n{said[-1000:]}{wrong[-2000:]}")
    return seconds, said, usage.ru_maxrss * 1024


def wait_for_orphans() -> None:
    """Until no child of this process lives; after ENDING_S those that are left are killed, each by its id."""
    deadline = time.monotonic() + ENDING_S
    while children := _children():
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _children() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    return []


def interleave(contenders: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, list[Any]]:
    """Every contender once, then every contender again ...; the order is turned round each time. Says what it is at on stderr."""
    results: dict[str, list[Any]] = {name: [] for name in contenders}
    for repetition in range(repetitions):
        order = list(contenders)[:: 1 if repetition % 2 == 0 else -1]
        for name in order:
            print(f"{time.strftime('%H:%M:%S')} load {load()}: {name}, {repetition + 1} of {repetitions}", file=sys.stderr, flush=True)
            results[name].append(contenders[name]())
    return results


def load() -> str:
    """The machine's load averages over 1 and 5 minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg()[:2])


def median(values: Sequence[float]) -> float:
    """The median; of an even number the mean of the middle two."""
    return float(statistics.median(values))


def heading(title: str) -> None:
    """What, when, where: the line above a table."""
    print(
        f"{title}  |  {time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores, Python {platform.python_version()}, load {load()}",
        flush=True,
    )


def table(rows: Sequence[Row]) -> None:
    """Rows of (what, ours, theirs, ratio, bar) as plain text."""
    lines = [("what", "ours", "theirs", "ratio", "bar"), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:4], widths[1:4], strict=True)), line[4]]
        print("  ".join(cells).rstrip(), flush=True)


def compare(what: str, ours: float, theirs: float, bar: str, unit: str = "s", theirs_first: bool = False) -> Row:
    """A row: ours / theirs (or theirs / ours, where the bar says how many times cheaper ours must be)."""
    ratio = theirs / ours if theirs_first else ours / theirs
    return (what, _number(ours, unit), _number(theirs, unit), f"{ratio:.3g} x" if ratio >= 10 else f"{ratio:.3f} x", bar)


def _number(value: float, unit: str) -> str:
    text = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 10 else f"{value:.1f}"
    return f"{text} {unit}"
