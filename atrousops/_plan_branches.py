"""Whether convolutions of one map run as one launch, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch

from atrousops import _library, _plan_cuda, devices, planner
from atrousops.devices import Device, constant_in_graphs
from atrousops.geometry import Problem
from atrousops.planner import MARGIN, Candidate, Plan

# Convolutions of one launch; csrc/cuda/conv_wgmma.h's.
MOST = 6


def plan_branches(
    size: tuple[int, int, int, int],
    weight_sizes: Sequence[tuple[int, ...]],
    padding: Sequence[tuple[int, ...]],
    dilation: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    channels_last: bool,
    relu: bool,
    others: int = 0,
    device: Device | None = None,
) -> Plan:
    """The plan of `conv_branches`: its kernel is "conv_branches" for one launch, "branches" for one by one.

    The tile model's time of all tiles of one launch stands against the planner's of each convolution, a launch for each
    ReLU, and the concatenation.

    Args:
        size: (N, C, H, W) of the input; weight_sizes: (K, C, *kernel) of each; others: channels that follow.
        device: from device_of or gpu_device; this machine's GPU if None, an H100 where there is none.
    """
    device = device or devices.gpu_device(dtype, channels_last)
    around = zip(weight_sizes, padding, dilation)
    problems = [planner.call_problem("forward", size, w, (1,) * len(p), p, d, 1) for w, p, d in around]
    each = [planner.plan(problem, device, dtype.itemsize) for problem in problems]
    written = float(sum([p.output_elements for p in problems])) * dtype.itemsize
    moved = sum([p.bytes_floor for p in each]) - (len(each) - 1.0) * problems[0].input_elements * dtype.itemsize
    beside = written / sum([p.k for p in problems]) * others
    rates = device.rates
    apart = sum([p.seconds for p in each]) + (relu * len(each) + 1) * rates.aten_call
    apart += 2 * (relu * written + written + beside) / rates.copy
    why_not, boxes, one = _why_not(problems, device, dtype.itemsize), None, inf
    if not why_not:
        boxes = _plan_cuda.boxes(problems, device, dtype.itemsize)
        one = rates.our_call + boxes.seconds + moved / rates.copy
        one += (others > 0) * rates.aten_call + 2 * beside / rates.copy
        if not channels_last:
            read = float(problems[0].input_elements) * dtype.itemsize
            one += 2 * rates.aten_call + 2 * (read + written + beside) / rates.copy
        why_not = _slower(one / apart)
    reason = f"branch by branch: {why_not}"
    if not why_not:
        reason = f"one launch of {len(each)} convolutions: predicted {one / apart:.2f} of their time one by one"
    flops = sum([p.dense_flops for p in each])
    return Plan(
        kernel="branches" if why_not else "conv_branches",
        reason=reason,
        seconds=apart if why_not else one,
        live_share=sum([p.dense_flops * p.live_share for p in each]) / flops if flops else 1.0,
        regions=sum([p.regions for p in each]),
        dense_flops=flops,
        bytes_floor=moved,
        workspace=max([p.workspace for p in each]),
        candidates=(Candidate("branches", apart, ""), Candidate("conv_branches", one, why_not)),
        boxes=None if why_not else boxes,
    )


def _why_not(problems: Sequence[Problem], device: Device, itemsize: int) -> str:
    if device.kind != "cuda" or _library.planner is None:
        return "one launch is for GPUs of compute capability 9.0, by the compiled planner"
    if not 2 <= len(problems) <= MOST:
        return f"one launch takes 2 to {MOST} convolutions"
    if len({p.k for p in problems}) > 1:
        return "one launch takes convolutions to equally many channels"
    reasons = [_plan_cuda.illegal("wgmma", p, device, itemsize) for p in problems]
    return next((r for r in reasons if r), "")


def _slower(ratio: float) -> str:
    if ratio < MARGIN:
        return ""
    return f"one launch would take {ratio:.2f} of their time, and must be under {MARGIN:.2f} to be trusted"


@constant_in_graphs
def why_apart(
    size: tuple,
    weights: tuple,
    padding: tuple,
    dilation: tuple,
    dtype: torch.dtype,
    nhwc: bool,
    relu: bool,
    others: int,
) -> str:
    """Why the plan is not for one launch, or nothing; answers are kept."""
    key = (size, weights, padding, dilation, dtype, nhwc, relu, others, devices.tf32_allowed())
    answer = _answers.get(key)
    if answer is None:
        if len(_answers) >= 4096:
            _answers.clear()
        plan = plan_branches(*key[:-1])
        answer = _answers[key] = plan.candidates[1].reason
    return answer


_answers: dict[tuple, str] = {}
