"""A search space as Optuna's and as Ray Tune's own domains, and their values as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.experiment.space import Domain, Space

SCALARS = (str, int, float, bool, type(None))


def define_by_run(space: Space) -> Any:
    """The space as a function of an Optuna trial; a condition is an `if`. (https://optuna.readthedocs.io, "Pythonic Search Space")"""

    def define(trial: Any) -> None:
        values: dict[str, Any] = {}
        for domain in space:
            if domain.active(values):
                values[domain.key] = value_of(domain, _suggest(trial, domain))

    return define


def _suggest(trial: Any, domain: Domain) -> Any:
    key, args = domain.key, domain.args
    if domain.kind == "choice":
        return trial.suggest_categorical(key, choices(domain))
    if domain.kind in ("randint", "lograndint"):
        return trial.suggest_int(key, args[0], args[1] - 1, log=domain.kind == "lograndint")
    if domain.kind == "quniform":
        return trial.suggest_float(key, args[0], args[1], step=args[2])
    return trial.suggest_float(key, args[0], args[1], log=domain.kind == "loguniform")


def distribution(domain: Domain) -> Any:
    """What `_suggest` draws from, as Optuna keeps it beside a value."""
    import optuna

    args, kinds = domain.args, optuna.distributions
    if domain.kind == "choice":
        return kinds.CategoricalDistribution(choices(domain))
    if domain.kind in ("randint", "lograndint"):
        return kinds.IntDistribution(args[0], args[1] - 1, log=domain.kind == "lograndint")
    return kinds.FloatDistribution(args[0], args[1], log=domain.kind == "loguniform", step=args[2] if domain.kind == "quniform" else None)


def choices(domain: Domain) -> list[Any]:
    """Optuna's choices are scalars: others go by their place in the list."""
    return list(domain.args) if all(isinstance(a, SCALARS) for a in domain.args) else list(range(len(domain.args)))


def value_of(domain: Domain, raw: Any) -> Any:
    return domain.args[raw] if domain.kind == "choice" and choices(domain) != list(domain.args) else raw


def encode(domain: Domain, value: Any) -> Any:
    return list(domain.args).index(value) if domain.kind == "choice" and choices(domain) != list(domain.args) else value


def decode(suggested: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Flat keys again (Tune nests by '/', which no key of ours has), in the space's order, numbers as Python's own."""
    return {d.key: _plain(value_of(d, suggested[d.key])) for d in space if d.key in suggested}


def _plain(value: Any) -> Any:
    if isinstance(value, bool | str | list) or value is None:
        return value
    return int(value) if isinstance(value, int) or (hasattr(value, "dtype") and value.dtype.kind == "i") else float(value)


def tune_domain(domain: Domain) -> Any:
    from ray import tune

    if domain.kind == "choice":
        return tune.choice(list(domain.args))
    return getattr(tune, domain.kind)(*domain.args)
