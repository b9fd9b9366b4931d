"""The permutohedral lattice in plain PyTorch: sort, unique, index_add (Adams, Baek, Davis 2010)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from atrousops.common.values import values_of


class Lattice(NamedTuple):
    """Which lattice vertices enclose each pixel, and how vertices are linked; a pytree of tensors.

    Vertices of all N images are numbered together, M in all. Each image's pixels are cut into chunks. Every chunk has
    its own rows for the vertices that it touches, so that chunks can be splatted in parallel without atomics; the R
    rows of all chunks are numbered together. The CPU has one row for each vertex of a chunk. A GPU has one for each
    pixel and corner, so that `rows` lists the pixels that a vertex gathers from. A lattice can therefore be used only
    on the type of device that it was built on.

    Attributes:
        offsets: (N, P, D + 1) int32, the rows of the vertices around a pixel.
        weights: (N, P, D + 1), a pixel's barycentric weights.
        neighbours: (D + 1, M, 2) int32, the vertices one step forth and back along each axis, -1 where there is none.
        row_starts: (M + 1) int32; the rows of vertex v are rows[row_starts[v] : row_starts[v + 1]].
        rows: (R) int32.
        row_bounds: (N * chunks + 1) int64; the rows of chunk c are row_bounds[c] to row_bounds[c + 1].
        counts: (N) int64, an image's vertices.
        norm: (N, 1, P), the filter of ones.
    """

    offsets: Tensor
    weights: Tensor
    neighbours: Tensor
    row_starts: Tensor
    rows: Tensor
    row_bounds: Tensor
    counts: Tensor
    norm: Tensor


def permutohedral_lattice(features: Tensor) -> tuple[Tensor, ...]:
    """A Lattice without its norm, for features (N, D, P); one chunk per image, vertices in order of their keys."""
    n, d, p = features.shape
    rounded, rank, weights = enclosing_simplex(elevate(features.detach().transpose(1, 2).reshape(n * p, d)))
    # Vertex r of the simplex: the coordinates of the r largest ranks wrap around.
    remainder = torch.arange(d + 1, device=features.device)
    wrap = rank[:, None, :] > d - remainder[:, None]
    vertices = rounded[:, None, :] + remainder[:, None] - (d + 1) * wrap
    image = torch.arange(n, device=features.device).repeat_interleave(p * (d + 1))
    # The last coordinate is minus the sum of the others; one step of margin for neighbours.
    keys = torch.cat([image[:, None], vertices[..., :d].reshape(-1, d)], 1)
    low, size = _ranges(keys, d)
    unique, inverse = _pack(keys, low, size).unique(return_inverse=True)
    neighbours = _neighbours(unique, _unpack(unique, low, size), low, size)
    counts = torch.bincount(_unpack(unique, low, size)[:, 0], minlength=n)
    rows = torch.arange(len(unique) + 1, dtype=torch.int32, device=features.device)
    bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    shape = (n, p, d + 1)
    return inverse.view(shape).int(), weights.view(shape), neighbours, rows, rows[:-1].clone(), bounds, counts


def elevate(features: Tensor) -> Tensor:
    """Features (Q, D) on the hyperplane of the lattice, (Q, D + 1), in its units."""
    d = features.shape[1]
    j = torch.arange(1, d + 1, dtype=features.dtype, device=features.device)
    scaled = features * (math.sqrt(2 / 3) * (d + 1) / (j * (j + 1)).sqrt())
    # y = E p (page 5): y_0 = sum of all, y_j = sum of those after j - j times the j-th.
    after = torch.cat([scaled.flip(1).cumsum(1).flip(1), scaled.new_zeros(len(scaled), 1)], 1)
    return torch.cat([after[:, :1], after[:, 1:] - j * scaled], 1)


def enclosing_simplex(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest vertex of remainder 0 (Q, D + 1), the ranks of the differences, and the barycentric weights."""
    d = elevated.shape[1] - 1
    steps = (elevated / (d + 1)).round()
    difference = elevated - steps * (d + 1)
    # The largest difference has rank 0; among equal ones the first, as in densecrf.
    order = difference.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(d + 1, device=order.device).expand_as(order))
    # Outside the plane: the coordinates of extreme rank are wrapped around.
    rank = rank + steps.sum(1, keepdim=True).long()
    back = (rank < 0).long() - (rank > d).long()
    rank = rank + back * (d + 1)
    rounded = (steps.long() + back) * (d + 1)
    ranked = torch.empty_like(elevated).scatter_(1, d - rank, (elevated - rounded) / (d + 1))
    weights = ranked - ranked.roll(1, 1)
    weights[:, 0] += 1
    return rounded, rank, weights


