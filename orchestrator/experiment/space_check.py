"""The search space against the experiment: whether every value that it can give is one that its key takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator import names
from orchestrator.experiment.config import AugmentConfig, ModelConfig, SweepConfig, TrainingConfig
from orchestrator.experiment.parts import Catalog
from orchestrator.experiment.space import Domain, SpaceError, in_order, parse
from orchestrator.experiment.values import adapter, conversions, jsonable, sentence

FIXED = ("executor", "epochs", "precision", "patience", "streaming", "augment")  # of training: the same for every trial
SECTIONS = ("model", "optimizer", "training")


class SpaceCheck:
    """Says what is wrong with a space, through `say(key, sentence)`.

    `fields`: the sections that were read; `tree`: what was given; `family`: the Config of the family, None if that is unknown.
    """

    def __init__(
        self, catalog: Catalog, say: Callable[[str, str], None], fields: Mapping[str, Any], tree: Mapping[str, Any], family: type | None
    ) -> None:
        self.catalog, self.say, self.fields, self.tree, self.family = catalog, say, fields, tree, family
        self.domains: list[Domain] = []

    def check(self, sweep: SweepConfig, conditions: bool | None) -> None:
        """Check a section's space. `conditions`: whether its searcher understands `when:`, None if that is unknown."""
        self._parse(sweep, conditions)
        for domain in self.domains:
            self._check_when(domain)
            self._check_key(domain)
        self._fixed_options()

    def _parse(self, sweep: SweepConfig, conditions: bool | None) -> None:
        for key, data in sweep.space.items():
            try:
                domain = parse(key, data)
            except SpaceError as error:
                self.say(f"sweep.space.{key}", str(error))
                continue
            if sweep.search == "grid" and domain.kind != "choice":
                self._say(domain, f"a grid takes choices only, not {domain.kind}")
            if domain.when and conditions is False:
                self._say(domain, f"search '{sweep.search}' knows no conditions (when:); random and tpe do")
            self.domains.append(domain)
        if len(self.domains) == len(sweep.space):  # else a condition may name one that was refused
            try:
                in_order(self.domains)
            except SpaceError as error:
                self.say("sweep.space", str(error))

    def _check_key(self, domain: Domain) -> None:
        section, _, option = domain.key.partition(".")
        if domain.key == "optimizer.name":
            self._check_names(domain)
        elif section not in SECTIONS or not option:
            self._say(domain, f"'{domain.key}' can't be searched; what can: keys of {', '.join(SECTIONS)}")
        elif section == "optimizer":
            for name in self._optimizers(domain):
                self._check_option(domain, option, self._optimizer_class(name), f"optimizer {name}")
        elif section == "training":
            self._check_training(domain, option)
        elif option in ("init_from", "freeze"):
            self._check_values(domain, option, ModelConfig)
        else:
            self._check_option(domain, option, self.family, "the model")

    def _say(self, domain: Domain, message: str) -> None:
        self.say(f"sweep.space.{domain.key}", message)

    def _check_names(self, domain: Domain) -> None:
        for name in domain.args if domain.kind == "choice" else ():
            try:
                if not isinstance(name, str):
                    raise names.UnknownName(f"it must be a name, not {name!r}")
                self.catalog.optimizer(name)
            except names.UnknownName as error:
                self._say(domain, str(error))

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
            return self.catalog.optimizer(name)
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
        self._check_values(domain, option, cls)

    def _check_training(self, domain: Domain, option: str) -> None:
        augment, _, change = option.partition(".")
        if augment == "augment" and change in AugmentConfig.model_fields:
            self._check_values(domain, change, AugmentConfig)
        elif option in FIXED or option not in TrainingConfig.model_fields:
            known = [name for name in TrainingConfig.model_fields if name not in FIXED]
            self._say(
                domain, names.unknown("searchable key of training", option, [*known, *(f"augment.{n}" for n in AugmentConfig.model_fields)])
            )
        else:
            self._check_values(domain, option, TrainingConfig)

    def _check_values(self, domain: Domain, option: str, cls: type) -> None:
        """The domain's ends, or its choices, as values of one option; of a section, or of a part's Config beside other options."""
        for value in domain.examples():
            try:
                whole = {"family": "", option: value} if cls is ModelConfig else {option: value}
                made = getattr(adapter(cls).validate_python(whole), option)
                says = [message for _, message in conversions(option, value, made)]
            except ValidationError as error:
                of_section = issubclass(cls, BaseModel)
                says = [sentence(e["msg"]) for e in error.errors() if of_section or e["loc"][:1] == (option,)]
            if says:
                self._say(domain, f"{value!r} is not allowed: {says[0]}")
                return

    def _fixed_options(self) -> None:
        """Options that the file fixes must be options of every optimizer that is searched. A default fixes nothing."""
        given, made = self.tree.get("optimizer"), self.fields.get("optimizer")
        if not isinstance(given, Mapping) or made is None or not any(d.key == "optimizer.name" for d in self.domains):
            return
        defaults = jsonable(dataclasses.asdict(self.catalog.optimizer(made.name)()))
        given = {k: v for k, v in given.items() if k in defaults and made.options[k] != defaults[k]}
        for name in self._names():
            cls = self._optimizer_class(name)
            for option in given:
                if cls is not None and option not in {f.name for f in dataclasses.fields(cls)}:
                    self.say(
                        f"optimizer.{option}",
                        f"optimizer {name}, which sweep.space searches too, has no such option; "
                        f"put it into the space with when: {{optimizer.name: [{made.name}]}}",
                    )
