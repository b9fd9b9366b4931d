"""Common code of pooling and unpooling: arguments per axis, memory formats, and the names of PyTorch's functions."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from atrousops.common.checks import bad_type, bad_value


def per_axis(op: str, argument: str, value: Any, axes: int) -> tuple[int, ...]:
    """One integer per spatial axis, from an integer or a tuple or list of one or `axes` of them."""
    if type(value) is int:
        return (value,) * axes
    rule = f"be one integer or {axes}"
    if not isinstance(value, (tuple, list)):
        return (integer(op, argument, value, rule),) * axes
    if len(value) == axes and all(type(v) is int for v in value):
        return tuple(value)
    if len(value) not in (1, axes):
        bad_value(op, argument, rule, value, _torch_length(op, argument, axes))
    found = tuple([integer(op, argument, v, rule) for v in value])
    return found * axes if len(found) == 1 else found


def integer(op: str, argument: str, value: Any, rule: str) -> int:
    """Converts to int what PyTorch accepts as one, including NumPy's integers and one-element tensors, but not bool."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    whole = (
        not (value.is_floating_point() or value.is_complex() or value.numel() != 1)
        if isinstance(value, Tensor)
        else (hasattr(value, "__index__") and not isinstance(value, bool) and getattr(value, "ndim", 0) == 0)
    )
    if not whole:
        bad_type(op, argument, rule, repr(value))
    # torch.jit.trace records a size as a tensor; converted to int it would become a constant of the graph.
    return value if torch._C._is_tracing() and isinstance(value, Tensor) else operator.index(value)  # type: ignore[return-value]


def check_tensor(op: str, name: str, value: Any) -> None:
    """Raises ArgumentTypeError unless it is a tensor."""
    if not isinstance(value, Tensor):
        bad_type(op, name, "be a Tensor", type(value).__name__)


def check_map(op: str, axes: int, input: Tensor, theirs: str = "", or_channels: bool = False) -> None:
    """Raises ArgumentError unless it is a non-empty map with this number of axes, with or without a batch.

    or_channels: without a batch the number of channels may be 0.
    """
    shape = input.shape
    filled = shape if len(shape) == axes + 1 and not or_channels else shape[1:]
    if len(shape) not in (axes + 1, axes + 2) or 0 in filled:
        letters = ("", "L", "H, W", "D, H, W")[axes]
        rule = f"be (N, C, {letters}) or (C, {letters}) with only N allowed to be 0"
        rule += ", or C where there is no N" if or_channels else ""
        bad_value(op, "input", rule, f"shape {tuple(shape)}", theirs)


def check_bool(op: str, name: str, value: Any) -> None:
    """Raises ArgumentTypeError unless it is True or False."""
    if value is not True and value is not False:
        bad_type(op, name, "be True or False", repr(value))


def in_float32(input: Tensor) -> Tensor:
    """Casts as PyTorch's autocast does on a CPU for operators that it computes in float32."""
    if input.is_cpu and input.dtype in (torch.bfloat16, torch.float16) and torch.is_autocast_enabled("cpu"):
        return input.float()
    return input


def _torch_length(op: str, argument: str, axes: int) -> str:
    count = ("one", "two", "three")[axes - 1]
    return f"(PyTorch: {op}: {argument} must either be a single int, or a tuple of {count} ints)"
