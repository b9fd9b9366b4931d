"""The description of a published checkpoint, and helpers that convert its entries to ours."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from atrousops.models.channels import MEAN, STD
from atrousops.models.registry import Info

State = dict[str, Tensor]
# A pattern, and the replacement for a name that it matches completely.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def unchanged(state: State) -> State:
    return state


@dataclass(frozen=True)
class Published:
    """A checkpoint.

    network, arguments: the factory and its arguments.
    classes: names, in the order of the scores.
    source: where the file comes from.
    sha256: of the file, or its first digits; "" if the release does not give it: then only names and shapes are
        checked.
    mean, std, size: as in Info.
    change: converts its state dict to ours, for real or meta tensors; keeps unknown entries.
    """

    network: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    source: str
    sha256: str
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    size: int = 520
    change: Callable[[State], State] = field(default=unchanged)

    def changed(self, arguments: Mapping[str, Any]) -> Published:
        """The same with other arguments of the factory.

        With another number of classes the names are numbers; with other than three channels, mean and std are averages.
        """
        count, channels = arguments.get("num_classes", len(self.classes)), arguments.get("in_channels", 3)
        classes = self.classes if count == len(self.classes) else tuple(map(str, range(count)))
        mean, std = (x if channels == len(x) else (sum(x) / len(x),) * channels for x in (self.mean, self.std))
        arguments = {**self.arguments, **arguments}
        return dataclasses.replace(self, arguments=arguments, classes=classes, mean=mean, std=std)

    @property
    def info(self) -> Info:
        return Info(self.network, self.arguments, self.classes, self.mean, self.std, self.size)


# A ResNet's stem of three convolutions: the names in a Sequential, and those in `encoder`.
DEEP_STEM = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}


def renamed(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> State:
    """Renames the entries of a state dict by the first rule that matches the complete name."""
    found = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, name):
                name = match.expand(replacement) if isinstance(replacement, str) else replacement(match)
                break
        found[name] = value
    return found


def from_bgr(state: State, name: str) -> State:
    """Reverses the input channels of filter `name` from BGR to RGB."""
    return {**state, name: state[name].flip(1)} if name in state and state[name].dim() == 4 else state


def of_bytes(red: float, green: float, blue: float) -> dict[str, Any]:
    """mean and std for a network whose input is 0..255 minus a mean: (rgb - mean / 255) / (1 / 255)."""
    return {"mean": (red / 255, green / 255, blue / 255), "std": (1 / 255,) * 3}
