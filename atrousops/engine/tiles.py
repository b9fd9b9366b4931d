"""Tiling along one axis: the intervals of the tiles, and their weights at every pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from atrousops.common.checks import bad_value

# Tiles start at multiples of this, so that the grid of a network with output stride up to 32 is that of the image.
GRID = 32


def spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Intervals [start, stop) that cover [0, length), each at most `tile` long, overlapping by at least `overlap`.

    Starts are multiples of GRID. If length <= tile there is one interval.

    Raises:
        ArgumentError: length < 1, tile not a positive multiple of GRID, or overlap outside 0..tile - GRID.
    """
    if length < 1:
        bad_value("spans", "length", "be at least 1", length)
    if tile < GRID or tile % GRID:
        bad_value("spans", "tile", f"be a positive multiple of {GRID}", tile)
    if not 0 <= overlap <= tile - GRID:
        bad_value("spans", "overlap", f"be from 0 to tile - {GRID} = {tile - GRID}", overlap)
    if length <= tile:
        return [(0, length)]
    step = (tile - overlap) // GRID * GRID
    last = -(-(length - tile) // GRID) * GRID
    return [(start, start + tile) for start in range(0, length - tile, step)] + [(last, length)]


def weights(intervals: list[tuple[int, int]], overlap: int) -> list[Tensor]:
    """The weight of each interval at each of its positions; over all intervals weights sum to 1.

    The outer quarter of the overlap has weight 0, because the network's padding affects it; then the weight increases
    linearly over the middle half. If the network's receptive field reaches no farther than that quarter, the result
    equals that on the whole image.

    Returns:
        One float32 tensor (stop - start,) for each interval.
    """
    length = intervals[-1][1]
    ramps = []
    for start, stop in intervals:
        position = torch.arange(start, stop, dtype=torch.float64) + 0.5
        rise = (position - start - overlap / 4) / max(overlap / 2, 1e-9) if start > 0 else torch.ones_like(position)
        fall = (stop - position - overlap / 4) / max(overlap / 2, 1e-9) if stop < length else torch.ones_like(position)
        ramps.append(torch.minimum(rise, fall).clamp(0, 1))
    total = torch.zeros(length, dtype=torch.float64)
    for (start, stop), ramp in zip(intervals, ramps):
        total[start:stop] += ramp
    return [(ramp / total[start:stop]).float() for (start, stop), ramp in zip(intervals, ramps)]
