"""A ledger's entries -> MLflow, batched and idempotent.

A run's identity is a tag, `orchestrator.key`, looked up before a run is created, so that sending twice changes nothing. Time stamps come
from the ledger: the same row sent again is the same row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from orchestrator.errors import Failed
from orchestrator.records.ledger import Entry, Launch, Ledger, by_run
from orchestrator.records.logs import places
from orchestrator.records.tracking.logs import send_logs
from orchestrator.records.tracking.models import send_kept
from orchestrator.records.tracking.rows import Rows, dataset, rows_of, run_tags, text, to_yaml
from orchestrator.records.tracking.store import asked_once, client, destination

EXPERIMENT_FILE = "experiment.yaml"


class Sender:
    """Sends a ledger's entries to MLflow. One instance a thread. `heard` is called now and then while MLflow answers.

    `before` is called before rows are sent, and may raise.
    """

    def __init__(self, ledger: Ledger, heard: Callable[[], None] = lambda: None, before: Callable[[], None] = lambda: None) -> None:
        self.ledger, self.destination, self.heard, self.before = ledger, destination(), heard, before
        self.client = client(heard)
        self.heard()
        self._experiments: dict[str, str] = {}
        self._launches: dict[str, Launch] = {}
        self._runs: dict[tuple[str, int | None], str] = {}
        self._deleted: set[tuple[str, int | None]] = set()  # by the user, of the launch looked up last: they get nothing more
        self._made: set[str] = set()  # runs that were made here
        self._fresh: set[str] = set()  # ... and have no rows yet
        self._there: dict[str, dict[int, int]] = {}  # the epochs that a run had when it was found, and their times
        self._began: dict[str, int] = {}  # when runs that were found there began

    def send(self) -> int:
        """Everything that isn't there yet; the number of entries sent. A launch that is refused holds no other up: raised at the end."""
        sent, problem = 0, None
        for launch in self.ledger.unsent(self.destination):
            try:
                sent += self._send_launch(self._launch(launch))
            except Exception as error:
                if _is_silence(error):
                    raise
                problem = problem or error
        if problem is not None:
            raise problem
        return sent

    def _send_launch(self, launch: Launch) -> int:
        """What isn't there of one launch, a batch a run; the number of entries sent."""
        sent = 0
        self._look_up(launch)  # every time: another command may have sent meanwhile
        while entries := self.ledger.entries(launch.id, after=self.ledger.sent(self.destination, launch.id), limit=2000):
            for (_, trial), group in by_run(entries).items():
                if (launch.id, trial) not in self._deleted:
                    self._send_run(launch, trial, group)
            self.ledger.mark_sent(self.destination, launch.id, entries[-1].seq)
            sent += len(entries)
        return sent

    def _launch(self, launch: str) -> Launch:
        if launch not in self._launches:
            self._launches[launch] = self.ledger.find(launch)
        return self._launches[launch]

    def _send_run(self, launch: Launch, trial: int | None, entries: Sequence[Entry]) -> None:
        """What these entries say of one run. Every part of it may be sent again."""
        if trial is not None and entries[0].kind == "started":
            self._drop_namesake(launch, trial)
        run_id = self._run(launch, trial, entries[0].at_ms)
        rows = rows_of(self.ledger, launch, [entry for entry in entries if self._lacks(run_id, launch, entry)])
        self._send_rows(run_id, rows)
        self.heard()
        for entry in entries:
            if entry.kind in ("launched", "reopened"):
                self._send_files(run_id, launch)
            if entry.kind == ("launched" if trial is None else "started"):
                self.client.log_inputs(run_id, [dataset(launch)])
            elif entry.kind == "kept":
                send_kept(self.client, launch, run_id, entry)
            elif entry.kind == "ended":
                send_logs(self.client, run_id, places(self.ledger.path.parent, launch, trial))
            self.heard()
        if rows.status is not None:
            status, ended_ms = rows.status
            if ended_ms is None:
                self.client.update_run(run_id, status)
            else:
                self.client.set_terminated(run_id, status, ended_ms)

    def _lacks(self, run_id: str, launch: Launch, entry: Entry) -> bool:
        """Not an epoch of a lost ledger, which was trained again: it has another time now, and MLflow would keep both."""
        if entry.kind != "epoch" or run_id in self._made:
            return True
        if run_id not in self._there:
            self._there[run_id] = {row.step: row.timestamp for row in self.client.get_metric_history(run_id, launch.metric)}
        return self._there[run_id].get(entry.data["epoch"], entry.at_ms) == entry.at_ms

    def _send_rows(self, run_id: str, rows: Rows) -> None:
        """A new run's rows in one call; else parameters apart: one that changed is refused, and what is sent with it is lost."""
        from mlflow.entities import Param, RunTag

        params, tags, metrics = rows.params, [RunTag(key, text(value)) for key, value in rows.tags.items()], rows.metrics
        if run_id not in self._fresh and params:
            there = self.client.get_run(run_id).data.params
            params = {key: value for key, value in params.items() if key not in there}
        given = [Param(key, text(value)) for key, value in params.items()]
        if run_id in self._fresh and len(given) <= 100 and len(metrics) <= 800:
            self._fresh.discard(run_id)
            self._log(run_id, metrics=metrics, params=given, tags=tags)
            return
        for start in range(0, len(given), 100):
            self._log(run_id, params=given[start : start + 100])
        for start in range(0, len(metrics), 1000):
            self._log(run_id, metrics=metrics[start : start + 1000])
        if tags:
            self._log(run_id, tags=tags)

    def _log(self, run_id: str, **rows: Any) -> None:
        self.before()
        self.client.log_batch(run_id, **rows)

    def _send_files(self, run_id: str, launch: Launch) -> None:
        self.client.log_text(run_id, to_yaml(launch.experiment), EXPERIMENT_FILE)
        if launch.about.get("diff"):
            self.client.log_text(run_id, launch.about["diff"], "uncommitted.diff")

    def _run(self, launch: Launch, trial: int | None, at_ms: int) -> str:
        """The run's MLflow id: known, or new."""
        if (launch.id, trial) not in self._runs:
            self._remember(launch, {trial: self._create(launch, trial, launch.at_ms if trial is None else at_ms)})
        return self._runs[launch.id, trial]

    def _drop_namesake(self, launch: Launch, trial: int) -> None:
        """A run of a trial that began at another time is of a ledger that was lost: what was restored asked for this one anew."""
        there = self._runs.get((launch.id, trial))
        if there in self._began and self._began[there] != self.ledger.run_entries(launch.id, trial)[0].at_ms:
            self.client.delete_run(there)
            del self._runs[launch.id, trial]

    def _look_up(self, launch: Launch) -> None:
        """Every run of a launch that MLflow has, by the tags that identify it: one question a launch. Deleted ones must not come back."""
        live: dict[int | None, list[Any]] = {}
        deleted: dict[int | None, str] = {}
        for run in self._search(launch):
            _, _, key = run.data.tags["orchestrator.key"].partition("/")
            trial = None if key == "parent" else int(key)
            self._began[run.info.run_id] = run.info.start_time
            if run.info.lifecycle_stage == "deleted":
                deleted[trial] = run.info.run_id
            else:
                live.setdefault(trial, []).append(run)
        self.heard()
        self._deleted = {(launch.id, trial) for trial in deleted.keys() - live.keys() | self.ledger.removed(launch.id)}
        self._remember(launch, deleted | self._one_each(launch, live))

    def _one_each(self, launch: Launch, live: dict[int | None, list[Any]]) -> dict[int | None, str]:
        """A run that was made twice, since the answer to the first request came too late or never, is deleted but for the one in use."""
        known = self.ledger.identities(self.destination, launch.id)
        kept = {}
        for trial, runs in live.items():
            *twins, in_use = sorted(runs, key=lambda run: (run.info.run_id == known.get(trial), len(run.data.params)))
            kept[trial] = str(in_use.info.run_id)
            for twin in twins:
                self.client.delete_run(twin.info.run_id)
        return kept

    def _search(self, launch: Launch) -> Iterator[Any]:
        """The runs of a launch, deleted ones too."""
        from mlflow.entities import ViewType

        asked = [self._experiment(launch.name)], f"tags.`orchestrator.launch` = '{launch.id}'", ViewType.ALL
        token = None
        while True:
            page = self.client.search_runs(*asked, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _remember(self, launch: Launch, runs: dict[int | None, str]) -> None:
        self.ledger.identify(self.destination, launch.id, runs)
        self._runs |= {(launch.id, trial): run_id for trial, run_id in runs.items()}

    def _create(self, launch: Launch, trial: int | None, at_ms: int) -> str:
        parent = None if trial is None else self._run(launch, None, launch.at_ms)
        kind = "trial" if trial is not None else launch.command
        key = f"{launch.id}/{'parent' if trial is None else trial}"
        name = f"{kind if trial is None else f'trial {trial}'} {launch.id}"
        tags, experiment = run_tags(launch, trial, key, kind, parent), self._experiment(launch.name)
        with asked_once():
            made = self.client.create_run(experiment, at_ms, tags, name)
        self.heard()
        self._made.add(made.info.run_id)
        self._fresh.add(made.info.run_id)
        return str(made.info.run_id)

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name)
            if found is not None and found.lifecycle_stage == "deleted":
                raise Failed(
                    f"MLflow experiment '{name}' is deleted: restore it (mlflow experiments restore), or give the experiment another name"
                )
            self._experiments[name] = str(found.experiment_id if found is not None else self.client.create_experiment(name))
        return self._experiments[name]


def _is_silence(error: Exception) -> bool:
    """Whether nobody answers: the other launches needn't try, each would wait as long."""
    from requests.exceptions import ConnectionError, RetryError, Timeout

    nobody = (ConnectionError, RetryError, Timeout)
    return isinstance(error, nobody) or isinstance(error.__cause__ or error.__context__, nobody)
