"""Which kernel runs a problem, at what predicted cost, and why the others do not.

seconds = overhead of a call + floating-point operations / rate + bytes moved / copy rate

with rates that belong to the description of the device, so that measured ones can replace the defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from atrousops import _library, _plan_cuda, _plan_triton, geometry
from atrousops.devices import Device, Rates
from atrousops.geometry import Problem, product

# On a CPU, in the order in which they are considered and shown (_plan_cuda and _plan_triton have those of a GPU):
# aten       PyTorch's own kernel (oneDNN)
# regions    one gathered GEMM per live region
# phases     the same per residue of the written position: no multiplication by the zeros a stride inserts
# depthwise  a loop over taps, vectorised along channels or pixels
# grouped    the same for groups of few channels
KERNELS = ("aten", "regions", "phases", "depthwise", "grouped")
# Ours must be predicted this much faster than PyTorch's: predictions are not better than that.
MARGIN = 0.9
# A GEMM computes output channels in blocks of this many.
LANES = 16
# Elements of input times weight up to which a call is all overhead, and PyTorch's.
SMALL = 1 << 14
# Bytes of the columns of a weight gradient, and of rows of an image, that caches hold.
COLUMNS = 16 << 20
ROWS = 512 << 10
# Output channels below which oneDNN was slow to sum over positions that lie a multiple of so many bytes apart.
THIN_WIDTH, PAGE = 32, 4 << 10
# Bytes of scratch of one thread: gathered rows and a tile of results.
PANEL = 5 << 20
# Bytes that a kernel may allocate besides its result.
WORKSPACE_LIMIT = 1 << 31


class Candidate(NamedTuple):
    """A kernel that was considered: its predicted seconds (infinite if it is not legal), and why it does not run."""

    kernel: str
    seconds: float
    reason: str


class Plan(NamedTuple):
    """What runs, and why.

    seconds is predicted, for forward and backward together if gradients are wanted; dense_flops counts dead taps as
    done; live_share is the part of them that is not dead; bytes_floor is every tensor touched once; workspace is in
    bytes; tile, split_k, stages and shared_memory describe GPU kernels, and boxes how wgmma's launch is cut.
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
    tile: tuple[int, int, int] = (0, 0, 0)
    split_k: int = 1
    stages: int = 0
    shared_memory: int = 0
    boxes: _plan_cuda.Boxes | None = None


def plan(
    problem: Problem, device: Device, itemsize: int, *, needs_grad: bool = False, workspace_limit: int = WORKSPACE_LIMIT
) -> Plan:
    """The kernel that should run a problem, with every candidate and why it lost.

    Args:
        problem: from geometry.convolution or geometry.transposed.
        device: from device_of, cpu_device or gpu_device.
        itemsize: bytes of an element of the dtype.
        needs_grad: weigh forward and both gradients together.
        workspace_limit: bytes that a kernel may allocate besides its result.
    """
    if _library.planner is None or device.kind == "triton":
        return python_plan(problem, device, itemsize, needs_grad, workspace_limit)
    chosen = compiled_plan(problem, device, itemsize, needs_grad, workspace_limit)
    if chosen.kernel != "wgmma":
        return chosen
    boxes = _plan_cuda.boxes([problem], device, itemsize)
    return chosen._replace(boxes=boxes, tile=(boxes.rows, boxes.columns, boxes.depth), split_k=boxes.splits)


def compiled_plan(problem: Problem, device: Device, itemsize: int, needs_grad: bool, workspace_limit: int) -> Plan:
    """`plan` in C++."""
    assert _library.planner is not None
    p = problem
    plan = Plan(
        *_library.planner.plan(
            p.kind, p.n, p.c, p.k, p.groups, p.axes, *device[:4], itemsize, needs_grad, workspace_limit
        )
    )
    return plan._replace(candidates=tuple(Candidate(*c) for c in plan.candidates))


def python_plan(problem: Problem, device: Device, itemsize: int, needs_grad: bool, workspace_limit: int) -> Plan:
    """`plan` in plain Python."""
    candidates = consider(problem, device, itemsize, needs_grad, workspace_limit)
    winner = decide(candidates)
    chosen = candidates[winner]
    return Plan(
        kernel=chosen.kernel,
        reason=_reason(candidates, winner),
        seconds=chosen.seconds,
        live_share=geometry.live_share(problem),
        regions=geometry.region_count(problem),
        dense_flops=problem.dense_flops,
        bytes_floor=_bytes_floor(problem, itemsize),
        workspace=_workspace(chosen.kernel, problem, device, itemsize),
        candidates=tuple(_lost(c, chosen) for c in candidates),
    )


def call_problem(
    kind: str,
    input_size: tuple[int, ...],
    weight_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    output_padding: tuple[int, ...] = (),
) -> Problem:
    """The checked Problem of a call; arguments as for `plan_call`."""
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


