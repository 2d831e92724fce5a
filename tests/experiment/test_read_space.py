"""Reading the space of a sweep: what can be searched, and by what kinds of range."""

from __future__ import annotations

import pytest

from tests.experiment.conftest import SHORTEST, Problems, Read, space


@pytest.mark.parametrize(
    ("domain", "says"),
    [
        ("optimizer.lr: {uniform: [0.2, 0.1]}", "uniform: the range [0.2, 0.1] is reversed; the lower end comes first"),
        ("optimizer.lr: {uniform: [0.1, 0.1]}", "uniform: the range [0.1, 0.1] is empty; the lower end comes first"),
        ("optimizer.lr: {loguniform: [0, 1]}", "loguniform: the lower end is 0; it must be above 0"),
        ("optimizer.lr: {choice: []}", "choice is empty; give it at least one value"),
        ("optimizer.lr: {unifrom: [1, 2]}", "no kind of range 'unifrom'; did you mean 'uniform'?"),
        ("optimizer.lr: {uniform: [1, 2, 3]}", "uniform takes 2 numbers, not 3"),
        ("optimizer.lr: {uniform: 3}", "uniform takes a list, not 3"),
        ("optimizer.lr: {uniform: [a, b]}", "uniform takes numbers, not ['a', 'b']"),
        ("optimizer.lr: {}", "give one of uniform, loguniform, quniform, randint, lograndint, choice"),
        ("optimizer.lr: {uniform: [-1, 1]}", "-1 is not allowed: it must be greater than 0"),
        ("optimizer.lr: {choice: [0.1, '0.2']}", "'0.2' is not allowed: it must be a number, not '0.2'"),
        ("model.dropout: {uniform: [0, 1]}", "1 is not allowed: it must be less than 1"),
        ("model.dropot: {uniform: [0, 0.5]}", "no option of the model 'dropot'; did you mean 'dropout'?"),
        ("training.batch_size: {randint: [0, 5]}", "0 is not allowed: it must be greater than 0"),
        ("training.epochs: {randint: [1, 5]}", "no searchable key of training 'epochs'; there is: accumulate, augment.crop,"),
        ("training.augment: {choice: [{shift: 0.1}]}", "no searchable key of training 'augment'; did you mean 'augment."),
        ("training.augment.shfit: {uniform: [0, 0.1]}", "no searchable key of training 'augment.shfit'; did you mean 'augment.shift'?"),
        ("training.augment.shift: {uniform: [0, 0.9]}", "0.9 is not allowed: it must be less than or equal to 0.5"),
        ("training.augment.flip: {choice: [none, sideways]}", "'sideways' is not allowed: it must be 'none', 'horizontal', 'vertical' or"),
        ("model.init_from: {choice: [3]}", "3 is not allowed: it must be a text"),
        ("model.freeze: {choice: [[], 7]}", "7 is not allowed: it must be a list of parts"),
        ("training.accumulate: {choice: [true]}", "True is not allowed: it must be a number, not True"),
        ("data.source: {choice: [digits]}", "'data.source' can't be searched; what can: keys of model, optimizer, training"),
        ("optimizer.name: {choice: [sgd, adm]}", "no optimizer 'adm'; did you mean 'adam'?"),
        ("optimizer.momentum: {uniform: [0, 0.9]}", "no option of optimizer adam 'momentum'; there is: betas, lr,"),
    ],
)
def test_a_domain_that_can_t_be_searched_says_why(domain: str, says: str, problems: Problems) -> None:
    found = problems(space(domain))
    assert len(found) == 1
    key = domain.partition(":")[0]
    assert found[0].startswith(f"sweep.space.{key} (line 6): {says}")


def test_an_option_that_one_of_the_optimizers_lacks_needs_a_condition(read_text: Read, problems: Problems) -> None:
    names = "optimizer.name: {choice: [sgd, adam]}"
    found = problems(space(names, "optimizer.momentum: {uniform: [0, 0.9]}"))
    assert found == [
        "sweep.space.optimizer.momentum (line 7): no option of optimizer adam 'momentum'; there is: betas, lr, schedule, warmup, "
        "weight_decay; search it only where it is one: when: {optimizer.name: [...]}"
    ]
    allowed = read_text(space(names, "optimizer.momentum: {uniform: [0, 0.9], when: {optimizer.name: sgd}}"))
    assert allowed.sweep.space["optimizer.momentum"]["when"] == {"optimizer.name": "sgd"}


def test_an_option_that_the_file_fixes_must_be_one_of_every_searched_optimizer(read_text: Read, problems: Problems) -> None:
    text = SHORTEST + "optimizer: {name: sgd, momentum: 0.5}\nsweep: {space: {optimizer.name: {choice: [sgd, adam]}}}\n"
    assert problems(text) == [
        "optimizer.momentum (line 4): optimizer adam, which sweep.space searches too, has no such option; put it into the space with when: "
        "{optimizer.name: [sgd]}"
    ]
    assert read_text(text, "optimizer.momentum=0.9").optimizer.options["momentum"] == 0.9  # the default fixes nothing


@pytest.mark.parametrize(
    ("when", "says"),
    [
        ("{optimizer.nam: sgd}", "sweep.space (line 5): optimizer.momentum: when: names 'optimizer.nam', which is not in the space"),
        (
            "{optimizer.name: [sgd, sdg]}",
            "sweep.space.optimizer.momentum (line 7): when: 'optimizer.name' is never 'sdg'; it takes: sgd, rmsprop",
        ),
        ("sgd", "sweep.space.optimizer.momentum (line 7): when: takes a mapping of key to values"),
    ],
)
def test_a_condition_that_never_holds_is_refused(when: str, says: str, problems: Problems) -> None:
    found = problems(space("optimizer.name: {choice: [sgd, rmsprop]}", f"optimizer.momentum: {{uniform: [0, 0.9], when: {when}}}"))
    assert len(found) == 1
    assert found[0].startswith(says)


def test_a_domain_that_is_refused_makes_no_second_problem_of_its_conditions(problems: Problems) -> None:
    text = space("optimizer.name: {choise: [sgd, adam]}", "model.dropout: {uniform: [0, 0.5], when: {optimizer.name: sgd}}")
    assert len(problems(text)) == 1


def test_a_grid_takes_choices_only_and_no_conditions(read_text: Read, problems: Problems) -> None:
    ranges = problems(space("optimizer.lr: {uniform: [0.1, 0.2]}"), "sweep.search=grid")
    assert ranges == ["sweep.space.optimizer.lr (line 6): a grid takes choices only, not uniform"]
    conditions = space("optimizer.lr: {choice: [0.1, 0.2]}", "model.dropout: {choice: [0.1], when: {optimizer.lr: 0.1}}")
    assert "search 'grid' knows no conditions (when:); random and tpe do" in problems(conditions, "sweep.search=grid")[0]
    assert read_text(space("optimizer.lr: {choice: [0.1, 0.2]}"), "sweep.search=grid").sweep.search == "grid"
