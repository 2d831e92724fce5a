"""YAML 1.2 and KEY=VALUE -> Experiment; every problem at once, each with its key's path and its line in the file."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from orchestrator import names
from orchestrator.errors import ExperimentError, Problem, Refused
from orchestrator.experiment import config as c
from orchestrator.experiment.space import Domain, Space, SpaceError, in_order, parse


@dataclass(frozen=True)
class FamilyFacts:
    """What the file's check must know of a family: its options and its metrics with their directions, the default first."""

    config: type
    metrics: Mapping[str, c.Mode]


@dataclass(frozen=True)
class Catalog:
    """The names that there are, as look-ups that raise names.UnknownName; handed in, since `experiment` imports none of them."""

    family: Callable[[str], FamilyFacts]
    source: Callable[[str], type]
    optimizer: Callable[[str], type]
    searcher: Callable[[str], bool]  # whether it understands `when:`
    scheduler: Callable[[str], None]
    split: type


def read(path: Path, overrides: Iterable[str], catalog: Catalog) -> Experiment:
    """The experiment of a file with overrides applied. Raises Refused if there is no such file, ExperimentError with every problem."""
    tree, lines = parse_file(path)
    for override in overrides:
        apply_override(tree, lines, override)
    return resolve(tree, catalog, lines)


FIXED = ("executor", "epochs", "precision", "patience")  # of training: the plan's and the loop's, the same for every trial
CREDENTIALS = re.compile(r"://[^/\s@]+:[^/\s@]+@|(?i:secret|password|access_key|token)=")
Experiment = c.Experiment
Lines = dict[str, int]


def parse_file(path: Path) -> tuple[dict[str, Any], Lines]:
    """The file as plain data, and the line of each key's dotted path."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        beside = sorted(p.name for p in path.parent.glob("*.y*ml"))[:8] if path.parent.is_dir() else []
        hint = f"; in '{path.parent}' there is: {', '.join(beside)}" if beside else ""
        says = "no such file" if isinstance(error, FileNotFoundError) else f"it can't be read ({error})"
        raise Refused(f"experiment '{path}': {says}{hint}") from None
    try:
        loaded = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ExperimentError([Problem(str(path), line, f"no valid YAML: {error.problem or error.context}")]) from None
    except YAMLError as error:  # a character that YAML has no place for
        raise ExperimentError([Problem(str(path), None, f"no valid YAML: {' '.join(str(error).split())}")]) from None
    if not isinstance(loaded, dict):
        raise ExperimentError([Problem(str(path), None, "it must be a mapping that begins with name:, data: and model:")])
    lines: Lines = {}
    _note_lines(loaded, "", lines)
    return _to_plain(loaded), lines


def _note_lines(node: Any, prefix: str, lines: Lines) -> None:
    for key, value in node.items():
        if key in (node.lc.data or ()):  # merged keys (<<) have no line of their own
            lines[f"{prefix}{key}"] = node.lc.data[key][0] + 1
        if isinstance(value, dict) and hasattr(value, "lc"):
            _note_lines(value, f"{prefix}{key}.", lines)


def _to_plain(node: Any) -> Any:
    """ruamel's round-trip types -> Python's own."""
    if isinstance(node, dict):
        return {str(key): _to_plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_to_plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return bool(node) if type(node).__name__ == "ScalarBoolean" else str(node)


def parse_value(text: str) -> Any:
    """A YAML 1.2 value; raises ValueError."""
    try:
        return _to_plain(YAML(typ="rt").load(io.StringIO(text)))
    except MarkedYAMLError as error:
        raise ValueError(f"no valid YAML: {error.problem or error.context}") from None
    except YAMLError as error:
        raise ValueError(f"no valid YAML: {' '.join(str(error).split())}") from None


def apply_override(tree: dict[str, Any], lines: Lines, override: str) -> None:
    """Set KEY=VALUE in the tree; a mapping replaces the section. Raises Refused."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise Refused(f"'{override}' is no KEY=VALUE, such as training.epochs=3")
    try:
        value = parse_value(text)
    except ValueError as error:
        raise Refused(str(error), key=key) from None
    head = "sweep.space."
    parts = ["sweep", "space", key.removeprefix(head)] if key.startswith(head) else key.split(".")
    node = tree
    for part in parts[:-1]:
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    node[parts[-1]] = value
    for known in [k for k in lines if k == key or k.startswith(f"{key}.")]:
        del lines[known]


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
        section, _, option = key.partition(".")
        tree[section] = {**tree[section], option: value}
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
        for name in ("training", "scaling", "sweep", "registry", "storage"):
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
        rest = {k: v for k, v in section.items() if k != given[0]}
        options = self._options("model", rest, self._facts.config, also=("family",))
        return None if options is None else c.ModelConfig(family=section[given[0]], options=options)

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
        domains: list[Domain] = []
        for key, data in sweep.space.items():
            try:
                domain = parse(key, data)
            except SpaceError as error:
                self._problem(f"sweep.space.{key}", str(error))
                continue
            if sweep.search == "grid" and domain.kind != "choice":
                self._problem(f"sweep.space.{key}", f"a grid takes choices only, not {domain.kind}")
            if domain.when and understands is False:
                self._problem(f"sweep.space.{key}", f"search '{sweep.search}' knows no conditions (when:); random and tpe do")
            domains.append(domain)
        if len(domains) == len(sweep.space):  # else a condition may name one that was refused
            try:
                in_order(domains)
            except SpaceError as error:
                self._problem("sweep.space", str(error))
        _SpaceCheck(self, fields, tree, domains).check()

    # tools ------------------------------------------------------------------------------------------------------------------

    def _problem(self, key: str, message: str) -> None:
        line, parent = None, key
        while line is None and parent:
            line = self.lines.get(parent)
            parent = parent.rpartition(".")[0]
        self.problems.append(Problem(key, line, message))

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
            made: Any = _adapter(cls).validate_python({k: v for k, v in given.items() if k in known})
        except ValidationError as error:
            self._pydantic(key, error)
            return None
        plain = _jsonable(dataclasses.asdict(made))
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
        found = list(_conversions(key, given, made))
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
                self._problem(path, f"{_sentence(item['msg'])}, not {item['input']!r}")


