"""convert: somebody else's model on this package's layers."""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import nn as stock
from torch.nn.utils import parametrize

from atrousops import nn
from atrousops._checks import bad_type, bad_value

_Swaps = dict[type[stock.Module], type[stock.Module]]

_SWAPS: _Swaps = {
    stock.Conv1d: nn.AtrousConv1d,
    stock.Conv2d: nn.AtrousConv2d,
    stock.Conv3d: nn.AtrousConv3d,
    stock.ConvTranspose1d: nn.AtrousConvTranspose1d,
    stock.ConvTranspose2d: nn.AtrousConvTranspose2d,
    stock.ConvTranspose3d: nn.AtrousConvTranspose3d,
    stock.MaxPool1d: nn.MaxPool1d,
    stock.MaxPool2d: nn.MaxPool2d,
    stock.MaxPool3d: nn.MaxPool3d,
    stock.MaxUnpool1d: nn.MaxUnpool1d,
    stock.MaxUnpool2d: nn.MaxUnpool2d,
    stock.MaxUnpool3d: nn.MaxUnpool3d,
}
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
    the report says so. Calls of torch.nn.functional inside somebody's `forward` cannot be seen from here; `explain`
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
    swaps = _SWAPS | _torchvision_swaps()
    report = Conversion()
    for name, layer in model.named_modules():
        name = name or "(the model itself)"
        parametrized = parametrize.is_parametrized(layer)
        kind = parametrize.type_before_parametrizations(layer) if parametrized else type(layer)
        ours = swaps.get(kind)
        reason = _reason_to_leave(layer, kind, swaps)
        if reason is not None:
            report.left.append(Left(name, _name_of(layer, kind), reason))
        elif ours is not None:
            # The class that parametrize made may be shared with a deep copy of this layer: it gets a new one.
            layer.__class__ = _parametrized(type(layer), ours) if parametrized else ours
            report.swapped.append(Swapped(name, kind.__name__, ours.__name__))
    if memory_format is not None:
        lay_out_weights(model)
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
    """A model cannot hold torchvision's layers if nobody has imported them."""
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


def _parametrized(old: type, ours: type) -> type:
    members = {key: value for key, value in vars(old).items() if key not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{ours.__name__}", (ours,), members)


def _name_of(layer: stock.Module, kind: type) -> str:
    return str(getattr(layer, "original_name", kind.__name__))


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f", ... {names[-1]}" if len(names) > limit else "")
