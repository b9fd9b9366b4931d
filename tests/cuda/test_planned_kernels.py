"""The kernel of ours that the planner names for a call is the one that csrc/cuda starts, unless tensors forbid it."""

import math
import re

import host_cuda
import pytest
import torch
from test_conv_mma import Case, random, stock

import atrousops.functional as A
from atrousops.dispatch import devices, libraries, planner

pytestmark = [
    pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem())),
    pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing"),
]

BF16, FLOAT, DOUBLE = torch.bfloat16, torch.float32, torch.float64
# What the operator of a planned name is called in csrc/cuda, forward or input gradient, and weight gradient.
KERNELS = {name: (f"conv_{name}_kernel", f"conv_{name}_weight_kernel") for name in ("grouped", "wgmma", "mma", "simt")}
KERNELS["depthwise"] = ("conv_depthwise_kernel", "conv_grouped_weight_kernel")

# Each kernel is the planner's answer somewhere: the case, dtype, device, and what is planned of forward pass, input
# gradient and weight gradient.
CASES = (
    (Case("boxes", 2, 64, 128, (8, 9), padding=2, dilation=2), BF16, host_cuda.H100, ("wgmma",) * 3),
    (Case("fp32 across its lines", 4, 64, 128, (8, 9)), FLOAT, host_cuda.H100, ("mma",) * 3),
    (Case("too few channels for a tile", 1, 24, 24, (9, 8)), BF16, host_cuda.H100, ("mma",) * 3),
    (Case("no wgmma there", 2, 64, 128, (8, 9), padding=2, dilation=2), BF16, host_cuda.A100, ("mma",) * 3),
    (Case("no tensor cores for it", 1, 24, 24, (9, 8)), DOUBLE, host_cuda.H100, ("simt",) * 3),
    (Case("too few for a step", 2, 3, 64, (12, 9)), BF16, host_cuda.H100, ("simt", "mma", "mma")),
    (Case("one channel a group", 2, 64, 64, (9, 8), groups=64), BF16, host_cuda.H100, ("depthwise",) * 3),
    (Case("groups of four", 2, 32, 32, (9, 8), groups=8), BF16, host_cuda.H100, ("grouped",) * 3),
)