def _ranges(keys: Tensor, d: int) -> tuple[Tensor, Tensor]:
    if len(keys) == 0:
        return keys.new_zeros(d + 1), keys.new_ones(d + 1)
    low, high = keys.amin(0), keys.amax(0)
    low[1:] -= d + 1
    high[1:] += d + 1
    return low, high - low + 1


def _pack(keys: Tensor, low: Tensor, size: Tensor) -> Tensor:
    packed = torch.zeros_like(keys[:, 0])
    for i in range(keys.shape[1]):
        packed = packed * size[i] + keys[:, i] - low[i]
    return packed


def _unpack(packed: Tensor, low: Tensor, size: Tensor) -> Tensor:
    columns = []
    for i in reversed(range(len(size))):
        columns.append(packed % size[i] + low[i])
        packed = packed // size[i]
    return torch.stack(columns[::-1], 1)


def _neighbours(unique: Tensor, keys: Tensor, low: Tensor, size: Tensor) -> Tensor:
    """Along axis j coordinate j changes by D and the others by -1, or the reverse."""
    d = keys.shape[1] - 1
    found = unique.new_full((d + 1, len(unique), 2), -1, dtype=torch.int32)
    for j in range(d + 1):
        for side, sign in enumerate((1, -1)):
            step = torch.full((d + 2,), -sign, dtype=torch.long, device=keys.device)
            step[0] = 0
            step[j + 1] = sign * d
            packed = _pack(keys + step[: d + 1], low, size)
            at = torch.searchsorted(unique, packed).clamp(max=len(unique) - 1)
            found[j, :, side] = torch.where(unique[at] == packed, at, -1) if len(unique) else at
    return found


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
    """y = alpha S_slice B_D ... B_0 S_splat^T x for values (N, C, P); B in the opposite order if reverse."""
    n, c, p = values.shape
    corners = offsets.shape[2]
    # For all batch dimensions that a transform has added.
    m = int(values_of(counts).sum())
    compute = torch.float64 if values.dtype == torch.float64 else torch.float32
    row_vertex = torch.empty_like(rows).scatter(
        0,
        rows[: row_starts[m]].long(),
        torch.arange(m, dtype=torch.int32, device=rows.device).repeat_interleave(row_starts[: m + 1].diff()),
    )
    corner = row_vertex[offsets.reshape(-1).long()].long()
    x = values.to(compute).transpose(1, 2).reshape(n * p, 1, c)
    splatted = (x * splat_weights.reshape(n * p, corners, 1)).reshape(-1, c)
    vertices = splatted.new_zeros(m + 1, c).index_add(0, corner, splatted)
    for axis in reversed(range(corners)) if reverse else range(corners):
        # -1 is the last vertex, which stays zero.
        near = vertices[neighbours[axis, :m].long()].sum(1)
        vertices = vertices + torch.cat([0.5 * near, near.new_zeros(1, c)])
    alpha = 1 / (1 + 2.0 ** (1 - corners))
    sliced = (vertices[corner].view(n * p, corners, c) * slice_weights.reshape(n * p, corners, 1)).sum(1)
    return (alpha * sliced).view(n, p, c).transpose(1, 2).contiguous().to(values.dtype)
