"""Which kernel runs a problem, at what predicted cost, and why the others do not: csrc/core/plan.h's answers, shown.

seconds = overhead of a call + floating-point operations / rate + bytes moved / copy rate

with the rates of the device (dispatch/devices.py). Where the compiled planner is missing nothing is predicted, and
PyTorch's kernels run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from atrousops.dispatch import geometry, libraries
from atrousops.dispatch.devices import Device
from atrousops.dispatch.geometry import Problem

# Bytes that a kernel may allocate besides its result.
WORKSPACE_LIMIT = 1 << 31
_MISSING = "the compiled planner is missing"


class CallArguments(NamedTuple):
    """A call of a convolution, as a plan is asked for.

    kind: "forward", "transposed", "input_grad" or "weight_grad".
    input_size: (N, C, *), for the gradients too: the size of what the convolution reads.
    weight_size: (K, C / groups, *); (C, K / groups, *) for "transposed".
    stride, padding, dilation, output_padding: one entry per spatial axis; `padding` may have two, all the low sides and
    then all the high ones.
    """

    kind: str
    input_size: tuple[int, ...]
    weight_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    output_padding: tuple[int, ...] = ()


class Candidate(NamedTuple):
    """A kernel that was considered: its predicted seconds (infinite if it is not legal), and why it does not run."""

    kernel: str
    seconds: float
    reason: str


class Boxes(NamedTuple):
    """How a launch of wgmma is cut, and what is predicted of it.

    A tile is `size` positions along each axis of `images` images, at most `rows` of them, by `columns` channels; tiles
    count their `splits`, the parts of a sum. A step is `depth` channels, 128 bytes, at one tap, and takes `step`
    seconds; `steps` are those of all tiles, `beside` what each tile takes beside its own; `finish` is both, of the
    busiest multiprocessor. dense_seconds: the same tile, were no tap dead.
    """

    size: tuple[int, int, int]
    images: int
    rows: int
    columns: int
    depth: int
    splits: int
    tiles: int
    steps: float
    step: float
    beside: float
    finish: float
    seconds: float
    dense_seconds: float

    def __str__(self) -> str:
        """For people to read."""
        box = "x".join(map(str, self.size))
        parts = f", sums in {self.splits} parts" if self.splits > 1 else ""
        what = f"{self.tiles} tiles of {self.rows}x{self.columns}: {box} positions of {self.images} images{parts}"
        return f"{what}; predicted {self.dense_seconds / self.seconds:.2f} times as fast as with every tap"


class Plan(NamedTuple):
    """What runs, and why.

    seconds is predicted, for forward and backward together if gradients are wanted, and 0 where nothing is;
    dense_flops counts dead taps as done; live_share is the part of them that is not dead; bytes_floor is every tensor
    touched once; workspace is in bytes; boxes is how wgmma's launch is cut, of a weight gradient's nothing.
    """

    kernel: str
    reason: str
    seconds: float
    live_share: float
    regions: int
    dense_flops: float
    bytes_floor: float
    workspace: int
    candidates: tuple[Candidate, ...]
    boxes: Boxes | None = None


class ContextPlan(NamedTuple):
    """Whether a context module runs as one launch, and why.

    cluster: blocks that share an image, 0 where the layers run one by one; rows: of a block; shared_memory: bytes of a
    block; seconds: predicted of the one launch, by_layers: of the layers with what stands between them.
    """

    cluster: int
    rows: int
    shared_memory: int
    seconds: float
    by_layers: float
    reason: str

    @property
    def kernel(self) -> str:
        """What explain() calls it."""
        return "context_module" if self.cluster else "layers"


def kernels(kind: str) -> tuple[str, ...]:
    """The kernels that are considered on a device of a kind, PyTorch's first, in the order in which they are shown."""
    return ("aten",) if libraries.planner is None else tuple(libraries.planner.kernels(kind))


def plan(
    problem: Problem, device: Device, itemsize: int, *, needs_grad: bool = False, workspace_limit: int = WORKSPACE_LIMIT
) -> Plan:
    """The kernel that should run a problem, with every candidate and why it lost.

    Args:
        problem: from geometry.convolution or geometry.transposed.
        device: from devices.device_of, devices.cpu or devices.gpu.
        itemsize: bytes of an element of the dtype.
        needs_grad: weigh forward and both gradients together.
        workspace_limit: bytes that a kernel may allocate besides its result.
    """
    assert libraries.planner is not None
    found: Plan = libraries.planner.plan(*_fields(problem), device._asdict(), itemsize, needs_grad, workspace_limit)
    return found


