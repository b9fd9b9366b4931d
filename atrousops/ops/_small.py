"""Small calls: PyTorch's operators are called directly, because the overhead of reaching ours takes longer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atrousops.common.values import transformed
from atrousops.dispatch import backends
from atrousops.ops._routes import PLAIN

# Up to this many input elements a call is dominated by overhead and goes to PyTorch.
SMALL = 1 << 14
# Only our kernels sum 16-bit gradients in fp32.
_DTYPES = frozenset({torch.float32, torch.float64})


def is_small(input: Any, last: int = 0) -> bool:
    """Whether a call with this input is small: PyTorch's operator gives the same results in less time.

    For maps in channels_last, in float32 and without gradients, the limit is `last` elements.
    """
    if torch.compiler.is_compiling() or backends._forced[0] is not None or type(input) not in PLAIN or input.is_nested:
        return False
    size = input.numel()
    if transformed() or not (0 < size <= max(SMALL, last) and input.is_cpu and input.layout is torch.strided):
        return False
    if input.is_contiguous():
        return size <= SMALL and input.dtype in _DTYPES
    return size <= last and input.dtype is torch.float32 and _is_last_without_gradient(input)


def _is_last_without_gradient(input: Tensor) -> bool:
    last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
    return last and not (input.requires_grad and torch.is_grad_enabled())
