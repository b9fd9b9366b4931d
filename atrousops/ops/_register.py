"""The one way an operator gets its fake kernel, autograd and autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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
) -> None:
    """Registers what belongs to operator `atrousops::name`, if there are kernels: a compiled library's, or Triton's.

    autocast: "lower" casts floating tensors to the autocast dtype, "float32" to fp32; None leaves dtypes alone.
    """
    if not _library.has_schemas:
        return
    qualified = f"atrousops::{name}"
    torch.library.register_fake(qualified, fake)
    _triton.register_rule(name)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
    if autocast is not None:
        for device, key in _AUTOCAST_KEYS.items():
            _register_autocast(name, device, key, autocast)


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
