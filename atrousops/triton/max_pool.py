"""y[o] = max over taps r of x[s o - p + d r]; x (N, C, *) or (C, *), -inf outside.

Marks are flat positions (int64) or numbers of taps (uint8). Taps come in the order of the map, so that the first of
equal values wins, and a NaN replaces all but a later NaN, as in PyTorch.
"""

import torch
import triton.language as tl
from torch import Tensor

from atrousops.common.formats import empty_map, pooled_size
from atrousops.triton._common import block, cdiv, elements, full, jit, launch, split, split3, wide
from atrousops.triton._windows import dense, windows
from atrousops.triton.max_unpool import place_in_large

_NONE, _INDICES, _CODES = 0, 1, 2


@jit
def max_pool_kernel(
    x, values, marks, count: tl.int64, step: tl.int64, d: tl.int64, h: tl.int64, w: tl.int64, od: tl.int64,
    oh: tl.int64, ow: tl.int64, kd: tl.int64, kh: tl.int64, kw: tl.int64, sd: tl.int64, sh: tl.int64, sw: tl.int64,
    pd: tl.int64, ph: tl.int64, pw: tl.int64, rd: tl.int64, rh: tl.int64, rw: tl.int64, MARKS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i, live = elements(count, BLOCK)
    window, channel = split(i, step)
    outer, window = split(window, od * oh * ow)
    z, y, column = split3(window, oh, ow)
    z, y, column = z * sd - pd, y * sh - ph, column * sw - pw
    plane = x + outer * d * h * w * step + channel
    best = full((BLOCK,), float("-inf"), x).to(x.dtype.element_ty)
    # A window of nothing but -inf is marked with its first tap that does not lie before the map.
    tap_d = (tl.maximum(-z, 0) + rd - 1) // rd
    tap_h = (tl.maximum(-y, 0) + rh - 1) // rh
    tap_w = (tl.maximum(-column, 0) + rw - 1) // rw
    chosen = (tap_d * kh + tap_h) * kw + tap_w
    for a in range(0, kd):
        u = z + a * rd
        inside_d = live & (u >= 0) & (u < d)
        for b in range(0, kh):
            v = y + b * rh
            inside_h = inside_d & (v >= 0) & (v < h)
            row = (u * h + v) * w
            for c in range(0, kw):
                t = column + c * rw
                inside = inside_h & (t >= 0) & (t < w)
                value = tl.load(plane + (row + t) * step, mask=inside, other=float("-inf"))
                better = (wide(value) > wide(best)) | (wide(value) != wide(value))
                best = tl.where(better, value, best)
                chosen = tl.where(better, (a * kh + b) * kw + c, chosen)
    tl.store(values + i, best, mask=live)
    if MARKS == 1:
        a, b, c = split3(chosen, kh, kw)
        tl.store(marks + i, ((z + a * rd) * h + y + b * rh) * w + column + c * rw, mask=live)
    if MARKS == 2:
        tl.store(marks + i, chosen.to(tl.uint8), mask=live)


def _pool(marks: int, input: Tensor, kernel_size, stride, padding, dilation, ceil_mode) -> tuple[Tensor, Tensor]:
    size = input.shape[-len(kernel_size) :]
    small = [pooled_size(*axis, ceil_mode) for axis in zip(size, kernel_size, stride, padding, dilation)]
    geometry, nhwc = windows(input, size, small, kernel_size, stride, padding, dilation)
    source = dense(input, nhwc)
    values = empty_map(input, small, nhwc)
    marked = empty_map(input, small, nhwc, {_INDICES: torch.int64, _CODES: torch.uint8}[marks]) if marks else values
    count = values.numel()
    tile = block(256, count)
    arguments = (source, values, marked, count, *geometry.arguments())
    launch(max_pool_kernel, cdiv(count, tile), *arguments, marks, tile)
    return values, marked


def max_pool(input: Tensor, kernel_size, stride, padding, dilation, ceil_mode) -> tuple[Tensor, Tensor]:
    return _pool(_INDICES, input, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool_codes(input: Tensor, kernel_size, stride, padding, dilation, ceil_mode) -> tuple[Tensor, Tensor]:
    return _pool(_CODES, input, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool_values(input: Tensor, kernel_size, stride, padding, dilation, ceil_mode) -> Tensor:
    return _pool(_NONE, input, kernel_size, stride, padding, dilation, ceil_mode)[0]


def max_pool_backward(grad: Tensor, indices: Tensor, input_size, kernel_size, stride, padding, dilation) -> Tensor:
    """dx[i] = sum of dy[o] over the windows o whose mark is i, in their order."""
    return place_in_large(True, grad, indices, input_size, kernel_size, stride, padding, dilation)
