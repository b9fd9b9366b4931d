"""y[k, c, p, q] = mean over samples i, j of the bilinear x[n_k, c] at (y1 + (p + (i + 0.5) / G_h) b_h, ...).

Features (N, C, H, W), boxes (K, 5), output (K, C, P, Q). The gradient gathers: bilinear weights separate into rows and
columns, wy[k, p, h] and wx[k, q, w], and dx[n, c, h, w] = sum over the boxes k of image n, and over p, q, of
wy wx dy[k, c, p, q] / (G_h G_w), in that order.
"""

import torch
import triton.language as tl
from torch import Tensor

from atrousops.common.formats import empty_in_format, is_channels_last
from atrousops.triton._common import (
    block,
    cdiv,
    elements,
    full,
    inline,
    jit,
    launch,
    narrow,
    split3,
    wide,
)
from atrousops.triton._roi import bin_tile, checked_boxes, over_bins, over_pixels, pixel_tile


def _axes(boxes: Tensor, images: int, dtype: torch.dtype, scale: float, bins, sampling_ratio: int, aligned: bool):
    image, corners = checked_boxes(boxes, images, dtype)
    corners = corners * scale - (0.5 if aligned else 0.0)
    axes = []
    for axis, count in ((1, bins[0]), (0, bins[1])):
        start, length = corners[:, axis], corners[:, axis + 2] - corners[:, axis]
        if not aligned:
            length = length.clamp(min=1)
        size = length / count
        samples = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else size.ceil()
        axes.append(torch.stack([start, size, samples], 1))
    return image, torch.stack(axes, 1).contiguous()


@inline
def first_sample(base, step, samples):
    """The first of a bin's samples that is not far before the map."""
    ahead = tl.where(step > 0, (-1 - base) / tl.where(step > 0, step, 1) - 1.5, 0)
    return tl.floor(tl.minimum(tl.maximum(ahead, 0), samples))


@inline
def last_sample(base, step, samples, size):
    """One behind the last that is not far behind it."""
    ahead = tl.where(step > 0, (size - base) / tl.where(step > 0, step, 1) + 1.5, samples)
    return tl.ceil(tl.minimum(tl.maximum(ahead, 0), samples))


@inline
def neighbours(position, size):
    """The two pixels beside a sample, the weight of the second, and whether the sample counts."""
    counts = (position >= -1) & (position <= size)
    inside = tl.minimum(tl.maximum(position, 0), size - 1)
    low = inside.to(tl.int64)
    return low, tl.minimum(low + 1, size - 1), inside - low.to(inside.dtype), counts


