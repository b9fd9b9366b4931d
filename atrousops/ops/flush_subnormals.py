"""flush_subnormals: clears the numbers that make CPUs slow."""

from __future__ import annotations

import torch
from torch import Tensor

from atrousops import backends, reference
from atrousops._checks import bad_type
from atrousops.ops._register import register


def flush_subnormals(input: Tensor) -> Tensor:
    """Replaces subnormal numbers by zero.

    y = 0 where abs(x) is below the smallest normal number of the dtype, else x. NaN and infinities are kept.

    Args:
        input: any shape, float64, float32, bfloat16 or float16.

    Returns:
        A new tensor of the same shape, dtype and memory format.

    Raises:
        ArgumentTypeError: the dtype is not floating.
    """
    if input.dtype not in backends.FLOATING:
        bad_type("flush_subnormals", "input", "be float64, float32, bfloat16 or float16", input.dtype)
    if backends.choose("flush_subnormals", input.device, input.dtype) in backends.COMPILED:
        return torch.ops.atrousops.flush_subnormals(input)
    return reference.flush_subnormals(input)


def _fake(input: Tensor) -> Tensor:
    return torch.empty_like(input)


def _setup(ctx, inputs, output) -> None:
    """Nothing is needed."""


def _backward(ctx, grad: Tensor) -> Tensor:
    # The derivative is 1 wherever the value passes, and that is all but a set nobody trains on.
    return grad


def _no_subnormals(input: Tensor, step: int) -> bool:
    # A tensor without values holds none.
    return False


register("has_subnormals", fake=_no_subnormals)
register("flush_subnormals", fake=_fake, backward=_backward, setup_context=_setup)
