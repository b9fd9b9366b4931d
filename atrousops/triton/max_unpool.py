"""y[mark[o]] = x[o], zero elsewhere: each element of the large map looks at the windows around it, in their order.

Marks as max_pool makes them. Indices may also point out of their own window: where any does, every element looks at
all windows of its plane instead, which is slow, and gives the bits of a sequential scatter too.
"""

import torch
import triton.language as tl
from torch import Tensor

from atrousops.common.formats import empty_map
from atrousops.triton._common import block, cdiv, elements, full, jit, launch, narrow, split, split3, wide
from atrousops.triton._windows import dense, first_window, tap_number, tap_place, windows


@jit
def place_windows_kernel(
    small, marks, large, matched, count: tl.int64, step: tl.int64, d: tl.int64, h: tl.int64, w: tl.int64,
    od: tl.int64, oh: tl.int64, ow: tl.int64, kd: tl.int64, kh: tl.int64, kw: tl.int64, sd: tl.int64, sh: tl.int64,
    sw: tl.int64, pd: tl.int64, ph: tl.int64, pw: tl.int64, rd: tl.int64, rh: tl.int64, rw: tl.int64,
    most_d: tl.int64, most_h: tl.int64, most_w: tl.int64, SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i, live = elements(count, BLOCK)
    here, channel = split(i, step)
    outer, here = split(here, d * h * w)
    z, y, x = split3(here, h, w)
    first_d = first_window(z, sd, pd, rd, kd)
    first_h = first_window(y, sh, ph, rh, kh)
    first_w = first_window(x, sw, pw, rw, kw)
    base = outer * od * oh * ow
    total = full((BLOCK,), 0.0, large)
    last = tl.zeros((BLOCK,), large.dtype.element_ty)
    found = tl.zeros((BLOCK,), tl.int32)
    for n in range(0, most_d):
        a = n + first_d
        tap_d = tap_number(z, a, sd, pd, rd)
        sees_d = live & (a < od) & (tap_d >= 0) & (tap_d < kd)
        for m in range(0, most_h):
            b = m + first_h
            tap_h = tap_number(y, b, sh, ph, rh)
            sees_h = sees_d & (b < oh) & (tap_h >= 0) & (tap_h < kh)
            row = base + (a * oh + b) * ow
            for k in range(0, most_w):
                c = k + first_w
                tap_w = tap_number(x, c, sw, pw, rw)
                sees = sees_h & (c < ow) & (tap_w >= 0) & (tap_w < kw)
                at = (row + c) * step + channel
                mark = tl.load(marks + at, mask=sees, other=0).to(tl.int64)
                if marks.dtype.element_ty == tl.int64:
                    hit = sees & (mark == here)
                else:
                    hit = sees & (mark == (tap_d * kh + tap_h) * kw + tap_w)
                last = tl.where(hit, tl.load(small + at, mask=hit, other=0), last)
                if SUM:
                    total += tl.where(hit, wide(last), 0)
                found += hit.to(tl.int32)
    if SUM:
        last = narrow(total, large)
    tl.store(large + i, last, mask=live)
    tl.store(matched + tl.program_id(0).to(tl.int64), tl.sum(found))


@jit
def place_anywhere_kernel(
    small, marks, large, stray, count: tl.int64, step: tl.int64, plane: tl.int64, windows: tl.int64,
    SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Almost always the loop is empty: what came before found every index.
    if tl.load(stray) != 0:
        i, live = elements(count, BLOCK)
        here, channel = split(i, step)
        outer, here = split(here, plane)
        total = full((BLOCK,), 0.0, large)
        last = tl.zeros((BLOCK,), large.dtype.element_ty)
        for o in range(0, windows):
            at = (outer * windows + o) * step + channel
            hit = live & (tl.load(marks + at, mask=live, other=-1) == here)
            last = tl.where(hit, tl.load(small + at, mask=hit, other=0), last)
            if SUM:
                total += tl.where(hit, wide(last), 0)
        if SUM:
            last = narrow(total, large)
        tl.store(large + i, last, mask=live)


@jit
def pick_kernel(
    large, marks, small, count: tl.int64, step: tl.int64, d: tl.int64, h: tl.int64, w: tl.int64, od: tl.int64,
    oh: tl.int64, ow: tl.int64, kd: tl.int64, kh: tl.int64, kw: tl.int64, sd: tl.int64, sh: tl.int64, sw: tl.int64,
    pd: tl.int64, ph: tl.int64, pw: tl.int64, rd: tl.int64, rh: tl.int64, rw: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    i, live = elements(count, BLOCK)
    window, channel = split(i, step)
    outer, window = split(window, od * oh * ow)
    mark = tl.load(marks + i, mask=live, other=0).to(tl.int64)
    if marks.dtype.element_ty == tl.int64:
        at = mark
        inside = live & (mark >= 0) & (mark < d * h * w)
    else:
        a, b, c = split3(window, oh, ow)
        z = tap_place(mark, a, kh, kw, sd, pd, rd, 0)
        y = tap_place(mark, b, kh, kw, sh, ph, rh, 1)
        x = tap_place(mark, c, kh, kw, sw, pw, rw, 2)
        inside = live & (mark < kd * kh * kw) & (z >= 0) & (z < d) & (y >= 0) & (y < h) & (x >= 0) & (x < w)
        at = (z * h + y) * w + x
    value = tl.load(large + (outer * d * h * w + at) * step + channel, mask=inside, other=0)
    tl.store(small + i, value, mask=live)


def place_in_large(sums: bool, small: Tensor, marks: Tensor, size, kernel, stride, padding, dilation) -> Tensor:
    """Each value at the position of its mark: the sum of those that meet, or the last."""
    rank = len(kernel)
    geometry, nhwc = windows(small, size, small.shape[-rank:], kernel, stride, padding, dilation)
    values, marks = dense(small, nhwc), dense(marks, nhwc)
    large = empty_map(small, size, nhwc)
    count = large.numel()
    tile = block(256, count)
    programs = cdiv(count, tile)
    matched = torch.zeros(max(programs, 1), dtype=torch.int32, device=small.device)
    # Windows that can reach one position.
    most = [(d * (k - 1)) // s + 1 for d, k, s in zip(geometry.dilation, geometry.kernel, geometry.stride)]
    arguments = (values, marks, large, matched, count, *geometry.arguments(), *most)
    launch(place_windows_kernel, programs, *arguments, sums, tile)
    if marks.dtype == torch.int64 and count:
        stray = matched.sum() != values.numel()
        outputs, inputs = size_of(geometry.large), size_of(geometry.small)
        arguments = (values, marks, large, stray.to(torch.int32), count, geometry.step, outputs, inputs)
        launch(place_anywhere_kernel, programs, *arguments, sums, tile)
    return large


def size_of(axes: tuple[int, int, int]) -> int:
    return axes[0] * axes[1] * axes[2]


def max_unpool(input: Tensor, indices: Tensor, output_size, kernel_size, stride, padding) -> Tensor:
    return place_in_large(False, input, indices, output_size, kernel_size, stride, padding, [1] * len(kernel_size))


def max_unpool_backward(grad: Tensor, indices: Tensor, kernel_size, stride, padding, dilation) -> Tensor:
    """dx[o] = dy[mark[o]], zero where the mark names no place."""
    rank = len(kernel_size)
    size, small = grad.shape[-rank:], indices.shape[-rank:]
    geometry, nhwc = windows(indices, size, small, kernel_size, stride, padding, dilation)
    source, marks = dense(grad, nhwc), dense(indices, nhwc)
    output = empty_map(grad, small, nhwc)
    count = output.numel()
    tile = block(256, count)
    launch(pick_kernel, cdiv(count, tile), source, marks, output, count, *geometry.arguments(), tile)
    return output
