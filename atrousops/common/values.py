"""What the definitions in plain PyTorch share: values to decide by, and results that belong to a graph."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def values_of(t: Tensor) -> Tensor:
    """The tensor without the wrappers of torch.func: with all batch dimensions, outside all derivatives.

    For what Python has to know, such as the largest of all values; inside of a transform a tensor has none.
    """
    while not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    return t.detach()


def has_values(t: Tensor) -> bool:
    """Whether there are numbers to check: none of what is compiled, fake or on meta."""
    return not (torch.compiler.is_compiling() or isinstance(t, FakeTensor) or t.is_meta)


def is_autocast(kind: str) -> bool:
    """Whether autocast is on for a kind of device; PyTorch has none on meta, and raises where one asks."""
    return kind != "meta" and torch.is_autocast_enabled(kind)


def connected(t: Tensor, *inputs: Tensor) -> Tensor:
    """The tensor, as a function of `inputs` that does not depend on them: derivatives are zero, and not missing."""
    for x in inputs:
        t = t + x.flatten()[:0].sum().to(t.dtype)
    return t
