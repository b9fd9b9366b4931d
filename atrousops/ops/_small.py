"""Small calls: PyTorch's own operators straight away, which take less time than it takes to reach one of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from atrousops import backends

# Elements of input up to which a call is all overhead, and PyTorch's.
SMALL = 1 << 14
# 16-bit sums of gradients are taken in fp32 by our kernels only.
_DTYPES = frozenset({torch.float32, torch.float64})


def small(input: Tensor, function: Callable[..., Any], *args: Any, last: int = 0) -> Any:
    """What `function`, made of PyTorch's operators, gives for a small call with the same results as ours.

    None where the call is another one, or where PyTorch complains: our checks then say what is wrong. Maps in
    channels_last, in float32 and without gradients, are small up to `last` elements.
    """
    if torch.compiler.is_compiling() or backends._forced[0] is not None:
        return None
    try:
        size = input.numel()
        if input.is_contiguous():
            fits = size <= SMALL and input.dtype in _DTYPES
        else:
            fits = size <= last and input.dtype is torch.float32 and _is_last_without_gradient(input)
        if not (fits and size > 0 and input.is_cpu):
            return None
        return function(input, *args)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return None


def _is_last_without_gradient(input: Tensor) -> bool:
    last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
    return last and not (input.requires_grad and torch.is_grad_enabled())
