"""y = alpha S_slice B_D ... B_0 S_splat^T x for values (N, C, P): splat, blur along D + 1 axes, slice.

A vertex gathers the rows (pixel, corner) that lie on it, in the order of pixels. The lattice is built by PyTorch's own
operators: vertices are places in a list of sorted 64-bit keys, and nothing waits for the device. As on any GPU each
pixel and corner has a row of its own: row = pixel (D + 1) + corner.
"""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from atrousops.common.checks import bad_value
from atrousops.common.formats import empty_values
from atrousops.reference.permutohedral import elevate, enclosing_simplex
from atrousops.triton._common import cdiv, full, interpreted, jit, launch, narrow, split, wide

# In float32 steps beyond a quarter of this are no longer exact.
_EXACT = {torch.float32: 12582912.0, torch.float64: 6755399441055744.0}


@jit
def splat_kernel(
    x, weights, row_starts, rows, vertices, used, channels: tl.int64, corners: tl.int64, count: tl.int64,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    program, chunk = split(tl.program_id(0).to(tl.int64), (channels + BN - 1) // BN)
    v = program * BM + tl.arange(0, BM)
    c = chunk * BN + tl.arange(0, BN)
    live = v < tl.minimum(count, tl.load(used))
    begin = tl.load(row_starts + v, mask=live, other=0).to(tl.int64)
    end = tl.load(row_starts + v + 1, mask=live, other=0).to(tl.int64)
    total = full((BM, BN), 0.0, vertices)
    for i in range(0, tl.max(end - begin)):
        mine = live & (begin + i < end)
        row = tl.load(rows + begin + i, mask=mine, other=0).to(tl.int64)
        weight = wide(tl.load(weights + row, mask=mine, other=0))
        at = (row // corners * channels)[:, None] + c[None, :]
        value = wide(tl.load(x + at, mask=mine[:, None] & (c < channels)[None, :], other=0))
        total += tl.where(mine[:, None], value * weight[:, None], 0)
    to = vertices + (v * channels)[:, None] + c[None, :]
    tl.store(to, total, mask=live[:, None] & (c < channels)[None, :])


@jit
def blur_kernel(
    vertices, neighbours, blurred, used, channels: tl.int64, count: tl.int64, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    program, chunk = split(tl.program_id(0).to(tl.int64), (channels + BN - 1) // BN)
    v = program * BM + tl.arange(0, BM)
    c = chunk * BN + tl.arange(0, BN)
    live = v < tl.minimum(count, tl.load(used))
    forth = tl.load(neighbours + 2 * v, mask=live, other=-1).to(tl.int64)
    back = tl.load(neighbours + 2 * v + 1, mask=live, other=-1).to(tl.int64)
    exists = (c < channels)[None, :]
    at = vertices + c[None, :]
    one = tl.load(at + (forth * channels)[:, None], mask=(forth >= 0)[:, None] & exists, other=0)
    two = tl.load(at + (back * channels)[:, None], mask=(back >= 0)[:, None] & exists, other=0)
    here = tl.load(at + (v * channels)[:, None], mask=live[:, None] & exists, other=0)
    tl.store(blurred + (v * channels)[:, None] + c[None, :], here + 0.5 * (one + two), mask=live[:, None] & exists)


@jit
def slice_kernel(
    vertices, vertex_of_row, weights, y, channels: tl.int64, corners: tl.int64, pixels: tl.int64, count: tl.int64,
    y_n: tl.int64, y_c: tl.int64, y_p: tl.int64, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    program, chunk = split(tl.program_id(0).to(tl.int64), (channels + BN - 1) // BN)
    i = program * BM + tl.arange(0, BM)
    c = chunk * BN + tl.arange(0, BN)
    live = i < count
    exists = live[:, None] & (c < channels)[None, :]
    total = full((BM, BN), 0.0, vertices)
    for corner in range(0, corners):
        row = i * corners + corner
        vertex = tl.load(vertex_of_row + row, mask=live, other=0).to(tl.int64)
        weight = wide(tl.load(weights + row, mask=live, other=0))
        total += tl.load(vertices + (vertex * channels)[:, None] + c[None, :], mask=exists, other=0) * weight[:, None]
    # The gain of the blur: 1 + 2^-D, where 2^D is exact.
    power = (tl.full((BM, BN), 1, tl.int64) << (corners - 1)).to(total.dtype)
    image, p = split(i, pixels)
    to = y + (image * y_n + p * y_p)[:, None] + (c * y_c)[None, :]
    tl.store(to, narrow(total * (power / (power + 1)), y), mask=exists)


def vertices_of_rows(row_starts: Tensor, rows: Tensor, used: Tensor) -> Tensor:
    """The vertex on which each row lies."""
    places = torch.arange(row_starts.shape[0], device=rows.device)
    # A lattice with upper bounds for sizes has nothing behind its last vertex.
    starts = torch.where(places <= used, row_starts, rows.shape[0] + 1)
    order = torch.arange(rows.shape[0], dtype=starts.dtype, device=rows.device)
    vertex = torch.searchsorted(starts, order, right=True) - 1
    return torch.empty_like(vertex).scatter_(0, rows.long(), vertex)


class Filter(NamedTuple):
    """A lattice with the weights of one filter; `used` is how many vertices there are."""

    splat_weights: Tensor
    slice_weights: Tensor
    neighbours: Tensor
    row_starts: Tensor
    rows: Tensor
    used: Tensor
    vertex_of_row: Tensor


def filter_of(
    splat_weights: Tensor, slice_weights: Tensor, neighbours: Tensor, row_starts: Tensor, rows: Tensor, counts: Tensor
) -> Filter:
    """What all calls of one filter share."""
    used = counts.sum()
    of_rows = vertices_of_rows(row_starts, rows, used)
    weights = splat_weights.contiguous(), slice_weights.contiguous()
    return Filter(*weights, neighbours.contiguous(), row_starts, rows, used, of_rows)


def apply(values: Tensor, f: Filter, reverse: bool, y: Tensor) -> Tensor:
    """Fills y (N, C, P) of any strides."""
    n, c, p = values.shape
    corners, most = f.neighbours.shape[:2]
    if f.rows.shape[0] != n * p * corners:
        bad_value(
            "permutohedral_apply",
            "lattice",
            f"have {n * p * corners} rows, one for each pixel and corner, as on any GPU",
            f.rows.shape[0],
            "Build it again where it is used.",
        )
    if y.numel() == 0:
        return y
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    x = values.transpose(1, 2).contiguous()
    many, deep = (1024, 64) if interpreted() else (32, 32)
    programs = cdiv(most, many) * cdiv(c, deep)
    vertices, other = (values.new_empty((most, c), dtype=dtype) for _ in range(2))
    arguments = (x, f.splat_weights, f.row_starts, f.rows, vertices, f.used, c, corners, most, many, deep)
    launch(splat_kernel, programs, *arguments)
    for axis in reversed(range(corners)) if reverse else range(corners):
        launch(blur_kernel, programs, vertices, f.neighbours[axis], other, f.used, c, most, many, deep)
        vertices, other = other, vertices
    sizes = (c, corners, p, n * p, *y.stride())
    programs = cdiv(n * p, many) * cdiv(c, deep)
    launch(slice_kernel, programs, vertices, f.vertex_of_row, f.slice_weights, y, *sizes, many, deep)
    return y


def permutohedral_apply(
    values: Tensor,
    splat_weights: Tensor,
    slice_weights: Tensor,
    offsets: Tensor,
    neighbours: Tensor,
    row_starts: Tensor,
    rows: Tensor,
    row_bounds: Tensor,
    counts: Tensor,
    reverse: bool,
) -> Tensor:
    f = filter_of(splat_weights, slice_weights, neighbours, row_starts, rows, counts)
    return apply(values, f, reverse, empty_values(values))


def permutohedral_lattice(features: Tensor) -> tuple[Tensor, ...]:
    n, d, p = features.shape
    count, corners = n * p * (d + 1), d + 1
    bits = min((64 - 3) // d, 31)
    bias = 1 << (bits - 1)
    elevated = elevate(features.transpose(1, 2).reshape(n * p, d))
    # Room for a neighbour's step.
    limit = min(bias - 2, _EXACT[features.dtype] / 4) * corners
    fits = (elevated.abs() <= limit).all(1)
    rounded, rank, weights = enclosing_simplex(torch.where(fits[:, None], elevated, 0))
    keys = _keys(rounded, rank, bits, bias).view(n, p * corners)
    sorted, order = keys.sort(dim=1, stable=True)
    images = torch.arange(n, device=features.device)
    rows = (order + images[:, None] * (p * corners)).flatten()
    heads = torch.ones_like(sorted, dtype=torch.bool)
    heads[:, 1:] = sorted[:, 1:] != sorted[:, :-1]
    numbers = heads.flatten().cumsum(0)
    first = torch.searchsorted(numbers, torch.arange(1, count + 2, device=features.device))
    neighbours = _neighbours(sorted, numbers.view_as(sorted), first[:count].clamp(max=max(count - 1, 0)), d, bits)
    ends = numbers.view(n, -1)[:, -1] if count else images
    chunks = min(max(p // 4096, 1), 4 * (p // 65536 + 1), 64)
    starts = torch.arange(n * chunks + 1, device=features.device)
    bounds = (starts // chunks * p + starts % chunks * p // chunks) * corners
    # A misfit shows as -1 in the last of row_bounds, as on any GPU.
    bounds[-1:] = torch.where(fits.all(), bounds[-1:], -1)
    counts = torch.cat([ends[:1], ends.diff()]) if count else torch.zeros_like(ends)
    offsets = torch.arange(count, dtype=torch.int32, device=features.device).view(n, p, corners)
    return offsets, weights.view(n, p, corners), neighbours, first.int(), rows.int(), bounds, counts


def _keys(rounded: Tensor, rank: Tensor, bits: int, bias: int) -> Tensor:
    # A vertex's coordinates are all congruent modulo D + 1, x_i = (D + 1) q_i + r: r in the three lowest bits, and the
    # biased q_i above them, so that a step along the lattice is one addition.
    d = rounded.shape[1] - 1
    r = torch.arange(d + 1, device=rounded.device)
    keys = r.expand(len(rounded), d + 1).clone()
    for i in range(d):
        wraps = rank[:, i, None] > d - r
        keys += (rounded[:, i, None] // (d + 1) - wraps.long() + bias) << (3 + i * bits)
    return keys


def _neighbours(sorted: Tensor, numbers: Tensor, first: Tensor, d: int, bits: int) -> Tensor:
    """Along axis j coordinate j changes by D and the others by -1, or the reverse; (D + 1, rows, 2)."""
    found = torch.empty((d + 1, sorted.numel(), 2), dtype=torch.int32, device=sorted.device)
    if sorted.numel() == 0:
        return found
    every = sum(1 << (3 + i * bits) for i in range(d))
    remainder = sorted & 7
    for j in range(d + 1):
        unit = 1 << (3 + j * bits) if j < d else 0
        forth = torch.where(remainder > 0, sorted - 1, sorted + (d - every)) + unit
        back = torch.where(remainder < d, sorted + 1, sorted + (every - d)) - unit
        for side, wanted in enumerate((forth, back)):
            at = torch.searchsorted(sorted, wanted).clamp(max=sorted.shape[1] - 1)
            number = torch.where(sorted.gather(1, at) == wanted, numbers.gather(1, at) - 1, -1)
            found[j, :, side] = number.flatten()[first]
    return found
