"""Where a convolution runs: PyTorch's operator, ours, or the reference, as the planner predicts. One place for all six.

The answer is looked up by everything it depends on, so that a call pays for its checks and its plan once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atrousops.common.conv_arguments import Arguments
from atrousops.dispatch import backends, choice, libraries
from atrousops.dispatch.devices import tf32_allowed
from atrousops.dispatch.planner import CallArguments
from atrousops.ops._register import PLAIN, foreign, jit_traces, transformed


@dataclass(frozen=True, slots=True)
class Call:
    """One of the six functions: its name, the operator's, its number of spatial axes, its checks and three bodies."""

    name: str
    op: str
    rank: int
    aten: Callable[..., Tensor]
    check: Callable[..., Arguments]
    ours: Callable[[Tensor, Tensor, Tensor | None, Arguments, int], Tensor]
    reference: Callable[[Tensor, Tensor, Tensor | None, Arguments], Tensor]


class Route(NamedTuple):
    """Where a call of known shapes goes; `first` as in choice.Chosen."""

    backend: str
    arguments: Arguments
    first: int = 0


_PLAIN = frozenset(PLAIN)
# Types of further arguments that equal one another only if they mean the same, and can be part of a key.
_KEY_TYPES = frozenset({int, tuple, str})
_MOST_ROUTES = 4096

_routes: dict[tuple, Route] = {}
# PyTorch's operator, which refuses what it cannot do.
_PYTORCH = Route("aten", Arguments((), (), (), 1, ()))

# By names of this module: behind a large convolution the dictionaries of other modules are not in the cache.
_forced = backends._forced
_grad_enabled, _autocast_enabled = torch.is_grad_enabled, torch._C._is_any_autocast_enabled
_threads, _is_compiling, _is_tracing = torch.get_num_threads, torch.compiler.is_compiling, torch._C._is_tracing
_STRIDED = torch.strided


choice.on_forget.append(_routes.clear)


