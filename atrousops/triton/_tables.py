"""Phases, live regions and taps of a convolution as small integer tables, from the planner's geometry."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import triton.language as tl
from torch import Tensor

from atrousops.common.checks import bad_value
from atrousops.dispatch import geometry
from atrousops.dispatch.devices import is_captured
from atrousops.dispatch.geometry import Problem
from atrousops.triton._common import cdiv, inline, split, split3

T = TypeVar("T")

# Of a region: its first tile, then by axis begin, length, p0, p, q0, q, and its range of the list of taps.
REGION_WORDS = 25
# Of a tap of the weight gradient: by axis begin and length of the positions that it reads, delta, and q.
TAP_WORDS = 12


class Regions(NamedTuple):
    """A tile has `rows` positions of one region, whose live taps are the same for all of them."""

    tiles: int
    region_of_tile: Tensor
    words: Tensor
    taps: Tensor  # (r, delta)


def regions(problem: Problem, rows: int, device: torch.device) -> Regions:
    """The table of a forward problem or an input gradient."""
    return _regions(problem, rows, device)


def weight_taps(problem: Problem, device: torch.device) -> Tensor:
    """The table of a weight gradient, a row for each kernel position."""
    return _weight_taps(problem, device)


def _is_traced() -> bool:
    # Tensors made now are a tracer's, and no use to a later call.
    return torch._C._len_torch_dispatch_stack() > 0


class _Kept(Generic[T]):
    """Tables on their device, by what they are made of: the 512 used last, and those that a CUDA graph reads.

    A graph reads its tables again at each replay, and nothing tells when it is gone: they stay.
    """

    def __init__(self, build: Callable[..., T]) -> None:
        self._build = build
        self._last: OrderedDict[tuple[Any, ...], T] = OrderedDict()
        self._of_graphs: dict[tuple[Any, ...], T] = {}

    def __call__(self, *key: Any) -> T:
        """The table of arguments of which the last is the device."""
        if _is_traced():
            return self._build(*key)
        captured = is_captured(key[-1])
        found = self._of_graphs.get(key)
        if found is None:
            found = self._last.get(key)
        if found is None:
            if captured:
                rule, remedy = "come before a CUDA graph is captured", "Call it once before the capture."
                bad_value("conv", "the first call with these sizes", rule, "one inside a capture", remedy)
            found = self._last[key] = self._build(*key)
            if len(self._last) > _MOST:
                self._last.popitem(last=False)
        elif captured:
            self._of_graphs[key] = found
        if key in self._last:
            self._last.move_to_end(key)
        return found


_MOST = 512


@_Kept
def _regions(problem: Problem, rows: int, device: torch.device) -> Regions:
    phases = geometry.phases(problem)
    taps: list[tuple[int, int]] = []
    first_tap: dict[tuple[int, int], int] = {}
    for index, phase in enumerate(phases):
        for axis in range(3):
            first_tap[index, axis] = len(taps)
            taps += [(tap.r, tap.delta) for tap in phase[axis].taps]
    words, counts, first = [], [], 0
    for region in geometry.regions(problem):
        row = [first]
        for axis, lattice in enumerate(phases[region.phase]):
            start = first_tap[region.phase, axis]
            row += [region.begin[axis], region.end[axis] - region.begin[axis]]
            row += [lattice.p0, lattice.p, lattice.q0, lattice.q]
            row += [start + region.tap_begin[axis], start + region.tap_end[axis]]
        words.append(row)
        counts.append(cdiv(problem.n * region.positions, rows))
        first += counts[-1]
    owner = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)], dtype=torch.int32)
    table = torch.tensor(words, dtype=torch.int64), torch.tensor(taps or [(0, 0)], dtype=torch.int64)
    return Regions(first, owner.to(device), *(t.to(device) for t in table))


@_Kept
def _weight_taps(problem: Problem, device: torch.device) -> Tensor:
    axes = [geometry.axis_phases("weight_grad", axis)[0] for axis in problem.axes]
    by_position = [{tap.r: tap for tap in axis.taps} for axis in axes]
    rows = []
    for d in range(problem.axes[0].kernel):
        for h in range(problem.axes[1].kernel):
            for w in range(problem.axes[2].kernel):
                row: list[int] = []
                for axis, taps, r in zip(axes, by_position, (d, h, w)):
                    row += [taps[r].begin, taps[r].end - taps[r].begin, taps[r].delta, axis.q]
                rows.append(row)
    return torch.tensor(rows, dtype=torch.int64).to(device)


@inline
def axis_places(row, o, AXIS: tl.constexpr):
    """Where position o of a region's axis is written, and where it reads but for the tap."""
    at = row + 1 + 8 * AXIS
    position = o + tl.load(at)
    return tl.load(at + 2) + tl.load(at + 3) * position, tl.load(at + 4) + tl.load(at + 5) * position


@inline
def tile_places(row, tile, images, x_n, x_d, x_h, x_w, y_n, y_d, y_h, y_w, ROWS: tl.constexpr):
    """Rows of a tile: which exist (others repeat the first), where they read but for the tap, and write."""
    m = (tile - tl.load(row)) * ROWS + tl.arange(0, ROWS)
    d, h, w = tl.load(row + 2), tl.load(row + 10), tl.load(row + 18)
    live = m < images * d * h * w
    image, o = split(tl.where(live, m, 0), d * h * w)
    z, y, x = split3(o, h, w)
    to_d, from_d = axis_places(row, z, 0)
    to_h, from_h = axis_places(row, y, 1)
    to_w, from_w = axis_places(row, x, 2)
    read = image * x_n + from_d * x_d + from_h * x_h + from_w * x_w
    return live, read, image * y_n + to_d * y_d + to_h * y_h + to_w * y_w


@inline
def live_taps(row):
    """By axis the first of a region's taps, and how many there are."""
    d, h, w = tl.load(row + 7), tl.load(row + 15), tl.load(row + 23)
    return d, h, w, tl.load(row + 8) - d, tl.load(row + 16) - h, tl.load(row + 24) - w


@inline
def live_tap(d, h, w, taps, kh, kw):
    """A tap's place in the kernel, and the three displacements."""
    a, b, c = taps + 2 * d, taps + 2 * h, taps + 2 * w
    place = (tl.load(a) * kh + tl.load(b)) * kw + tl.load(c)
    return place, tl.load(a + 1), tl.load(b + 1), tl.load(c + 1)


@inline
def tap_places(tap, m, x_n, x_d, x_h, x_w, y_n, y_d, y_h, y_w):
    """Where row m among those that a tap reads is read, in x and in y."""
    d, h, w = tl.load(tap + 1), tl.load(tap + 5), tl.load(tap + 9)
    image, o = split(m, d * h * w)
    z, y, x = split3(o, h, w)
    z, y, x = z + tl.load(tap), y + tl.load(tap + 4), x + tl.load(tap + 8)
    at_d = z * tl.load(tap + 3) + tl.load(tap + 2)
    at_h = y * tl.load(tap + 7) + tl.load(tap + 6)
    at_w = x * tl.load(tap + 11) + tl.load(tap + 10)
    return image * x_n + at_d * x_d + at_h * x_h + at_w * x_w, image * y_n + z * y_d + y * y_h + x * y_w
