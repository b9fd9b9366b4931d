"""What pooling and unpooling share: arguments per axis, memory formats, and the names of PyTorch's functions."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atrousops._checks import bad_type, bad_value


def per_axis(op: str, argument: str, value: Any, axes: int) -> tuple[int, ...]:
    """One integer per spatial axis, from an integer or a sequence of one or `axes` of them."""
    if type(value) is int:
        return (value,) * axes
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) == axes and all(type(v) is int for v in value):
            return tuple(value)
        if len(value) == 1:
            return per_axis(op, argument, value[0], axes)
        if len(value) != axes:
            bad_value(op, argument, f"be one integer or {axes}", value, _torch_length(op, argument, axes))
        return tuple(per_axis(op, argument, v, 1)[0] for v in value)
    if isinstance(value, torch.SymInt):
        return (value,) * axes  # type: ignore[return-value]
    try:
        return (operator.index(value),) * axes
    except TypeError:
        bad_type(op, argument, f"be one integer or {axes}", repr(value))


def _torch_length(op: str, argument: str, axes: int) -> str:
    count = ("one", "two", "three")[axes - 1]
    return f"(PyTorch: {op}: {argument} must either be a single int, or a tuple of {count} ints)"


def prefers_channels_last(input: Tensor, axes: int) -> bool:
    """Whether the kernels answer in channels_last: batched maps that are dense so, and not plainly contiguous."""
    if axes == 1 or input.dim() != axes + 2 or input.is_contiguous():
        return False
    expected = input.size(1)
    if expected != 1 and input.stride(1) != 1:
        return False
    for axis in range(input.dim() - 1, 1, -1):
        if input.size(axis) != 1 and input.stride(axis) != expected:
            return False
        expected = expected * input.size(axis)
    return input.size(0) == 1 or input.stride(0) == expected


def empty_map(like: Tensor, spatial: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """What a kernel returns, for fake kernels: the batch and channels of `like` with other spatial sizes."""
    axes = len(spatial)
    leading = like.shape[: like.dim() - axes]
    if not channels_last:
        return like.new_empty((*leading, *spatial), dtype=dtype)
    stored = like.new_empty((leading[0], *spatial, leading[1]), dtype=dtype)
    return stored.permute(0, axes + 1, *range(1, axes + 1))
