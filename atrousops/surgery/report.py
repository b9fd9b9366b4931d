"""What `optimize` did to a model and what it left, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from atrousops.common.checks import bad_type
from atrousops.surgery.convert import Left

_NAME = "_optimization_report"


@dataclass(frozen=True)
class Fused:
    """A layer that does more now, or in another way: its name in the model, and what."""

    name: str
    what: str


@dataclass(frozen=True)
class Quantized:
    """A convolution of narrow numbers.

    Attributes:
        name: in the model.
        dtype: of its weights and inputs.
        input_scale: what an input is divided by.
        error: of its result for the first calibration image, given the wide layer's input: rms over rms.
    """

    name: str
    dtype: torch.dtype
    input_scale: float
    error: float

    def __str__(self) -> str:
        narrow = str(self.dtype).removeprefix("torch.")
        return f"{self.name:<44} {narrow}, input scale {self.input_scale:.3g}, error {self.error:.2%}"


@dataclass
class Optimization:
    """What `optimize` did. Prints as a table.

    Attributes:
        fused: layers that were changed.
        quantized: convolutions of narrow numbers, where `optimize` was given a dtype.
        left: convolutions and normalisations that could have been and were not, with the reason.
        cleared: parameter -> how many of its weights were below the smallest normal number and are zero now.
        notes: how the copy was held to the model, and what holds for all of it.
    """

    fused: list[Fused] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    cleared: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    quantized: list[Quantized] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"fused {len(self.fused)} layers"]
        lines += [f"  {row.name:<44} {row.what}" for row in self.fused]
        if self.quantized:
            lines += [f"quantised {len(self.quantized)} layers", *[f"  {row}" for row in self.quantized]]
        if self.left:
            lines += [f"left {len(self.left)} layers"]
            lines += [f"  {row.name:<44} {row.was}: {row.reason}" for row in self.left]
        if self.cleared:
            lines += [f"set {sum(self.cleared.values())} weights below the smallest normal number to zero"]
            lines += [f"  {name:<44} {count}" for name, count in self.cleared.items()]
        return "\n".join([*lines, *self.notes])


def attach(model: nn.Module, report: Optimization) -> None:
    """Keeps the report with the model, through copies and files."""
    model.__dict__[_NAME] = report


def optimization_report(model: nn.Module) -> Optimization:
    """What `optimize` did to make this copy, and what it left, with the reasons.

    Args:
        model: what `optimize` returned, a copy of it, or one that was saved whole and loaded.

    Raises:
        ArgumentTypeError: `optimize` has not made it.
    """
    found = getattr(model, "__dict__", {}).get(_NAME)
    if not isinstance(found, Optimization):
        bad_type("optimization_report", "model", "be what atrousops.optimize returned", type(model).__name__)
    return found