class _SpaceCheck:
    """Whether every value that the space can give is one that its key takes."""

    SECTIONS = ("model", "optimizer", "training")

    def __init__(self, reader: _Reader, fields: Mapping[str, Any], tree: Mapping[str, Any], domains: list[Domain]) -> None:
        self.reader, self.fields, self.tree, self.domains = reader, fields, tree, domains

    def check(self) -> None:
        for domain in self.domains:
            self._check_when(domain)
            section, _, option = domain.key.partition(".")
            if domain.key in ("optimizer.name",):
                for name in domain.args if domain.kind == "choice" else ():
                    self.reader._look_up(f"sweep.space.{domain.key}", name, self.reader.catalog.optimizer)
            elif section not in self.SECTIONS or not option:
                self._say(domain, f"'{domain.key}' can't be searched; what can: keys of {', '.join(self.SECTIONS)}")
            elif section == "optimizer":
                for name in self._optimizers(domain):
                    self._check_option(domain, option, self._optimizer_class(name), f"optimizer {name}")
            elif section == "training":
                self._check_training(domain, option)
            elif self.reader._facts is not None:
                self._check_option(domain, option, self.reader._facts.config, "the model")
        self._fixed_options()

    def _say(self, domain: Domain, message: str) -> None:
        self.reader._problem(f"sweep.space.{domain.key}", message)

    def _names(self) -> list[str]:
        """The optimizers that a trial may have."""
        for domain in self.domains:
            if domain.key == "optimizer.name":
                return [str(name) for name in domain.args] if domain.kind == "choice" else []
        optimizer = self.fields.get("optimizer")
        return [optimizer.name] if optimizer is not None else []

    def _optimizers(self, domain: Domain) -> list[str]:
        allowed = domain.when.get("optimizer.name")
        return [name for name in self._names() if allowed is None or name in allowed]

    def _optimizer_class(self, name: str) -> type | None:
        try:
            return self.reader.catalog.optimizer(name)
        except names.UnknownName:
            return None  # said already

    def _check_when(self, domain: Domain) -> None:
        """A condition on a value that its key never has would leave the domain out of every trial, silently."""
        others = {other.key: other for other in self.domains}
        for key, allowed in domain.when.items():
            for value in allowed:
                if key in others and not others[key].contains(value):
                    choices = others[key].args if others[key].kind == "choice" else ()
                    hint = f"; it takes: {', '.join(map(str, choices))}" if choices else ""
                    self._say(domain, f"when: '{key}' is never {value!r}{hint}")

    def _check_option(self, domain: Domain, option: str, cls: type | None, of: str) -> None:
        if cls is None:
            return
        known = [f.name for f in dataclasses.fields(cls)]
        if option not in known:
            hint = "" if domain.when or len(self._names()) < 2 else "; search it only where it is one: when: {optimizer.name: [...]}"
            self._say(domain, f"{names.unknown(f'option of {of}', option, known)}{hint if domain.key.startswith('optimizer.') else ''}")
            return
        for value in domain.examples():
            try:
                made = getattr(_adapter(cls).validate_python({option: value}), option)
                says = [message for _, message in _conversions(option, value, made)]
            except ValidationError as error:
                says = [_sentence(e["msg"]) for e in error.errors() if e["loc"][:1] == (option,)]
            if says:
                self._say(domain, f"{value!r} is not allowed: {says[0]}")
                return

    def _check_training(self, domain: Domain, option: str) -> None:
        if option in FIXED or option not in c.TrainingConfig.model_fields:
            known = [name for name in c.TrainingConfig.model_fields if name not in FIXED]
            self._say(domain, names.unknown("searchable key of training", option, known))
            return
        for value in domain.examples():
            try:
                made = getattr(c.TrainingConfig.model_validate({option: value}), option)
                says = [message for _, message in _conversions(option, value, made)]
            except ValidationError as error:
                says = [_sentence(error.errors()[0]["msg"])]
            if says:
                self._say(domain, f"{value!r} is not allowed: {says[0]}")
                return

    def _fixed_options(self) -> None:
        """Options that the file fixes must be options of every optimizer that is searched. A default fixes nothing."""
        given, made = self.tree.get("optimizer"), self.fields.get("optimizer")
        if not isinstance(given, Mapping) or made is None or not any(d.key == "optimizer.name" for d in self.domains):
            return
        defaults = _jsonable(dataclasses.asdict(self.reader.catalog.optimizer(made.name)()))
        given = {k: v for k, v in given.items() if k in defaults and made.options[k] != defaults[k]}
        for name in self._names():
            cls = self._optimizer_class(name)
            for option in given:
                if cls is not None and option not in {f.name for f in dataclasses.fields(cls)}:
                    self.reader._problem(
                        f"optimizer.{option}",
                        f"optimizer {name}, which sweep.space searches too, has no such option; "
                        f"put it into the space with when: {{optimizer.name: [{made.name}]}}",
                    )