def run(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
    """Runs a call whose further arguments, in the order of PyTorch's function, are `args`."""
    route = route_of(call, input, weight, bias, args)
    if route.backend == "aten":
        return call.aten(input, weight, bias, *args)
    if route.backend in backends.COMPILED and _needs_pytorch(input, weight):
        return call.aten(input, weight, bias, *args)
    batch = input if input.dim() == call.rank + 2 else input.unsqueeze(0)
    if route.backend in backends.COMPILED:
        out = call.ours(batch, weight, bias, route.arguments, route.first)
    else:
        out = call.reference(batch, weight, bias, route.arguments)
    return out if batch is input else out.squeeze(0)


def route_of(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, args: tuple) -> Route:
    """Where a call goes; the checks are made, and raise, the first time that it comes."""
    plain = type(input) in _PLAIN and type(weight) in _PLAIN and (bias is None or type(bias) in _PLAIN)
    plain = plain and input.layout is weight.layout is _STRIDED and not (_is_compiling() or _is_tracing())
    if not (plain and _KEY_TYPES.issuperset(map(type, args))):
        return _unusual_route(call, input, weight, bias, args)
    key = (
        call.name,
        args,
        input.shape,
        weight.shape,
        input.dtype,
        weight.dtype,
        None if bias is None else (bias.shape, bias.dtype, bias.is_cpu or bias.device),
        input.is_contiguous(),
        _threads() if input.is_cpu and weight.is_cpu else (input.device, weight.device, _of_gpu()),
        _grad_enabled() and (input.requires_grad or weight.requires_grad),
        _autocast_enabled() and _autocast_state(input),
        _forced[0],
    )
    route = _routes.get(key)
    if route is None:
        postponed = choice.postponed
        route = _find_route(call, input, weight, bias, args)
        if choice.postponed != postponed:
            # A later call of this shape is to be measured.
            return route
        if len(_routes) >= _MOST_ROUTES:
            _routes.clear()
        _routes[key] = route
    return route


def _unusual_route(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, args: tuple) -> Route:
    """Where a call goes that cannot be looked up: it is traced, has subclasses, or arguments that are no keys."""
    # Subclasses bring their own operators, which see PyTorch's function once, and nothing before it.
    if (jit_traces() or foreign(input, weight, bias)) and _forced[0] != "reference":
        return _PYTORCH
    return _find_route(call, input, weight, bias, args)


def _of_gpu() -> tuple[bool, bool]:
    # What else of the process a choice on a GPU depends on; a first call under cudnn.benchmark measures.
    return tf32_allowed(), torch._C._get_cudnn_benchmark()


def _autocast_state(input: Tensor) -> tuple[bool, torch.dtype]:
    device = input.device.type
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def allow_tf32(t: Tensor) -> bool:
    """Whether fp32 may be multiplied as TF32: on a GPU, where PyTorch's own convolutions would do so."""
    return t.is_cuda and tf32_allowed()


def _needs_pytorch(input: Tensor, weight: Tensor) -> bool:
    # Function transforms and forward-mode derivatives are PyTorch's own there; subclasses bring their own operators.
    return transformed() or foreign(input, weight)


def _find_route(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, args: tuple) -> Route:
    return _route(call, input, weight, call.check(call.name, call.rank, input, weight, bias, *args))


def _route(call: Call, input: Tensor, weight: Tensor, arguments: Arguments) -> Route:
    if _forced[0] is not None:
        return Route(backends.choose(call.op, input.device, input.dtype), arguments)
    device = input.device
    dtype = torch.get_autocast_dtype(device.type) if _autocasts(input) else input.dtype
    known = device.type in backends.PLANNED and dtype in backends.FLOATING
    if not known or weight.numel() == 0 or _is_empty(input):
        return Route("aten", arguments)
    size = tuple(input.shape) if input.dim() == call.rank + 2 else (1, *input.shape)
    needs_grad = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
    kind = "forward" if call.op == "conv" else "transposed"
    first = _first(kind, size, weight.shape, arguments, dtype, not input.is_contiguous(), device, needs_grad)
    if first is None:
        return Route("aten", arguments)
    return Route("cpu" if device.type == "cpu" else backends.own(call.op, device, dtype), arguments, first)


def _is_empty(input: Tensor) -> bool:
    if not torch.compiler.is_compiling():
        return input.numel() == 0
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    # A size that the data decides counts as more than none; the operators take none, too.
    return guard_or_false(input.numel() == 0)


def _autocasts(input: Tensor) -> bool:
    device = input.device.type
    return (
        device in backends.PLANNED
        and torch.is_autocast_enabled(device)
        and input.is_floating_point()
        and input.dtype != torch.float64
    )


def _first(
    kind: str,
    size: tuple[int, ...],
    weight_size: torch.Size,
    arguments: Arguments,
    dtype: torch.dtype,
    channels_last: bool,
    device: torch.device,
    needs_grad: bool = False,
    alone: bool = False,
) -> int | None:
    if not (libraries.has_operators if device.type == "cpu" else backends.own("conv", device, dtype)):
        return None
    stride, padding, dilation, groups, extra = arguments
    call = CallArguments(kind, size, tuple(weight_size), stride, padding, dilation, groups, extra)
    return choice.chosen(call, dtype, channels_last, needs_grad, str(device), alone).first


def first_of_gradient(kind: str, size: Any, weight_size: Any, arguments: Arguments, grad: Tensor) -> int | None:
    """What choice.Chosen has as `first`, for a gradient ("input_grad" or "weight_grad") of a convolution of ours."""
    if transformed() or foreign(grad):
        return None
    rank = len(arguments.stride)
    if _forced[0] is not None or 0 in (*size, *weight_size):
        return None if _forced[0] == "aten" else 0
    asked = (kind, tuple(size), weight_size, arguments, grad.dtype, not grad.is_contiguous(), grad.device)
    if arguments.padding[:rank] == arguments.padding[-rank:]:
        return _first(*asked)
    # PyTorch would have to pad first, which no plan knows of: ours, if it may run.
    return 0 if grad.is_cpu else _first(*asked, alone=True)
