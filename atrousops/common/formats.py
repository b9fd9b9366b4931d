"""The sizes and memory formats of what the kernels return, for launchers and fake kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# By the number of axes.
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# Boxes of each image, (L, 4).
BoxList: TypeAlias = list[Tensor] | tuple[Tensor, ...]


def prefers_channels_last(t: Tensor, axes: int | None = None) -> bool:
    """Dense with channels innermost, and not contiguous as well; of any number of spatial axes.

    Pooling passes its number of `axes`: its inputs may come without a batch, and those of one axis stay contiguous.
    """
    if axes is not None and (axes == 1 or t.dim() != axes + 2):
        return False
    if t.dim() < 3 or t.is_contiguous() or (t.shape[1] != 1 and t.stride(1) != 1):
        return False
    expected = t.shape[1]
    for axis in (*range(t.dim() - 1, 1, -1), 0):
        if t.shape[axis] != 1 and t.stride(axis) != expected:
            return False
        expected = expected * t.shape[axis]
    return True


def empty_in_format(like: Tensor, size: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised, of size (N, C, *), stored as (N, *, C) if channels_last; any size if not."""
    if not channels_last:
        return like.new_empty(size, dtype=dtype)
    n, c, *spatial = size
    last = len(size) - 1
    return like.new_empty((n, *spatial, c), dtype=dtype).permute(0, last, *range(1, last))


def empty_as_kernel(size: Sequence[int], like: Tensor) -> Tensor:
    """Uninitialised (N, C, *), stored as (N, *, C) if `like` prefers that; (N, C, L) is contiguous, as PyTorch's is."""
    return empty_in_format(like, size, like.dim() >= 4 and prefers_channels_last(like))


def empty_map(like: Tensor, spatial: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised: the batch and channels of `like`, or its channels alone, with other spatial sizes."""
    return empty_in_format(like, (*like.shape[: like.dim() - len(spatial)], *spatial), channels_last, dtype)


def as_answered(input: Tensor) -> Tensor:
    """A map (N, C, *) in channels_last where PyTorch answers so, else as it is; the kernels ask for density as well.

    PyTorch goes by the order of the strides, so that part of a map in channels_last counts as such. Callers copy what
    is not dense in any case.
    """
    if torch._C._are_functorch_transforms_active() or not rises_from_channels(input):
        return input
    return input.contiguous(memory_format=CHANNELS_LAST[input.dim()])


def rises_from_channels(t: Tensor) -> bool:
    """c10's is_channels_last_strides, of maps and volumes with a batch.

    Where there is one channel or one position, memory is in both formats, and strides that count for nothing decide.
    """
    if t.dim() not in CHANNELS_LAST or t.stride(1) == 0:
        return False
    least = 0
    for axis in (1, *range(t.dim() - 1, 1, -1), 0):
        step, size = t.stride(axis), t.shape[axis]
        if step < least or (axis == 0 and least == t.stride(1)):
            return False
        # An empty batch goes to PyTorch, and a size that the data decides may be asked nothing.
        if axis != 0 and size == 0:
            return False
        least = step * size if axis != 0 and size > 1 else step
    return True


def in_channels_last(t: Tensor) -> Tensor:
    """The same values in channels_last, by its strides also where the memory is in both formats."""
    last = CHANNELS_LAST[t.dim()]
    if not (t.is_contiguous() and t.is_contiguous(memory_format=last)):
        return t.contiguous(memory_format=last)
    n, c, *spatial = t.shape
    return t.reshape(n, *spatial, c).permute(0, t.dim() - 1, *range(1, t.dim() - 1))


def is_channels_last(t: Tensor) -> bool:
    """Whether the CPU operators answer such an input in channels_last."""
    # Under vmap a tensor cannot be asked, and no kernel of ours runs.
    if t.is_contiguous() or torch._C._are_functorch_transforms_active():
        return False
    return t.is_contiguous(memory_format=torch.channels_last)


def empty_values(values: Tensor, *lattice: object) -> Tensor:
    """(N, C, P) as values, channels last where values are that and not contiguous."""
    n, c, p = values.shape
    if (
        values.is_contiguous()
        or values.stride(1) != 1
        or values.stride(2) != c
        or (n > 1 and values.stride(0) != c * p)
    ):
        return values.new_empty((n, c, p))
    return values.new_empty((n, p, c)).transpose(1, 2)


def pooled_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Windows of max pooling along one axis."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    # A last window must start inside the map or its left padding.
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1
    return out