def space_of(experiment: Experiment) -> Space:
    """The search space of an experiment that was read."""
    return in_order([parse(key, data) for key, data in experiment.sweep.space.items()])


def _conversions(key: str, given: Any, made: Any) -> Iterator[tuple[str, str]]:
    """Where pydantic took a word or a switch for a number, or the other way round, or an infinity: (key, sentence)."""
    if isinstance(given, Mapping) and isinstance(made, Mapping):
        for name in given.keys() & made.keys():
            yield from _conversions(f"{key}.{name}", given[name], made[name])
    elif isinstance(given, list | tuple) and isinstance(made, list | tuple):
        for place, (one, other) in enumerate(zip(given, made, strict=False)):
            yield from _conversions(f"{key}.{place}", one, other)
    elif isinstance(made, bool) and not isinstance(given, bool):
        yield key, f"it must be true or false, not {given!r}"
    elif isinstance(made, int | float) and isinstance(given, str | bool) and not isinstance(made, bool):
        yield key, f"it must be a number, not {given!r}"
    elif isinstance(made, float) and not math.isfinite(made):
        yield key, f"it must be a finite number, not {made}"


@functools.cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    """Making one costs more than validating with it, and every trial is validated."""
    return TypeAdapter(cls)


def _sentence(message: str) -> str:
    return message.replace("Input should be", "it must be")


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _jsonable(v) for k, v in value.items()}
    return [_jsonable(v) for v in value] if isinstance(value, list | tuple) else value
