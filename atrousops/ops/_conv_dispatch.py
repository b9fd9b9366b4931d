"""Where a convolution runs: PyTorch's own operator, ours, or the reference, as the planner says. One place for all six.

A call that goes to PyTorch's operator as it is, the common answer, is known from the last time: that is what a small
call can afford.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from atrousops import _library, _triton, backends, choice, planner
from atrousops.devices import tf32_allowed
from atrousops.ops import _subnormals
from atrousops.ops._conv_arguments import Arguments
from atrousops.ops._register import PLAIN, foreign, transformed

# Floating-point operations per input element from which looking for subnormals in the input is lost in the noise.
_SCAN_FLOPS = 500


@dataclass(frozen=True, slots=True)
class Call:
    """One of the six functions: its name, the operator's, its number of spatial axes, its checks and three bodies."""

    name: str
    op: str
    rank: int
    aten: Callable[..., Tensor]
    check: Callable[..., Arguments]
    ours: Callable[[Tensor, Tensor, Tensor | None, Arguments], Tensor]
    reference: Callable[[Tensor, Tensor, Tensor | None, Arguments], Tensor]


class Route(NamedTuple):
    """Where a call of known shapes goes."""

    backend: str
    arguments: Arguments
    scan_weight: bool = False
    scan_input: bool = False


# By names of this module: behind a large convolution the dictionaries of other modules are not in the cache.
_forced = backends._forced
_grad_enabled, _autocast_enabled = torch.is_grad_enabled, torch._C._is_any_autocast_enabled

_routes: dict[tuple, Route] = {}
_SMALL_SIZE = planner.SMALL
_SMALL = Route("aten", Arguments((), (), (), 1, ()), scan_weight=True)


def forget() -> None:
    """Drops what was looked up, after the planner has learnt something."""
    _routes.clear()
    _forget_known()


