"""Gradients of weights in bfloat16 and channels_last, which PyTorch 2.14 gets wrong on some CPUs: NaN, or 1e35."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, run_on
from shapes import channels_last

import atrousops as ao
import atrousops.functional as A

# Channels in and out, kernel, dilation, groups. The fault needs a rate, rows of 29 pixels or more, and channels of a
# group that fill no blocks of 16.
CASES = {
    "one block and a half": (24, 32, 3, 2, 1),
    "a context module's": (22, 22, 3, 4, 1),
    "fewer than a block": (11, 11, 3, 2, 1),
    "whole blocks": (32, 24, 3, 2, 1),
    "no rate": (24, 32, 3, 1, 1),
    "one channel a group": (24, 24, 3, 2, 24),
    "two groups": (40, 24, 5, 3, 2),
}
FUNCTIONS = {"conv2d": (F.conv2d, A.conv2d), "conv_transpose2d": (F.conv_transpose2d, A.conv_transpose2d)}


def weight_gradient(function, x, w, grad, dtype, rate, groups):
    w = w.to(dtype).requires_grad_()
    padding = rate * (w.shape[-1] // 2)
    y = function(x.to(dtype), w, None, padding=padding, dilation=rate, groups=groups)
    return torch.autograd.grad(y, w, grad.to(dtype))[0]


def leave_nan():
    """What the next tensors find in memory."""
    unwritten = [torch.full((1 << 20,), torch.nan) for _ in range(3)]
    del unwritten


@pytest.mark.parametrize("formats", ["both", "input", "weight"])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("case", CASES)
def test_against_fp64(case, function, formats):
    c, k, kernel, rate, groups = CASES[case]
    theirs, ours = FUNCTIONS[function]
    torch.manual_seed(0)
    # The transposed one maps k channels to c: its fault is in those of the output.
    inputs, outputs = (c, k) if function == "conv2d" else (k, c)
    x = torch.randn(2, inputs, 23, 31).bfloat16()
    w = torch.randn(k, c // groups, kernel, kernel).bfloat16()
    grad = torch.randn(2, outputs, 23, 31).bfloat16()
    exact = weight_gradient(theirs, x, w, grad, torch.float64, rate, groups)
    contiguous = weight_gradient(theirs, x, w, grad, torch.bfloat16, rate, groups)
    x, w = (channels_last(t) if formats in ("both", name) else t for name, t in (("input", x), ("weight", w)))
    for _ in range(2):
        leave_nan()
        assert_close(weight_gradient(ours, x, w, grad, torch.bfloat16, rate, groups), exact, contiguous)


def problem(function):
    """A case with the fault: input, weight and the result's gradient in channels_last, and the other arguments."""
    torch.manual_seed(0)
    inputs, outputs = (24, 32) if function == "conv2d" else (32, 24)
    tensors = torch.randn(2, inputs, 23, 31), torch.randn(32, 24, 3, 3), torch.randn(2, outputs, 23, 31)
    return [channels_last(t.bfloat16()) for t in tensors], {"padding": 2, "dilation": 2}


def by_autograd(f, x, w, grad):
    return torch.autograd.grad(f(x, w.requires_grad_()), w, grad)[0]


def by_func(f, x, w, grad):
    return torch.func.grad(lambda w: (f(x, w) * grad).sum())(w)


def by_vjp(f, x, w, grad):
    return torch.func.vjp(lambda w: f(x, w), w)[1](grad)[0]


def by_jacrev(f, x, w, grad):
    return torch.func.jacrev(lambda w: (f(x, w) * grad).sum())(w)


def by_vmap(f, x, w, grad):
    return torch.vmap(lambda x, grad: by_func(f, x[None], w, grad[None]))(x, grad).sum(0)


def by_images(f, x, w, grad):
    return sum(by_autograd(f, x, w, grad) for x, grad in zip(x, grad, strict=True))


def forward_over_reverse(f, x, w, grad):
    gradient = lambda w: torch.func.grad(lambda w: f(x, w).square().sum())(w)  # noqa: E731
    return torch.func.jvp(gradient, (w,), (w.flip(0),))[1]


def of_the_inputs_gradient(f, x, w, grad):
    x, w = x.requires_grad_(), w.requires_grad_()
    (dx,) = torch.autograd.grad(f(x, w), x, grad, create_graph=True)
    return torch.autograd.grad(dx, w, dx.detach())[0]


WAYS = (by_func, by_vjp, by_jacrev, by_vmap, by_images, forward_over_reverse, of_the_inputs_gradient)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_ways_to_derive(function, way):
    theirs, ours = FUNCTIONS[function]
    tensors, kwargs = problem(function)
    exact = way(lambda x, w: theirs(x, w, **kwargs), *[t.double() for t in tensors])
    plain = way(lambda x, w: theirs(x, w, **kwargs), *[t.contiguous() for t in tensors])
    assert_close(way(lambda x, w: ours(x, w, **kwargs), *tensors), exact, plain)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_forced_backend_and_its_format(function):
    theirs, ours = FUNCTIONS[function]
    tensors, kwargs = problem(function)
    exact = by_autograd(lambda x, w: theirs(x, w, **kwargs), *[t.double() for t in tensors])
    plain = by_autograd(lambda x, w: theirs(x, w, **kwargs), *[t.contiguous() for t in tensors])
    with ao.backend("aten"):
        assert_close(by_autograd(lambda x, w: ours(x, w, **kwargs), *tensors), exact, plain)
        y = ours(*tensors[:2], **kwargs)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("first", ["contiguous weight", "weight without gradient"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_after_a_call_that_has_the_same_route(function, first):
    """As of model.to(memory_format=torch.channels_last), or of a layer no longer frozen, in the middle of training."""
    theirs, ours = FUNCTIONS[function]
    (x, w, grad), kwargs = problem(function)
    x = x.contiguous().requires_grad_() if first == "contiguous weight" else x.requires_grad_()
    before = w.contiguous().requires_grad_() if first == "contiguous weight" else w.detach()
    exact = by_autograd(lambda x, w: theirs(x, w, **kwargs), x.double(), w.double(), grad.double())
    plain = by_autograd(lambda x, w: theirs(x, w, **kwargs), x.contiguous(), w.contiguous(), grad.contiguous())
    with run_on(1):
        ours(x, before, **kwargs).sum().backward()
        leave_nan()
        assert_close(by_autograd(lambda x, w: ours(x, w, **kwargs), x, w, grad), exact, plain)


def test_layers_under_autocast_and_in_graphs():
    """A dilated separable convolution, as in DeepLab v3+, and the large context module's, in training."""
    torch.manual_seed(0)
    x = channels_last(torch.randn(2, 24, 23, 31))
    for groups in (24, 1):
        layer = ao.AtrousConv2d(24, 24, 3, padding=2, dilation=2, groups=groups).to(memory_format=torch.channels_last)
        exact = torch.nn.Conv2d(24, 24, 3, padding=2, dilation=2, groups=groups).double()
        exact.load_state_dict(layer.state_dict())
        exact(x.double()).square().sum().backward()
        for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
            layer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                y = run(x)
            y.float().square().sum().backward()
            error = (layer.weight.grad.double() - exact.weight.grad).abs().max()
            assert error < 0.02 * exact.weight.grad.abs().max()
