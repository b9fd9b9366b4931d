"""The weight gradient by TMA and wgmma, on small problems that each have a reason, against PyTorch in fp64."""

import host_cuda
import pytest
import torch
from oracle import assert_close
from shapes import channels_last
from test_conv_mma import Case, ops, random

import atrousops.functional as A
from atrousops.dispatch import devices, geometry, libraries, planner

pytestmark = pytest.mark.skipif(host_cuda.problem() is not None, reason=str(host_cuda.problem()))

HALF, BF16 = torch.float16, torch.bfloat16

# What is computed, and the positions of a step along each of three axes, and its images.
CASES = (
    (Case("one step, one tap", 1, 64, 64, (8, 8), kernel=1, padding=0), (1, 8, 8, 1)),
    (Case("channels, images and both axes end within a box", 3, 72, 136, (7, 9)), (1, 4, 8, 2)),
    (Case("all but the centre tap dead", 1, 40, 72, (5, 6), padding=9, dilation=9), (1, 16, 4, 1)),
    (Case("live rectangles of every kind", 2, 40, 40, (13, 11), padding=4, dilation=4), (1, 4, 8, 2)),
    (Case("stride with dilation", 2, 40, 40, (11, 12), stride=2, padding=3, dilation=3), (1, 8, 2, 4)),
    (Case("a stride that leaves positions of the input out", 1, 40, 40, (12, 9), kernel=2, stride=5), (1, 4, 16, 1)),
    (Case("one axis", 2, 40, 40, (37,), padding=2, dilation=2), (1, 1, 32, 2)),
    (Case("three axes", 2, 40, 40, (4, 5, 3), padding=2, dilation=2), (2, 4, 2, 4)),
    (Case("a single position, many images", 70, 64, 64, (1, 1), padding=5, dilation=5), (1, 1, 1, 64)),
)


def weights_of(dy, x, case, dtype):
    """PyTorch's weight gradient."""
    rank = len(case.size)
    size = (case.k, case.c, *(case.kernel,) * rank)
    rest = (case.stride,) * rank, (case.padding,) * rank, (case.dilation,) * rank, False, (0,) * rank, 1
    args = dy.to(dtype), x.to(dtype), dy.new_empty(1, dtype=dtype).expand(size)
    return torch.ops.aten.convolution_backward(*args, None, *rest, (False, True, False))[1]


def check(case, dtype, box=(), columns=64, splits=1, last=True):
    x = random((case.n, case.c, *case.size), dtype)
    reach = case.dilation * (case.kernel - 1) + 1
    sizes = [(s + 2 * case.padding - reach) // case.stride + 1 for s in case.size]
    dy = random((case.n, case.k, *sizes), dtype)
    exact, theirs = (weights_of(dy, x, case, d) for d in (torch.float64, dtype))
    out = torch.full(exact.shape, torch.nan, dtype=dtype)
    tensors = (channels_last(dy), channels_last(x)) if last else (dy, x)
    ops().test_conv_wgmma_weight(*tensors, out, *case.rest[:3], columns, splits, list(box))
    assert_close(out, exact, theirs)
    return out


@pytest.mark.parametrize(("case", "box"), CASES, ids=str)
def test_against_fp64(case, box):
    check(case, BF16, box)


@pytest.mark.parametrize("columns", [256, 128, 64])
def test_every_tile_and_type(columns):
    # A second block of columns that is nearly empty, and more steps than a ring has stages.
    case = Case("", 1, columns + 8, 72, (14, 13), kernel=2, padding=1)
    for dtype in (BF16, HALF):
        check(case, dtype, (1, 2, 32, 1), columns)


def test_split_sums_in_a_fixed_order():
    case, results = Case("", 2, 64, 64, (9, 10), kernel=1, padding=0), []
    # More blocks than boxes: some sums are empty.
    for splits, seed in ((3, 0), (3, 1), (3, 2), (5, 0), (64, 1)):
        torch.manual_seed(3)
        with host_cuda.order(seed):
            results.append(check(case, HALF, (1, 4, 8, 2), splits=splits))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("last", [False, True])
def test_as_planned(last):
    check(Case("", 5, 64, 128, (9, 9), padding=3, dilation=3), BF16, last=last)


def test_the_operator_takes_it_on_hopper_alone():
    x, w = random((2, 64, 8, 9), BF16), random((128, 64, 3, 3), BF16).requires_grad_()
    gradients, counts = [], []
    for gpu in (host_cuda.H100, host_cuda.A100):
        before = host_cuda.runs("conv_wgmma_weight_kernel")
        with host_cuda.host_cuda(), host_cuda.device(*gpu):
            y = A.conv2d(x, w, padding=2, dilation=2)
            gradients.append(torch.autograd.grad(y.float().sum(), w)[0])
        counts.append(host_cuda.runs("conv_wgmma_weight_kernel") - before)
    assert counts == [1, 0]
    torch.testing.assert_close(*gradients)


def problem(n, c, k, size, dilation, stride=1):
    two = [dilation] * 2
    return geometry.convolution(n, c, k, [size] * 2, [3, 3], [stride] * 2, two, two, two, kind="weight_grad")


def h100():
    return devices.gpu("cuda", (132, 227 << 10, 90), BF16, True, False)


def weight_boxes(p):
    """Steps of all taps, and predicted seconds."""
    *_, steps, seconds = libraries.planner.plan_weight_boxes(p.n, p.c, p.k, p.axes, 132, h100().rates["wgmma"])
    return steps, seconds


@pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")
def test_what_is_planned():
    # By hand: taps of rate 18 on 33 pixels read 15, 33 and 15 of them, so boxes of one pixel and 64 images are exact.
    far, seconds = weight_boxes(problem(64, 2048, 256, 33, 18))
    assert far == (15 + 33 + 15) ** 2
    # Two images: what fills 64 positions best is a matter of the rectangles' sides.
    near, _ = weight_boxes(problem(2, 512, 512, 65, 2))
    dense = 9 * 2 * 65 * 65 / 64
    assert dense * 0.9 < near < dense * 1.15
    # A tap of a large rate costs what it reads.
    assert seconds < 0.5 * weight_boxes(problem(64, 2048, 256, 33, 1))[1]
    plan = planner.plan(problem(16, 2048, 256, 33, 18), h100(), 2)
    assert plan.kernel == "wgmma"


@pytest.mark.skipif(libraries.planner is None, reason="the compiled planner is missing")
@pytest.mark.parametrize(
    ("why", "arguments", "itemsize"),
    [
        ("16-bit types only", (16, 256, 256, 33, 2), 4),
        ("multiples of 8", (16, 252, 256, 33, 2), 2),
        ("too few channels", (16, 256, 64, 33, 2), 2),
        ("too few positions", (1, 256, 256, 7, 2), 2),
        ("over at most 8", (16, 256, 256, 33, 2, 9), 2),
    ],
)
def test_what_is_left_to_others(why, arguments, itemsize):
    candidates = planner.plan(problem(*arguments), h100(), itemsize).candidates
    assert why in {c.kernel: c.reason for c in candidates}["wgmma"]