def run_in_python(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
    """Runs a call whose further arguments, in the order of PyTorch's function, are `args`."""
    if foreign(input, weight, bias) and _forced[0] != "reference":
        return call.aten(input, weight, bias, *args)
    result, input, weight = _look_up(call, input, weight, bias, args)
    if result is not None:
        return result
    try:
        return call.aten(input, weight, bias, *args)
    except (RuntimeError, TypeError, ValueError):
        call.check(call.name, call.rank, input, weight, bias, *args)
        raise


def _look_up(
    call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, args: tuple
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The result, or, if PyTorch's operator is to be called, None and what it takes."""
    compiling = torch.compiler.is_compiling()
    route = (_find_route if compiling else route_of)(call, input, weight, bias, args)
    if route is None:
        return _run_unhashable(call, input, weight, bias, args), input, weight
    if route.backend != "aten":
        return _run_route(call, route, input, weight, bias, args), input, weight
    clean = _subnormals.clean_weight(weight) if route.scan_weight else weight
    if clean is weight and forward_ad._current_level < 0 and not compiling:
        note(call, input, weight, args, _subnormals.PART if route.scan_input else 0)
    return None, _subnormals.clean_input(input) if route.scan_input else input, clean


def route_of(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, args: tuple) -> Route | None:
    """Where a call goes, looked up; None where it cannot be: no tensors, or lists as PyTorch's functions take too."""
    try:
        # The planner's rule for small calls, at the price that a small call can afford.
        on_cpu = input.is_cpu and weight.is_cpu
        forced = _forced[0]
        if on_cpu and forced is None and input.numel() * weight.numel() <= _SMALL_SIZE:
            return _SMALL
        # Everything the choice depends on, and nothing that takes long to ask for.
        key = (
            call.name,
            input.shape,
            weight.shape,
            args,
            input.dtype,
            input.is_contiguous(),
            on_cpu,
            not on_cpu and input.is_cuda and 1 + tf32_allowed(),
            (input.requires_grad or weight.requires_grad) and _grad_enabled(),
            _autocast_enabled(),
            forced,
        )
        route = _routes.get(key)
    except (AttributeError, TypeError):
        return None
    if route is None:
        route = _find_route(call, input, weight, bias, args)
        if len(_routes) >= 4096:
            _routes.clear()
        _routes[key] = route
    return route


def _run_unhashable(call: Call, input: Any, weight: Any, bias: Any, args: tuple) -> Tensor:
    arguments = call.check(call.name, call.rank, input, weight, bias, *args)
    hashable = tuple(tuple(a) if isinstance(a, list) else a for a in args)
    if hashable != args or any(isinstance(a, list) for a in args):
        return run_in_python(call, input, weight, bias, *hashable)
    return _run_route(call, _route(call, input, weight, arguments), input, weight, bias, args)


def _run_route(call: Call, route: Route, input: Tensor, weight: Tensor, bias: Tensor | None, args: tuple) -> Tensor:
    if route.backend == "aten" or (route.backend in backends.COMPILED and _needs_pytorch(input, weight)):
        return call.aten(input, weight, bias, *args)
    others = (weight,) if bias is None else (weight, bias)
    channels = weight.shape[0] if call.op == "conv" else weight.shape[1] * route.arguments.groups
    fits = bias is None or (bias.dim() == 1 and bias.shape[0] == channels)
    if not fits or any([t.dtype != input.dtype or t.device != input.device for t in others]):
        call.check(call.name, call.rank, input, weight, bias, *args)
    body = call.ours if route.backend in backends.COMPILED else call.reference
    if input.dim() == call.rank + 2:
        return body(input, weight, bias, route.arguments)
    return body(input.unsqueeze(0), weight, bias, route.arguments).squeeze(0)


def allow_tf32(t: Tensor) -> bool:
    """Whether fp32 may be multiplied as TF32: on a GPU, where PyTorch's own convolutions would do so."""
    return t.is_cuda and tf32_allowed()


def _needs_pytorch(input: Tensor, weight: Tensor) -> bool:
    # Function transforms and forward-mode derivatives are PyTorch's own there; subclasses bring their own operators.
    # Who reads a traced graph, such as counters of operations, knows PyTorch's.
    is_traced_by_jit = not torch.compiler.is_compiling() and torch._C._is_tracing()
    return is_traced_by_jit or transformed() or foreign(input, weight)


def _find_route(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, args: tuple) -> Route:
    return _route(call, input, weight, call.check(call.name, call.rank, input, weight, bias, *args))


def _route(call: Call, input: Tensor, weight: Tensor, arguments: Arguments) -> Route:
    forced = backends.forced()
    if forced is not None:
        return Route(backends.choose(call.op, input.device, input.dtype), arguments)
    device = input.device.type
    dtype = torch.get_autocast_dtype(device) if _autocasts(input) else input.dtype
    known = device in backends.PLANNED and dtype in backends.FLOATING
    if not known or weight.numel() == 0 or _is_empty(input):
        return Route("aten", arguments)
    size = tuple(input.shape) if input.dim() == call.rank + 2 else (1, *input.shape)
    needs_grad = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
    kind = "forward" if call.op == "conv" else "transposed"
    ours = _ours(kind, size, weight.shape, arguments, dtype, not input.is_contiguous(), device, needs_grad)
    backend = backends.own(call.op, input.device, dtype) if ours else "aten"
    # Compiled: no look at values, and no guard on an open size. A GPU multiplies subnormals as fast as anything.
    if torch.compiler.is_compiling() or device != "cpu":
        return Route(backend, arguments)
    channels = weight.shape[1] * arguments.groups if kind == "forward" else weight.shape[0]
    per_element = 2 * weight.numel() // channels
    return Route(backend, arguments, True, input.numel() >= 1 << 16 and per_element >= _SCAN_FLOPS)


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


def _ours(
    kind: str,
    size: tuple[int, ...],
    weight_size: torch.Size,
    arguments: Arguments,
    dtype: torch.dtype,
    channels_last: bool,
    device: str,
    needs_grad: bool = False,
) -> bool:
    if not (_library.has_operators if device == "cpu" else _library.cuda.problem is None or _triton.installed()):
        return False
    stride, padding, dilation, groups, extra = arguments
    kernel = choice.choose(
        kind,
        size,
        tuple(weight_size),
        stride,
        padding,
        dilation,
        groups,
        dtype,
        channels_last,
        needs_grad,
        extra,
        device,
    )
    return kernel != "aten"


def gradient_is_ours(kind: str, size: Any, weight_size: Any, arguments: Arguments, grad: Tensor) -> bool:
    """Whether a gradient ("input_grad" or "weight_grad") of a convolution of ours is best computed by us, too."""
    if transformed() or foreign(grad):
        return False
    forced = backends.forced()
    rank = len(arguments.stride)
    if forced is not None or arguments.padding[:rank] != arguments.padding[-rank:] or 0 in (*size, *weight_size):
        return forced != "aten"
    return _ours(kind, tuple(size), weight_size, arguments, grad.dtype, not grad.is_contiguous(), grad.device.type)


def _straight() -> tuple[Callable[..., Tensor], Callable[..., bool], Callable[..., None], Callable[[], None]]:
    make = getattr(_library.planner, "straight", None)
    found = make and make(Tensor, PLAIN, backends._forced, _grad_enabled, _autocast_enabled, run_in_python)
    return found or (run_in_python, lambda *_: False, lambda *_: None, lambda: None)


# run(call, input, weight, bias, *args): PyTorch's operator at once if known(the same), else `run_in_python`. A call is
# known where nothing is to be done before, as note(call, input, weight, args, step) said, and one block of the input in
# `step` is free of subnormals. Compiled, because behind a large convolution Python's own code is not in the cache
# either. Dynamo cannot see into it; whatever else traces brings tensors that are not known.
is_traced = torch.compiler.is_dynamo_compiling
run, known, note, _forget_known = _straight()
