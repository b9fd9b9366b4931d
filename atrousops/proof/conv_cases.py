"""Convolutions, sorted by the kernel that the planner names for each on a device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from atrousops.dispatch import devices, libraries, planner, verdicts
from atrousops.dispatch.planner import CallArguments
from atrousops.dispatch.verdicts import TimedCall
from atrousops.proof import convolutions
from atrousops.proof.cases import Case, Family, Make, name_of

DOUBLE, FLOAT, BF16, HALF = torch.float64, torch.float32, torch.bfloat16, torch.float16
KINDS = ("forward", "input_grad", "weight_grad", "transposed")


class Numbers(NamedTuple):
    """How a case counts: the dtype, the layout, whether fp32 is TF32, and the elements off alignment."""

    dtype: torch.dtype
    channels_last: bool = True
    tf32: bool = False
    offset: int = 0


class Shape(NamedTuple):
    """A convolution of c to k channels, with a reason; the same along all axes."""

    why: str
    n: int
    c: int
    k: int
    size: tuple[int, ...]
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    groups: int = 1

    def arguments(self, kind: str) -> CallArguments:
        """As the planner is asked; transposed from c to k channels too."""
        axes = len(self.size)
        first, second = (self.c, self.k) if kind == "transposed" else (self.k, self.c)
        weight = (first, second // self.groups, *(self.kernel,) * axes)
        extra = (0,) * axes if kind == "transposed" else ()
        stride, padding, dilation = [(step,) * axes for step in (self.stride, self.padding, self.dilation)]
        size = (self.n, self.c, *self.size)
        return CallArguments(kind, size, weight, stride, padding, dilation, self.groups, extra)


_ALL = tuple(
    Numbers(dtype, last, tf32)
    for dtype, tf32 in ((BF16, False), (HALF, False), (FLOAT, False), (FLOAT, True), (DOUBLE, False))
    for last in (True, False)
)
_MAIN = tuple(Numbers(dtype) for dtype in (BF16, FLOAT, DOUBLE))
_STRIDED = (Numbers(BF16), Numbers(HALF), Numbers(FLOAT, tf32=True))
_OFF = tuple(Numbers(dtype, offset=1) for dtype in (BF16, FLOAT))
SHAPES: tuple[tuple[Shape, tuple[Numbers, ...]], ...] = (
    (Shape("whole tiles of channels, rate 2", 2, 64, 128, (8, 9), padding=2, dilation=2), _ALL + _OFF),
    (Shape("most taps dead", 2, 64, 64, (17, 19), padding=12, dilation=12), (*_MAIN, Numbers(FLOAT, tf32=True))),
    (Shape("no whole tile of channels", 2, 24, 40, (9, 8)), _MAIN + _OFF),
    (Shape("an image's three channels, stride 2", 2, 3, 64, (13, 9), stride=2), _MAIN),
    (Shape("stride 2, odd sizes", 2, 64, 96, (15, 17), stride=2), _MAIN),
    (Shape("stride 3, read from 6 before the edge on", 2, 64, 96, (20, 23), stride=3, padding=6, dilation=5), _STRIDED),
    (Shape("stride 8, the most that TMA steps over", 2, 64, 96, (61, 57), stride=8, padding=3, dilation=2), _STRIDED),
    (Shape("1x1", 2, 64, 64, (9, 8), kernel=1, padding=0), _MAIN),
    (Shape("one channel a group, rate 2", 2, 64, 64, (9, 8), padding=2, dilation=2, groups=64), _ALL + _OFF),
    (Shape("one channel a group, odd, stride 2", 2, 37, 37, (11, 12), stride=2, groups=37), _MAIN),
    (Shape("groups of four", 2, 32, 32, (9, 8), groups=8), _ALL),
    (Shape("one axis", 2, 64, 64, (129,), padding=4, dilation=4), _MAIN),
    (Shape("three axes", 1, 32, 64, (5, 6, 7)), _MAIN),
)
# Many blocks: what a small call cannot show.
LARGER: tuple[tuple[Shape, tuple[Numbers, ...]], ...] = (
    (Shape("many blocks", 2, 64, 96, (65, 63), padding=6, dilation=6), (Numbers(BF16), Numbers(FLOAT, False))),
    (Shape("many blocks", 2, 64, 96, (65, 63), stride=2, padding=4, dilation=4), (Numbers(BF16),)),
    (Shape("many blocks", 1, 24, 40, (65, 63)), (Numbers(BF16), Numbers(DOUBLE, False))),
    (
        Shape("many blocks", 2, 96, 96, (65, 63), padding=2, dilation=2, groups=96),
        (Numbers(BF16), Numbers(FLOAT, False)),
    ),
    (Shape("many blocks", 2, 64, 64, (65, 63), groups=16), (Numbers(BF16),)),
)
_TENSOR_CORES = (Numbers(BF16), Numbers(FLOAT), Numbers(FLOAT, tf32=True))
# What plans take rates from (dispatch/fitted.py): with dilation PyTorch may run other kernels than without.
TIMED: tuple[tuple[Shape, tuple[Numbers, ...]], ...] = (
    (Shape("", 4, 256, 256, (65, 65), padding=12, dilation=12), (*_TENSOR_CORES, Numbers(DOUBLE))),
    (Shape("", 4, 256, 256, (65, 65)), _TENSOR_CORES),
    (Shape("", 8, 728, 728, (33, 33), padding=2, dilation=2, groups=728), (Numbers(BF16),)),
    (Shape("", 4, 128, 128, (65, 65), groups=32), (Numbers(BF16),)),
    (Shape("", 4, 256, 256, (65, 65), stride=2), (Numbers(BF16), Numbers(FLOAT, tf32=True))),
)


# Of a family: both precisions of a kernel, with dilation and without.
_MOST_TIMED = 4


def families(backend: str, device: str) -> dict[str, Family]:
    """Those of convolutions; without the compiled planner there is none, and PyTorch's kernels run."""
    if libraries.planner is None:
        return {}
    cases: dict[str, list[Case]] = {}
    larger: dict[str, list[Case]] = {}
    timed: dict[str, list[Case]] = {}
    for shapes, found in ((SHAPES, cases), (LARGER, larger), (TIMED, timed)):
        for shape, kind, numbers in _calls(shapes, backend):
            name = planned(shape.arguments(kind), numbers, backend, device)
            if name:
                family = verdicts.family_of(shape.arguments(kind), name)
                found.setdefault(family, []).append(_case(shape, kind, numbers))
    return {n: Family(tuple(cases[n]), tuple(larger.get(n, ())), tuple(timed.get(n, ())[:_MOST_TIMED])) for n in cases}


