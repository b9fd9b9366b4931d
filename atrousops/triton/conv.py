"""y[n, P(o), k] = b[k] + sum over live taps t, channels c of x[n, Q(o) + delta_t, c] w[t, c, k].

A GEMM over the taps of each live region: rows are positions, columns output channels, depth taps times channels. The
input gradient and the transposed convolution are the same sum by phases. The weight gradient is
dw[t, c, k] = sum over n, o of dy[n, o, k] x[n, Q(o) + delta_t, c], in parts whose number depends on the sizes alone,
added up in their order. Groups of few channels are a loop instead. Maps (N, C, *) are contiguous or channels_last.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from atrousops import geometry
from atrousops.geometry import Problem
from atrousops.ops._layout import empty_as_kernel
from atrousops.triton._common import (
    cdiv,
    channels_are_inner,
    full,
    interpreted,
    jit,
    launch,
    narrow,
    split,
    split3,
    wide,
)
from atrousops.triton._tables import (
    REGION_WORDS,
    TAP_WORDS,
    axis_places,
    live_tap,
    live_taps,
    region_rows,
    regions,
    tap_rows,
    weight_taps,
)

# Groups with at most so many products of channels are no matter for a GEMM.
_FEW = 64
# Rows that one part of a weight gradient adds up, and how many parts there are at most.
_ROWS_OF_PART, _PARTS = 4096, 64


@jit
def conv_kernel(
    x, w, bias, y, region_of_tile, region_words, taps, images: tl.int64, groups: tl.int64, depth_units: tl.int64,
    width_units: tl.int64, x_n: tl.int64, x_c: tl.int64, x_d: tl.int64, x_h: tl.int64, x_w: tl.int64, y_n: tl.int64,
    y_c: tl.int64, y_d: tl.int64, y_h: tl.int64, y_w: tl.int64, places: tl.int64, kh: tl.int64, kw: tl.int64,
    X_UNIT: tl.constexpr, Y_UNIT: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, REGION_WORDS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # A unit above 0 says that channels are innermost, and that it divides every other stride.
    depth, width = depth_units * max(X_UNIT, 1), width_units * max(Y_UNIT, 1)
    program, block = split(tl.program_id(0).to(tl.int64), (width + BN - 1) // BN)
    tile, group = split(program, groups)
    row = region_words + tl.load(region_of_tile + tile) * REGION_WORDS
    m, d, h, v = region_rows(row, tile, BM)
    live = m < images * d * h * v
    image, o = split(tl.where(live, m, 0), d * h * v)
    oz, oy, ox = split3(o, h, v)
    to_d, from_d = axis_places(row, oz, 0)
    to_h, from_h = axis_places(row, oy, 1)
    to_w, from_w = axis_places(row, ox, 2)
    source = (image * x_n + from_d * x_d + from_h * x_h + from_w * x_w) * max(X_UNIT, 1) + group * depth * x_c
    target = (image * y_n + to_d * y_d + to_h * y_h + to_w * y_w) * max(Y_UNIT, 1) + group * width * y_c
    k = block * BN + tl.arange(0, BN)
    weights = w + group * places * depth * width
    total = full((BM, BN), 0.0, x)
    chunks = (depth + BK - 1) // BK
    first_d, first_h, first_w, taps_d, taps_h, taps_w = live_taps(row)
    for step in range(0, taps_d * taps_h * taps_w * chunks):
        t, chunk = split(step, chunks)
        tz, ty, tx = split3(t, taps_h, taps_w)
        place, dz, dy, dx = live_tap(first_d + tz, first_h + ty, first_w + tx, taps, kh, kw)
        c = chunk * BK + tl.arange(0, BK)
        at = source + (dz * x_d + dy * x_h + dx * x_w) * max(X_UNIT, 1)
        inner = c if X_UNIT > 0 else c * x_c
        a = tl.load(x + at[:, None] + inner[None, :], mask=c[None, :] < depth, other=0)
        b = tl.load(
            weights + (place * depth + c)[:, None] * width + k[None, :],
            mask=(c[:, None] < depth) & (k[None, :] < width),
            other=0,
        )
        if WIDEN:
            a, b = wide(a), wide(b)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)
    if HAS_BIAS:
        total += wide(tl.load(bias + group * width + k, mask=k < width, other=0))[None, :]
    outer = k if Y_UNIT > 0 else k * y_c
    to = y + target[:, None] + outer[None, :]
    tl.store(to, narrow(total, y), mask=live[:, None] & (k[None, :] < width))


@jit
def conv_looped_kernel(
    x, w, bias, y, region_of_tile, region_words, taps, images: tl.int64, channels: tl.int64, depth: tl.int64,
    width: tl.int64, x_n: tl.int64, x_c: tl.int64, x_d: tl.int64, x_h: tl.int64, x_w: tl.int64, y_n: tl.int64,
    y_c: tl.int64, y_d: tl.int64, y_h: tl.int64, y_w: tl.int64, kh: tl.int64, kw: tl.int64, HAS_BIAS: tl.constexpr,
    REGION_WORDS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    tile, block = split(tl.program_id(0).to(tl.int64), (channels + BN - 1) // BN)
    row = region_words + tl.load(region_of_tile + tile) * REGION_WORDS
    m, d, h, v = region_rows(row, tile, BM)
    live = m < images * d * h * v
    image, o = split(tl.where(live, m, 0), d * h * v)
    oz, oy, ox = split3(o, h, v)
    to_d, from_d = axis_places(row, oz, 0)
    to_h, from_h = axis_places(row, oy, 1)
    to_w, from_w = axis_places(row, ox, 2)
    source = image * x_n + from_d * x_d + from_h * x_h + from_w * x_w
    target = image * y_n + to_d * y_d + to_h * y_h + to_w * y_w
    k = block * BN + tl.arange(0, BN)
    exists = k < channels
    first = k // width * depth
    total = full((BM, BN), 0.0, x)
    first_d, first_h, first_w, taps_d, taps_h, taps_w = live_taps(row)
    for t in range(0, taps_d * taps_h * taps_w):
        tz, ty, tx = split3(t, taps_h, taps_w)
        place, dz, dy, dx = live_tap(first_d + tz, first_h + ty, first_w + tx, taps, kh, kw)
        at = source + dz * x_d + dy * x_h + dx * x_w
        for c in range(0, depth):
            a = tl.load(x + at[:, None] + ((first + c) * x_c)[None, :], mask=exists[None, :], other=0)
            b = tl.load(w + (place * depth + c) * channels + k, mask=exists, other=0)
            total += wide(a) * wide(b)[None, :]
    if HAS_BIAS:
        total += wide(tl.load(bias + k, mask=exists, other=0))[None, :]
    to = y + target[:, None] + (k * y_c)[None, :]
    tl.store(to, narrow(total, y), mask=live[:, None] & exists[None, :])


class Strides(NamedTuple):
    """Of a map, in units; unit 0 stands for channels that are not innermost."""

    unit: int
    batch: int
    channel: int
    axes: tuple[int, int, int]

    def arguments(self) -> tuple[int, ...]:
        return (self.batch, self.channel, *self.axes)


def strides_of(t: Tensor, channels: int, units: bool) -> Strides:
    """`channels` is how many a group has: what the unit must divide."""
    axes = [0] * (5 - t.dim()) + list(t.stride()[2:])
    unit = 0
    if units and t.stride(1) == 1 and channels_are_inner(t):
        unit = channels & -channels
        unit = min(unit, 16)
    scale = max(unit, 1)
    return Strides(unit, t.stride(0) // scale, t.stride(1), (axes[0] // scale, axes[1] // scale, axes[2] // scale))


def in_format(t: Tensor) -> Tensor:
    """Contiguous, or dense with channels innermost."""
    return t if channels_are_inner(t) else t.contiguous()


def tap_sum(problem: Problem, x: Tensor, w: Tensor, bias: Tensor | None, size: Sequence[int], tf32: bool) -> Tensor:
    """A convolution, or its input gradient or transposed form: y (N, *size) from x and w (K, C / groups, *kernel)."""
    y = empty_as_kernel(size, x)
    x = in_format(x)
    groups, kernel = problem.groups, [axis.kernel for axis in problem.axes]
    places = kernel[0] * kernel[1] * kernel[2]
    # (group, K of it, C of it, tap); depth is summed over, width written.
    w = w.reshape(groups, problem.k // groups, problem.c // groups, places)
    depth_axis, width_axis = (1, 2) if problem.kind == "input_grad" else (2, 1)
    depth, width = w.shape[depth_axis], w.shape[width_axis]
    shared = (bias if bias is not None else x, y)
    if groups > 1 and depth * width <= _FEW:
        packed = w.permute(3, depth_axis, 0, width_axis).contiguous()
        rows, columns = (128, _small(groups * width)) if interpreted() else (32, 32)
        table = regions(problem, rows, x.device)
        sizes = (problem.n, groups * width, depth, width)
        strides = (*strides_of(x, depth, False).arguments(), *strides_of(y, width, False).arguments())
        programs = table.tiles * cdiv(groups * width, columns)
        arguments = (x, packed, *shared, table.region_of_tile, table.words, table.taps, *sizes, *strides, *kernel[1:])
        launch(conv_looped_kernel, programs, *arguments, bias is not None, REGION_WORDS, rows, columns)
        return y
    packed = w.permute(0, 3, depth_axis, width_axis).contiguous()
    x_strides, y_strides = strides_of(x, depth, True), strides_of(y, width, True)
    rows, columns, inner, warps = _tile(x.dtype, width, depth, min(x_strides.unit, y_strides.unit))
    table = regions(problem, rows, x.device)
    sizes = (problem.n, groups, depth // max(x_strides.unit, 1), width // max(y_strides.unit, 1))
    launch(
        conv_kernel,
        table.tiles * groups * cdiv(width, columns),
        *(x, packed, *shared, table.region_of_tile, table.words, table.taps),
        *(*sizes, *x_strides.arguments(), *y_strides.arguments(), places, *kernel[1:]),
        *(x_strides.unit, y_strides.unit, bias is not None, precision(tf32), widened(x), REGION_WORDS),
        *(rows, columns, inner),
        num_warps=warps,
        num_stages=3,
    )
    return y


def _tile(dtype: torch.dtype, width: int, depth: int, unit: int) -> tuple[int, int, int, int]:
    """Rows, columns, depth of a step, warps: what the compiler keeps in registers."""
    if interpreted():
        # Few calls, and more than one tile of each wide problem.
        return 128, _small(width), _small(depth), 1
    inner = 16 if depth <= 16 else 32
    if dtype.itemsize > 2:
        return 32, 32, 16, 4
    if unit < 8:
        # Addresses of single elements, two registers each.
        return 64 if unit else 128, 32, inner, 4
    columns = 32 if width <= 32 else 64 if width <= 64 else 128
    return 128, columns, inner, 8 if columns == 128 else 4


def _small(channels: int) -> int:
    return min(max(triton.next_power_of_2(channels), 16), 128)


def precision(tf32: bool) -> str:
    return "tf32" if tf32 else "ieee"


def widened(t: Tensor) -> bool:
    # The interpreter multiplies the bits of bfloat16 as integers.
    return interpreted() and t.dtype in (torch.bfloat16, torch.float16)


@jit
def conv_weight_kernel(
    dy, x, parts, taps, images: tl.int64, groups: tl.int64, depth: tl.int64, width: tl.int64, x_n: tl.int64,
    x_c: tl.int64, x_d: tl.int64, x_h: tl.int64, x_w: tl.int64, y_n: tl.int64, y_c: tl.int64, y_d: tl.int64,
    y_h: tl.int64, y_w: tl.int64, places: tl.int64, rows: tl.int64, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    TAP_WORDS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    program, k_block = split(tl.program_id(0).to(tl.int64), (width + BN - 1) // BN)
    program, c_block = split(program, (depth + BK - 1) // BK)
    program, place = split(program, places)
    part, group = split(program, groups)
    tap = taps + place * TAP_WORDS
    end = tl.minimum((part + 1) * rows, images * tl.load(tap + 1) * tl.load(tap + 5) * tl.load(tap + 9))
    k, c = k_block * BN + tl.arange(0, BN), c_block * BK + tl.arange(0, BK)
    total = full((BK, BN), 0.0, x)
    for begin in range(part * rows, end, BM):
        m = begin + tl.arange(0, BM)
        live = m < end
        image, oz, oy, ox = tap_rows(tap, tl.where(live, m, part * rows))
        at_d = oz * tl.load(tap + 3) + tl.load(tap + 2)
        at_h = oy * tl.load(tap + 7) + tl.load(tap + 6)
        at_w = ox * tl.load(tap + 11) + tl.load(tap + 10)
        read = image * x_n + at_d * x_d + at_h * x_h + at_w * x_w + group * depth * x_c
        from_y = image * y_n + oz * y_d + oy * y_h + ox * y_w + group * width * y_c
        a = tl.load(x + read[None, :] + (c * x_c)[:, None], mask=(c[:, None] < depth) & live[None, :], other=0)
        b = tl.load(dy + from_y[:, None] + (k * y_c)[None, :], mask=live[:, None] & (k[None, :] < width), other=0)
        if WIDEN:
            a, b = wide(a), wide(b)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)
    to = parts + (program * places + place) * depth * width + c[:, None] * width + k[None, :]
    tl.store(to, total, mask=(c[:, None] < depth) & (k[None, :] < width))


@jit
def conv_looped_weight_kernel(
    dy, x, parts, taps, images: tl.int64, channels: tl.int64, depth: tl.int64, width: tl.int64, x_n: tl.int64,
    x_c: tl.int64, x_d: tl.int64, x_h: tl.int64, x_w: tl.int64, y_n: tl.int64, y_c: tl.int64, y_d: tl.int64,
    y_h: tl.int64, y_w: tl.int64, places: tl.int64, rows: tl.int64, TAP_WORDS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    program, block = split(tl.program_id(0).to(tl.int64), (channels + BN - 1) // BN)
    program, c = split(program, depth)
    part, place = split(program, places)
    tap = taps + place * TAP_WORDS
    end = tl.minimum((part + 1) * rows, images * tl.load(tap + 1) * tl.load(tap + 5) * tl.load(tap + 9))
    k = block * BN + tl.arange(0, BN)
    exists = k < channels
    total = full((BM, BN), 0.0, x)
    for begin in range(part * rows, end, BM):
        m = begin + tl.arange(0, BM)
        live = m < end
        image, oz, oy, ox = tap_rows(tap, tl.where(live, m, part * rows))
        at_d = oz * tl.load(tap + 3) + tl.load(tap + 2)
        at_h = oy * tl.load(tap + 7) + tl.load(tap + 6)
        at_w = ox * tl.load(tap + 11) + tl.load(tap + 10)
        read = image * x_n + at_d * x_d + at_h * x_h + at_w * x_w
        from_y = image * y_n + oz * y_d + oy * y_h + ox * y_w
        both = live[:, None] & exists[None, :]
        a = tl.load(x + read[:, None] + ((k // width * depth + c) * x_c)[None, :], mask=both, other=0)
        b = tl.load(dy + from_y[:, None] + (k * y_c)[None, :], mask=both, other=0)
        total += wide(a) * wide(b)
    tl.store(parts + ((part * places + place) * depth + c) * channels + k, tl.sum(total, 0), mask=exists)


def weight_sum(problem: Problem, dy: Tensor, x: Tensor, kernel_size: Sequence[int], tf32: bool) -> Tensor:
    """dw (K, C / groups, *kernel_size)."""
    dy, x = in_format(dy), in_format(x)
    groups, places = problem.groups, geometry.product(axis.kernel for axis in problem.axes)
    depth, width = problem.c // groups, problem.k // groups
    table = weight_taps(problem, x.device)
    positions = problem.n * geometry.product(axis.output for axis in problem.axes)
    count = min(max(cdiv(positions, _ROWS_OF_PART), 1), _PARTS)
    few = groups > 1 and depth * width <= _FEW
    rows, columns, inner = (16, 32, 32) if x.dtype.itemsize > 2 else (32, 32, 32)
    if interpreted():
        # NumPy adds rows one by one: many of them would round more than a GPU's tree.
        rows, columns, inner = 64 if few else 256, _small(groups * width if few else width), _small(depth)
    of_part = cdiv(cdiv(positions, count), rows) * rows
    strides = (*strides_of(x, depth, False).arguments(), *strides_of(dy, width, False).arguments())
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if few:
        parts = x.new_empty((count, places, depth, groups * width), dtype=dtype)
        sizes = (problem.n, groups * width, depth, width)
        programs = count * places * depth * cdiv(groups * width, columns)
        arguments = (dy, x, parts, table, *sizes, *strides, places, of_part)
        launch(conv_looped_weight_kernel, programs, *arguments, TAP_WORDS, rows, columns)
        total = parts.sum(0).view(places, depth, groups, width).permute(2, 3, 1, 0)
    else:
        parts = x.new_empty((count, groups, places, depth, width), dtype=dtype)
        sizes = (problem.n, groups, depth, width)
        programs = count * groups * places * cdiv(depth, inner) * cdiv(width, columns)
        arguments = (dy, x, parts, table, *sizes, *strides, places, of_part, precision(tf32), widened(x))
        launch(conv_weight_kernel, programs, *arguments, TAP_WORDS, rows, columns, inner)
        total = parts.sum(0).permute(0, 3, 2, 1)
    return total.reshape(problem.k, depth, *kernel_size).to(x.dtype)


def _problem(kind: str, input_size, k: int, kernel, output, stride, padding, dilation, groups: int) -> Problem:
    rank = len(stride)
    n, c, *size = (int(v) for v in input_size)
    return geometry.convolution(
        n,
        c,
        k,
        size,
        tuple(kernel),
        tuple(stride),
        tuple(dilation),
        tuple(padding[:rank]),
        tuple(padding[-rank:]),
        groups=groups,
        kind=kind,
        output=tuple(int(v) for v in output),
    )


def conv(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups: int, allow_tf32: bool = False
) -> Tensor:
    k, _, *kernel = weight.shape
    problem = _problem("forward", input.shape, k, kernel, (), stride, padding, dilation, groups)
    size = [axis.output for axis in problem.axes][-len(stride) :]
    return tap_sum(problem, input, weight, bias, (input.shape[0], k, *size), allow_tf32)


def conv_grad_input(
    grad: Tensor, weight: Tensor, input_size, stride, padding, dilation, groups: int, allow_tf32: bool = False
) -> Tensor:
    k, _, *kernel = weight.shape
    problem = _problem("input_grad", input_size, k, kernel, grad.shape[2:], stride, padding, dilation, groups)
    return tap_sum(problem, grad, weight, None, tuple(input_size), allow_tf32)


def conv_grad_weight(
    grad: Tensor, input: Tensor, kernel_size, stride, padding, dilation, groups: int, allow_tf32: bool = False
) -> Tensor:
    k, output = grad.shape[1], grad.shape[2:]
    problem = _problem("weight_grad", input.shape, k, kernel_size, output, stride, padding, dilation, groups)
    return weight_sum(problem, grad, input, kernel_size, allow_tf32)
