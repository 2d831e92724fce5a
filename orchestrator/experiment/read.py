"""The experiment file -> Experiment; every problem at once, each with its key's path and its line in the file."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator import names
from orchestrator.errors import ExperimentError, Problem
from orchestrator.experiment import config as c
from orchestrator.experiment.config import Experiment
from orchestrator.experiment.file import Lines, apply_override, parse_file
from orchestrator.experiment.parts import Catalog, FamilyFacts
from orchestrator.experiment.space import Space, in_order, parse
from orchestrator.experiment.space_check import SpaceCheck
from orchestrator.experiment.values import adapter, conversions, jsonable, sentence

CREDENTIALS = re.compile(r"://[^/\s@]+:[^/\s@]+@|(?i:secret|secret_key|password|access_key|token)=")


def read(path: Path, overrides: Iterable[str], catalog: Catalog) -> Experiment:
    """The experiment of a file with overrides applied. Raises Refused if there is no such file, ExperimentError with every problem."""
    tree, lines = parse_file(path)
    for override in overrides:
        apply_override(tree, lines, override)
    return resolve(tree, catalog, lines)


def resolve(tree: Mapping[str, Any], catalog: Catalog, lines: Lines | None = None) -> Experiment:
    """A tree -> Experiment with every default filled in. Raises ExperimentError with every problem."""
    return _Reader(catalog, lines or {}).read(tree)


def with_values(experiment: Experiment, values: Mapping[str, Any], catalog: Catalog) -> Experiment:
    """The experiment with dotted keys set: a trial's. Options that the chosen optimizer doesn't have fall away with the old one."""
    tree = experiment.plain()
    name = values.get("optimizer.name", experiment.optimizer.name)
    if name != experiment.optimizer.name:
        known = {f.name for f in dataclasses.fields(catalog.optimizer(name))}
        tree["optimizer"] = {k: v for k, v in tree["optimizer"].items() if k in known} | {"name": name}
    for key, value in values.items():
        *path, last = key.split(".")
        functools.reduce(lambda node, part: node[part], path, tree)[last] = value
    tree["sweep"]["space"] = {}  # a trial is one point: nothing of it is searched any more
    return resolve(tree, catalog)


class _Reader:
    """Collects problems while it goes through the sections."""

    def __init__(self, catalog: Catalog, lines: Lines) -> None:
        self.catalog, self.lines = catalog, lines
        self.problems: list[Problem] = []

    def read(self, tree: Mapping[str, Any]) -> Experiment:
        known = [name for name in Experiment.model_fields if name not in ("metric", "mode")]
        self._unknown("", tree, known, "key")
        self._secrets("", tree)
        for name in ("name", "data", "model"):
            if tree.get(name) is None:
                self._problem(name, "it is missing")
        parts = {"data": self._data(tree), "model": self._model(tree), "optimizer": self._optimizer(tree)}
        facts = self._facts
        fields: dict[str, Any] = {k: v for k, v in parts.items() if v is not None}
        for name in ("training", "scaling", "sweep", "registry", "storage", "budget", "notify"):
            section = self._section(name, tree.get(name), Experiment.model_fields[name].annotation)
            if section is not None:
                fields[name] = section
        fields["name"] = self._name(tree.get("name"))
        metric = self._metric(fields.get("sweep"), facts)
        self._space(fields, tree)
        self._require(fields.get("registry"), facts)
        if self.problems:
            raise ExperimentError(sorted(self.problems, key=lambda p: (p.line is None, p.line or 0)))
        return Experiment(**fields, metric=metric, mode=facts.metrics[metric] if facts else "max")

    def _secrets(self, prefix: str, tree: Mapping[str, Any]) -> None:
        """The file is recorded with every run: credentials belong in the environment."""
        for key, value in tree.items():
            if isinstance(value, Mapping):
                self._secrets(f"{prefix}{key}.", value)
            elif isinstance(value, str) and CREDENTIALS.search(value):
                self._problem(f"{prefix}{key}", "it holds credentials, and this file is recorded: put them into the environment")

    # the sections -----------------------------------------------------------------------------------------------------------

    def _name(self, name: Any) -> str:
        if name is not None and (not isinstance(name, str) or not name.strip() or set(name) & set("/:\"'%")):
            self._problem("name", f"{name!r}: it must be a word without / : % or quotes, it names the MLflow experiment and the model")
        return str(name)

    def _data(self, tree: Mapping[str, Any]) -> c.DataConfig | None:
        section = self._mapping("data", tree.get("data"))
        if section is None:
            return None
        if "source" not in section:
            self._problem("data.source", "it is missing: what kind of data?")
            return None
        cls = self._look_up("data.source", section["source"], self.catalog.source)
        split = self._options("data.split", {} if section.get("split") is None else section["split"], self.catalog.split)
        rest = {k: v for k, v in section.items() if k not in ("source", "split")}
        options = self._options("data", rest, cls, also=("source", "split")) if cls else None
        return None if options is None or split is None else c.DataConfig(source=section["source"], split=split, options=options)

    _facts: FamilyFacts | None = None

    def _model(self, tree: Mapping[str, Any]) -> c.ModelConfig | None:
        section = self._mapping("model", tree.get("model"))
        if section is None:
            return None
        given = [key for key in ("family", "class") if key in section]
        if len(given) != 1:
            self._problem("model.family", "it is missing" if not given else "give family or class, not both")
            return None
        self._facts = self._look_up(f"model.{given[0]}", section[given[0]], self.catalog.family)
        if self._facts is None:
            return None
        own = {k: section[k] for k in ("init_from", "freeze") if k in section}
        rest = {k: v for k, v in section.items() if k != given[0] and k not in own}
        options = self._options("model", rest, self._facts.config, also=("family", "init_from", "freeze"))
        made = self._section("model", {"family": section[given[0]], **own, "options": options or {}}, c.ModelConfig)
        return made if options is not None and isinstance(made, c.ModelConfig) else None

    def _optimizer(self, tree: Mapping[str, Any]) -> c.OptimizerConfig | None:
        section = self._mapping("optimizer", {} if tree.get("optimizer") is None else tree["optimizer"])
        if section is None:
            return None
        name = section.get("name", "adam")
        cls = self._look_up("optimizer.name", name, self.catalog.optimizer)
        if cls is None:
            return None
        rest = {k: v for k, v in section.items() if k != "name"}
        options = self._options("optimizer", rest, cls, also=("name",), of=f"optimizer {name}")
        return None if options is None else c.OptimizerConfig(name=name, options=options)

    def _metric(self, sweep: c.SweepConfig | None, facts: FamilyFacts | None) -> str:
        if facts is None:
            return ""
        given = sweep.metric if sweep else None
        if given is not None and given not in facts.metrics:
            self._problem("sweep.metric", names.unknown("metric", given, facts.metrics))
            return ""
        return given or next(iter(facts.metrics))

    def _require(self, registry: c.RegistryConfig | None, facts: FamilyFacts | None) -> None:
        if registry is None or facts is None:
            return
        known = [f"{part}_{name.removeprefix('val_')}" for part in ("test", "val") for name in facts.metrics]
        for name, bound in registry.require.items():
            if name not in known:
                self._problem(f"registry.require.{name}", names.unknown("metric", name, known))
            elif bound.min is None and bound.max is None:
                self._problem(f"registry.require.{name}", "give min or max, such as {min: 0.97}")

    def _space(self, fields: Mapping[str, Any], tree: Mapping[str, Any]) -> None:
        sweep: c.SweepConfig | None = fields.get("sweep")
        if sweep is None:
            return
        understands = self._look_up("sweep.search", sweep.search, self.catalog.searcher)
        self._look_up("sweep.scheduler", sweep.scheduler.name, self.catalog.scheduler)
        facts = self._facts
        SpaceCheck(self.catalog, self._problem, fields, tree, facts.config if facts else None).check(sweep, understands)

    # tools ------------------------------------------------------------------------------------------------------------------

    def _problem(self, key: str, message: str) -> None:
        known = key
        while known and known not in self.lines:
            known = known.rpartition(".")[0]
        self.problems.append(Problem(key, self.lines.get(known), message))

    def _mapping(self, key: str, value: Any) -> Mapping[str, Any] | None:
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._problem(key, f"it must be a mapping, not {value!r}")
            return None
        return value

    def _look_up(self, key: str, name: Any, table: Callable[[str], Any]) -> Any:
        try:
            if not isinstance(name, str):
                raise names.UnknownName(f"it must be a name, not {name!r}")
            return table(name)
        except names.UnknownName as error:
            self._problem(key, str(error))
            return None

    def _unknown(self, key: str, given: Iterable[str], known: Iterable[str], what: str) -> bool:
        wrong = [name for name in given if name not in set(known)]
        for name in wrong:
            self._problem(f"{key}.{name}" if key else name, names.unknown(what, name, known))
        return bool(wrong)

    def _options(self, key: str, given: Any, cls: type, also: tuple[str, ...] = (), of: str | None = None) -> dict[str, Any] | None:
        """The options of a Config dataclass, defaults filled in, as plain data; None if there was a problem."""
        if self._mapping(key, given) is None:
            return None
        known = [f.name for f in dataclasses.fields(cls)]
        wrong = self._unknown(key, given, [*also, *known], f"option of {of}" if of else "option")
        try:
            made: Any = adapter(cls).validate_python({k: v for k, v in given.items() if k in known})
        except ValidationError as error:
            self._pydantic(key, error)
            return None
        plain = jsonable(dataclasses.asdict(made))
        wrong = self._converted(key, given, plain) or wrong
        return None if wrong else plain

    def _section(self, key: str, given: Any, cls: Any) -> BaseModel | None:
        mapping = self._mapping(key, given if given is not None else {})
        if mapping is None:
            return None
        try:
            made: BaseModel = cls.model_validate(mapping)
        except ValidationError as error:
            self._pydantic(key, error, cls)
            return None
        return None if self._converted(key, mapping, made.model_dump()) else made

    def _converted(self, key: str, given: Any, made: Any) -> bool:
        found = list(conversions(key, given, made))
        for path, message in found:
            self._problem(path, message)
        return bool(found)

    def _pydantic(self, key: str, error: ValidationError, cls: Any = None) -> None:
        for item in error.errors():
            loc = [str(part) for part in item["loc"] if not str(part).startswith("function-")]
            path = ".".join([key, *loc])
            if item["type"] == "extra_forbidden":
                owner = cls
                for part in loc[:-1]:
                    owner = getattr(getattr(owner, "model_fields", {}).get(part), "annotation", None)
                known = list(getattr(owner, "model_fields", {})) or ["min", "max"]
                self._problem(path, names.unknown("key", loc[-1], known))
            elif item["type"] == "value_error":
                self._problem(path, str(item["ctx"]["error"]))
            else:
                self._problem(path, f"{sentence(item['msg'])}, not {item['input']!r}")


def space_of(experiment: Experiment) -> Space:
    """The search space of an experiment that was read."""
    return in_order([parse(key, data) for key, data in experiment.sweep.space.items()])
