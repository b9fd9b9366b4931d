"""run_layers: runs layers in order, and fuses the operations after a convolution if `optimize` prepared it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

from atrousops.nn.conv import FusedConv1d, FusedConv2d, FusedConv3d
from atrousops.nn.quantized import QuantizedConv2d

FUSED = (FusedConv1d, FusedConv2d, FusedConv3d, QuantizedConv2d)
ACTIVATIONS: dict[type, str] = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardswish: "hardswish", nn.SiLU: "silu"}


class Variant:
    """Base of the mixins that `variant` adds to a user's class: same results, computed in another way."""

    base: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle cannot find classes made at run time by name.
        own = next(kind for kind in type(self).__mro__ if kind.__dict__.get("_is_variant"))
        return _new, (own.__bases__[1], own.__bases__[0]), self.__getstate__()  # type: ignore[attr-defined]


class Folded(Variant):
    """A normalisation that was folded into the convolution before it: returns its input.

    Its extra state distinguishes folded from unfolded weights, so that loading one into the other raises an error.
    """

    def forward(self, input: Any) -> Any:
        return input

    def get_extra_state(self) -> Tensor:
        return torch.ones((), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        pass

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, folded"  # type: ignore[misc]


class InOrder(Variant):
    """A container whose layers run in order, with `run_layers`."""

    def forward(self, input: Any) -> Any:
        if not isinstance(input, Tensor):
            return super().forward(input)  # type: ignore[misc]
        return run_layers(self._modules.values(), input)  # type: ignore[attr-defined]


_made: dict[Any, Any] = {}


def variant(base: Any, mixin: Any) -> Any:
    """The subclass of `mixin` and `base`, with the name of `base`; cached."""
    if (base, mixin) not in _made:
        _made[base, mixin] = _new_class(base, mixin)
    return _made[base, mixin]


def _new_class(base: Any, mixin: Any) -> Any:
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (mixin, base), {**names, "_is_variant": True})


def _new(base: type, mixin: type) -> Any:
    kind = variant(base, mixin)
    return kind.__new__(kind)


def watched(layer: nn.Module) -> bool:
    """Whether the layer has hooks, or a `forward` that is not its class's."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return bool(hooks) or "forward" in layer.__dict__


def hooks_on_all() -> bool:
    """Whether hooks are registered for all modules."""
    return bool(
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    )


def runs_in_order(layer: nn.Module) -> bool:
    """Whether calling the layer is the same as calling its children in order, each on the previous result."""
    kind: Any = type(layer)
    plain = issubclass(kind, nn.Sequential) and kind.__iter__ is nn.Sequential.__iter__ and _is_called_plainly(kind)
    return plain and (kind.forward is nn.Sequential.forward or kind.forward is InOrder.forward)


def _is_called_plainly(kind: Any) -> bool:
    return kind.__call__ is nn.Module.__call__ and kind.__getattr__ is nn.Module.__getattr__


def flat(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The layers, with sequential containers replaced by their contents."""
    for layer in layers:
        if runs_in_order(layer) and not watched(layer):
            yield from flat(layer.children())
        else:
            yield layer


def run_layers(
    layers: Iterable[nn.Module], input: Any, residual: Tensor | None = None, last: nn.Module | None = None
) -> Any:
    """last(layers(input) + residual), the layers applied in order.

    Operations after a convolution that `optimize` has prepared (`FusedConv2d` ...) are done in its call; so are
    `residual` and `last` if that convolution is the last layer. Layers with hooks are called one by one.
    """
    every = hooks_on_all()
    layers = list(layers) if every else list(flat(layers))
    index = 0
    while index < len(layers):
        layer = layers[index]
        index += 1
        if type(layer) not in FUSED or watched(layer) or not isinstance(input, Tensor) or every:
            input = layer(input)
            continue
        while index < len(layers) and does_nothing(layers[index]):
            index += 1
        following = layers[index] if index < len(layers) else None
        if following is None and residual is not None:
            activation = activation_of(last)
            input, residual = layer(input, residual, activation), None
            last = None if activation else last
        elif following is not None and (activation := activation_of(following)):
            input = layer(input, None, activation)
            index += 1
        else:
            input = layer(input)
    if residual is not None:
        input = input + residual
    return input if last is None else last(input)


def does_nothing(layer: nn.Module) -> bool:
    """Whether the layer returns its input and has no hooks."""
    return (isinstance(layer, Folded) or type(layer) is nn.Identity) and not watched(layer)


def activation_of(layer: nn.Module | None) -> str | None:
    """`FusedConv2d`'s name for the layer, if it is an activation without hooks."""
    return None if layer is None or watched(layer) else ACTIVATIONS.get(type(layer))


def single(layer: nn.Module) -> tuple[Any, str | None] | None:
    """The convolution and the activation in a container, if it holds nothing else and has no hooks."""
    if not runs_in_order(layer):
        return None
    parts = [part for part in flat([layer]) if not does_nothing(part)]
    names = [activation_of(part) for part in parts[1:]]
    if not parts or type(parts[0]) not in FUSED or watched(parts[0]) or len(names) > 1 or None in names:
        return None
    return parts[0], (names[0] if names else None)
