"""Routes of calls, cached by everything that they depend on, so that checks and plans are made only once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from atrousops.common.checks import ArgumentError
from atrousops.common.conv_arguments import Arguments
from atrousops.common.values import is_autocast
from atrousops.dispatch import backends, choice
from atrousops.dispatch.devices import tf32_allowed

_NO_ARGUMENTS = Arguments((), (), (), 1, ())


@dataclass(slots=True)
class Route:
    """What runs a call: `run`, called with the tensors and `rest`; `backend` and `arguments` are a convolution's."""

    run: Callable[..., Any]
    rest: tuple[Any, ...]
    backend: str = ""
    arguments: Arguments = _NO_ARGUMENTS


class Call:
    """A public function of up to three tensors. Both callbacks return the route of a call; their checks may raise.

    find(kind, *tensors, *args) is for plain tensors, and its result is cached; unusual(...) is for all others, not
    cached.
    """

    def __init__(self, find: Callable[..., Route], unusual: Callable[..., Route], kind: Any) -> None:
        self.find, self.unusual, self.kind = find, unusual, kind
        self.routes: dict[tuple, Route] = {}
        choice.on_forget.append(self.routes.clear)


PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
PLAIN_TYPES = frozenset(PLAIN)
_TUPLES = (tuple, torch.Size)
_MOST_ROUTES = 4096

# Bound in this module: after a large convolution the dictionaries of other modules are not in the CPU's cache.
_forced = backends._forced
_grad_enabled, _autocast_enabled = torch.is_grad_enabled, torch._C._is_any_autocast_enabled
_threads, _is_traced = torch.get_num_threads, torch._C._is_tracing
# For torch.compile only: other tracers bring tensors that are not plain, or a mode.
_is_compiled, _transforms = torch.compiler.is_dynamo_compiling, torch._C._are_functorch_transforms_active
_STRIDED = torch.strided
autocasts = torch._C._is_any_autocast_enabled

# The beginnings of csrc/core's messages about the sizes of a convolution.
_PROBLEMS = ("convolution: ", "transposed convolution: ")

# Every registered operator (the result of `register`) by its name.
CALLS: dict[str, Callable[..., Any]] = {}
# What runs them on plain tensors, by whether derivatives are needed.
PLAIN_CALLS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}


def call_of(name: str, find: Callable[..., Route], kind: Any = None) -> Call:
    """A call of a registered operator with two tensors; `find` is for all tensors, and its route runs CALLS[name]."""

    def find_plain(kind: Any, first: Tensor, second: Tensor, third: None, *args: Any) -> Route:
        route = find(kind, first, second, third, *args)
        return replace(route, run=kernel_of(name, first, second)) if route.run is CALLS[name] else route

    return Call(find_plain, find, kind)


def run(call: Call, first: Tensor, second: Tensor, third: Tensor | None, args: tuple[Any, ...]) -> Any:
    """Runs a call of three tensors; `args` are in the order of PyTorch's function. An empty *rest would take 0.2 us."""
    route = route_of(call, first, second, third, args)
    return route.run(first, second, third, *route.rest) if route.rest else route.run(first, second, third)


def route_of(
    call: Call, first: Tensor, second: Tensor, third: Tensor | None, args: tuple[Any, ...], exact: tuple[Any, ...] = ()
) -> Route:
    """The route of a call; the checks are made, and may raise, at its first occurrence.

    exact: further arguments, each always of the same type.
    """
    # Comparing these tuples takes less time than hashing.
    plain = type(first) in PLAIN and type(second) in PLAIN and (third is None or type(third) in PLAIN)
    for value in args:
        # Equal values of these types are interchangeable; True and 1.0, which equal 1, are not.
        if type(value) is int or value is None:
            continue
        if type(value) in _TUPLES:
            for entry in value:
                plain = plain and type(entry) is int
        elif type(value) is not str:
            plain = False
    if (
        not (plain and first.layout is second.layout is _STRIDED)
        or first.is_nested
        or _is_compiled()
        or _is_traced()
        or _transforms()
        or forward_ad._current_level >= 0
    ):
        return call.unusual(call.kind, first, second, third, *args, *exact)
    key = (
        args,
        exact,
        first.shape,
        second.shape,
        first.dtype,
        second.dtype,
        third is None or (third.shape, third.dtype, third.is_cpu or third.device),
        first.is_contiguous(),
        _threads() if first.is_cpu and second.is_cpu else (first.device, second.device, _of_gpu()),
        _grad_enabled() and (first.requires_grad or second.requires_grad),
        _autocast_enabled() and _autocast_state(first),
        _forced[0],
    )
    route = call.routes.get(key)
    if route is None:
        postponed = choice.postponed
        route = call.find(call.kind, first, second, third, *args, *exact)
        if choice.postponed != postponed:
            # A later call of this shape must be measured.
            return route
        if len(call.routes) >= _MOST_ROUTES:
            call.routes.clear()
        call.routes[key] = route
    return route


def kernel_of(name: str, *tensors: Tensor | None) -> Callable[..., Any]:
    """What runs an operator on tensors like these: its kernel or, with gradients, the function that records it."""
    if torch.compiler.is_compiling() or name not in PLAIN_CALLS:
        return CALLS[name]
    given = tuple([t for t in tensors if t is not None])
    return PLAIN_CALLS[name][wants_grad(given)] if is_plain(given) and not autocasts() else CALLS[name]


def on_plain(operator: Any) -> Callable[..., Any]:
    """The operator's kernel, for plain tensors."""
    # Equivalent to calling the operator, without one Python frame.
    kernel = operator._op

    def run_kernel(*args: Any) -> Any:
        try:
            with torch._C._AutoDispatchBelowAutograd():
                return kernel(*args)
        except RuntimeError as error:
            if not is_kernels(operator, error):
                raise
            raise ArgumentError(str(error)) from None

    return run_kernel


def is_kernels(operator: Any, error: RuntimeError) -> bool:
    """Whether an error was raised by the kernel: its message begins with the operator's name or the problem's kind.

    It is already an ArgumentError if torch and `_C` recognise each other's exceptions.
    """
    return type(error) is RuntimeError and str(error).startswith((f"{operator._opname}: ", *_PROBLEMS))


def wants_grad(tensors: tuple[Tensor, ...]) -> bool:
    return torch.is_grad_enabled() and any([t.requires_grad for t in tensors])


def is_plain(tensors: tuple[Tensor, ...]) -> bool:
    """Whether no wrapper, transform, tracer or mode is active for them."""
    for t in tensors:
        if type(t) not in PLAIN_TYPES or t.layout is not torch.strided:
            return False
    return not (_transforms() or is_watched() or forward_ad._current_level >= 0)


def is_watched() -> bool:
    return bool(torch._C._len_torch_dispatch_stack()) or torch._C._is_tracing()


def _of_gpu() -> tuple[bool, bool]:
    # Process state that a choice on a GPU depends on; a first call under cudnn.benchmark measures.
    return tf32_allowed(), torch._C._get_cudnn_benchmark()


def _autocast_state(input: Tensor) -> tuple[bool, torch.dtype]:
    device = input.device.type
    return (True, torch.get_autocast_dtype(device)) if is_autocast(device) else (False, input.dtype)