def runnable(problem: Problem, device: Device, itemsize: int) -> list[Candidate]:
    """The kernels of ours that can run a problem: that of its plan, and those that take its place, in this order.

    Their seconds are of the forward pass, or of one gradient, alone.
    """
    if libraries.planner is None:
        return []
    found: list[Candidate] = libraries.planner.runnable(*_fields(problem), device._asdict(), itemsize)
    return found


def is_trusted(ours: float, aten: float) -> bool:
    """Whether a kernel of ours is predicted to be so much faster than PyTorch's that it is to run."""
    assert libraries.planner is not None
    return ours < float(libraries.planner.MARGIN) * aten


def unplanned(problems: Sequence[Problem], itemsize: int, kernel: str = "aten") -> Plan:
    """What runs where the compiled planner is missing: PyTorch's kernels, of which nothing is predicted."""
    flops = sum([p.dense_flops for p in problems])
    live = sum([p.dense_flops * geometry.live_share(p) for p in problems])
    moved = sum([p.input_elements + p.output_elements + p.weight_elements for p in problems])
    return Plan(
        kernel=kernel,
        reason=f"{kernel}: {_MISSING}",
        seconds=0.0,
        live_share=live / flops if flops else 1.0,
        regions=sum([len(geometry.regions(p)) for p in problems]),
        dense_flops=flops,
        bytes_floor=float(moved - (len(problems) - 1) * problems[0].input_elements) * itemsize,
        workspace=0,
        candidates=(Candidate(kernel, 0.0, ""),),
    )


def plan_branches(
    problems: Sequence[Problem], device: Device, itemsize: int, channels_last: bool, relu: bool, others: int = 0
) -> Plan:
    """Convolutions of one map: the kernel is "conv_branches" for one launch, "branches" for one by one.

    The tile model's time of all tiles of one launch stands against the planner's of each convolution, a launch for each
    ReLU, and the concatenation, with `others` channels that follow.
    """
    assert libraries.planner is not None
    fields = [_fields(p) for p in problems]
    found: Plan = libraries.planner.plan_branches(fields, device._asdict(), itemsize, channels_last, relu, others)
    return found


def plan_context(
    size: tuple[int, int, int, int],
    reach: Sequence[int],
    itemsize: int,
    gpu: tuple[int, int, int],
    by_layers: Callable[[], float],
) -> ContextPlan:
    """A context module of (N, C, H, W), with each layer's dilation, or 0 for a kernel of one position.

    gpu: multiprocessors, bytes of shared memory of a block, capability; by_layers: gives the layers' seconds, which are
    asked for where one launch is possible.
    """
    if libraries.planner is None:
        return ContextPlan(0, 0, 0, 0.0, 0.0, f"layers: {_MISSING}")
    found: ContextPlan = libraries.planner.plan_context(*size, list(reach), itemsize, *gpu, by_layers)
    return found


def boxes(problems: Sequence[Problem], device: Device, itemsize: int) -> Boxes:
    """The boxes of one launch of wgmma; its problems have the same map and channels."""
    assert libraries.planner is not None
    fields = [_fields(p) for p in problems]
    found: Boxes = libraries.planner.plan_boxes(fields, itemsize, device.multiprocessors, device.rates["wgmma"])
    return found


def in_pairs(problem: Problem, columns: int) -> bool:
    """Whether wgmma's tiles of so many columns come in pairs, whose blocks share what they read of the map."""
    assert libraries.planner is not None
    found: bool = libraries.planner.in_pairs(*_fields(problem), columns)
    return found


def call_problem(call: CallArguments) -> Problem:
    """The checked Problem of a call."""
    kind, input_size, weight_size, stride, padding, dilation, groups, output_padding = call
    rank = len(input_size) - 2
    pad_lo, pad_hi = padding[:rank], padding[-rank:]
    n, channels, *size = input_size
    if kind != "transposed":
        k, kernel = weight_size[0], weight_size[2:]
        return geometry.convolution(
            n, channels, k, size, kernel, stride, dilation, pad_lo, pad_hi, groups=groups, kind=kind
        )
    c, kernel = weight_size[1] * groups, weight_size[2:]
    extra = output_padding or (0,) * rank
    return geometry.transposed(n, channels, c, size, kernel, stride, dilation, pad_lo, pad_hi, extra, groups=groups)


def _fields(problem: Problem) -> tuple:
    return problem.kind, problem.n, problem.c, problem.k, problem.groups, problem.axes
