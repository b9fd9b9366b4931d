"""The training recipe, read from YAML into checked dataclasses."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from atrousops.common.checks import bad_value
from atrousops.data.transforms import MEAN, STD, Augmentation
from atrousops.engine.losses import Loss


@dataclass(frozen=True)
class Model:
    """name: a factory of atrousops.models. arguments: its keyword arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Init:
    """Where the network starts.

    trunk: file of VGG-16's convolutions, or None. how: "load" them as they are, or "factorise" them, for which `images`
    of `side` pixels of the training set are used. weights: file that `atrousops train` wrote, of the same network or
    of the one that stands before its CRF; what has another name or shape there starts afresh.
    """

    trunk: str | None = None
    weights: str | None = None
    how: str = "factorise"
    images: int = 64
    side: int = 224


@dataclass(frozen=True)
class Data:
    """name: a key of atrousops.data.SETS. root: folder of the data (None: see atrousops.data.files.find).

    train, val: splits. test: that of `atrousops study`, val if None.
    mean, std: the network sees (image / 255 - mean) / std. As many numbers as it has channels: where it has one, it
        sees RGB as grey.
    """

    name: str
    root: str | None = None
    train: str = "train"
    val: str = "val"
    test: str | None = None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            rule = "have a number for each channel, both as many"
            bad_value("config", "data.mean and data.std", rule, f"{self.mean} and {self.std}")


@dataclass(frozen=True)
class Optimiser:
    """name: "adamw" or "sgd", the latter with `momentum`. frozen: prefixes of parameters that stay as they are.

    backbone_lr is for what lies in a module called backbone, lr for all else; rates: prefix -> a factor on top, the
    first that fits, such as {classifier: 10, crf: 0.1}. Prefixes are those of the network itself, without the names of
    a CRF or several scales around it. Biases and normalisations do not decay.
    """

    name: str = "adamw"
    lr: float = 1e-3
    backbone_lr: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 1e-2
    frozen: tuple[str, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """Learning rate over `steps` steps; it rises over the first `warmup`.

    kind: "linear": stays, and falls to zero over the last `cooldown` steps; "poly": (1 - step / steps) ^ power;
        "step": times gamma at each of the milestones.
    stop: the step after which training ends, if that is before the end of the schedule.
    """

    steps: int
    kind: str = "linear"
    warmup: int = 0
    cooldown: int = 0
    power: float = 0.9
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    stop: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "poly", "step"):
            bad_value("config", "schedule.kind", "be linear, poly or step", repr(self.kind))

    @property
    def last(self) -> int:
        """How many steps are done in all."""
        return self.steps if self.stop is None else min(self.stop, self.steps)

    def factor(self, step: int) -> float:
        """The share of the full learning rate at `step` (from 0)."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.kind == "poly":
            return rise * max(0.0, 1 - step / self.steps) ** self.power
        if self.kind == "step":
            return rise * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        fall = (self.steps - step) / self.cooldown if self.cooldown else 1.0
        return max(0.0, min(rise, fall))


@dataclass(frozen=True)
class Variant:
    """Another way to judge the same weights: `arguments` replace the network's; scales and flip as in `Config`."""

    arguments: dict[str, Any] = field(default_factory=dict)
    scales: tuple[float, ...] | None = None
    flip: bool = False


@dataclass(frozen=True)
class Config:
    """A whole recipe; see the fields of its parts.

    average: of weights, the part that is kept each step. batch: images of a step, on all machines together, computed in
    `accumulate` parts. device: "auto" takes a GPU where there is one. autocast: "bfloat16", or None for none.
    sync_norm: batch statistics over all GPUs. norm_momentum: that of batch normalisations instead of the network's own,
    for trainings too short for it. workers: processes that read images. scales: of the sides of the images
    that are judged, see `MultiScale`. crf: `atrousops study` judges the scores refined by the dense CRF, too; variants:
    further ways that it judges the weights, by name.
    """

    model: Model
    data: Data
    schedule: Schedule
    init: Init = field(default_factory=Init)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimiser: Optimiser = field(default_factory=Optimiser)
    loss: Loss = field(default_factory=Loss)
    average: float = 0.0
    batch: int = 8
    accumulate: int = 1
    seed: int = 0
    threads: int = 0
    workers: int = 0
    device: str = "auto"
    autocast: str | None = None
    sync_norm: bool = False
    norm_momentum: float | None = None
    scales: tuple[float, ...] = (1.0,)
    crf: bool = False
    variants: dict[str, Variant] = field(default_factory=dict)
    validate_every: int = 0
    checkpoint_every: int = 100
    pictures_every: int = 0


_PARTS: dict[str, type] = {
    "model": Model,
    "data": Data,
    "schedule": Schedule,
    "init": Init,
    "augmentation": Augmentation,
    "optimiser": Optimiser,
    "loss": Loss,
}


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Reads a recipe.

    Args:
        path: YAML file. Under the key `base` it may name another, beside it, whose entries it replaces or adds to.
        overrides: "part.key=value" entries that replace or add to it, values as YAML.

    Raises:
        FileNotFoundError: there is no such file.
        ArgumentError: it is not YAML, or a key is unknown, missing or of the wrong type.
    """
    values = _read(Path(path), ())
    for override in overrides:
        _apply(values, override)
    return _build(Config, values, "config")


def _read(path: Path, above: tuple[Path, ...]) -> Any:
    if path.resolve() in above:
        bad_value("config", "base", "not lead back to itself", str(path))
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        bad_value("config", str(path), "be YAML", str(error).splitlines()[0])
    if not isinstance(values, dict) or "base" not in values:
        return values
    base = _read(path.parent / str(values.pop("base")), (*above, path.resolve()))
    return _merge(base, values)


def _merge(base: Any, values: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(values, dict):
        return values
    return {**base, **{key: _merge(base.get(key), value) for key, value in values.items()}}


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
    arguments = {}
    for key, value in values.items():
        if cls is Config and key in _PARTS:
            value = _build(_PARTS[key], value, f"{where}.{key}")
        elif cls is Config and key == "variants" and isinstance(value, dict):
            value = {name: _build(Variant, entries, f"{where}.variants.{name}") for name, entries in value.items()}
        elif isinstance(value, list):
            value = tuple(value)
        _check_type(fields[key].type, value, f"{where}.{key}")
        arguments[key] = value
    return cls(**arguments)


def _check_type(annotation: Any, value: Any, where: str) -> None:
    wanted = _TYPES.get(str(annotation))
    if wanted is not None and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)):
        bad_value("config", where, f"be {annotation}", repr(value))


_NONE = type(None)
_TYPES: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": (int, float),
    "str": str,
    "float | None": (int, float, _NONE),
    "str | None": (str, _NONE),
    "int | None": (int, _NONE),
    "int | tuple[int, int]": (int, tuple),
    "dict[str, Any]": dict,
    "dict[str, float]": dict,
    "dict[str, Variant]": dict,
    "tuple[str, ...]": tuple,
    "tuple[int, ...]": tuple,
    "tuple[float, ...]": tuple,
    "tuple[float, ...] | None": (tuple, _NONE),
    "tuple[float, float]": tuple,
}
