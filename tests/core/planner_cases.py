"""Problems for the planner, and machines to plan for."""

import torch

from atrousops import devices, planner
from atrousops.devices import Device

FLOAT, HALF = torch.float32, torch.bfloat16


def machine(isa, dtype, channels_last, amx=False):
    return Device("cpu", 2, devices.default_rates(isa, amx, dtype, channels_last))


def conv(c, k, size, kernel, dilation, groups=1, stride=1, n=1, kind="forward"):
    pad = dilation * (kernel - 1) // 2
    pairs = [(v, v) for v in (stride, pad, dilation)]
    return planner.call_problem(kind, (n, c, size, size), (k, c // groups, kernel, kernel), *pairs, groups)


def transposed(c, k, size, kernel, stride, pad, groups=1, n=1):
    pairs = [(v, v) for v in (stride, pad, 1)]
    return planner.call_problem("transposed", (n, c, size, size), (c, k // groups, kernel, kernel), *pairs, groups)


ASPP = conv(2048, 256, 33, 3, 18)
