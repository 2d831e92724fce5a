"""Who sends, and when: in the background of a running command, or all at once. Only who holds the lock beside the ledger sends."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from orchestrator.errors import Failed, Taken
from orchestrator.records.ledger import ALL, Ledger
from orchestrator.records.tracking.send import Sender
from orchestrator.records.tracking.store import destination, mlflow_errors, one_line, shown_destination

POLL_S = 2.0
STALE_S = 5.0  # since the last look whose launch it is: more than sending takes, as a rule
LAST_WAIT_S = 15.0  # for another command's sending, when there is no next time
NICE = 5  # training goes first; much lower, and a busy machine starves the thread while it holds the interpreter's lock
AT_MOST = 2  # times the patience, however often MLflow answers
SWITCH_S = 0.0005  # Python's default, ten times as long, is what each commit and each answer of Ray's would wait for this thread


class BackgroundSender:
    """Sends while a command runs, in a thread of low priority; tries again when MLflow doesn't answer.

    `ours`: whether the launch is still this command's to send; looked at each time, and once more where much time has gone by since, as in
    a machine that was cut off.
    """

    def __init__(self, folder: Path, ours: Callable[[], bool] = lambda: True) -> None:
        self.folder, self.ours, self._looked_at = folder, ours, 0.0
        self.problem: str | None = None
        self._stop, self._heard_at = threading.Event(), time.monotonic()
        self._ready_at: float | None = None  # when MLflow was imported, and its store there
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send what is there, then end."""
        self._stop.set()

    def finish(self, patience_s: float) -> int:
        """Send the rest, or give up after so many seconds without an answer; how many entries are left."""
        self.stop()
        began = time.monotonic()
        while self._thread.is_alive() and (rest_s := self._until(began, patience_s) - time.monotonic()) > 0:
            self._thread.join(rest_s)
        ledger = Ledger(self.folder)
        try:
            return ledger.left(destination())
        finally:
            ledger.close()

    def _until(self, began: float, patience_s: float) -> float:
        """Until when an end that began then waits, as far as MLflow has answered."""
        ready_at = self._ready_at or time.monotonic()
        return min(max(began, self._heard_at) + patience_s, max(began, ready_at) + AT_MOST * patience_s)

    def _heard(self) -> None:
        self._heard_at = time.monotonic()

    def _look(self) -> bool:
        self._looked_at = time.monotonic()
        return self.ours()

    def _before(self) -> None:
        """Before rows are sent. Raises Taken."""
        if time.monotonic() - self._looked_at > STALE_S and not self._look():
            raise Taken("another command goes on with this launch by now")

    def _run(self) -> None:
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # Linux: of this thread
        ledger, sender, wait_s = None, None, POLL_S
        try:
            while True:
                stopping = self._stop.is_set()
                try:
                    with sending_lock(self.folder, LAST_WAIT_S if stopping else 0):
                        self._look()
                        ledger = ledger or Ledger(self.folder)
                        sender = sender or Sender(ledger, self._heard, self._before)
                        self._ready_at = self._ready_at or time.monotonic()
                        sender.send()
                    self.problem, wait_s = None, POLL_S
                except Exception as error:  # MLflow, its server, its database, a disk: said at the end, and tried again
                    self.problem = one_line(error)
                    sender, wait_s = None, min(wait_s * 2, 10.0)
                if stopping:
                    return
                self._stop.wait(wait_s)
        finally:
            sys.setswitchinterval(before)
            if ledger is not None:
                ledger.close()


@contextlib.contextmanager
def sending_lock(folder: Path, timeout_s: float = 0) -> Iterator[None]:
    """Held by who sends from a folder's ledger; raises Failed if another process holds it."""
    lock = filelock.FileLock(folder / "sending.lock", timeout=timeout_s)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise Failed("another command is sending from this folder's ledger to MLflow") from None
    except OSError as error:
        raise Failed(f"can't lock '{lock.lock_file}': {error}") from None
    try:
        yield
    finally:
        lock.release()


def sync(folder: Path, again: bool = False) -> tuple[int, int]:
    """(entries that MLflow lacked and has now, entries left). `again`: look every run up, whatever was sent before."""
    if not (folder / "ledger.sqlite").exists():
        return 0, 0
    ledger, to = Ledger(folder), destination()
    try:
        with sending_lock(folder, 30):
            had = {launch: (ledger.sent(to, launch), ledger.identities(to, launch)) for launch in ledger.launches()}
            if again:
                ledger.forget_sent(to)
            elif not ledger.left(to):
                return 0, 0
            try:
                Sender(ledger).send()
            except mlflow_errors() as error:
                raise Failed(
                    f"MLflow at {shown_destination()} took not everything: {one_line(error)}; run `orchestrator sync` again"
                ) from None
        return sum(_lacked(ledger, to, launch, *before) for launch, before in had.items()), ledger.left(to)
    finally:
        ledger.close()


def _lacked(ledger: Ledger, to: str, launch: str, mark: int, runs: dict[int | None, str]) -> int:
    """How many entries of a launch were sent for the first time: those after the mark, and all of a run that MLflow had lost."""
    now, sent = ledger.identities(to, launch), ledger.sent(to, launch)
    entries = ledger.entries(launch, limit=ALL)
    return sum(e.seq <= sent and (e.seq > mark or now.get(e.trial) != runs.get(e.trial)) for e in entries)
