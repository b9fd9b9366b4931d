"""The memory format that the compiled kernels answer in, for fake kernels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def prefers_channels_last(t: Tensor) -> bool:
    """Dense with channels innermost, and not contiguous as well; of any number of spatial axes."""
    if t.dim() < 3 or t.is_contiguous() or (t.shape[1] != 1 and t.stride(1) != 1):
        return False
    expected = t.shape[1]
    for axis in (*range(t.dim() - 1, 1, -1), 0):
        if t.shape[axis] != 1 and t.stride(axis) != expected:
            return False
        expected = expected * t.shape[axis]
    return True


def empty_as_kernel(size: Sequence[int], like: Tensor) -> Tensor:
    """Uninitialised (N, C, *), stored as (N, *, C) if `like` prefers that; (N, C, L) is contiguous, as PyTorch's is."""
    if like.dim() < 4 or not prefers_channels_last(like):
        return like.new_empty(size)
    n, c, *spatial = size
    last = len(size) - 1
    return like.new_empty((n, *spatial, c)).permute(0, last, *range(1, last))
