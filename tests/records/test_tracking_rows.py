"""What of a ledger is sent to MLflow, against a real store, and what is read back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import Refused
from orchestrator.records import tracking
from orchestrator.records.ledger import Ledger
from orchestrator.records.tracking import client, destination, recorded, recorded_run, sync
from tests.records.conftest import AT, ENDS, HOME, Record, events, everything, runs

# what is sent ---------------------------------------------------------------------------------------------------------------


def test_each_trial_is_a_run_below_the_sweep_s(record: Record) -> None:
    record()
    sync(HOME)
    found = runs()
    assert set(found) == {"sweep-1/parent", *(f"sweep-1/{trial}" for trial in ENDS)}
    parent = found.pop("sweep-1/parent")
    assert "mlflow.parentRunId" not in parent.data.tags
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert {run.data.tags["orchestrator.kind"] for run in found.values()} == {"trial"}


def test_the_status_says_how_a_run_ended(record: Record) -> None:
    record()
    sync(HOME)
    found = runs()
    assert {trial: found[f"sweep-1/{trial}"].info.status for trial in ENDS} == {0: "FINISHED", 1: "FINISHED", 2: "FAILED", 3: "KILLED"}
    assert {trial: found[f"sweep-1/{trial}"].data.tags["orchestrator.state"] for trial in ENDS} == {t: e[0] for t, e in ENDS.items()}
    assert found["sweep-1/1"].data.tags["orchestrator.stopped_by"] == "asha"
    assert found["sweep-1/2"].data.tags["orchestrator.error"] == "ValueError: no (nets.py:6)"
    assert found["sweep-1/parent"].info.status == "FINISHED"


def test_times_are_the_ledger_s(record: Record) -> None:
    record()
    sync(HOME)
    found = runs()
    assert (found["sweep-1/0"].info.start_time, found["sweep-1/0"].info.end_time) == (AT + 1000, AT + 1100)
    assert found["sweep-1/parent"].info.start_time == AT


def test_a_metric_has_a_value_an_epoch_with_the_epoch_as_step(record: Record) -> None:
    record()
    sync(HOME)
    history = everything()["sweep-1/1"]["history"]
    assert history["val_accuracy"] == [(0.49, AT + 2001, 1), (0.69, AT + 2002, 2), (0.59, AT + 2003, 3)]
    assert [(value, step) for value, _, step in everything()["sweep-1/0"]["history"]["test_accuracy"]] == [(0.65, 2)]


def test_parameters_are_flat_and_those_that_the_trial_trained_with(record: Record) -> None:
    record()
    sync(HOME)
    params = runs()["sweep-1/1"].data.params
    assert (params["optimizer.lr"], params["optimizer.name"], params["model.channels"]) == ("0.02", "adam", "[4, 6]")


def test_tags_say_where_a_run_came_from(record: Record) -> None:
    record()
    sync(HOME)
    tags = runs()["sweep-1/0"].data.tags
    expected = {
        "mlflow.source.git.commit": "c0ffee",
        "mlflow.source.name": "orchestrator sweep corners.yaml",
        "mlflow.user": "somebody",
        "orchestrator.dirty": "true",
        "orchestrator.executor": "inline",
        "orchestrator.world_size": "1",
        "orchestrator.fingerprint": "f" * 40,
        "orchestrator.metric": "val_accuracy",
        "orchestrator.mode": "max",
        "orchestrator.seed": "0",
        "orchestrator.versions": '{"torch": "2"}',
        "orchestrator.nodes": '["here"]',
    }
    assert {name: tags.get(name) for name in expected} == expected


def test_the_world_size_is_the_one_that_a_run_ended_with(begin: Record, ledger: Ledger) -> None:
    launch = begin("train-1", "train")
    started, *rest, ended = events(None, ("finished", None, None))
    started = dataclasses.replace(started, env={"executor": "ddp", "world_size": 4})  # type: ignore[call-arg]
    ledger.append(launch.id, [started, *rest])
    sync(HOME)
    assert runs()["train-1/parent"].data.tags["orchestrator.world_size"] == "4"
    ledger.append(launch.id, [dataclasses.replace(ended, nodes=("here", "there"))])  # type: ignore[call-arg]
    sync(HOME)
    assert runs()["train-1/parent"].data.tags["orchestrator.world_size"] == "2"


def test_every_run_names_its_data_set_once(record: Record) -> None:
    record()
    sync(HOME)
    assert {key: run["inputs"] for key, run in everything().items()} == {
        key: [("corners", "f" * 36, "training")] for key in ["sweep-1/parent", *(f"sweep-1/{trial}" for trial in ENDS)]
    }


def test_the_parent_carries_the_experiment_file_the_diff_and_the_leaderboard(record: Record, make_experiment: Any) -> None:
    launch = record()
    sync(HOME)
    parent = everything()["sweep-1/parent"]
    assert parent["files"] == ["experiment.yaml", "uncommitted.diff"]
    assert parent["tags"]["mlflow.note.content"] == "| table |"
    assert parent["tags"]["orchestrator.best_trial"] == "0"
    assert parent["history"]["val_accuracy"][-1][0] == 0.7
    winner = next(run for run in recorded(client(), "corners") if run.result.trial == 0)
    assert tracking.experiment_file(client(), winner) == tracking.to_yaml(launch.experiment)


def test_the_kept_bundle_is_a_model_of_its_run_with_the_test_scores(record: Record) -> None:
    record()
    sync(HOME)
    run, of = runs()["sweep-1/0"], client()
    model = of.get_logged_model(run.data.tags["orchestrator.model_id"])
    assert model.source_run_id == run.info.run_id
    assert str(model.status) == "READY"
    assert {metric.key: metric.value for metric in model.metrics} == {"test_accuracy": 0.65, "test_loss": 0.4}
    assert {metric.dataset_digest for metric in model.metrics} == {"f" * 36}
    stored = Path(model.artifact_location.removeprefix("file://"))
    assert sorted(path.name for path in stored.iterdir()) == ["MLmodel", "weights.safetensors"]


def test_a_run_of_train_is_one_run_without_a_parent(begin: Record, ledger: Ledger) -> None:
    launch = begin("train-1", "train")
    ledger.append(launch.id, events(None, ("finished", None, None)))
    ledger.note(launch.id, None, "closed", {"state": "finished", "tags": {"state": "finished"}, "metrics": {}, "note": ""})
    sync(HOME)
    ((key, run),) = runs().items()
    assert (key, run.info.status, run.data.tags["orchestrator.kind"]) == ("train-1/parent", "FINISHED", "train")
    (found,) = recorded(client(), "corners")
    assert (found.result.trial, found.result.sweep, found.kind) == (None, None, "train")


def test_a_launch_that_failed_before_any_run_is_recorded_as_failed(begin: Record, ledger: Ledger) -> None:
    for name, command in (("sweep-1", "sweep"), ("train-1", "train")):
        launch = begin(name, command)
        closing = {"state": "failed", "tags": {"state": "failed", "error": "no"}, "metrics": {}, "note": "failed: no"}
        ledger.note(launch.id, None, "closed", closing)
    sync(HOME)
    assert {key: run.info.status for key, run in runs().items()} == {"sweep-1/parent": "FAILED", "train-1/parent": "FAILED"}


def test_more_parameters_and_metrics_than_fit_in_one_request_all_arrive(begin: Record, ledger: Ledger) -> None:
    launch = begin()
    started, _, ended = events(0, ("finished", None, None), (0.5,))
    params = {f"model.p{number}": number for number in range(250)}
    many = [
        type(e)(e.trial, number, {f"m{k}": float(number) for k in range(30)} | e.metrics, e.at_ms + number)
        for number in range(1, 51)
        for e in events(0, ("finished", None, None), (0.5,))[1:2]
    ]
    ledger.append(launch.id, [type(started)(0, started.at_ms, {}, params, {}), *many, ended])
    sync(HOME)
    run = runs()["sweep-1/0"]
    assert {k: v for k, v in run.data.params.items() if k in params} == {k: str(v) for k, v in params.items()}
    assert [m.value for m in client().get_metric_history(run.info.run_id, "m29")] == [float(n) for n in range(1, 51)]


def test_a_run_that_is_started_again_on_other_hardware_keeps_its_first_parameters_and_loses_no_metric(
    begin: Record, ledger: Ledger
) -> None:
    launch, (started, *epochs) = begin(), events(0, ("finished", None, None))
    ledger.append(launch.id, [started, epochs[0]])
    sync(HOME)
    again = type(started)(0, started.at_ms + 50, {}, {"optimizer.lr": 0.01, "scaling.workers": 1, "optimizer.name": "sgd"}, {})
    ledger.append(launch.id, [again, *epochs[1:]])
    assert sync(HOME)[1] == 0
    run = runs()["sweep-1/0"]
    assert (run.data.params["optimizer.name"], run.data.params["scaling.workers"]) == ("adam", "1")
    assert len(everything()["sweep-1/0"]["history"]["val_accuracy"]) == 3


def test_yaml_keeps_every_value_s_type() -> None:
    from orchestrator.experiment.file import parse_value

    data: dict[str, Any] = {
        "lr": 1e-05,
        "on": "on",
        "number": "1e-3",
        "yes": True,
        "none": None,
        "list": [1, 2.0, "x"],
        "deep": {"a": {"b": 1}},
    }
    assert parse_value(tracking.to_yaml(data)) == data
    assert list(parse_value(tracking.to_yaml(data))) == list(data)


# reading back ---------------------------------------------------------------------------------------------------------------


def test_a_run_is_read_back_as_the_ledger_has_it(record: Record, ledger: Ledger) -> None:
    record()
    sync(HOME)
    found = {run.result.trial: run.result for run in recorded(client(), "corners") if run.kind == "trial"}
    assert [found[r.trial] for r in ledger.results("sweep-1", destination())] == ledger.results("sweep-1", destination())


def test_a_run_is_read_back_by_its_id(record: Record) -> None:
    record()
    sync(HOME)
    run = runs()["sweep-1/0"]
    found = recorded_run(client(), run.info.run_id)
    assert (found.launch, found.result.trial, found.metrics["test_accuracy"], found.model_id) == (
        "sweep-1", 0, 0.65, run.data.tags["orchestrator.model_id"],
    )  # fmt: skip


def test_an_unknown_experiment_names_those_that_there_are(record: Record) -> None:
    with pytest.raises(Refused, match=r"no experiment 'crners' at sqlite:.*; nothing has been recorded here yet"):
        recorded(client(), "crners")
    record()
    sync(HOME)
    with pytest.raises(Refused, match=r"no experiment 'crners' at sqlite:.*; there is: corners"):
        recorded(client(), "crners")


def test_a_run_that_is_unknown_or_somebody_else_s_is_refused(folder: Path) -> None:
    of = client()
    theirs = of.create_run("0").info.run_id
    with pytest.raises(Refused, match="--run: no run 'abc' at sqlite:"):
        recorded_run(of, "abc")
    with pytest.raises(Refused, match=f"--run: run '{theirs}' was not recorded by orchestrator"):
        recorded_run(of, theirs)


def test_runs_of_others_in_the_same_experiment_are_left_out(record: Record) -> None:
    record()
    sync(HOME)
    of = client()
    of.create_run(of.get_experiment_by_name("corners").experiment_id)
    assert len(recorded(of, "corners")) == 5
