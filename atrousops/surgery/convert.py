"""convert puts a model on this package's layers; revert undoes it."""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import nn as stock

from atrousops import nn
from atrousops.common.checks import bad_type, bad_value
from atrousops.nn.in_place import OURS, become_stock, class_of, set_class

_Swaps = dict[type[stock.Module], type[stock.Module]]

# By name: importing torchvision takes as long as importing torch.
_TORCHVISION_SWAPS = ("MultiScaleRoIAlign", "RoIAlign", "RoIPool")


@dataclass(frozen=True)
class Swapped:
    """A layer that runs on this package now: its name in the model, its class before and after."""

    name: str
    was: str
    now: str


@dataclass(frozen=True)
class Left:
    """A layer that could have been one of ours and was not touched: its name, its class, and why."""

    name: str
    was: str
    reason: str


@dataclass
class Conversion:
    """What `convert` did. Prints as a table."""

    swapped: list[Swapped] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def __str__(self) -> str:
        names = defaultdict(list)
        for row in self.swapped:
            names[f"{row.was} -> {row.now}"].append(row.name)
        lines = [f"swapped {len(self.swapped)} layers"]
        lines += [f"  {kind:<44} {len(where):4}  {_some(where)}" for kind, where in names.items()]
        if self.left:
            lines += [f"left {len(self.left)} layers"]
            lines += [f"  {row.name:<44} {row.was}: {row.reason}" for row in self.left]
        return "\n".join(lines)


def convert(model: stock.Module, memory_format: torch.memory_format | None = None) -> Conversion:
    """Turns the layers of `model` into this package's, in place.

    `Conv1d/2d/3d`, `ConvTranspose1d/2d/3d`, `MaxPool1d/2d/3d` and `MaxUnpool1d/2d/3d` of torch.nn, and `RoIAlign`,
    `RoIPool` and `MultiScaleRoIAlign` of torchvision, become the layers of the same meaning here. A layer stays the
    same object with the same parameters, buffers, hooks, training flag and parametrizations, under the same name; only
    its class changes. So optimizers, state dicts and shared layers stay as they are.

    Subclasses, layers with a `forward` of their own, lazy layers that have not seen input and TorchScript are left, and
    the report lists them. Calls of torch.nn.functional inside a model's `forward` cannot be seen from here; `explain`
    shows them.

    Args:
        model: any module, a single layer included.
        memory_format: torch.channels_last stores the weights of convolutions over two or three axes as the GPU's
            tensor-core kernels read them, which else re-lay them at every call. Not by default: beside such a weight
            PyTorch's own convolution answers in channels_last whatever its input is, and a `view` behind it fails.

    Returns:
        The report: `.swapped` and `.left`, printable.

    Raises:
        ArgumentTypeError: `model` is not a torch.nn.Module.
        ArgumentError: another memory format.
    """
    if memory_format not in (None, torch.channels_last):
        bad_value("convert", "memory_format", "be torch.channels_last or None", memory_format)
    if not isinstance(model, stock.Module):
        bad_type("convert", "model", "be a torch.nn.Module", type(model).__name__)
    swaps = OURS | _torchvision_swaps()
    report = Conversion()
    for name, layer in model.named_modules():
        name = name or "(the model itself)"
        kind = class_of(layer)
        ours = swaps.get(kind)
        reason = _reason_to_leave(layer, kind, swaps)
        if reason is not None:
            report.left.append(Left(name, _name_of(layer, kind), reason))
        elif ours is not None:
            set_class(layer, ours)
            report.swapped.append(Swapped(name, kind.__name__, ours.__name__))
    if memory_format is not None:
        lay_out_weights(model)
    return report


def revert(model: stock.Module) -> Conversion:
    """Turns this package's layers of `model` that torch.nn has too back into torch.nn's, in place: undoes `convert`.

    For tools that know layers by their very class and neither subclasses nor other operators: graph-mode quantisation,
    counters of operations, TorchScript, exporters to other formats. A layer stays the same object with the same state.
    `torch.ao.quantization.prepare`, `prepare_qat` and `fuse_modules` need no call of this: there each layer becomes
    torch.nn's by itself. Layers that `optimize` made, and those for regions of interest, are left, and the report says
    so.

    Args:
        model: any module, a single layer included.

    Returns:
        The report: `.swapped` and `.left`, printable.

    Raises:
        ArgumentTypeError: `model` is not a torch.nn.Module.
    """
    if not isinstance(model, stock.Module):
        bad_type("revert", "model", "be a torch.nn.Module", type(model).__name__)
    report = Conversion()
    for name, layer in model.named_modules():
        kind, name = class_of(layer), name or "(the model itself)"
        if become_stock(layer):
            report.swapped.append(Swapped(name, kind.__name__, class_of(layer).__name__))
        elif kind.__name__ in nn.__all__ and getattr(nn, kind.__name__) is kind:
            report.left.append(Left(name, kind.__name__, "torch.nn has none of its kind"))
    return report


def lay_out_weights(model: stock.Module) -> None:
    """Stores the weights of all convolutions over two or three axes in channels_last; the parameters stay the same."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if (
            isinstance(layer, stock.modules.conv._ConvNd)
            and isinstance(weight, stock.Parameter)
            and weight.dim() in formats
        ):
            weight.data = weight.data.contiguous(memory_format=formats[weight.dim()])


def _torchvision_swaps() -> _Swaps:
    """A model cannot hold torchvision's layers where torchvision is not imported."""
    theirs = sys.modules.get("torchvision.ops")
    return {} if theirs is None else {getattr(theirs, name): getattr(nn, name) for name in _TORCHVISION_SWAPS}


def _reason_to_leave(
    layer: stock.Module, kind: type, swaps: dict[type[stock.Module], type[stock.Module]]
) -> str | None:
    """None if there is nothing to say: the layer can be swapped, is ours, or is none of our business."""
    if isinstance(layer, torch.jit.ScriptModule):
        scripted = getattr(layer, "original_name", "") in {swappable.__name__ for swappable in swaps}
        return "TorchScript: convert before scripting" if scripted else None
    if kind in set(swaps.values()):
        return None
    base = next((base for base in kind.__mro__ if base in swaps), None)
    if base is None:
        return None
    if isinstance(layer, stock.modules.lazy.LazyModuleMixin):
        return "lazy: run it once on an input, then convert"
    if kind is not base:
        return f"a subclass of {base.__name__}: what it adds would be lost"
    if "forward" in vars(layer):
        return "its forward was replaced on this instance"
    return None


def _name_of(layer: stock.Module, kind: type) -> str:
    return str(getattr(layer, "original_name", kind.__name__))


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f", ... {names[-1]}" if len(names) > limit else "")