def consider(
    problem: Problem, device: Device, itemsize: int, needs_grad: bool, workspace_limit: int
) -> list[Candidate]:
    """Every one of KERNELS with its predicted seconds, or why it is not legal."""
    candidates = []
    for name in {"cuda": _plan_cuda.KERNELS, "triton": _plan_triton.KERNELS}.get(device.kind, KERNELS):
        why_not = _illegal(name, problem, device, itemsize, workspace_limit)
        candidates.append(Candidate(name, inf if why_not else _predict(name, problem, device, itemsize), why_not))
    if needs_grad:
        other = "input_grad" if problem.kind == "forward" else "forward"
        for kind in (other, "weight_grad"):
            gradients = consider(problem.as_kind(kind), device, itemsize, False, workspace_limit)
            # Behind a forward pass of ours each gradient takes the fastest kernel; behind PyTorch's, PyTorch's.
            best = min([c.seconds for c in gradients])
            theirs = gradients[0].seconds
            candidates = [Candidate(n, s + (theirs if n == "aten" else best), r) for n, s, r in candidates]
    return candidates


def decide(candidates: Sequence[Candidate]) -> int:
    """Index of the kernel to run: the fastest, but PyTorch's unless ours is faster by more than the margin."""
    ours = _best_of_ours(candidates)
    return ours if candidates[ours].seconds < MARGIN * candidates[0].seconds else 0


def _best_of_ours(candidates: Sequence[Candidate]) -> int:
    best = 1
    for i in range(2, len(candidates)):
        if candidates[i].seconds < candidates[best].seconds:
            best = i
    return best


def _reason(candidates: Sequence[Candidate], winner: int) -> str:
    ours = candidates[_best_of_ours(candidates)]
    if ours.seconds == inf:
        return "aten: no kernel of ours applies"
    ratio = ours.seconds / candidates[0].seconds
    if winner == 0:
        return f"aten: {ours.kernel} would take {ratio:.2f} of its time, and must be under {MARGIN:.2f} to be trusted"
    return f"{ours.kernel}: takes {ratio:.2f} of the time of aten"


def _lost(candidate: Candidate, chosen: Candidate) -> Candidate:
    if candidate.reason or candidate.kernel == chosen.kernel:
        return candidate
    return candidate._replace(reason=f"{candidate.seconds / chosen.seconds:.2f} of the time of {chosen.kernel}")


def _illegal(kernel: str, problem: Problem, device: Device, itemsize: int, workspace_limit: int) -> str:
    # Why a kernel cannot run a problem; empty if it can.
    if kernel == "aten":
        return ""
    read = problem.output_elements if problem.kind == "input_grad" else problem.input_elements
    if read * problem.weight_elements <= SMALL:
        return "too small to repay the overhead of an operator"
    if _workspace(kernel, problem, device, itemsize) > workspace_limit:
        return "needs more workspace than the limit"
    if device.kind == "cuda":
        return _plan_cuda.illegal(kernel, problem, device, itemsize)
    if device.kind == "triton":
        return _plan_triton.illegal(kernel, problem)
    one_channel = problem.groups > 1 and problem.groups == problem.c
    if kernel == "depthwise":
        return "" if one_channel else "not one channel a group"
    if kernel == "grouped":
        return "" if problem.groups > 1 and not one_channel else "not several channels a group"
    if problem.groups > 1:
        return "more than one group"
    if kernel == "phases":
        return "" if _strided(problem) else "no input gradient or transposed convolution with a stride"
    return "a stride makes it a case for phases" if _strided(problem) else ""


