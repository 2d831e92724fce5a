"""Reading an experiment: YAML 1.2 and KEY=VALUE in, an Experiment or every problem at once out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.catalog import catalog
from orchestrator.errors import ExperimentError, Refused
from orchestrator.experiment.config import Bound
from orchestrator.experiment.file import parse_value
from orchestrator.experiment.read import read, resolve, with_values
from tests.experiment.conftest import SHORTEST, Problems, Read, space

# what is taken --------------------------------------------------------------------------------------------------------------


def test_everything_but_name_data_and_model_has_a_default(read_text: Read) -> None:
    experiment = read_text(SHORTEST)
    assert (experiment.optimizer.name, experiment.training.epochs, experiment.scaling.workers) == ("adam", 10, 1)
    assert (experiment.sweep.search, experiment.sweep.scheduler.name, experiment.registered_model) == ("tpe", "asha", "small")
    assert experiment.optimizer.options["lr"] == 1e-3


def test_every_shipped_file_reads(tmp_path: Path) -> None:
    files = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    assert [read(path, (), catalog(tmp_path)).name for path in files] == [path.stem for path in files]


def test_the_metric_is_the_family_s_first_unless_one_is_named(read_text: Read) -> None:
    assert (read_text(SHORTEST).metric, read_text(SHORTEST).mode) == ("val_accuracy", "max")
    named = read_text(SHORTEST, "sweep.metric=val_loss")
    assert (named.metric, named.mode) == ("val_loss", "min")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("012", 12),
        ("0x10", 16),
        ("null", None),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("'1'", "1"),
    ],
)
def test_values_are_those_of_yaml_1_2_as_python_s_own_types(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_a_number_in_scientific_form_is_a_number(read_text: Read) -> None:
    assert read_text(SHORTEST + "optimizer: {lr: 1e-3}\n").optimizer.options["lr"] == 0.001


def test_a_scheduler_is_a_name_or_a_mapping(read_text: Read) -> None:
    assert read_text(SHORTEST + "sweep: {scheduler: none}\n").sweep.scheduler.name == "none"
    mapping = read_text(SHORTEST + "sweep: {scheduler: {name: asha, grace_period: 2}}\n").sweep.scheduler
    assert (mapping.name, mapping.grace_period, mapping.reduction_factor) == ("asha", 2, 4)


def test_a_family_of_one_s_own_is_a_class_below_the_experiment_s_folder(read_text: Read, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("from models.cnn import CNN\n\n\nclass Mine(CNN):\n    metrics = ('top5', 'accuracy')\n")
    experiment = read_text("name: a\ndata: {source: digits}\nmodel: {class: 'nets:Mine', dropout: 0.5}\n")
    assert experiment.model.family == "nets:Mine"
    assert experiment.model.options["dropout"] == 0.5
    assert experiment.metric == "val_top5"


def test_merged_keys_are_read(read_text: Read) -> None:
    merged = SHORTEST + "registry:\n  require: {test_accuracy: &b {min: 0.5}, test_loss: {<<: *b}}\n"
    assert read_text(merged).registry.require["test_loss"] == Bound(min=0.5)


# overrides ------------------------------------------------------------------------------------------------------------------


def test_an_override_sets_one_key_and_leaves_the_others(read_text: Read) -> None:
    experiment = read_text(SHORTEST + "optimizer: {name: sgd, lr: 0.5}\n", "optimizer.lr=1e-2", "training.epochs=3")
    assert (experiment.optimizer.name, experiment.optimizer.options["lr"], experiment.training.epochs) == ("sgd", 0.01, 3)


def test_an_override_with_a_mapping_replaces_the_section(read_text: Read) -> None:
    experiment = read_text(SHORTEST + "optimizer: {name: sgd, lr: 0.5}\n", "optimizer={name: adamw}")
    assert (experiment.optimizer.name, experiment.optimizer.options["lr"]) == ("adamw", 1e-3)


def test_the_last_of_two_overrides_counts(read_text: Read) -> None:
    assert read_text(SHORTEST, "training.epochs=3", "training.epochs=4").training.epochs == 4


def test_an_override_of_the_space_names_the_searched_key_with_its_dots(read_text: Read) -> None:
    text = SHORTEST + "sweep: {space: {optimizer.lr: {uniform: [0.1, 0.2]}, model.dropout: {uniform: [0, 0.5]}}}\n"
    experiment = read_text(text, "sweep.space.optimizer.lr={loguniform: [1e-4, 1e-1]}")
    assert experiment.sweep.space == {"optimizer.lr": {"loguniform": [1e-4, 1e-1]}, "model.dropout": {"uniform": [0, 0.5]}}
    assert list(read_text(text, "sweep.space={optimizer.lr: {uniform: [1, 2]}}").sweep.space) == ["optimizer.lr"]


def test_an_overridden_key_has_no_line_for_the_file_is_not_at_fault(problems: Problems) -> None:
    text = SHORTEST + "training:\n  seed: 1\n  epochs: 3\n"
    assert problems(text, "training.epochs=-1", "training.seed=x", "optimizer.lrr=1") == [
        "optimizer.lrr: no option of optimizer adam 'lrr'; did you mean 'lr'? there is: betas, lr, name, schedule, warmup, weight_decay",
        "training.epochs: it must be greater than 0, not -1",
        "training.seed: it must be a whole number, not 'x'",
    ]


@pytest.mark.parametrize("override", ["training.epochs", "=3", "  =3"])
def test_what_is_no_key_value_is_refused(override: str, read_text: Read) -> None:
    with pytest.raises(Refused, match=f"'{override}' is no KEY=VALUE, such as training.epochs=3"):
        read_text(SHORTEST, override)


@pytest.mark.parametrize("value", ["[1, 2", "{a: 1, a: 2}", "a: b: c", "\x00"])
def test_an_override_that_is_no_yaml_is_refused_by_its_key(value: str, read_text: Read) -> None:
    with pytest.raises(Refused, match=r"^training.epochs: no valid YAML: "):
        read_text(SHORTEST, f"training.epochs={value}")


# files that are none --------------------------------------------------------------------------------------------------------


def test_a_missing_file_names_those_that_lie_beside_it(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").touch()
    with pytest.raises(Refused, match=r"digts.yaml': no such file; in '.*' there is: digits.yaml"):
        read(tmp_path / "digts.yaml", (), catalog(tmp_path))


def test_a_folder_and_a_picture_can_t_be_read(tmp_path: Path) -> None:
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe")
    for path in (tmp_path, tmp_path / "picture.yaml"):
        with pytest.raises(Refused, match="it can't be read"):
            read(path, (), catalog(tmp_path))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just a word\n"])
def test_a_file_that_is_no_mapping_says_how_one_begins(text: str, problems: Problems) -> None:
    assert problems(text)[0].endswith("it must be a mapping that begins with name:, data: and model:")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("name: a\ndata: {source: digits\nmodel: x\n", "(line 3)", "no valid YAML"),
        ("name: a\ntraining: {epochs: 3, epochs: 4}\n", "(line 2)", 'found duplicate key "epochs"'),
        ("name: a\n\tdata: b\n", "(line 2)", "no valid YAML"),
        ("name: a\x00\n", "", "unacceptable character"),
    ],
)
def test_what_is_no_yaml_says_where(text: str, line: str, says: str, problems: Problems) -> None:
    found = problems(text)
    assert len(found) == 1
    assert line in found[0]
    assert says in found[0]


# problems -------------------------------------------------------------------------------------------------------------------


def test_every_problem_is_said_at_once_in_the_order_of_the_file(problems: Problems) -> None:
    text = """\