def planned(case, kind, dtype, chip) -> str:
    """The one of ours that the planner would run."""
    size, weight = (case.n, case.c, *case.size), (case.k, case.c // case.groups, case.kernel, case.kernel)
    stride, padding, dilation, groups = case.rest
    call = planner.CallArguments(kind, size, weight, *map(tuple, (stride, padding, dilation)), groups)
    problem = planner.call_problem(call)
    device = devices.gpu("cuda", (chip[0], chip[2], chip[1]), dtype, True, False)
    (ours,) = [c for c in planner.plan(problem, device, dtype.itemsize).candidates[1:] if c.seconds < math.inf]
    return ours.kernel


def started(call) -> set[str]:
    """The kernels of convolutions that run in a call; what packs and adds up is not among them."""
    before = {c.name: c.runs for c in host_cuda.coverage()}
    call()
    ran = " ".join(c.name for c in host_cuda.coverage() if c.runs > before[c.name])
    return {name for pair in KERNELS.values() for name in pair if re.search(rf"::{name}\b", ran)}


@pytest.mark.parametrize(
    ("case", "dtype", "chip", "expected"), CASES, ids=lambda v: str(v) if isinstance(v, Case) else ""
)
def test_what_is_planned_runs(case, dtype, chip, expected):
    x = random((case.n, case.c, *case.size), dtype).to(memory_format=torch.channels_last).requires_grad_()
    w = random((case.k, case.c // case.groups, case.kernel, case.kernel), dtype).requires_grad_()
    assert tuple(planned(case, kind, dtype, chip) for kind in ("forward", "input_grad", "weight_grad")) == expected
    with host_cuda.host_cuda(), host_cuda.device(*chip):
        y = []
        forward = started(lambda: y.append(A.conv2d(x, w, None, *case.rest)))
        backward = started(lambda: torch.autograd.grad(y[0], (x, w), torch.ones_like(y[0])))
    assert forward == {KERNELS[expected[0]][0]}
    assert backward == {KERNELS[expected[1]][0], KERNELS[expected[2]][1]}


@pytest.mark.parametrize(
    ("case", "dtype", "offset", "last", "plan", "runs"),
    [
        (Case("rows off 16 bytes", 2, 64, 128, (8, 9)), BF16, 1, True, "wgmma", "mma"),
        (Case("planes of one channel", 2, 64, 64, (9, 8), groups=64), BF16, 0, False, "depthwise", "grouped"),
        (Case("sums too short for three products", 2, 12, 64, (9, 8)), FLOAT, 0, True, "mma", "simt"),
    ],
    ids=lambda v: str(v) if isinstance(v, Case) else "",
)
def test_what_runs_where_the_tensors_forbid_it(case, dtype, offset, last, plan, runs):
    shape = (case.n, *case.size, case.c) if last else (case.n, case.c, *case.size)
    x = random((offset + math.prod(shape),), dtype)[offset:].view(shape)
    x = x.movedim(-1, 1) if last else x
    w = random((case.k, case.c // case.groups, case.kernel, case.kernel), dtype)
    assert planned(case, "forward", dtype, host_cuda.H100) == plan
    y = []
    with host_cuda.host_cuda():
        assert started(lambda: y.append(A.conv2d(x, w, None, *case.rest))) == {KERNELS[runs][0]}
    exact = stock(case, False, x.double(), w.double(), None)
    torch.testing.assert_close(y[0].double(), exact, rtol=2e-2, atol=2e-2 * exact.abs().max().item())


@pytest.mark.parametrize(("first", "runs"), [(0, "wgmma"), (3, "wgmma"), (4, "mma"), (5, "simt")])
def test_a_call_may_name_the_first_kernel(first, runs):
    """Of the planner's list, in which PyTorch's is the 0th: a later one was measured to be faster, or alone passed."""
    assert planner.kernels("cuda").index(runs) == first or first == 0
    case = Case("steps over elements", 2, 64, 128, (17, 18), stride=2, padding=2, dilation=2)
    x, w = random((2, 64, 17, 18), BF16).to(memory_format=torch.channels_last), random((128, 64, 3, 3), BF16)
    exact = stock(case, False, x.double(), w.double(), None)
    dy = torch.ones_like(exact).to(BF16).to(memory_format=torch.channels_last)
    rest = (*case.rest, False, first)
    ops, y, found = torch.ops.atrousops_host_cuda, [], {}
    host_cuda.load()
    found["conv"] = started(lambda: y.append(ops.conv(x, w, None, *rest)))
    found["conv_grad_input"] = started(lambda: ops.conv_grad_input(dy, w, x.shape, *rest))
    if runs != "simt":  # which has no weight gradient in 16 bits
        found["conv_grad_weight"] = started(lambda: ops.conv_grad_weight(dy, x, (3, 3), *rest))
    found["conv_transpose"] = started(lambda: ops.conv_transpose(dy, w, None, *rest[:2], (0, 0), *rest[2:]))
    assert found == {op: {KERNELS[runs][op == "conv_grad_weight"]} for op in found}
    torch.testing.assert_close(y[0].double(), exact, rtol=2e-2, atol=2e-2 * exact.abs().max().item())


def test_a_first_kernel_that_there_is_not():
    x, w = random((1, 8, 9, 9), BF16), random((8, 8, 3, 3), BF16)
    host_cuda.load()
    with pytest.raises(RuntimeError, match="first_kernel must be 0 to 5; got 6"):
        torch.ops.atrousops_host_cuda.conv(x, w, None, (1, 1), (1, 1), (1, 1), 1, False, 6)
