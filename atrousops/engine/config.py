"""The training recipe, read from YAML into checked dataclasses."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from atrousops._checks import bad_value
from atrousops.data.transforms import Augmentation


@dataclass(frozen=True)
class Model:
    """name: a factory of atrousops.models. arguments: its keyword arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Init:
    """trunk: file of VGG-16 convolutions to start from, or None. images, side: how many are used to factorise it."""

    trunk: str | None = None
    images: int = 64
    side: int = 224


@dataclass(frozen=True)
class Data:
    """name: a key of atrousops.data.SETS. root: folder of the data (None: see atrousops.data.files.find)."""

    name: str
    root: str | None = None
    train: str = "train"
    val: str = "val"


@dataclass(frozen=True)
class Optimiser:
    """AdamW. frozen: prefixes of parameters that stay as they are."""

    lr: float = 1e-3
    backbone_lr: float = 1e-4
    weight_decay: float = 1e-2
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """Learning rate: rises over `warmup` steps, stays, and falls linearly to zero over the last `cooldown` of `steps`.

    stop: the step after which training ends, if that is before the end of the schedule.
    """

    steps: int
    warmup: int = 0
    cooldown: int = 0
    stop: int | None = None

    @property
    def last(self) -> int:
        """How many steps are done in all."""
        return self.steps if self.stop is None else min(self.stop, self.steps)

    def factor(self, step: int) -> float:
        """The share of the full learning rate at `step` (from 0)."""
        rise = (step + 1) / self.warmup if self.warmup else 1.0
        fall = (self.steps - step) / self.cooldown if self.cooldown else 1.0
        return max(0.0, min(1.0, rise, fall))


@dataclass(frozen=True)
class Config:
    """A whole recipe; see the fields of its parts."""

    model: Model
    data: Data
    schedule: Schedule
    init: Init = field(default_factory=Init)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimiser: Optimiser = field(default_factory=Optimiser)
    average: float = 0.0
    batch: int = 8
    seed: int = 0
    threads: int = 0
    validate_every: int = 0
    checkpoint_every: int = 100


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Reads a recipe.

    Args:
        path: YAML file.
        overrides: "part.key=value" entries that replace or add to it, values as YAML.

    Raises:
        FileNotFoundError: there is no such file.
        ArgumentError: it is not YAML, or a key is unknown, missing or of the wrong type.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        bad_value("config", str(path), "be YAML", str(error).splitlines()[0])
    for override in overrides:
        _apply(values, override)
    return _build(Config, values, "config")


def _apply(values: Any, override: str) -> None:
    key, equals, value = override.partition("=")
    *parents, last = key.split(".")
    for name in parents:
        values = values.setdefault(name, {}) if isinstance(values, dict) else None
    if not equals or not isinstance(values, dict):
        bad_value(
            "config", "override", "be KEY=VALUE with a key of the recipe", repr(override), "E.g. schedule.steps=9."
        )
    try:
        values[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        bad_value("config", "override", "have a value in YAML", repr(override))


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        bad_value("config", where, "be a mapping", repr(values))
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            bad_value("config", where, f"have only the keys {', '.join(fields)}", repr(key))
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            bad_value("config", where, f"have the key {name!r}", f"only {', '.join(values)}")
    hints = {"model": Model, "data": Data, "schedule": Schedule, "init": Init}
    hints |= {"augmentation": Augmentation, "optimiser": Optimiser}
    arguments = {}
    for key, value in values.items():
        if cls is Config and key in hints:
            value = _build(hints[key], value, f"{where}.{key}")
        elif isinstance(value, list):
            value = tuple(value)
        _check_type(fields[key].type, value, f"{where}.{key}")
        arguments[key] = value
    return cls(**arguments)


def _check_type(annotation: Any, value: Any, where: str) -> None:
    nothing = type(None)
    simple: dict[str, Any] = {"int": int, "float": (int, float), "str": str}
    simple |= {"str | None": (str, nothing), "int | None": (int, nothing)}
    simple |= {"dict[str, Any]": dict, "tuple[str, ...]": tuple, "tuple[float, float]": tuple}
    wanted = simple.get(str(annotation))
    if wanted is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
        bad_value("config", where, f"be {annotation}", repr(value))