def _predict(kernel: str, problem: Problem, device: Device, itemsize: int) -> float:
    # Seconds of a kernel on a problem that is legal for it.
    rates, threads = device.rates, device.threads
    axes = [geometry.axis_phases(problem.kind, a) for a in problem.axes]
    live = [geometry.live_pairs(x) / (float(a.output) * a.kernel) for x, a in zip(axes, problem.axes)]
    moved = _bytes_floor(problem, itemsize)
    flops = problem.dense_flops
    if kernel == "aten":
        for share in live[: _skipped_axes(problem, rates)]:
            flops *= share
        seconds = rates.aten_call + flops / (_aten_rate(problem, rates, itemsize) * threads) + moved / rates.copy
        return seconds + _repacking(problem, rates, threads, moved, itemsize)
    if device.kind == "cuda":
        return _plan_cuda.predict(kernel, problem, device, itemsize, moved)
    if device.kind == "triton":
        return _plan_triton.predict(kernel, problem, device, moved)
    flops *= live[0] * live[1] * live[2]
    if kernel in ("depthwise", "grouped"):
        rate = rates.depthwise if kernel == "depthwise" else rates.grouped
        return rates.our_call + flops / (rate * threads) + moved / rates.copy
    width, depth = _width_and_depth(problem)
    flops *= float((width + LANES - 1) // LANES * LANES) / max(width, 1)
    moved += float(problem.n) * depth * itemsize * product([geometry.gathered_pairs(x) for x in axes])
    overhead = rates.our_call + rates.our_region * geometry.region_count(problem)
    rate = rates.gemm
    if problem.kind == "weight_grad":
        rate = rates.gemm_weight
        flops *= float((depth + LANES - 1) // LANES * LANES) / max(depth, 1)
    moving = min(rates.pieces, rates.copy) if depth % LANES else rates.copy
    return overhead + flops / (rate * threads) + moved / moving


def _repacking(problem: Problem, rates: Rates, threads: int, moved: float, itemsize: int) -> float:
    # Seconds in which PyTorch brings an operand into the order that its kernel wants, where that counts.
    if problem.groups > 1:
        return moved / rates.tails if problem.groups == problem.c and problem.c % 8 else 0.0
    if _strided(problem):
        return float(problem.input_elements) * itemsize / rates.results
    if problem.kind != "weight_grad" or not _odd(problem):
        return 0.0
    image = float(problem.weight_elements // max(problem.k, 1)) * itemsize
    image *= product([a.output for a in problem.axes])
    at_once = min(problem.n, threads)
    return max(0.0, image * at_once - COLUMNS) * ((problem.n + threads - 1) // threads) / rates.columns


def _odd(problem: Problem) -> bool:
    # oneDNN's blocked kernels take whole blocks of 8 channels; the rest goes to a plainer loop.
    return bool(problem.c // problem.groups % 8 or problem.k // problem.groups % 8)


def _aten_rate(problem: Problem, rates: Rates, itemsize: int) -> float:
    forward, strided, odd = problem.kind == "forward", _strided(problem), _odd(problem)
    if problem.groups > 1 and odd:
        if problem.groups != problem.c:
            rate = rates.aten_grouped if forward else rates.aten_grouped_grad
            return min(rate, rates.aten_strided_grouped) if strided else rate
        if strided:
            return rates.aten_strided_grouped
        if _far_depthwise(problem, rates):
            return rates.aten_depthwise_far
        return rates.aten_depthwise if forward else rates.aten_depthwise_grad
    if strided:
        return rates.aten_strided_odd if odd else rates.aten_strided
    if problem.kind == "weight_grad":
        rate = rates.aten_weight_grad_odd if odd else rates.aten_weight_grad
        return min(rate, rates.aten_weight_grad_far) if _beyond_image(problem) else rate
    if all([a.kernel == 1 for a in problem.axes]):
        return rates.aten_pointwise
    far = any([a.kernel > 1 and a.dilation > rates.near for a in problem.axes])
    rate = rates.aten_far if far else rates.aten_two if _crowded(problem, itemsize) else rates.aten
    return min(rate, rates.aten_thin) if _thin(problem, itemsize) else rate


def _beyond_image(problem: Problem) -> bool:
    # Where the dilated kernel is larger than the image, oneDNN's weight gradients were slow and left nothing out.
    return any([a.dilation * (a.kernel - 1) >= a.input for a in problem.axes])


def _skipped_axes(problem: Problem, rates: Rates) -> int:
    # Along how many axes PyTorch leaves out the taps outside of the image.
    if problem.groups > 1:
        return 0
    if problem.kind == "weight_grad":
        return 0 if _beyond_image(problem) else int(rates.weight_skips)
    return int(rates.skips)


def _thin(problem: Problem, itemsize: int) -> bool:
    width, depth = _width_and_depth(problem)
    return problem.groups == 1 and width < THIN_WIDTH and depth * itemsize % PAGE == 0


def _width_and_depth(problem: Problem) -> tuple[int, int]:
    # Channels that a result and a sum have, of all groups.
    return (problem.c, problem.k) if problem.kind == "input_grad" else (problem.k, problem.c)


def _crowded(problem: Problem, itemsize: int) -> bool:
    # Dilation 2, and more rows under the filter than the L2 cache holds: oneDNN was slow there, and not at 1, 3, 4, 8.
    rows, columns = problem.axes[1:]
    width, channels = (columns.input, problem.c) if problem.kind == "forward" else (columns.output, problem.k)
    return rows.dilation == 2 and (2 * rows.kernel - 1) * width * channels * itemsize > ROWS


def _far_depthwise(problem: Problem, rates: Rates) -> bool:
    # oneDNN keeps little padding in registers, has no dilated gradients, and weight gradients of small filters only.
    if problem.kind == "forward":
        return problem.axes[-1].pad_lo > rates.near
    large = problem.kind == "weight_grad" and any([a.kernel > 3 for a in problem.axes])
    return large or any([a.kernel > 1 and a.dilation > 1 for a in problem.axes])


def _strided(problem: Problem) -> bool:
    return problem.kind == "input_grad" and any([a.stride > 1 for a in problem.axes])


def _bytes_floor(problem: Problem, itemsize: int) -> float:
    return float(problem.input_elements + problem.output_elements + problem.weight_elements) * itemsize


def _workspace(kernel: str, problem: Problem, device: Device, itemsize: int) -> int:
    # Bytes besides the result: weights in the kernel's own order, and gathered rows, a bounded panel per thread.
    if kernel == "aten":
        return 0
    weights = problem.weight_elements * itemsize
    return weights + device.threads * PANEL if kernel in ("regions", "phases") else weights
