"""The one way an operator gets its fake kernel, autograd and autocast, and is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from atrousops import _library, _triton

_AUTOCAST_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA", "xpu": "AutocastXPU"}
_autocast_library = torch.library.Library("atrousops", "FRAGMENT") if _library.has_schemas else None


def register(
    name: str,
    *,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    autocast: str | None = None,
) -> Callable[..., Any]:
    """Registers what belongs to operator `atrousops::name`, if there are kernels: a compiled library's, or Triton's.

    autocast: "lower" casts floating tensors to the autocast dtype, "float32" to fp32; None leaves dtypes alone.

    Returns:
        The operator, to be called with all of its arguments, tensors first. torch.library's autograd is Python between
        two passes through the dispatcher, which costs a small call more than all else; eager calls on plain tensors do
        without it, and record the same backward.
    """
    if not _library.has_schemas:
        return _missing
    qualified = f"atrousops::{name}"
    torch.library.register_fake(qualified, fake)
    _triton.register_rule(name)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
    if autocast is not None:
        for device, key in _AUTOCAST_KEYS.items():
            _register_autocast(name, device, key, autocast)
    return _shortest(getattr(torch.ops.atrousops, name).default, backward, setup_context, autocast is not None)


def _missing(*args: Any) -> Any:
    raise NotImplementedError("the compiled library is missing")


def _shortest(
    operator: Any, backward: Callable[..., Any] | None, setup_context: Callable[..., Any] | None, casts: bool
) -> Callable[..., Any]:
    count = sum(isinstance(argument.type, torch.TensorType) for argument in operator._schema.arguments)

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = operator(*args)
            if setup_context is not None:
                setup_context(ctx, args, output)
        return output

    body = {"forward": staticmethod(forward), "backward": staticmethod(backward or _missing)}
    function: Any = type(operator._opname, (torch.autograd.Function,), body)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or not is_plain(args[:count]) or (casts and _autocasts()):
            return operator(*args)
        if torch.is_grad_enabled() and any([t.requires_grad for t in args[:count]]):
            return operator(*args) if backward is None else function.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    return call


_PLAIN = frozenset({Tensor, torch.nn.Parameter})
_autocasts = torch._C._is_any_autocast_enabled


def is_plain(tensors: tuple[Tensor, ...]) -> bool:
    """Whether nothing wraps, transforms, traces or watches them."""
    for t in tensors:
        if type(t) not in _PLAIN:
            return False
    watched = torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack()
    return not (watched or torch._C._is_tracing() or forward_ad._current_level >= 0)


def _register_autocast(name: str, device: str, key: str, policy: str) -> None:
    op = getattr(torch.ops.atrousops, name)

    def cast_and_call(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.float32 if policy == "float32" else torch.get_autocast_dtype(device)

        def cast(value: Any) -> Any:
            wants = isinstance(value, torch.Tensor) and value.is_floating_point() and value.device.type == device
            return value.to(dtype) if wants and value.dtype != torch.float64 else value

        excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return op(*map(cast, args), **{k: cast(v) for k, v in kwargs.items()})

    assert _autocast_library is not None
    _autocast_library.impl(name, cast_and_call, key)
