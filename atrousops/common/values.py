"""Helpers of the definitions in plain PyTorch: values for decisions in Python, and results that belong to a graph."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

_transforms = torch._C._are_functorch_transforms_active


def values_of(t: Tensor) -> Tensor:
    """The tensor without the wrappers of torch.func: with all batch dimensions, outside all derivatives.

    For decisions in Python, such as by the largest value; inside a transform a tensor has no values.
    """
    while not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    return t.detach()


def has_values(t: Tensor) -> bool:
    """Whether the tensor has values to check: not if it is compiled, fake or on meta."""
    return not (torch.compiler.is_compiling() or isinstance(t, FakeTensor) or t.is_meta)


def transformed() -> bool:
    """Whether a transform of functions is at work: those of torch.func, or forward-mode differentiation."""
    return _transforms() or forward_ad._current_level >= 0


def is_autocast(kind: str) -> bool:
    """Whether autocast is on for a device type; for meta, PyTorch has no autocast and raises."""
    return kind != "meta" and torch.is_autocast_enabled(kind)


def connected(t: Tensor, *inputs: Tensor) -> Tensor:
    """The tensor as a constant function of `inputs`: derivatives are zero instead of missing."""
    for x in inputs:
        t = t + x.flatten()[:0].sum().to(t.dtype)
    return t
