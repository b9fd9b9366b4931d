"""The plan of a problem: its kernel, the predicted cost, and why the others lose. Python side of csrc/core/plan.h.

seconds = overhead of a call + floating-point operations / rate + bytes moved / copy rate

with the rates of the device (dispatch/devices.py). Without the compiled planner nothing is predicted, and PyTorch's
kernels run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from atrousops.dispatch import geometry, libraries
from atrousops.dispatch.devices import Device
from atrousops.dispatch.geometry import Problem

# Bytes that a kernel may allocate in addition to its result.
WORKSPACE_LIMIT = 1 << 31
_MISSING = "the compiled planner is missing"


class CallArguments(NamedTuple):
    """A call of a convolution, as input of a plan.

    kind: "forward", "transposed", "input_grad" or "weight_grad".
    input_size: (N, C, *), the size of the convolution's input, also for the gradients.
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
    """A candidate kernel: its predicted seconds (infinite if it cannot run), and why it was not chosen."""

    kernel: str
    seconds: float
    reason: str


class Boxes(NamedTuple):
    """The tiling of a launch of wgmma, and its predicted times.

    A tile is `size` positions along each axis of `images` images, at most `rows` positions, by `columns` channels.
    `tiles` includes the `splits` of a sum. `shared` is what the two blocks of a pair load for each other: "map",
    "weights" or "none". A step is `depth` channels (128 bytes) at one tap and takes `step` seconds; `steps` is the
    total of all tiles; `beside` is the time of a tile outside its steps; `finish` is the time of the busiest
    multiprocessor. dense_seconds: the time of the same tiling if no tap were dead.
    """

    size: tuple[int, int, int]
    images: int
    rows: int
    columns: int
    depth: int
    splits: int
    shared: str
    tiles: int
    steps: float
    step: float
    beside: float
    finish: float
    seconds: float
    dense_seconds: float

    def __str__(self) -> str:
        """The tiling as text."""
        box = "x".join(map(str, self.size))
        parts = f", sums in {self.splits} parts" if self.splits > 1 else ""
        what = f"{self.tiles} tiles of {self.rows}x{self.columns}: {box} positions of {self.images} images{parts}"
        return f"{what}; predicted {self.dense_seconds / self.seconds:.2f} times as fast as with every tap"


class Plan(NamedTuple):
    """The chosen kernel, and why.

    seconds is the prediction, for forward and backward together if gradients are needed, or 0 without a prediction;
    dense_flops includes dead taps; live_share is the share of live taps; bytes_floor counts every tensor once;
    workspace is in bytes; boxes is the tiling of wgmma, empty for a weight gradient.
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
    """The plan of a context module: whether it runs as one launch, and why.

    cluster: blocks that share an image, 0 if the layers run one by one; rows: rows per block; shared_memory: bytes per
    block; seconds: prediction for the single launch; by_layers: prediction for separate layers and the operations
    between them.
    """

    cluster: int
    rows: int
    shared_memory: int
    seconds: float
    by_layers: float
    reason: str

    @property
    def kernel(self) -> str:
        """The name that explain() shows."""
        return "context_module" if self.cluster else "layers"


def kernels(kind: str) -> tuple[str, ...]:
    """The candidate kernels on a kind of device, PyTorch's first, in the order of display."""
    return ("aten",) if libraries.planner is None else tuple(libraries.planner.kernels(kind))


def plan(
    problem: Problem, device: Device, itemsize: int, *, needs_grad: bool = False, workspace_limit: int = WORKSPACE_LIMIT
) -> Plan:
    """The kernel that should run a problem, with every candidate and why it was not chosen.

    Args:
        problem: from geometry.convolution or geometry.transposed.
        device: from devices.device_of, devices.cpu or devices.gpu.
        itemsize: bytes per element of the dtype.
        needs_grad: weigh forward and both gradients together.
        workspace_limit: bytes that a kernel may allocate in addition to its result.
    """
    assert libraries.planner is not None
    found: Plan = libraries.planner.plan(*_fields(problem), device._asdict(), itemsize, needs_grad, workspace_limit)
    return found


def runnable(problem: Problem, device: Device, itemsize: int) -> list[Candidate]:
    """Our kernels that can run a problem: the planned one, then its fallbacks in order.

    Their seconds are for the forward pass or one gradient only.
    """
    if libraries.planner is None:
        return []
    found: list[Candidate] = libraries.planner.runnable(*_fields(problem), device._asdict(), itemsize)
    return found


def is_trusted(ours: float, aten: float) -> bool:
    """Whether a kernel of ours is predicted to be faster than PyTorch's by more than the margin."""
    assert libraries.planner is not None
    return ours < float(libraries.planner.MARGIN) * aten


def unplanned(problems: Sequence[Problem], itemsize: int, kernel: str = "aten") -> Plan:
    """The plan without the compiled planner: PyTorch's kernels, without predictions."""
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
    """Convolutions of one map: the kernel is "conv_branches" for one launch, "branches" for separate convolutions.

    Compares the tile model's time for one launch with the sum of the planner's time of each convolution, a launch for
    each ReLU, and the concatenation, including `others` appended channels.
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
    """A context module of (N, C, H, W), with each layer's dilation, or 0 for a 1x1 kernel.

    gpu: multiprocessors, bytes of shared memory per block, capability; by_layers: returns the seconds of separate
    layers; called only if one launch is possible.
    """
    if libraries.planner is None:
        return ContextPlan(0, 0, 0, 0.0, 0.0, f"layers: {_MISSING}")
    found: ContextPlan = libraries.planner.plan_context(*size, list(reach), itemsize, *gpu, by_layers)
    return found


def boxes(problems: Sequence[Problem], device: Device, itemsize: int) -> Boxes:
    """The tiling of one launch of wgmma; its problems have the same map and channels."""
    assert libraries.planner is not None
    fields = [_fields(p) for p in problems]
    found: Boxes = libraries.planner.plan_boxes(fields, itemsize, device.multiprocessors, device.rates["wgmma"])
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