@jit
def roi_align_kernel(
    x, numbers, images, y, count: tl.int64, channels: tl.int64, h: tl.int64, w: tl.int64, bins_h: tl.int64,
    bins_w: tl.int64, x_n: tl.int64, x_c: tl.int64, x_h: tl.int64, x_w: tl.int64, y_k: tl.int64, y_c: tl.int64,
    y_h: tl.int64, y_w: tl.int64, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    k, p, q, live, image, good, c = bin_tile(images, count, channels, bins_h, bins_w, BM, BN)
    row = numbers + k * 6
    bin_h, many_h = tl.load(row + 1), tl.load(row + 2)
    bin_w, many_w = tl.load(row + 4), tl.load(row + 5)
    base_h = tl.load(row) + p.to(bin_h.dtype) * bin_h
    base_w = tl.load(row + 3) + q.to(bin_w.dtype) * bin_w
    step_h, step_w = bin_h / tl.maximum(many_h, 1), bin_w / tl.maximum(many_w, 1)
    first_h, first_w = first_sample(base_h, step_h, many_h), first_sample(base_w, step_w, many_w)
    rows = tl.max(tl.where(good, last_sample(base_h, step_h, many_h, h) - first_h, 0)).to(tl.int64)
    columns = tl.max(tl.where(good, last_sample(base_w, step_w, many_w, w) - first_w, 0)).to(tl.int64)
    total = full((BM, BN), 0.0, x)
    plane = x + (image * x_n)[:, None] + (c * x_c)[None, :]
    for a in range(0, rows):
        at_h = first_h + a
        top, bottom, weight_h, counts_h = neighbours(base_h + (at_h + 0.5) * bin_h / tl.maximum(many_h, 1), h)
        counts_h = good & counts_h & (at_h < many_h)
        for b in range(0, columns):
            at_w = first_w + b
            left, right, weight_w, counts_w = neighbours(base_w + (at_w + 0.5) * bin_w / tl.maximum(many_w, 1), w)
            counts = (counts_h & counts_w & (at_w < many_w))[:, None] & (c < channels)[None, :]
            at = (top * x_h + left * x_w)[:, None]
            v = wide(tl.load(plane + at, mask=counts, other=0)) * ((1 - weight_h) * (1 - weight_w))[:, None]
            at = (top * x_h + right * x_w)[:, None]
            v += wide(tl.load(plane + at, mask=counts, other=0)) * ((1 - weight_h) * weight_w)[:, None]
            at = (bottom * x_h + left * x_w)[:, None]
            v += wide(tl.load(plane + at, mask=counts, other=0)) * (weight_h * (1 - weight_w))[:, None]
            at = (bottom * x_h + right * x_w)[:, None]
            v += wide(tl.load(plane + at, mask=counts, other=0)) * (weight_h * weight_w)[:, None]
            total += v.to(total.dtype)
    mean = total / tl.maximum(many_h * many_w, 1)[:, None].to(total.dtype)
    mean = tl.where(good[:, None], mean, float("nan"))
    to = y + (k * y_k + p * y_h + q * y_w)[:, None] + (c * y_c)[None, :]
    tl.store(to, narrow(mean, y), mask=live[:, None] & (c < channels)[None, :])


@jit
def axis_weights_kernel(
    numbers, images, weights, count: tl.int64, bins: tl.int64, size: tl.int64, AXIS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i, live = elements(count, BLOCK)
    k, p, here = split3(tl.where(live, i, 0), bins, size)
    row = numbers + k * 6 + 3 * AXIS
    bin, many = tl.load(row + 1), tl.load(row + 2)
    base = tl.load(row) + p.to(bin.dtype) * bin
    step = bin / tl.maximum(many, 1)
    good = live & (tl.load(images + k) >= 0)
    first = first_sample(base, step, many)
    samples = tl.max(tl.where(good, last_sample(base, step, many, size) - first, 0)).to(tl.int64)
    total = bin * 0
    for a in range(0, samples):
        at = first + a
        low, high, share, counts = neighbours(base + (at + 0.5) * bin / tl.maximum(many, 1), size)
        counts = counts & good & (at < many)
        total += tl.where(counts & (low == here), 1 - share, 0)
        total += tl.where(counts & (high == here), share, 0)
    tl.store(weights + i, (total / tl.maximum(many, 1)).to(weights.dtype.element_ty), mask=live)


@jit
def roi_align_backward_kernel(
    dy, order, starts, rows, columns, dx, channels: tl.int64, h: tl.int64, w: tl.int64, bins_h: tl.int64,
    bins_w: tl.int64, x_n: tl.int64, x_c: tl.int64, x_h: tl.int64, x_w: tl.int64, y_k: tl.int64, y_c: tl.int64,
    y_h: tl.int64, y_w: tl.int64, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    image, _, _, y, x, c = pixel_tile(h, w, channels, ROWS, COLUMNS, DEEP)
    live, exists = (y < h) & (x < w), c < channels
    total = full((ROWS * COLUMNS, DEEP), 0.0, dy)
    for i in range(tl.load(starts + image), tl.load(starts + image + 1)):
        k = tl.load(order + i)
        for p in range(0, bins_h):
            weight_h = tl.load(rows + (k * bins_h + p) * h + y, mask=live, other=0)
            if tl.max(weight_h) > 0:
                for q in range(0, bins_w):
                    weight = weight_h * tl.load(columns + (k * bins_w + q) * w + x, mask=live, other=0)
                    g = wide(tl.load(dy + k * y_k + p * y_h + q * y_w + c * y_c, mask=exists, other=0))
                    # A gradient that is not finite goes only where it belongs.
                    total += tl.where(weight[:, None] > 0, weight[:, None] * g[None, :], 0)
    to = dx + (image * x_n + y * x_h + x * x_w)[:, None] + (c * x_c)[None, :]
    tl.store(to, narrow(total, dx), mask=live[:, None] & exists[None, :])


def roi_align(
    input: Tensor, boxes: Tensor, spatial_scale, pooled_height, pooled_width, sampling_ratio: int, aligned: bool
) -> Tensor:
    bins = (pooled_height, pooled_width)
    image, numbers = _axes(boxes, input.shape[0], input.dtype, spatial_scale, bins, sampling_ratio, aligned)
    y = empty_in_format(input, (boxes.shape[0], input.shape[1], *bins), is_channels_last(input))
    over_bins(roi_align_kernel, input, (numbers, image), (y,))
    return y


def roi_align_backward(
    grad: Tensor,
    boxes: Tensor,
    spatial_scale,
    batch_size,
    channels,
    height,
    width,
    sampling_ratio: int,
    aligned: bool,
    channels_last: bool,
) -> Tensor:
    bins = tuple(grad.shape[2:])
    image, numbers = _axes(boxes, batch_size, grad.dtype, spatial_scale, bins, sampling_ratio, aligned)
    dx = empty_in_format(grad, (batch_size, channels, height, width), channels_last)
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    weights = []
    for axis, size in enumerate((height, width)):
        of_axis = grad.new_empty((boxes.shape[0], bins[axis], size), dtype=dtype)
        count = of_axis.numel()
        tile = block(256, count)
        launch(axis_weights_kernel, cdiv(count, tile), numbers, image, of_axis, count, bins[axis], size, axis, tile)
        weights.append(of_axis)
    return over_pixels(roi_align_backward_kernel, (grad,), image, tuple(weights), dx, 32, 8)
