"""Registers Triton's kernels for torch.ops.atrousops on devices without a compiled library, and where forced.

Fake kernels, autograd and autocast of the operators do not change. torch.compile sees the kernels, as with PyTorch's
triton_op.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.utils import _pytree as pytree

from atrousops.dispatch import libraries

# Dispatch keys of the devices that Triton compiles for; ROCm's is CUDA.
KEYS = {"cuda": "CUDA", "xpu": "XPU"}
_FILES = (
    "context_module",
    "conv_branches",
    "conv_transpose",
    "conv",
    "max_pool",
    "max_unpool",
    "mean_field",
    "permutohedral",
    "roi_align",
    "roi_pool",
)

_forced = [False]
_took_over = [False]
_installed: list[Library] = []
_overrides: list[Library] = []


def interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU: TRITON_INTERPRET=1 was set when this process started."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def installed() -> bool:
    """Whether Triton can compile."""
    return libraries.triton.problem is None


@functools.cache
def implementation(name: str) -> Callable[..., Any]:
    """The launcher of operator `name`; the first call imports triton."""
    file = next(f for f in _FILES if name == f or name.startswith(f + "_"))
    return getattr(importlib.import_module(f"atrousops.triton.{file}"), name)


def serves(device: torch.device) -> bool:
    """Whether an operator's call on this device currently goes to Triton."""
    if not installed() or not (device.type in KEYS or (device.type == "cpu" and interpreted())):
        return False
    if _forced[0] or device.type == "cpu":
        return _forced[0]
    return device.type != "cuda" or libraries.cuda.problem is not None or _took_over[0]


def install() -> None:
    """Registers Triton's kernels on every device for which there is no compiled library."""
    for device, key in KEYS.items() if installed() else ():
        if device != "cuda" or libraries.cuda.problem is not None:
            _installed.append(_implement(key, override=False))


def take_over() -> None:
    """Registers Triton's kernels in place of a compiled CUDA library that no GPU of this machine can run."""
    if not _took_over[0] and installed():
        _took_over[0] = True
        _installed.append(_implement("CUDA", override=True))


def took_over() -> bool:
    """Whether `take_over` has."""
    return _took_over[0]


@contextlib.contextmanager
def forced(wanted: bool) -> Iterator[None]:
    """Within the `with` block, for the whole process, Triton's kernels run wherever they can, or only as a fallback."""
    before = _forced[0]
    force(wanted)
    try:
        yield
    finally:
        force(before)


def force(wanted: bool) -> None:
    """The same from now on."""
    if wanted == _forced[0] or not installed():
        return
    _forced[0] = wanted
    while _overrides:
        _overrides.pop()._destroy()
    if wanted and interpreted():
        _overrides.append(_implement("CPU", override=libraries.has_operators))
    if wanted and libraries.cuda.problem is None:
        _overrides.append(_implement("CUDA", override=True))


def _implement(key: str, override: bool) -> Library:
    library = Library("atrousops", "IMPL")
    for name in libraries.OPERATORS + libraries.TRITON_OPERATORS:
        library.impl(name, _eager(name), key, allow_override=override)
    return library


def _eager(name: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        device = _device(args)
        with contextlib.ExitStack() as stack:
            # Real tensors need no tracing. Kernels start on the current device.
            stack.enter_context(torch._library.triton.set_wrap_triton_enabled(False))
            # Autograd would treat a permuted result as a view and forbid in-place changes.
            stack.enter_context(torch._C._AutoDispatchBelowADInplaceOrView())
            if device.type != "cpu":
                stack.enter_context(torch.get_device_module(device.type).device(device))
            return implementation(name)(*args)

    return run


def _device(args: Any) -> torch.device:
    return next(leaf.device for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor))


def register_rule(name: str) -> None:
    """Lets torch.compile decompose the operator into its Triton kernels if those would run."""
    if not installed():
        return
    from torch._subclasses.functional_tensor import FunctionalTensorMode

    def rule(mode: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if interpreted() or not serves(_device(args)) or _is_exporting():
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            return implementation(name)(*args, **(kwargs or {}))

    torch.library.register_torch_dispatch(f"atrousops::{name}", FunctionalTensorMode, rule)


def _is_exporting() -> bool:
    # An exported program keeps the operators.
    from torch.export._trace import custom_triton_ops_decomposition_disabled

    return custom_triton_ops_decomposition_disabled()