name: a/b
data: {source: digts}
model: {family: cnn, dropot: 0.5}
optimizer:
  name: sgd
  lr: -1
training:
  epochs: ten
  batchsize: 3
sweep:
  metric: val_acuracy
  space:
    optimizer.lr: {uniform: [2, 1]}
registry: {require: {test_acc: {min: 1}}}
"""
    keys = [line.partition(":")[0] for line in problems(text)]
    assert keys == [
        "name (line 1)",
        "data.source (line 2)",
        "model.dropot (line 3)",
        "optimizer.lr (line 6)",
        "training.epochs (line 8)",
        "training.batchsize (line 9)",
        "sweep.metric (line 11)",
        "sweep.space.optimizer.lr (line 13)",
        "registry.require.test_acc (line 14)",
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("trainig: {}", "trainig (line 4): no key 'trainig'; did you mean 'training'? there is: budget, data, model, name,"),
        ("training: {epoch: 3}", "training.epoch (line 4): no key 'epoch'; did you mean 'epochs'? there is: accumulate,"),
        ("optimizer: {name: adm}", "optimizer.name (line 4): no optimizer 'adm'; did you mean 'adam'? there is: adam, adamw,"),
        ("optimizer: {momentum: 0.9}", "optimizer.momentum (line 4): no option of optimizer adam 'momentum'; there is: betas, lr,"),
        ("sweep: {scheduler: asa}", "sweep.scheduler (line 4): no scheduler 'asa'; did you mean 'asha'? there is: asha, none"),
        (
            "sweep: {scheduler: {graceperiod: 2}}",
            "sweep.scheduler.graceperiod (line 4): no key 'graceperiod'; did you mean 'grace_period'?",
        ),
        (
            "sweep: {metric: val_loss_}",
            "sweep.metric (line 4): no metric 'val_loss_'; did you mean 'val_loss'? there is: val_accuracy, val_",
        ),
        ("registry: {require: {val_f1: {min: 1}}}", "registry.require.val_f1 (line 4): no metric 'val_f1'"),
        ("registry: {require: {test_accuracy: {mn: 1}}}", "registry.require.test_accuracy.mn (line 4): no key 'mn'; did you mean 'min'?"),
        ("registry: {require: {test_accuracy: {}}}", "registry.require.test_accuracy (line 4): give min or max, such as {min: 0.97}"),
        ("registry: {model: a/b}", "registry.model (line 4): String should match pattern"),
    ],
)
def test_an_unknown_name_says_the_nearest_and_what_there_is(line: str, says: str, problems: Problems) -> None:
    found = problems(SHORTEST + line + "\n")
    assert len(found) == 1
    assert found[0].startswith(says)


def test_the_known_metrics_of_a_requirement_are_those_on_test_and_validation(read_text: Read, problems: Problems) -> None:
    require = "registry: {require: {test_accuracy: {min: 0.9}, val_loss: {max: 1}, test_loss: {max: 1}}}\n"
    assert set(read_text(SHORTEST + require).registry.require) == {"test_accuracy", "val_loss", "test_loss"}
    assert "there is: test_accuracy, test_loss, val_accuracy, val_loss" in problems(SHORTEST, "registry.require.accuracy={min: 1}")[0]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training=3", "training: it must be a mapping, not 3"),
        ("optimizer=[]", "optimizer: it must be a mapping, not []"),
        ("data.split=0.8", "data.split: it must be a mapping, not 0.8"),
        ("training.epochs=ten", "training.epochs: it must be a whole number, not 'ten'"),
        ("training.epochs='3'", "training.epochs: it must be a number, not '3'"),
        ("training.epochs=true", "training.epochs: it must be a number, not True"),
        ("training.epochs=2.5", "training.epochs: it must be a whole number, not 2.5"),
        ("training.precision=fp8", "training.precision: it must be 'auto', 'fp32', 'bf16' or 'fp16', not 'fp8'"),
        ("optimizer.lr=0", "optimizer.lr: it must be greater than 0, not 0"),
        ("optimizer.lr=.inf", "optimizer.lr: it must be a finite number, not inf"),
        ("optimizer.betas=[0.9, '0.99']", "optimizer.betas.1: it must be a number, not '0.99'"),
        ("optimizer={name: sgd, nesterov: 1}", "optimizer.nesterov: it must be true or false, not 1"),
        ("optimizer={name: sgd, nesterov: on}", "optimizer.nesterov: it must be true or false, not 'on'"),
        ("optimizer.name=3", "optimizer.name: it must be a name, not 3"),
        ("model.dropout=1.0", "model.dropout: it must be less than 1, not 1.0"),
        ("model.channels=[]", "model.channels: Tuple should have at least 1 item after validation"),
        ("model.pool_after=[5]", "model: pool_after names convolution 5, but channels has 3"),
        ("data.split={train: 0.5}", "data.split: train, validation and test add up to 0.7; they must add up to 1"),
        ("data.rows=3", "data.rows: no option 'rows'; there is: source, split"),
        (
            "scaling.workers=0",
            "scaling.workers: it must be a whole number from 1, or the fewest and the most of them, such as [1, 4], not 0",
        ),
        ("scaling.workers=[4,1]", "scaling.workers: the fewest come first: [1, 4], not [4, 1]"),
        (
            "scaling.workers=[1,2,3]",
            "scaling.workers: it must be a whole number from 1, or the fewest and the most of them, such as [1, 4], not [1, 2, 3]",
        ),
        (
            "scaling.workers=[0,true]",
            "scaling.workers: it must be a whole number from 1, or the fewest and the most of them, such as [1, 4], not [0, True]",
        ),
        ("name=''", "name: '': it must be a word without"),
        ("name=3", "name: 3: it must be a word without"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_says_what_it_must_be(override: str, says: str, problems: Problems) -> None:
    found = [line.replace(" (line 1)", "").replace(" (line 2)", "").replace(" (line 3)", "") for line in problems(SHORTEST, override)]
    assert len(found) == 1
    assert found[0].startswith(says)


@pytest.mark.parametrize("name", ["name", "data", "model"])
def test_what_has_no_default_must_be_given(name: str, problems: Problems) -> None:
    text = "".join(line for line in SHORTEST.splitlines(keepends=True) if not line.startswith(name))
    assert problems(text) == [f"{name}: it is missing"]


def test_a_model_is_a_family_or_a_class(problems: Problems) -> None:
    assert problems(SHORTEST, "model={}") == ["model.family: it is missing"]
    assert problems(SHORTEST, "model.class=a:B") == ["model.family (line 3): give family or class, not both"]


def test_an_own_class_that_can_t_be_imported_is_a_problem_of_its_key(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_library\n")
    found = problems("name: a\ndata: {source: digits}\nmodel: {class: 'broken:Net'}\n")
    assert found == ["model.class (line 3): family 'broken:Net' can't be imported: ModuleNotFoundError: No module named 'no_such_library'"]


# a trial's values -----------------------------------------------------------------------------------------------------------


def test_a_trial_s_values_are_set_and_its_space_is_empty(read_text: Read, tmp_path: Path) -> None:
    experiment = read_text(space("optimizer.lr: {uniform: [0.1, 0.2]}"))
    trial = with_values(experiment, {"optimizer.lr": 0.15, "training.batch_size": 8}, catalog(tmp_path))
    assert (trial.optimizer.options["lr"], trial.training.batch_size, trial.sweep.space) == (0.15, 8, {})
    assert experiment.training.batch_size == 64


def test_a_trial_s_values_reach_keys_below_a_section_s_and_those_of_every_family(read_text: Read, tmp_path: Path) -> None:
    keys = ("model.init_from: {choice: [null, 'models:/a@champion']}", "model.freeze: {choice: [[], [features]]}")
    experiment = read_text(space("training.augment.shift: {uniform: [0, 0.2]}", *keys) + "training: {augment: {flip: horizontal}}\n")
    values = {"training.augment.shift": 0.1, "model.init_from": "models:/a@champion", "model.freeze": ["features"]}
    trial = with_values(experiment, values, catalog(tmp_path))
    assert (trial.training.augment.shift, trial.training.augment.flip) == (0.1, "horizontal")
    assert (trial.model.init_from, trial.model.freeze) == ("models:/a@champion", ("features",))
    assert (experiment.training.augment.shift, experiment.model.init_from) == (0.0, None)


def test_one_part_to_freeze_may_be_given_alone(read_text: Read) -> None:
    assert read_text(SHORTEST, "model.freeze=features").model.freeze == ("features",)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.freeze=5", "model.freeze: it must be a list of parts, such as [features], not 5"),
        ("model.freeze=['']", "model.freeze.0: String should have at least 1 character, not ''"),
        ("model.init_from=5", "model.init_from: it must be a text, not 5"),
        ("model.init_form=a", "model.init_form: no option 'init_form'; did you mean 'init_from'?"),
        ("training.augment.shift=0.6", "training.augment.shift: it must be less than or equal to 0.5, not 0.6"),
        ("training.augment.crop=0", "training.augment.crop: it must be greater than 0, not 0"),
        ("training.augment.flip=true", "training.augment.flip: it must be 'none', 'horizontal', 'vertical' or 'both', not True"),
        ("training.augment.rotat=5", "training.augment.rotat: no key 'rotat'; did you mean 'rotate'?"),
        ("training.augment.rotate=true", "training.augment.rotate: it must be a number, not True"),
    ],
)
def test_what_every_family_s_keys_and_augmentation_do_not_take_is_refused(override: str, says: str, problems: Problems) -> None:
    found = problems(SHORTEST, override)
    assert len(found) == 1
    assert found[0].startswith(says)


def test_another_optimizer_drops_the_options_that_it_does_not_have(read_text: Read, tmp_path: Path) -> None:
    experiment = read_text(SHORTEST + "optimizer: {name: sgd, lr: 0.5, momentum: 0.7, schedule: cosine}\n")
    trial = with_values(experiment, {"optimizer.name": "adam"}, catalog(tmp_path))
    assert trial.optimizer.options == {"lr": 0.5, "weight_decay": 0.0, "schedule": "cosine", "warmup": None, "betas": [0.9, 0.999]}


def test_reading_what_was_resolved_gives_the_same_experiment(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "configs" / "digits-cnn.yaml"
    experiment = read(path, ["registry.require.test_loss={max: 1}", "storage.path=/x"], catalog(tmp_path))
    assert resolve(experiment.plain(), catalog(tmp_path)) == experiment


def test_credentials_in_the_file_are_refused_since_it_is_recorded(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("name: e\ndata: {source: digits}\nmodel: {family: cnn}\nstorage: {path: 's3://user:hunter2@bucket/x'}\n")
    with pytest.raises(ExperimentError) as refused:
        read(path, [], catalog(tmp_path))
    assert [(p.key, p.line) for p in refused.value.problems] == [("storage.path", 4)]
    assert "hunter2" not in str(refused.value)
