"""dw[t, c, k] = sum over n, o of dy[n, o, k] x[n, Q(o) + delta_t, c], in parts that are added up in their order.

How many parts there are depends on the sizes alone. Groups of few channels are a loop instead of a GEMM.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from atrousops.dispatch import geometry
from atrousops.dispatch.geometry import Problem
from atrousops.triton._common import cdiv, full, interpreted, jit, launch, split, wide
from atrousops.triton._maps import in_format, precision, small, strides_of, widened
from atrousops.triton._tables import TAP_WORDS, tap_places, weight_taps
from atrousops.triton.tiles import Layers, Tile
from atrousops.triton.tiles import start as start_tiled

# Rows that one part adds up, and how many parts there are at most.
_ROWS_OF_PART, _PARTS = 4096, 64


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
        m = tl.where(live, m, part * rows)
        read, from_y = tap_places(tap, m, x_n, x_d, x_h, x_w, y_n, y_d, y_h, y_w)
        read, from_y = read + group * depth * x_c, from_y + group * width * y_c
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
        m = tl.where(live, m, part * rows)
        read, from_y = tap_places(tap, m, x_n, x_d, x_h, x_w, y_n, y_d, y_h, y_w)
        both = live[:, None] & exists[None, :]
        a = tl.load(x + read[:, None] + ((k // width * depth + c) * x_c)[None, :], mask=both, other=0)
        b = tl.load(dy + from_y[:, None] + (k * y_c)[None, :], mask=both, other=0)
        total += wide(a) * wide(b)
    tl.store(parts + ((part * places + place) * depth + c) * channels + k, tl.sum(total, 0), mask=exists)


def weight_sum(problem: Problem, dy: Tensor, x: Tensor, kernel_size: Sequence[int], tf32: bool) -> Tensor:
    """dw (K, C / groups, *kernel_size)."""
    depth, width = problem.c // problem.groups, problem.k // problem.groups
    tf32 = tf32 and x.dtype == torch.float32
    sum_of = _looped_sum if geometry.few_channels(problem) else _matrix_sum
    total = sum_of(problem, in_format(dy), in_format(x), depth, width, tf32)
    return total.reshape(problem.k, depth, *kernel_size).to(x.dtype).contiguous()


def _split(problem: Problem, rows: int) -> tuple[int, int, int]:
    """Positions of the kernel, parts, and rows of a part: whole blocks of `rows`."""
    positions = problem.n * geometry.product(axis.output for axis in problem.axes)
    count = min(max(cdiv(positions, _ROWS_OF_PART), 1), _PARTS)
    return geometry.product(axis.kernel for axis in problem.axes), count, cdiv(cdiv(positions, count), rows) * rows


def _sizes(problem: Problem, dy: Tensor, x: Tensor, groups: int, depth: int, width: int) -> tuple[int, ...]:
    strides = (*strides_of(x, depth, False).arguments(), *strides_of(dy, width, False).arguments())
    return (problem.n, groups, depth, width, *strides)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _looped_sum(problem: Problem, dy: Tensor, x: Tensor, depth: int, width: int, tf32: bool) -> Tensor:
    channels = problem.k
    rows, columns = (16, 32) if x.dtype.itemsize > 2 else (32, 32)
    if interpreted():
        rows, columns = 64, small(channels)
    places, count, of_part = _split(problem, rows)
    parts = x.new_empty((count, places, depth, channels), dtype=_sum_dtype(x))
    sizes = _sizes(problem, dy, x, channels, depth, width)
    arguments = (dy, x, parts, weight_taps(problem, x.device), *sizes, places, of_part, TAP_WORDS, rows, columns)
    launch(conv_looped_weight_kernel, count * places * depth * cdiv(channels, columns), *arguments)
    return parts.sum(0).view(places, depth, problem.groups, width).permute(2, 3, 1, 0)


def _matrix_sum(problem: Problem, dy: Tensor, x: Tensor, depth: int, width: int, tf32: bool) -> Tensor:
    groups = problem.groups
    results: list[Tensor] = []
    sizes = _sizes(problem, dy, x, groups, depth, width)

    def start(tile: Tile) -> None:
        places, count, of_part = _split(problem, tile.rows)
        parts = x.new_empty((count, groups, places, depth, width), dtype=_sum_dtype(x))
        programs = count * groups * places * cdiv(depth, tile.depth) * cdiv(width, tile.columns)
        constants = (precision(tf32), widened(x), TAP_WORDS, *tile[:3])
        arguments = (dy, x, parts, weight_taps(problem, x.device), *sizes, places, of_part, *constants)
        launch(conv_weight_kernel, programs, *arguments, num_warps=tile.warps, num_stages=tile.stages)
        results[:] = [parts]

    shape = min(triton.next_power_of_2(width), 256), min(triton.next_power_of_2(depth), 256)
    start_tiled(Layers("conv_weight", str(x.dtype), tf32, *shape), _tiles(x, depth, width, tf32), x.device, start)
    return results[0].sum(0).permute(0, 3, 2, 1)


def _tiles(x: Tensor, depth: int, width: int, tf32: bool) -> list[Tile]:
    """The rule's choice, and others worth a measurement; `depth` of a tile is its channels of x."""
    if interpreted():
        # NumPy adds rows one by one: many of them would round more than a GPU's tree.
        return [Tile(256, small(width), small(depth))]
    if x.dtype.itemsize > 2 and not tf32:
        return [Tile(16, 32, 32, 8), Tile(32, 32, 16)]
    return [Tile(32, 32, 32), Tile(32, 64, 32, 8), Tile(64, 32, 32, 8)]
