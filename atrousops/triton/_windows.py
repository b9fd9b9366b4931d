"""Windows of pooling: their geometry on three axes, and which of them lie around a position."""

from collections.abc import Sequence
from typing import NamedTuple

import triton.language as tl
from torch import Tensor

from atrousops.triton._common import channels_are_inner, inline, split


class Windows(NamedTuple):
    """Three axes each, as one row of kernel arguments: element i of a map is (outer, position, i % step)."""

    step: int
    large: tuple[int, int, int]
    small: tuple[int, int, int]
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: tuple[int, int, int]
    dilation: tuple[int, int, int]

    def arguments(self) -> tuple[int, ...]:
        return (self.step, *[n for axes in self[1:] for n in axes])


def windows(
    like: Tensor,
    large: Sequence[int],
    small: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Windows, bool]:
    """The geometry of maps with the batch and channels of `like`, and whether they are stored with channels inside."""
    rank = len(kernel)

    def three(values: Sequence[int], fill: int) -> tuple[int, int, int]:
        padded = (*[fill] * (3 - rank), *values)
        return padded[0], padded[1], padded[2]

    nhwc = rank > 1 and like.dim() == rank + 2 and channels_are_inner(like)
    sizes = (three(large, 1), three(small, 1))
    return Windows(
        like.shape[1] if nhwc else 1,
        *sizes,
        three(kernel, 1),
        three(stride, 1),
        three(padding, 0),
        three(dilation, 1),
    ), nhwc


def dense(t: Tensor, nhwc: bool) -> Tensor:
    """With channels inside, or contiguous."""
    if not nhwc:
        return t.contiguous()
    axes = t.dim() - 2
    return t.permute(0, *range(2, axes + 2), 1).contiguous().permute(0, axes + 1, *range(1, axes + 1))


@inline
def tap_number(position, window, stride, padding, dilation):
    """The tap with which a window sees a position of the same axis; -1 if it has none there."""
    ahead = position + padding - window * stride
    tap = ahead // dilation
    return tl.where((ahead >= 0) & (tap * dilation == ahead), tap, -1)


@inline
def first_window(position, stride, padding, dilation, kernel):
    """No window before this one reaches the position."""
    return tl.maximum((position + padding - dilation * (kernel - 1) + stride - 1), 0) // stride


@inline
def tap_place(code, window, kh, kw, stride, padding, dilation, AXIS: tl.constexpr):
    """The position, on one axis, of the tap of that number."""
    up, w = split(code, kw)
    d, h = split(up, kh)
    if AXIS == 0:
        tap = d
    elif AXIS == 1:
        tap = h
    else:
        tap = w
    return window * stride - padding + tap * dilation
