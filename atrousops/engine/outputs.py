"""Whether what a network answers are the classes of a data set."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from atrousops.common.checks import bad_value
from atrousops.data import SETS, SegmentationSet
from atrousops.engine.config import Config
from atrousops.models.registry import NETWORKS


def reader(recipe: Config) -> type[SegmentationSet]:
    """The reader of a recipe's data. Raises ArgumentError: there is none of that name."""
    if recipe.data.name not in SETS:
        bad_value("config", "data.name", f"be one of {', '.join(SETS)}", repr(recipe.data.name))
    return SETS[recipe.data.name]


def count(network: str, arguments: Mapping[str, Any]) -> int | None:
    """How many classes a network of `models.build(network, **arguments)` tells apart; None if it does not say."""
    if network not in NETWORKS:
        return None
    parameter = inspect.signature(NETWORKS[network]).parameters.get("num_classes")
    found = arguments.get("num_classes", None if parameter is None else parameter.default)
    return found if isinstance(found, int) else None


def check_recipe(recipe: Config, classes: Sequence[str], defaults: bool = True) -> None:
    """Raises ArgumentError unless the recipe's network has an output for each class of its data.

    Args:
        recipe: the recipe.
        classes: of its data.
        defaults: where the recipe leaves num_classes out, it is the network's default; else it is not checked.
    """
    if not defaults and "num_classes" not in recipe.model.arguments:
        return
    outputs = count(recipe.model.name, recipe.model.arguments)
    if outputs is not None and outputs != len(classes):
        rule = f"have num_classes = {len(classes)}, as {recipe.data.name} has the classes {', '.join(classes)}"
        remedy = f"Set model.arguments.num_classes={len(classes)}, or another data.name."
        bad_value("config", f"model {recipe.model.name}", rule, outputs, remedy)


def check_weights(op: str, network: str, arguments: Mapping[str, Any], classes: Sequence[str], whose: str) -> None:
    """Raises ArgumentError unless a network of weights has an output for each class; `whose` they are."""
    outputs = count(network, arguments)
    if outputs is not None and outputs != len(classes):
        rule = f"have an output for each of the {len(classes)} classes of {whose}, {', '.join(classes)}"
        remedy = f"Use weights of a {network} with num_classes={len(classes)}."
        bad_value(op, "weights", rule, f"{outputs} outputs", remedy)