def _calls(shapes, backend: str) -> Iterator[tuple[Shape, str, Numbers]]:
    for kind in KINDS:
        for shape, all_numbers in shapes:
            for numbers in all_numbers:
                # Triton compiles every new dtype and layout while one waits.
                usual = numbers.dtype != HALF and not numbers.offset and (numbers.channels_last or numbers.tf32)
                if (usual or backend != "triton") and not (numbers.tf32 and backend == "cpu"):
                    yield shape, kind, numbers


def planned(a: CallArguments, numbers: Numbers, backend: str, device: str) -> str:
    """The kernel of ours that would run a call on a device, if any."""
    assert libraries.planner is not None
    dtype, last = numbers.dtype, numbers.channels_last
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=numbers.tf32):
        if backend == "cpu":
            machine = devices.cpu_device(dtype, last)
        else:
            machine = devices.gpu_device(dtype, last, device)._replace(kind=backend)
    plan = planner.plan(planner.call_problem(a), machine, dtype.itemsize)
    ours = [c for c in plan.candidates[1:] if c.seconds < inf]
    return min(ours, key=lambda c: c.seconds).kernel if ours else ""


def _case(shape: Shape, kind: str, numbers: Numbers) -> Case:
    a = shape.arguments(kind)

    def make(tensor: Make) -> list[Tensor]:
        return list(convolutions.operands(a, tensor))

    sizes = f"{shape.n}x{shape.c}x{'x'.join(map(str, shape.size))} -> {shape.k}"
    steps = f"kernel {shape.kernel}, stride {shape.stride}, rate {shape.dilation}, {shape.groups} groups"
    layout = "channels_last" if numbers.channels_last else "contiguous"
    off = ", off alignment" if numbers.offset else ""
    why = f" ({shape.why})" if shape.why else ""
    return Case(
        f"{kind} {sizes}, {steps}, {name_of(numbers.dtype, numbers.tf32)}, {layout}{off}{why}",
        make,
        partial(convolutions.ours, a, tf32=numbers.tf32),
        partial(convolutions.aten, a),
        *numbers[:2],
        offset=numbers.offset,
        tf32=numbers.tf32,
        call=TimedCall(
            a, devices.precision_of(numbers.dtype, numbers.tf32), numbers.channels_last, numbers.dtype.itemsize
        ),
    )
