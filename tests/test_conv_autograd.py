"""Derivatives of any order, torch.compile, function transforms and the operators' registrations."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, assert_compiles, is_interpreted
from shapes import channels_last
from torch.profiler import ProfilerActivity, profile

import atrousops as ao
import atrousops.functional as A
from atrousops.dispatch import libraries

pytestmark = pytest.mark.skipif(not libraries.has_operators, reason="the CPU library is not built")

# Dense with dead taps and an uneven 'same', depthwise with stride, and a strided transposed one with output_padding.
CASES = {
    "dense": (lambda x, w, b: A.conv2d(x, w, b, padding="same", dilation=3), (2, 2, 4, 5), (3, 2, 2, 3), 3),
    "depthwise": (lambda x, w, b: A.conv2d(x, w, b, 2, 2, 2, 3), (1, 3, 5, 4), (3, 1, 3, 2), 3),
    "transposed": (lambda x, w, b: A.conv_transpose2d(x, w, b, 2, 1, 1, 2), (1, 4, 3, 2), (4, 2, 3, 2), 4),
    "output_padding beyond stride": (
        lambda x, w, b: A.conv_transpose1d(x, w, b, 1, 0, 2, 1, 3),
        (1, 2, 4),
        (2, 3, 2),
        3,
    ),
}


def double_inputs(case):
    _, *sizes, channels = CASES[case]
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (*sizes, (channels,))]


@pytest.mark.parametrize("case", CASES)
def test_first_and_second_derivatives(case, backend):
    f, inputs = CASES[case][0], double_inputs(case)
    assert torch.autograd.gradcheck(f, inputs, fast_mode=is_interpreted(backend))
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.parametrize("case", CASES)
def test_derivatives_of_the_reference(case):
    with ao.backend("reference"):
        assert torch.autograd.gradcheck(CASES[case][0], double_inputs(case))


# The result is ours and its derivatives are PyTorch's, as the planner may choose, which has no words for them: fewer
# inputs than the gradient's convolution would have outputs, and uneven padding. The last reads only zeros.
APART = {
    "1-D": (lambda x, w: A.conv_transpose1d(x, w, None, 1, 0, 2, 1, 3), (2, 2, 4), (2, 3, 2)),
    "2-D, padded": (lambda x, w: A.conv_transpose2d(x, w, None, 2, 1, 2, 2, 3), (1, 4, 3, 2), (4, 1, 3, 2)),
    "2-D, wide padding": (lambda x, w: A.conv_transpose2d(x, w, None, 1, 3, 2, 1, 3), (1, 2, 3, 4), (2, 2, 4, 3)),
    "3-D": (lambda x, w: A.conv_transpose3d(x, w, None, (1, 2, 1), 1, 2, 1, 3), (1, 2, 2, 1, 3), (2, 1, 2, 2, 2)),
    "uneven": (lambda x, w: A.conv2d(x, w, padding="same", dilation=3), (1, 2, 4, 5), (3, 2, 2, 4)),
    "nothing is read": (lambda x, w: A.conv_transpose1d(x, w, None, 1, 2, 4, 1, 5), (1, 1, 1), (1, 1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", APART)
def test_our_results_with_pytorchs_derivatives(case):
    f, *sizes = APART[case]

    def ours(*tensors):
        with ao.backend("cpu"):
            return f(*tensors)

    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in sizes]
    with ao.backend("aten"):
        assert torch.autograd.gradcheck(ours, inputs)
        assert torch.autograd.gradgradcheck(ours, inputs, fast_mode=True)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_output_padding_from_a_stride_on(rank, dtype, last):
    """As the planner divides it; in eighths, whose products add up without rounding."""
    eighths = lambda *size: torch.randint(-8, 9, size).to(dtype) / 8  # noqa: E731
    x, w = eighths(2, 64, *(9, 7, 3)[:rank]), eighths(64, 64, *(3,) * rank)
    if last:
        x, w = channels_last(x), channels_last(w)
    found = []
    for module, kind in ((A, dtype), (F, torch.float64), (F, dtype)):
        leaves = [t.to(kind).requires_grad_() for t in (x, w)]
        y = getattr(module, f"conv_transpose{rank}d")(*leaves, None, 2, 1, 2, 1, 3)
        grad = (torch.arange(y.numel()) % 17 - 8).view(y.shape).to(kind) / 8
        found.append((y, *torch.autograd.grad(y, leaves, grad)))
    for results in zip(*found, strict=True):
        assert_close(*results)


@pytest.mark.parametrize(("name", "dynamic"), [(None, False), ("cpu", False), ("cpu", True)])
def test_compile(name, dynamic):
    def f(x, w, t):
        return A.conv_transpose2d(torch.relu(A.conv2d(x, w, padding=4, dilation=4)), t, stride=2)

    weights = [torch.randn(s, requires_grad=True) for s in ((6, 4, 3, 3), (6, 3, 2, 2))]
    images = [torch.randn(s, requires_grad=True) for s in ((1, 4, 9, 8), (2, 4, 7, 11))]
    with ao.backend(name):
        assert_compiles(f, *((x, *weights) for x in images), dynamic=dynamic)


def test_transforms_and_forward_mode_are_pytorchs():
    x, w = torch.randn(3, 2, 4, 6, 5), torch.randn(4, 4, 3, 3)
    f = lambda x, w: A.conv2d(x, w, padding=2, dilation=2)  # noqa: E731
    with ao.backend("cpu"):
        batched = torch.vmap(f, (0, None))(x, w)
        torch.testing.assert_close(batched, torch.stack([f(v, w) for v in x]))
        jacobian = torch.func.jacrev(f, 1)(x[0], w)
        torch.testing.assert_close(
            jacobian, torch.func.jacrev(lambda a, b: F.conv2d(a, b, padding=2, dilation=2), 1)(x[0], w)
        )
        tangent = torch.func.jvp(lambda a: f(a, w), (x[0],), (x[1],))[1]
        torch.testing.assert_close(tangent, f(x[1], w))


@pytest.mark.parametrize("wanted", ["input", "weight"])
def test_no_gradient_no_work(wanted):
    """Only the operator of the gradient that is asked for runs."""
    x, w = torch.randn(1, 4, 6, 5).requires_grad_(wanted == "input"), torch.randn(6, 4, 3, 3)
    w.requires_grad_(wanted == "weight")
    with ao.backend("cpu"), profile(activities=[ProfilerActivity.CPU]) as seen:
        A.conv2d(x, w, padding=2, dilation=2).sum().backward()
    names = {event.name for event in seen.events() if event.name.startswith("atrousops::conv_grad")}
    assert names == {f"atrousops::conv_grad_{wanted}"}


@pytest.mark.parametrize("groups", [1, 8], ids=["dense", "depthwise"])
def test_our_kernels_compute_with_subnormals(groups):
    """All sums lie below 1.2e-38, where neighbours are 1.4e-45 apart: results and input gradients are right to that."""
    x, w = 1e-40 * torch.randn(1, 8, 9, 8), torch.randn(8, 8 // groups, 3, 3)
    x, dy = x.requires_grad_(), 1e-40 * torch.randn(1, 8, 9, 8)
    with ao.backend("cpu"):
        y = A.conv2d(x, w, None, 1, 2, 2, groups)
        dx = torch.autograd.grad(y, x, dy)[0]
    wide = x.detach().double().requires_grad_()
    exact = F.conv2d(wide, w.double(), None, 1, 2, 2, groups)
    right = torch.autograd.grad(exact, wide, dy.double())[0]
    for ours, theirs in ((y, exact), (dx, right)):
        assert 0 < theirs.abs().max() < torch.finfo(torch.float32).tiny
        assert (ours.double() - theirs).abs().max() <= 72 * 1.5e-45


def reached(function, wanted, higher):
    """Of each gradient of a convolution, whether it requires one, and whether each leaf then has one."""
    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((2, 3, 7, 6), (3, 3, 3, 3), (3,)))
    leaves = [t.requires_grad_() for name, t in {"input": x, "weight": w, "bias": b}.items() if name in wanted]
    y = function(x, w, b, padding=2)
    dy = torch.ones_like(y).requires_grad_(higher)
    said = []
    for grad in torch.autograd.grad(y, leaves, dy, create_graph=True):
        ends = [*leaves, dy] if higher else leaves
        options = {"retain_graph": True, "allow_unused": True}
        found = torch.autograd.grad(grad.sum(), ends, **options) if grad.requires_grad else ()
        said.append((grad.requires_grad, [t is not None for t in found]))
    return said


@pytest.mark.parametrize("higher", [False, True], ids=["constant dy", "dy with a graph"])
@pytest.mark.parametrize("wanted", ["input", "weight", "bias", "input, bias", "weight, bias", "input, weight, bias"])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_the_graph_of_a_gradient_leads_to_both_tensors(name, wanted, higher):
    """Also where its values depend on neither, as in PyTorch: a loss that is a sum of gradients can be derived."""
    right = reached(getattr(F, name), wanted, higher)
    with ao.backend("cpu"):
        assert reached(getattr(A, name), wanted, higher) == right


def test_a_graph_to_the_input_keeps_none_of_its_memory():
    x, w = torch.randn(2, 3, 7, 6, requires_grad=True), torch.randn(3, 3, 3, 3)
    with ao.backend("cpu"):
        y = A.conv2d(x, w)
    kept = y.grad_fn.saved_tensors
    assert [t.untyped_storage().nbytes() for t in kept] == [0, w.untyped_storage().nbytes()]
