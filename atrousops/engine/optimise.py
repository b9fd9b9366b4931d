"""The optimiser of a recipe: trained parameters and learning rates."""

from __future__ import annotations

import torch
from torch import nn

from atrousops.common.checks import bad_value
from atrousops.engine.config import Optimiser


def local_name(name: str) -> str:
    """A parameter's name in the network itself, without the prefix `network.` of wrappers."""
    while name.startswith("network."):
        name = name.removeprefix("network.")
    return name


def freeze(model: nn.Module, recipe: Optimiser) -> None:
    """Excludes the frozen parameters from training, and turns off dropout inside modules that are frozen as a whole.

    Raises:
        ArgumentError: a prefix matches no parameter.
    """
    names = [local_name(name) for name, _ in model.named_parameters()]
    for key, prefixes in (("frozen", recipe.frozen), ("rates", recipe.rates)):
        for prefix in prefixes:
            if not any(name.startswith(prefix) for name in names):
                bad_value("config", f"optimiser.{key}", "begin the name of a parameter", repr(prefix))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not local_name(name).startswith(tuple(recipe.frozen)))
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            # What is trained on frozen layers reads their outputs, as in a test.
            for layer in module.modules():
                if isinstance(layer, nn.modules.dropout._DropoutNd):
                    layer.eval()


def rate(name: str, recipe: Optimiser) -> float:
    """The full learning rate of a parameter."""
    name = local_name(name)
    full = recipe.backbone_lr if name.startswith("backbone.") else recipe.lr
    return full * next((factor for prefix, factor in recipe.rates.items() if name.startswith(prefix)), 1.0)


def build(model: nn.Module, recipe: Optimiser) -> torch.optim.Optimizer:
    """AdamW or SGD with momentum, with a group per pair of learning rate and decay; "full_lr" is before the schedule.

    Raises:
        ArgumentError: the recipe names another optimiser.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = recipe.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((rate(name, recipe), decay), []).append(parameter)
    settings = [
        {"params": parameters, "lr": lr, "full_lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]
    if recipe.name == "adamw":
        return torch.optim.AdamW(settings)
    if recipe.name == "sgd":
        return torch.optim.SGD(settings, lr=recipe.lr, momentum=recipe.momentum)
    bad_value("config", "optimiser.name", "be adamw or sgd", repr(recipe.name))
