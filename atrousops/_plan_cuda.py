"""The planner's candidates on a GPU; equal to csrc/core/plan_cuda.cpp.

They are tried in the order in which csrc/cuda/conv.cu tries its kernels: whichever of ours is legal would run there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from atrousops import _library, geometry
from atrousops.devices import Device
from atrousops.geometry import Problem, product

# aten       PyTorch's own kernel (cuDNN)
# depthwise  a loop over taps, vectorised along channels
# grouped    the same for groups of few channels
# wgmma      a GEMM over the live taps of boxes of positions, by TMA and wgmma
# mma        a GEMM over the live taps of each region, on tensor cores
# simt       the same without tensor cores
KERNELS = ("aten", "depthwise", "grouped", "wgmma", "mma", "simt")
# Of a sum among blocks, where tensor cores have too few tiles.
SPLITS = 4


class Boxes(NamedTuple):
    """How a launch of wgmma is cut, and what is predicted of it.

    A tile is `size` positions along each axis of `images` images, at most `rows` of them, by `columns` channels; tiles
    count their `splits`, the parts of a sum. A step is `depth` channels, 128 bytes, at one tap; `finish` are those of
    the busiest multiprocessor, and what its tiles take beside. dense_seconds: the same tile, were no tap dead.
    """

    size: tuple[int, int, int]
    images: int
    rows: int
    columns: int
    depth: int
    splits: int
    tiles: int
    steps: float
    finish: float
    seconds: float
    dense_seconds: float

    def __str__(self) -> str:
        """For people to read."""
        box = "x".join(map(str, self.size))
        parts = f", sums in {self.splits} parts" if self.splits > 1 else ""
        what = f"{self.tiles} tiles of {self.rows}x{self.columns}: {box} positions of {self.images} images{parts}"
        return f"{what}; predicted {self.dense_seconds / self.seconds:.2f} times as fast as with every tap"


def boxes(problems: Sequence[Problem], device: Device, itemsize: int) -> Boxes:
    """The boxes of one launch; its problems have the same map and channels."""
    native = _library.planner
    assert native is not None
    rows = [(p.kind, p.n, p.c, p.k, p.axes) for p in problems]
    return Boxes(*native.plan_boxes(rows, itemsize, device.multiprocessors, device.rates.wgmma))


class WeightBoxes(NamedTuple):
    """How a weight gradient by wgmma is cut, and what is predicted of it.

    A step of a tap's sum is `size` positions along each axis of `images` images; a tile has `columns` channels of the
    input, and its sum is shared by `splits` blocks. steps: of all taps.
    """

    size: tuple[int, int, int]
    images: int
    columns: int
    splits: int
    steps: float
    seconds: float


def weight_boxes(problem: Problem, device: Device) -> WeightBoxes:
    """The boxes of a weight gradient."""
    native, p = _library.planner, problem
    assert native is not None
    return WeightBoxes(*native.plan_weight_boxes(p.n, p.c, p.k, p.axes, device.multiprocessors, device.rates.wgmma))


def illegal(kernel: str, problem: Problem, device: Device, itemsize: int) -> str:
    """Why a kernel of ours does not run a problem; empty if it does."""
    depthwise = problem.groups > 1 and problem.groups == problem.c == problem.k
    if kernel == "depthwise":
        return "" if depthwise else "not one channel in and out a group"
    looped = _looped(problem)
    if kernel == "grouped":
        if depthwise:
            return "one channel in and out a group is a case for depthwise"
        return "" if looped else "too many channels a group for a loop"
    no_boxes = _no_boxes(problem, device, itemsize)
    if kernel == "wgmma":
        return no_boxes
    if kernel == "mma" and device.rates.tensor <= 0:
        return "no tensor cores for the dtype on the device"
    if kernel == "mma" and not no_boxes:
        return "wgmma can run it"
    if looped:
        return "few channels a group are a case for a loop"
    depth = 16 if itemsize == 4 else 32
    shallow = problem.kind != "weight_grad" and 4 * (_width_and_depth(problem)[1] // problem.groups) < depth
    if kernel == "mma":
        return "too few channels for the depth of a step" if shallow else ""
    return "" if no_boxes and (shallow or device.rates.tensor <= 0) else "tensor cores can run it"


def predict(kernel: str, problem: Problem, device: Device, itemsize: int, moved: float) -> float:
    """Seconds of a kernel of ours on a problem that is legal for it."""
    rates = device.rates
    if kernel == "wgmma":
        weight = problem.kind == "weight_grad"
        seconds = weight_boxes(problem, device).seconds if weight else boxes([problem], device, itemsize).seconds
        return rates.our_call + seconds + moved / rates.copy
    axes = [geometry.axis_phases(problem.kind, a) for a in problem.axes]
    flops = float(problem.dense_flops)
    for phases, axis in zip(axes, problem.axes):
        flops *= geometry.live_pairs(phases) / (float(axis.output) * axis.kernel)
    if kernel in ("depthwise", "grouped"):
        rate = rates.depthwise if kernel == "depthwise" else rates.grouped
        return rates.our_call + flops / (rate * device.threads) + moved / rates.copy
    width = _width_and_depth(problem)[0] // problem.groups
    columns, rows = (32, 128) if width <= 32 else (64, 64)
    blocks = -(-width // columns)
    written = [a.input if problem.kind == "input_grad" else a.output for a in problem.axes]
    positions = max(float(problem.n) * product(written), 1.0)
    # Half a tile is lost in each region.
    tiles = positions / rows + 0.5 * geometry.region_count(problem)
    flops *= float(blocks * columns) / max(width, 1) * (tiles * rows / positions)
    rate, splits = (rates.tensor, SPLITS) if kernel == "mma" else (rates.gemm, 1)
    used = 1.0
    if problem.kind != "weight_grad":
        used = min(1.0, tiles * float(blocks * problem.groups * splits) / max(device.multiprocessors, 1))
    return rates.our_call + flops / (rate * used) + moved / rates.copy


def _no_boxes(problem: Problem, device: Device, itemsize: int) -> str:
    if device.rates.wgmma <= 0:
        return "no wgmma for the dtype on the device"
    p, native = problem, _library.planner
    # Without it there are no kernels either.
    if native is None:
        return "boxes are chosen by the compiled planner"
    return native.boxes_cannot(p.kind, p.n, p.c, p.k, p.groups, p.axes, itemsize)


def _looped(problem: Problem) -> bool:
    # Too few channels a group for a GEMM's tile.
    few = (problem.c // problem.groups) * (problem.k // problem.groups) <= (64 if problem.groups > 1 else 4)
    return few and (problem.groups > 1 or problem.kind != "weight_grad")


def _width_and_depth(problem: Problem) -> tuple[int, int]:
    # Channels that a result and a sum have, of all groups.
    return (problem.c, problem.k) if problem.kind == "input_grad" else (problem.k, problem.c)
