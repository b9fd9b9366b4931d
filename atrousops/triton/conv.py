"""y[n, P(o), k] = b[k] + sum over live taps t, channels c of x[n, Q(o) + delta_t, c] w[t, c, k].

A GEMM over the taps of each live region: rows are positions, columns output channels, depth taps times channels. The
input gradient and the transposed convolution are the same sum by phases. Bias, residual and activation are applied to
the sum before it is rounded. Groups of few channels are a loop instead. Maps (N, C, *) are contiguous or channels_last.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from atrousops.common.formats import empty_as_kernel
from atrousops.dispatch import geometry
from atrousops.dispatch.geometry import Problem
from atrousops.triton._common import cdiv, full, inline, interpreted, jit, launch, narrow, split, split3, wide
from atrousops.triton._conv_weight import weight_sum
from atrousops.triton._maps import in_format, precision, small, strides_of, widened
from atrousops.triton._tables import REGION_WORDS, live_tap, live_taps, regions, tile_places
from atrousops.triton.tiles import Layers, Tile
from atrousops.triton.tiles import start as start_tiled


@inline
def finished(
    total, bias, residual, exists, stored, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr
):
    """activation(total + bias + residual), NaN staying NaN."""
    if HAS_BIAS:
        total += wide(tl.load(bias, mask=exists, other=0))[None, :]
    if HAS_RESIDUAL:
        total += wide(tl.load(residual, mask=stored, other=0))
    if ACTIVATION == "relu" or ACTIVATION == "relu6":
        total = tl.where(total < 0, 0, total)
        if ACTIVATION == "relu6":
            total = tl.where(total > 6, 6, total)
    elif ACTIVATION == "hardswish":
        total = total * tl.minimum(tl.maximum(total + 3, 0), 6) / 6
    elif ACTIVATION == "silu":
        total = total / (1 + tl.exp(-total))
    return total


@jit
def conv_kernel(
    x, w, bias, residual, y, region_of_tile, region_words, taps, images: tl.int64, groups: tl.int64,
    depth_units: tl.int64, width_units: tl.int64, x_n: tl.int64, x_c: tl.int64, x_d: tl.int64, x_h: tl.int64,
    x_w: tl.int64, y_n: tl.int64, y_c: tl.int64, y_d: tl.int64, y_h: tl.int64, y_w: tl.int64, places: tl.int64,
    kh: tl.int64, kw: tl.int64, X_UNIT: tl.constexpr, Y_UNIT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    REGION_WORDS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # A unit above 0 means that channels are innermost, and that it divides every other stride.
    depth, width = depth_units * max(X_UNIT, 1), width_units * max(Y_UNIT, 1)
    program, block = split(tl.program_id(0).to(tl.int64), (width + BN - 1) // BN)
    tile, group = split(program, groups)
    row = region_words + tl.load(region_of_tile + tile) * REGION_WORDS
    live, source, target = tile_places(row, tile, images, x_n, x_d, x_h, x_w, y_n, y_d, y_h, y_w, BM)
    source = source * max(X_UNIT, 1) + group * depth * x_c
    target = target * max(Y_UNIT, 1) + group * width * y_c
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
    outer = k if Y_UNIT > 0 else k * y_c
    stored = live[:, None] & (k[None, :] < width)
    # Not one sum for both: the compiler would keep it in registers.
    shift, above = bias + group * width + k, residual + target[:, None] + outer[None, :]
    total = finished(total, shift, above, k < width, stored, HAS_BIAS, HAS_RESIDUAL, ACTIVATION)
    tl.store(y + target[:, None] + outer[None, :], narrow(total, y), mask=stored)


@jit
def conv_looped_kernel(
    x, w, bias, residual, y, region_of_tile, region_words, taps, images: tl.int64, channels: tl.int64,
    depth: tl.int64, width: tl.int64, x_n: tl.int64, x_c: tl.int64, x_d: tl.int64, x_h: tl.int64, x_w: tl.int64,
    y_n: tl.int64, y_c: tl.int64, y_d: tl.int64, y_h: tl.int64, y_w: tl.int64, kh: tl.int64, kw: tl.int64,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, REGION_WORDS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    tile, block = split(tl.program_id(0).to(tl.int64), (channels + BN - 1) // BN)
    row = region_words + tl.load(region_of_tile + tile) * REGION_WORDS
    live, source, target = tile_places(row, tile, images, x_n, x_d, x_h, x_w, y_n, y_d, y_h, y_w, BM)
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
    stored = live[:, None] & exists[None, :]
    above = residual + target[:, None] + (k * y_c)[None, :]
    total = finished(total, bias + k, above, exists, stored, HAS_BIAS, HAS_RESIDUAL, ACTIVATION)
    tl.store(y + target[:, None] + (k * y_c)[None, :], narrow(total, y), mask=stored)


class Epilogue(NamedTuple):
    """What is done to y before it is stored: activation(y + bias + residual); residual is of y's shape."""

    bias: Tensor | None = None
    residual: Tensor | None = None
    activation: str = "none"

    def arguments(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel's; y stands for what is not there."""
        residual = self.residual
        if residual is not None and residual.stride() != y.stride():
            residual = torch.empty_like(y).copy_(residual)
        return y if self.bias is None else self.bias.contiguous(), y if residual is None else residual

    @property
    def constants(self) -> tuple[bool, bool, str]:
        return self.bias is not None, self.residual is not None, self.activation


def tap_sum(problem: Problem, x: Tensor, w: Tensor, end: Epilogue, size: Sequence[int], tf32: bool) -> Tensor:
    """A convolution, or its input gradient or transposed form: y (N, *size) from x and w (K, C / groups, *kernel)."""
    tf32 = tf32 and x.dtype == torch.float32
    y = empty_as_kernel(size, x)
    x = in_format(x)
    groups, kernel = problem.groups, [axis.kernel for axis in problem.axes]
    places = kernel[0] * kernel[1] * kernel[2]
    # (group, K of it, C of it, tap); depth is summed over, width written.
    w = w.reshape(groups, problem.k // groups, problem.c // groups, places)
    depth_axis, width_axis = (1, 2) if problem.kind == "input_grad" else (2, 1)
    if geometry.few_channels(problem):
        _looped_sum(problem, x, w.permute(3, depth_axis, 0, width_axis).contiguous(), y, end)
    else:
        _matrix_sum(problem, x, w.permute(0, 3, depth_axis, width_axis).contiguous(), y, end, tf32)
    return y


def _looped_sum(problem: Problem, x: Tensor, w: Tensor, y: Tensor, end: Epilogue) -> None:
    _, depth, groups, width = w.shape
    rows, columns = (128, small(groups * width)) if interpreted() else (32, 32)
    table = regions(problem, rows, x.device)
    launch(
        conv_looped_kernel,
        table.tiles * cdiv(groups * width, columns),
        *(x, w, *end.arguments(y), y, table.region_of_tile, table.words, table.taps),
        *(problem.n, groups * width, depth, width),
        *(*strides_of(x, depth, False).arguments(), *strides_of(y, width, False).arguments()),
        *(axis.kernel for axis in problem.axes[1:]),
        *(*end.constants, REGION_WORDS, rows, columns),
    )


def _matrix_sum(problem: Problem, x: Tensor, w: Tensor, y: Tensor, end: Epilogue, tf32: bool) -> None:
    groups, places, depth, width = w.shape
    x_strides, y_strides = strides_of(x, depth, True), strides_of(y, width, True)
    units = x_strides.unit, y_strides.unit
    tail = end.arguments(y)

    def start(tile: Tile) -> None:
        table = regions(problem, tile.rows, x.device)
        launch(
            conv_kernel,
            table.tiles * groups * cdiv(width, tile.columns),
            *(x, w, *tail, y, table.region_of_tile, table.words, table.taps),
            *(problem.n, groups, depth // max(units[0], 1), width // max(units[1], 1)),
            *(*x_strides.arguments(), *y_strides.arguments(), places),
            *(axis.kernel for axis in problem.axes[1:]),
            *(*units, *end.constants, precision(tf32), widened(x), REGION_WORDS, *tile[:3]),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )

    shape = min(triton.next_power_of_2(width), 256), min(triton.next_power_of_2(depth), 256)
    layers = Layers("conv", str(x.dtype), tf32, *shape, units)
    start_tiled(layers, _tiles(x.dtype, width, depth, min(units), tf32), x.device, start)


def _tiles(dtype: torch.dtype, width: int, depth: int, unit: int, tf32: bool) -> list[Tile]:
    """The rule's choice, and others worth a measurement; what the compiler keeps in registers."""
    if interpreted():
        # Few calls, and more than one tile of each wide problem.
        return [Tile(128, small(width), small(depth), 1)]
    inner = 16 if depth <= 16 else 32
    if dtype.itemsize > 2 and (not tf32 or unit < 4):
        return [Tile(32, 32, 16), Tile(64, 32, 16, 8)]
    if dtype.itemsize > 2:
        return [Tile(64, 64, 32), Tile(64, 32, 32), Tile(128, 64, 32, 8)]
    if unit < 8:
        # Addresses of single elements, two registers each.
        return [Tile(64, 32, inner, 8), Tile(32, 32, inner)] if unit else [Tile(128, 32, inner), Tile(64, 32, inner)]
    if width > 64:
        return [Tile(128, 128, inner, 8), Tile(128, 64, inner), Tile(64, 64, inner, stages=4)]
    columns = 32 if width <= 32 else 64
    return [Tile(128, columns, inner), Tile(64, columns, inner), Tile(64, columns, inner, stages=4)]


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
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride,
    padding,
    dilation,
    groups: int,
    allow_tf32: bool = False,
    first_kernel: int = 0,
) -> Tensor:
    return conv_epilogue(input, weight, bias, None, "none", stride, padding, dilation, groups, allow_tf32)


def conv_epilogue(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    stride,
    padding,
    dilation,
    groups: int,
    allow_tf32: bool = False,
) -> Tensor:
    k, _, *kernel = weight.shape
    problem = _problem("forward", input.shape, k, kernel, (), stride, padding, dilation, groups)
    size = [axis.output for axis in problem.axes][-len(stride) :]
    end = Epilogue(bias, residual, activation)
    return tap_sum(problem, input, weight, end, (input.shape[0], k, *size), allow_tf32)


def conv_grad_input(
    grad: Tensor,
    weight: Tensor,
    input_size,
    stride,
    padding,
    dilation,
    groups: int,
    allow_tf32: bool = False,
    first_kernel: int = 0,
) -> Tensor:
    k, _, *kernel = weight.shape
    problem = _problem("input_grad", input_size, k, kernel, grad.shape[2:], stride, padding, dilation, groups)
    return tap_sum(problem, grad, weight, Epilogue(), tuple(input_size), allow_tf32)


def conv_grad_weight(
    grad: Tensor,
    input: Tensor,
    kernel_size,
    stride,
    padding,
    dilation,
    groups: int,
    allow_tf32: bool = False,
    first_kernel: int = 0,
) -> Tensor:
    k, output = grad.shape[1], grad.shape[2:]
    problem = _problem("weight_grad", input.shape, k, kernel_size, output, stride, padding, dilation, groups)
    return weight_sum(problem, grad, input, kernel_size, allow_tf32)
