"""Problems for the planner, and machines to plan for."""

import csv
from collections import namedtuple
from pathlib import Path

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


Timed = namedtuple("Timed", "problem dtype channels_last aten ours")


def timed(file):
    """Calls of square maps and kernels from a file here, each with milliseconds of PyTorch's kernel and of ours.

    direction: of the layer `op`, "conv" or "transposed": "forward", "input_grad" or "weight_grad".
    """
    with (Path(__file__).parent / file).open(newline="") as rows:
        return [_timed(row) for row in csv.DictReader(rows)]


def _timed(row):
    n, c, k, size, kernel, groups = (int(row[field]) for field in ("n", "c", "k", "size", "kernel", "groups"))
    stride, pad, dilation, output_padding = (
        (int(row[field]),) * 2 for field in ("stride", "pad", "dilation", "output_padding")
    )
    kind = row["direction"]
    if row["op"] == "transposed":
        weight = (c, k // groups, kernel, kernel)
        kind = {"forward": "input_grad", "input_grad": "forward"}.get(kind, kind)
    else:
        weight = (k, c // groups, kernel, kernel)
    op = "forward" if row["op"] == "conv" else "transposed"
    call = CallArguments(op, (n, c, size, size), weight, stride, pad, dilation, groups, output_padding)
    problem = call_problem(call)
    problem = problem if problem.kind == kind else problem.as_kind(kind)
    return Timed(
        problem, getattr(torch, row["dtype"]), row["channels_last"] == "1", float(row["aten"]), float(row["ours"])
    )
