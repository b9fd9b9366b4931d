"""Whether a context module runs as one launch, and why not; the plan itself is csrc/core/context.h's."""

from __future__ import annotations

from typing import NamedTuple

import torch

from atrousops import _library, choice, devices
from atrousops.devices import constant_in_graphs
from atrousops.planner import MARGIN


class ContextPlan(NamedTuple):
    """One launch or not, and why.

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


def plan_context(
    size: tuple[int, int, int, int],
    dilation: tuple[int, ...],
    kernel_sizes: tuple[int, ...],
    dtype: torch.dtype,
    channels_last: bool,
    gpu: tuple[int, int, int] | None = None,
) -> ContextPlan:
    """The plan for (N, C, H, W) and layers of C channels, their dilations and kernel sizes 1 or 3.

    `gpu`: multiprocessors, bytes of shared memory of a block, capability; this machine's if None, an H100's where there
    is none.
    """
    if _library.planner is None:
        return ContextPlan(0, 0, 0, 0.0, 0.0, "layers: the compiled planner is missing")
    if gpu is None:
        gpu = devices.gpu_device(dtype, channels_last)[3:]
    n, c, h, w = size
    reach = [d if k == 3 else 0 for d, k in zip(dilation, kernel_sizes)]
    cluster, rows, shared, seconds, why_not = _library.planner.context_plan(n, c, h, w, reach, dtype.itemsize, *gpu)
    if not cluster:
        return ContextPlan(0, rows, shared, 0.0, 0.0, f"layers: one launch {why_not}")
    by_layers = _by_layers(size, dilation, kernel_sizes, dtype, channels_last)
    ratio = seconds / by_layers
    if ratio >= MARGIN:
        reason = f"layers: one launch would take {ratio:.2f} of their time, and must be under {MARGIN:.2f}"
        return ContextPlan(0, rows, shared, seconds, by_layers, reason)
    reason = f"one launch: {cluster} blocks an image, {rows} rows each; predicted {ratio:.2f} of the layers' time"
    return ContextPlan(cluster, rows, shared, seconds, by_layers, reason)


def _by_layers(size, dilation, kernel_sizes, dtype, channels_last) -> float:
    seconds = 0.0
    rates = devices.gpu_device(dtype, channels_last).rates
    moved = 2.0 * dtype.itemsize
    for extent in size:
        moved *= extent
    for d, k in zip(dilation, kernel_sizes):
        weight, reach = (size[1], size[1], k, k), (d * (k // 2),) * 2
        args = ("forward", size, weight, (1, 1), reach, (d, d), 1, dtype, channels_last)
        # And max(., 0), which is a launch of its own.
        seconds += choice.plan_call(*args, device="cuda").seconds + rates.aten_call + moved / rates.copy
    return seconds


@constant_in_graphs
def one_launch(size: tuple, dilation: tuple, kernel_sizes: tuple, dtype: torch.dtype, channels_last: bool) -> bool:
    """Whether the plan is for one launch; answers are kept."""
    key = (size, dilation, kernel_sizes, dtype, channels_last)
    answer = _answers.get(key)
    if answer is None:
        if len(_answers) >= 4096:
            _answers.clear()
        answer = _answers[key] = plan_context(*key).cluster > 0
    return answer


_answers: dict[tuple, bool] = {}
