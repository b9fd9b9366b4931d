"""Checks that the outputs of a network are the classes of a data set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atrousops.common import plugins
from atrousops.common.checks import bad_choice, bad_value
from atrousops.data import SETS, Folder, Pixels, SegmentationSet
from atrousops.engine.config import FOLDER, Config
from atrousops.models import registry

# Entry points of other packages: name = "package.module:Reader", called with (root, split, transform).
GROUP = "atrousops.readers"


def open_set(
    recipe: Config, root: str | None, split: str, transform: Callable[[Any, Any], Any] | None = None
) -> SegmentationSet:
    """The images of a split of a recipe's data.

    Args:
        recipe: its `data` names the reader: one of `atrousops.data.SETS`, "folder", or one of another package.
        root: the folder of the data.
        split: a split of the reader.
        transform: as for `SegmentationSet`.

    Raises:
        ArgumentError: there is no such reader, its package cannot be imported, or it does not accept the data.
    """
    data = recipe.data
    if data.name == FOLDER:
        found: Any = Folder(root, split, transform, layout=data)
    elif data.name in SETS:
        found = SETS[data.name](root, split, transform)
    else:
        known = (*SETS, FOLDER, *plugins.names(GROUP))
        if data.name not in known:
            bad_choice("config", "data.name", known, data.name)
        found = plugins.load(GROUP, data.name)(root, split, transform, **data.arguments)
        if not isinstance(found, SegmentationSet):
            rule = "be of a reader that gives an atrousops.data.SegmentationSet"
            bad_value("config", "data.name", rule, f"{data.name}, which gives {type(found).__name__}")
    found.pixels = Pixels(len(data.mean), data.scale)
    return found


def count(network: str, arguments: Mapping[str, Any]) -> int | None:
    """The number of classes of `models.build(network, **arguments)`; None if unknown."""
    return _number("num_classes", network, arguments)


def channels(network: str, arguments: Mapping[str, Any]) -> int | None:
    """The number of input channels; None if unknown."""
    return _number("in_channels", network, arguments)


def _number(key: str, network: str, arguments: Mapping[str, Any]) -> int | None:
    if network not in registry.list("networks"):
        return None
    parameter = inspect.signature(registry.factory(network)).parameters.get(key)
    found = arguments.get(key, None if parameter is None else parameter.default)
    return found if isinstance(found, int) else None


def check_recipe(recipe: Config, classes: Sequence[str], defaults: bool = True) -> None:
    """Raises ArgumentError unless the recipe's network exists and has an output for each class of its data.

    Args:
        recipe: the recipe.
        classes: of the data.
        defaults: if the recipe has no num_classes, check the network's default; otherwise it is not checked.
    """
    if recipe.model.name not in registry.list("networks"):
        bad_choice("config", "model.name", registry.list("networks"), recipe.model.name)
    if not defaults and "num_classes" not in recipe.model.arguments:
        return
    outputs = count(recipe.model.name, recipe.model.arguments)
    if outputs is not None and outputs != len(classes):
        rule = f"have num_classes = {len(classes)}, as {recipe.data.name} has the classes {', '.join(classes)}"
        remedy = f"Set model.arguments.num_classes={len(classes)}, or another data.name."
        bad_value("config", f"model {recipe.model.name}", rule, outputs, remedy)
    read, wanted = channels(recipe.model.name, recipe.model.arguments), len(recipe.data.mean)
    if read is not None and read != wanted:
        rule = f"have in_channels = {wanted}, as data.mean and data.std have numbers for {wanted} channels"
        remedy = f"Set model.arguments.in_channels={wanted}, or as many numbers as the images have channels."
        bad_value("config", f"model {recipe.model.name}", rule, read, remedy)


def check_weights(op: str, network: str, arguments: Mapping[str, Any], classes: Sequence[str], whose: str) -> None:
    """Raises ArgumentError unless a loaded network has an output for each class; `whose` says whose classes."""
    outputs = count(network, arguments)
    if outputs is not None and outputs != len(classes):
        rule = f"have an output for each of the {len(classes)} classes of {whose}, {', '.join(classes)}"
        remedy = f"Use weights of a {network} with num_classes={len(classes)}."
        bad_value(op, "weights", rule, f"{outputs} outputs", remedy)
