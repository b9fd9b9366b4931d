"""Problems for the planner, and machines to plan for."""

import torch

from atrousops.dispatch import devices
from atrousops.dispatch.planner import CallArguments, call_problem

FLOAT, HALF = torch.float32, torch.bfloat16


def machine(name, dtype, channels_last):
    """Two threads of a CPU of atrousops/dispatch/machines."""
    return devices.cpu(name, dtype, channels_last, 2)


def conv(c, k, size, kernel, dilation, groups=1, stride=1, n=1, kind="forward"):
    pad = dilation * (kernel - 1) // 2
    pairs = [(v, v) for v in (stride, pad, dilation)]
    return call_problem(CallArguments(kind, (n, c, size, size), (k, c // groups, kernel, kernel), *pairs, groups))


def transposed(c, k, size, kernel, stride, pad, groups=1, n=1):
    pairs = [(v, v) for v in (stride, pad, 1)]
    return call_problem(
        CallArguments("transposed", (n, c, size, size), (c, k // groups, kernel, kernel), *pairs, groups)
    )


ASPP = conv(2048, 256, 33, 3, 18)
