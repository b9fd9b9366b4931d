"""Where a call goes: looked up by everything that it depends on, so that its checks and its plan are paid for once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from atrousops.common.conv_arguments import Arguments
from atrousops.dispatch import backends, choice
from atrousops.dispatch.devices import tf32_allowed
from atrousops.ops._register import CALLS, PLAIN, kernel_of


class Route(NamedTuple):
    """What runs a call: `run`, given the call's tensors and `rest`; of a convolution also by whom and with what."""

    run: Callable[..., Any]
    rest: tuple[Any, ...]
    backend: str = ""
    arguments: Arguments = Arguments((), (), (), 1, ())


class Call:
    """A public function of up to three tensors. Both functions say where a call goes; their checks may raise.

    find(kind, *tensors, *args) is for plain tensors, and has its answer kept; unusual, the same of any other, has not.
    """

    def __init__(self, find: Callable[..., Route], unusual: Callable[..., Route], kind: Any) -> None:
        self.find, self.unusual, self.kind = find, unusual, kind
        self.routes: dict[tuple, Route] = {}
        choice.on_forget.append(self.routes.clear)


_PLAIN = frozenset(PLAIN)
# Further arguments of these types, and tuples of integers, equal one another only if they mean the same.
_KEY_TYPES = frozenset({int, str, type(None)})
_TUPLES = frozenset({tuple, torch.Size})
_MOST_ROUTES = 4096

# By names of this module: behind a large convolution the dictionaries of other modules are not in the cache.
_forced = backends._forced
_grad_enabled, _autocast_enabled = torch.is_grad_enabled, torch._C._is_any_autocast_enabled
_threads, _is_traced = torch.get_num_threads, torch._C._is_tracing
# Of torch.compile alone: what else traces brings tensors that are not plain, or a mode.
_is_compiled, _transforms = torch.compiler.is_dynamo_compiling, torch._C._are_functorch_transforms_active
_STRIDED = torch.strided


def call_of(name: str, find: Callable[..., Route], kind: Any = None) -> Call:
    """A call of a registered operator of two tensors; `find` is for all, and names what `register` returned."""

    def find_plain(kind: Any, first: Tensor, second: Tensor, third: None, *args: Any) -> Route:
        route = find(kind, first, second, third, *args)
        return route._replace(run=kernel_of(name, first, second)) if route.run is CALLS[name] else route

    return Call(find_plain, find, kind)


def run(call: Call, first: Tensor, second: Tensor, third: Tensor | None, args: tuple[Any, ...]) -> Any:
    """Runs a call of three tensors; `args` are in the order of PyTorch's function. An empty *rest would take 0.2 us."""
    route = route_of(call, first, second, third, args)
    return route.run(first, second, third, *route.rest) if route.rest else route.run(first, second, third)


def route_of(
    call: Call, first: Tensor, second: Tensor, third: Tensor | None, args: tuple[Any, ...], exact: tuple[Any, ...] = ()
) -> Route:
    """Where a call goes; the checks are made, and raise, the first time that it comes.

    exact: further arguments, of which each has always the same type.
    """
    plain = type(first) in _PLAIN and type(second) in _PLAIN and (third is None or type(third) in _PLAIN)
    for value in args:
        if type(value) in _TUPLES:
            for entry in value:
                plain = plain and type(entry) is int
        elif type(value) not in _KEY_TYPES:
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
            # A later call of this shape is to be measured.
            return route
        if len(call.routes) >= _MOST_ROUTES:
            call.routes.clear()
        call.routes[key] = route
    return route


def _of_gpu() -> tuple[bool, bool]:
    # What else of the process a choice on a GPU depends on; a first call under cudnn.benchmark measures.
    return tf32_allowed(), torch._C._get_cudnn_benchmark()


def _autocast_state(input: Tensor) -> tuple[bool, torch.dtype]:
    device = input.device.type
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
