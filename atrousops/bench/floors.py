"""The least that a call must move and compute, and how long a machine of known ceilings needs for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from atrousops.dispatch import geometry, planner
from atrousops.dispatch.geometry import Problem, product

# The products of which a direction consists; the names are the planner's kinds.
PROBLEMS = {
    "forward": ("forward",),
    "input_grad": ("input_grad",),
    "weight_grad": ("weight_grad",),
    "backward": ("input_grad", "weight_grad"),
    "training": ("forward", "input_grad", "weight_grad"),
}


@dataclass(frozen=True)
class Floor:
    """bytes: every tensor touched once; flops: dense, taps in the padding counted; live_share: those outside it."""

    bytes: float
    flops: float = 0.0
    live_share: float = 1.0

    def seconds(self, copy: float, peak: float) -> float:
        """The larger of the times to move the bytes and to compute the live part, at bytes/s and FLOP/s."""
        return max(self.bytes / copy, self.flops * self.live_share / peak if self.flops else 0.0)


def conv_problem(transposed: bool, input: Sequence[int], weight: Sequence[int], options: dict[str, Any]) -> Problem:
    """The geometry of a call of convNd or conv_transposeNd, as its forward pass."""
    rank = len(input) - 2

    def per_axis(name: str, default: int) -> tuple[int, ...]:
        value = options.get(name, default)
        return (value,) * rank if isinstance(value, int) else tuple(value)

    call = planner.CallArguments(
        "transposed" if transposed else "forward",
        tuple(input),
        tuple(weight),
        per_axis("stride", 1),
        per_axis("padding", 0),
        per_axis("dilation", 1),
        options.get("groups", 1),
        per_axis("output_padding", 0) if transposed else (),
    )
    return planner.call_problem(call)


def conv_floor(problem: Problem, direction: str, itemsize: int) -> Floor:
    """The floor of one direction of a convolution; each of its products reads two tensors and writes the third."""
    count = len(PROBLEMS[direction])
    elements = problem.input_elements + problem.output_elements + problem.weight_elements
    return Floor(float(count * elements * itemsize), count * problem.dense_flops, geometry.live_share(problem))


def gemm_shape(problem: Problem, direction: str) -> tuple[int, int, int] | None:
    """M, N, K of the one matrix product with as many multiplications; None for groups, or several products."""
    if problem.groups != 1 or len(PROBLEMS[direction]) != 1:
        return None
    taps = product(axis.kernel for axis in problem.axes)
    written = problem.n * product(axis.output for axis in problem.axes)
    # A transposed convolution is the input gradient of the convolution that its problem describes.
    kind = problem.kind if direction == "forward" else direction
    if problem.kind == "input_grad" and direction == "input_grad":
        kind = "forward"
    if kind == "forward":
        return written, problem.k, problem.c * taps
    if kind == "weight_grad":
        return problem.k, problem.c * taps, written
    return written, problem.c * taps, problem.k


def bytes_of(tensors: Iterable[Tensor]) -> float:
    """Bytes of some tensors."""
    return float(sum(t.numel() * t.element_size() for t in tensors))
