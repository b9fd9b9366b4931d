"""y[k, c, p, q] = max of x[n_k, c] in the bin's window, and its flat position, or -1.

Features (N, C, H, W), boxes (K, 5), output (K, C, P, Q). The gradient gathers: dx[n, c, i] = sum over the boxes of
image n, and over their bins, of dy where the position is i.
"""

import torch
import triton.language as tl
from torch import Tensor

from atrousops.common.formats import empty_in_format, is_channels_last
from atrousops.reference.roi_pool import _round_half_away
from atrousops.triton._common import full, jit, narrow, wide
from atrousops.triton._roi import bin_tile, checked_boxes, over_bins, over_pixels, pixel_tile


def _windows(boxes: Tensor, images: int, dtype: torch.dtype, scale: float, bins, sizes) -> tuple[Tensor, ...]:
    """Images (K), and by axis (K, bins, 2) int64: begin and end of a bin's window, clipped to the map."""
    image, corners = checked_boxes(boxes, images, dtype)
    corners = _round_half_away(corners * scale)
    axes = []
    for axis, count, size in ((1, bins[0], sizes[0]), (0, bins[1], sizes[1])):
        start, length = corners[:, axis, None], (corners[:, axis + 2] - corners[:, axis] + 1).clamp(min=1)
        bin = (length / count)[:, None]
        p = torch.arange(count, dtype=corners.dtype, device=boxes.device)
        window = torch.stack(((p * bin).floor() + start, ((p + 1) * bin).ceil() + start), 2)
        axes.append(window.clamp(0, size).long())
    return image, *axes


@jit
def roi_pool_kernel(
    x, images, rows, columns, y, argmax, count: tl.int64, channels: tl.int64, h: tl.int64, w: tl.int64,
    bins_h: tl.int64, bins_w: tl.int64, x_n: tl.int64, x_c: tl.int64, x_h: tl.int64, x_w: tl.int64, y_k: tl.int64,
    y_c: tl.int64, y_h: tl.int64, y_w: tl.int64, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    k, p, q, live, image, good, c = bin_tile(images, count, channels, bins_h, bins_w, BM, BN)
    at_h, at_w = rows + (k * bins_h + p) * 2, columns + (k * bins_w + q) * 2
    top, bottom = tl.load(at_h), tl.load(at_h + 1)
    left, right = tl.load(at_w), tl.load(at_w + 1)
    best = full((BM, BN), float("-inf"), x).to(x.dtype.element_ty)
    chosen = tl.full((BM, BN), -1, tl.int64)
    plane = x + (image * x_n)[:, None] + (c * x_c)[None, :]
    for a in range(0, tl.max(tl.where(good, bottom - top, 0))):
        for b in range(0, tl.max(tl.where(good, right - left, 0))):
            u, v = top + a, left + b
            inside = (good & (u < bottom) & (v < right))[:, None] & (c < channels)[None, :]
            value = tl.load(plane + (u * x_h + v * x_w)[:, None], mask=inside, other=float("-inf"))
            better = inside & (wide(value) > wide(best))
            best = tl.where(better, value, best)
            chosen = tl.where(better, (u * w + v)[:, None], chosen)
    empty = (bottom <= top) | (right <= left)
    zero = tl.zeros((BM, BN), x.dtype.element_ty)
    nan = full((BM, BN), float("nan"), x).to(x.dtype.element_ty)
    best = tl.where(good[:, None], tl.where(empty[:, None], zero, best), nan)
    to = (k * y_k + p * y_h + q * y_w)[:, None] + (c * y_c)[None, :]
    stored = live[:, None] & (c < channels)[None, :]
    tl.store(y + to, best, mask=stored)
    tl.store(argmax + to, chosen.to(tl.int32), mask=stored)


@jit
def roi_pool_backward_kernel(
    dy, argmax, order, starts, rows, columns, dx, channels: tl.int64, h: tl.int64, w: tl.int64, bins_h: tl.int64,
    bins_w: tl.int64, x_n: tl.int64, x_c: tl.int64, x_h: tl.int64, x_w: tl.int64, y_k: tl.int64, y_c: tl.int64,
    y_h: tl.int64, y_w: tl.int64, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    image, row, column, y, x, c = pixel_tile(h, w, channels, ROWS, COLUMNS, DEEP)
    live, exists = (y < h) & (x < w), c < channels
    total = full((ROWS * COLUMNS, DEEP), 0.0, dy)
    for i in range(tl.load(starts + image), tl.load(starts + image + 1)):
        k = tl.load(order + i)
        for p in range(0, bins_h):
            of_row = rows + (k * bins_h + p) * 2
            if (tl.load(of_row) < row + ROWS) & (tl.load(of_row + 1) > row):
                for q in range(0, bins_w):
                    of_column = columns + (k * bins_w + q) * 2
                    if (tl.load(of_column) < column + COLUMNS) & (tl.load(of_column + 1) > column):
                        of_bin = k * y_k + p * y_h + q * y_w + c * y_c
                        g = wide(tl.load(dy + of_bin, mask=exists, other=0))
                        chosen = tl.load(argmax + of_bin, mask=exists, other=-1)
                        total += tl.where((y * w + x)[:, None] == chosen[None, :], g[None, :], 0)
    to = dx + (image * x_n + y * x_h + x * x_w)[:, None] + (c * x_c)[None, :]
    tl.store(to, narrow(total, dx), mask=live[:, None] & exists[None, :])


def roi_pool(input: Tensor, boxes: Tensor, spatial_scale, pooled_height, pooled_width) -> tuple[Tensor, Tensor]:
    n, channels, h, w = input.shape
    bins = (pooled_height, pooled_width)
    image, rows, columns = _windows(boxes, n, input.dtype, spatial_scale, bins, (h, w))
    y = empty_in_format(input, (boxes.shape[0], channels, *bins), is_channels_last(input))
    argmax = torch.empty_like(y, dtype=torch.int32)
    over_bins(roi_pool_kernel, input, (image, rows, columns), (y, argmax))
    return y, argmax


def roi_pool_backward(
    grad: Tensor, boxes: Tensor, argmax: Tensor, spatial_scale, batch_size, channels, height, width, channels_last: bool
) -> Tensor:
    bins = tuple(grad.shape[2:])
    image, *windows = _windows(boxes, batch_size, grad.dtype, spatial_scale, bins, (height, width))
    dx = empty_in_format(grad, (batch_size, channels, height, width), channels_last)
    # Both are read with the strides of the gradient.
    argmax = argmax if argmax.stride() == grad.stride() else torch.empty_like(grad, dtype=torch.int32).copy_(argmax)
    grad = grad if argmax.stride() == grad.stride() else torch.empty_like(argmax, dtype=grad.dtype).copy_(grad)
    return over_pixels(roi_pool_backward_kernel, (grad, argmax), image, tuple(windows), dx, 16, 4)
