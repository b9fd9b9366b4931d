"""Small calls, which go to PyTorch's operators: the same answers as from ours, and the same refusals."""

import sys

import pytest
import torch
import torch.nn.functional as F
from oracle import run_on
from test_max_pool import CASES as POOL_CASES
from test_max_pool import OURS as POOL
from test_max_pool import material, same
from test_max_unpool import OURS as UNPOOL
from test_max_unpool import nondeterminism_allowed

import atrousops as ao
import atrousops.functional as A
from atrousops import reference


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("case", POOL_CASES, ids=str)
def test_pooling_goes_to_pytorch_with_the_same_answers(case, indices):
    spatial, *window = case
    axes = len(spatial)
    x = material(spatial, torch.float64).requires_grad_()
    y = POOL[axes](x, *window, indices)
    # Behind a dilated window with nothing in it PyTorch's gradient writes outside its memory.
    assert (ao.explain(POOL[axes], x, *window, indices).rows[0].kernel == "aten") == (window[3] == 1)
    with ao.backend("cpu"):
        expected = POOL[axes](x, *window, indices)
    same([t.detach() for t in y] if indices else y.detach(), [t.detach() for t in expected] if indices else expected)
    values = [t[0] if indices else t for t in (y, expected)]
    grad = torch.randn(values[0].shape, dtype=x.dtype)
    same(*(torch.autograd.grad(v, x, grad)[0] for v in values))


@pytest.mark.parametrize("size", [(1, 21, 64, 63), (2, 3, 7, 5)], ids=str)
def test_pooling_by_two_in_channels_last_goes_to_pytorch_with_the_same_answers(size):
    """Odd and even sides; equal values, NaN and infinities among them. With a gradient wanted it is ours."""
    x = torch.randint(-3, 3, size).float()
    x[0, :, 0, 0] = torch.nan
    x[0, :, 3, 3] = -torch.inf
    x = x.to(memory_format=torch.channels_last)
    assert ao.explain(A.max_pool2d, x, 2, return_indices=True).rows[0].kernel == "aten"
    got = A.max_pool2d(x, 2, return_indices=True)
    with ao.backend("cpu"):
        expected = A.max_pool2d(x, 2, return_indices=True)
    same(list(got), list(expected))
    assert [t.stride() for t in got] == [t.stride() for t in expected]
    others = (A.max_pool2d, x, 3), (A.max_pool2d, x.bfloat16(), 2), (A.max_pool2d, x.clone().requires_grad_(), 2)
    for function, input, kernel in others:
        assert ao.explain(function, input, kernel, return_indices=True).rows[0].kernel != "aten"


# Few places for many values: most are named several times.
CROWDED = {axes: (torch.randn(12, *[8] * axes), torch.randint(0, 11, (12, *[8] * axes))) for axes in (1, 2, 3)}


def unpooled_by(axes, values, indices):
    return ao.explain(UNPOOL[axes], values, indices, 2).rows[-1].kernel


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_unpooling_goes_to_pytorch_where_none_of_its_threads_share_a_plane(axes, threads):
    """12 planes and 11; of equal positions the last stays, and each gets the gradient of its position."""
    values, indices = CROWDED[axes][0].clone().requires_grad_(), CROWDED[axes][1]
    twos = (2,) * axes
    expected = reference.max_unpool(values.detach(), indices, (16,) * axes, twos, twos, (0,) * axes)
    grad = torch.randn_like(expected)
    with run_on(threads), nondeterminism_allowed():
        for planes in (12, 11):
            if axes == 2:
                # A route does not know how indices lie.
                assert torch.equal(
                    A.max_unpool2d(values[:planes], indices.mT.contiguous().mT[:planes], 2), expected[:planes]
                )
            given = values[:planes], indices[:planes]
            assert (unpooled_by(axes, *given) == "aten") == (planes % threads == 0)
            for _ in range(5):
                y = UNPOOL[axes](*given, 2)
                assert torch.equal(y, expected[:planes])
            (got,) = torch.autograd.grad(y, values, grad[:planes])
            at = grad[:planes].flatten(1).gather(1, given[1].flatten(1)).view_as(given[0])
            assert torch.equal(got[:planes], at)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_unpooling_in_pytorch_sums_second_derivatives_as_ours_does(axes):
    values, indices = CROWDED[axes][0].clone().requires_grad_(), CROWDED[axes][1]
    grad = torch.randn(12, *[16] * axes, requires_grad=True)
    found = []
    with run_on(1), nondeterminism_allowed():
        for name in (None, "cpu"):
            with ao.backend(name):
                (first,) = torch.autograd.grad(UNPOOL[axes](values, indices, 2), values, grad, create_graph=True)
                found.append(torch.autograd.grad(first, grad, values)[0])
    assert torch.equal(*found)


def test_unpooling_stays_ours_where_pytorchs_differs():
    """Codes, 16 bits, maps of one pixel, and where deterministic algorithms are asked for."""
    values, indices = CROWDED[2]
    pixel = torch.ones(2, 3, 1, 1).to(memory_format=torch.channels_last)
    with run_on(1):
        assert unpooled_by(2, values, indices) != "aten"
        with nondeterminism_allowed():
            assert unpooled_by(2, values, indices) == "aten"
            others = (
                (values, torch.zeros_like(indices, dtype=torch.uint8)),
                (values.bfloat16(), indices),
                (pixel, torch.zeros_like(pixel, dtype=torch.int64)),
            )
            for given in others:
                assert unpooled_by(2, *given) != "aten"
            ours, theirs = (m.max_unpool2d(pixel, torch.zeros_like(pixel, dtype=torch.int64), 2) for m in (A, F))
            assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_small_unpooling_refuses_indices_outside_in_our_words(axes):
    values = torch.ones(2, 3, *[2] * axes)
    with nondeterminism_allowed(), pytest.raises(ValueError, match="max_unpool: indices must lie") as error:
        UNPOOL[axes](values, torch.full(values.shape, 4**axes), 2)
    assert error.value.__cause__ is None


X, W = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)
SMALL, INDICES = torch.nn.functional.max_pool2d(X, 2, return_indices=True)
BOXES = torch.tensor([[0, 1.0, 1.0, 6.0, 5.0]])
LAYER = ao.AtrousConv2d(4, 4, 3)
# A call, and how many functions of the package it may enter once it has been seen: what a small call takes beside
# PyTorch's is their number.
REPEATED = {
    "conv2d": (lambda: A.conv2d(X, W), 2),
    "AtrousConv2d": (lambda: LAYER(X), 3),
    "conv_transpose2d": (lambda: A.conv_transpose2d(X, W), 3),
    "max_unpool2d": (lambda: A.max_unpool2d(SMALL, INDICES, 2), 3),
    "roi_align": (lambda: A.roi_align(X, BOXES, 2), 7),
    "roi_pool": (lambda: A.roi_pool(X, BOXES, 2), 10),
}


# The same with derivatives: what is recorded for the backward pass comes on top, and no second look at the tensors.
LEAF, SMALL_LEAF = X.clone().requires_grad_(), SMALL.clone().requires_grad_()
RECORDED = {
    "conv2d": (lambda: A.conv2d(LEAF, W), 2),
    "max_unpool2d": (lambda: A.max_unpool2d(SMALL_LEAF, INDICES, 2), 3),
    "roi_align": (lambda: A.roi_align(LEAF, BOXES, 2), 11),
}


def entered_by(call):
    """The functions of the package that a call enters once it has been seen."""
    entered = []

    def enter(frame, event, _):
        if event == "call" and "/atrousops/" in frame.f_code.co_filename:
            entered.append(frame.f_code.co_name)

    call()
    sys.setprofile(enter)
    call()
    sys.setprofile(None)
    return entered


@pytest.mark.parametrize("name", REPEATED)
def test_a_repeated_call_does_not_check_again(name):
    call, most = REPEATED[name]
    with torch.inference_mode(), nondeterminism_allowed():
        entered = entered_by(call)
    assert len(entered) <= most, entered


@pytest.mark.parametrize("name", RECORDED)
def test_a_repeated_call_with_derivatives_does_not_check_again(name):
    call, most = RECORDED[name]
    with nondeterminism_allowed():
        entered = entered_by(call)
    assert len(entered) <= most, entered


def test_a_repeated_deterministic_unpooling_does_not_check_again():
    """It is ours: a frame more without derivatives, and what records it with them."""
    for calls, most in ((REPEATED, 4), (RECORDED, 7)):
        entered = entered_by(calls["max_unpool2d"][0])
        assert len(entered) <= most, entered


def test_a_gradient_of_the_bias_alone_is_recorded():
    """The bias is the one tensor that may be missing; the other two want no gradient."""
    bias = torch.zeros(4, requires_grad=True)
    with ao.backend("cpu"):
        for function in (A.conv2d, A.conv_transpose2d):
            (grad,) = torch.autograd.grad(function(X, W, bias).sum(), bias)
            assert torch.equal(grad, torch.full((4,), float(function(X, W)[0, 0].numel())))


def test_a_wrong_argument_that_equals_a_right_one_is_refused():
    """True and 1.0 equal 1; what was kept of a right call does not answer a wrong one."""
    for wrong in (1.0, True, (1.0, 1), (True, 1)):
        for argument in ("stride", "padding", "dilation"):
            expected = A.conv2d(X, W, **{argument: 1})
            assert all(torch.equal(A.conv2d(X, W, **{argument: one}), expected) for one in ((1, 1), [1, 1]))
            with pytest.raises(TypeError, match=argument):
                A.conv2d(X, W, **{argument: wrong})
    with pytest.raises(RuntimeError, match="bias"):
        A.conv2d(X, W, torch.zeros(7))
    for wrong in (2.0, (2.0, 2)):
        A.max_unpool2d(SMALL, INDICES, 2)
        A.max_unpool2d(SMALL, INDICES, (2, 2))
        with pytest.raises(TypeError, match="kernel_size"):
            A.max_unpool2d(SMALL, INDICES, wrong)
        A.roi_align(X, BOXES, 2)
        A.roi_align(X, BOXES, (2, 2))
        with pytest.raises(TypeError, match="output_size"):
            A.roi_align(X, BOXES, wrong)
    A.roi_align(X, BOXES, 2, 1.0, 1, False)
    for wrong in ((True, 1, False), (1.0, True, False), (1.0, 1, 0)):
        with pytest.raises(TypeError):
            A.roi_align(X, BOXES, 2, *wrong)


def test_a_repeated_call_sees_what_has_changed():
    """Gradients that are wanted, another dtype, another backend: each is another call."""
    for _ in range(2):
        assert A.max_unpool2d(SMALL, INDICES, 2).grad_fn is None
        assert A.roi_align(X, BOXES, 2).grad_fn is None
    x, small = X.clone().requires_grad_(), SMALL.clone().requires_grad_()
    assert A.max_unpool2d(small, INDICES, 2).grad_fn is not None
    assert A.roi_align(x, BOXES, 2).grad_fn is not None
    assert A.roi_align(X, BOXES, 2).grad_fn is None
    expected = A.max_unpool2d(SMALL, INDICES, 2)
    with ao.backend("reference"):
        same(A.max_unpool2d(SMALL, INDICES, 2), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert A.max_unpool2d(SMALL.bfloat16(), INDICES, 2).dtype == torch.float32
    assert A.max_unpool2d(SMALL.bfloat16(), INDICES, 2).dtype == torch.bfloat16
    assert A.roi_align(X, BOXES.bfloat16(), 2).dtype == torch.float32
    with pytest.raises(RuntimeError, match="box 0"):
        A.roi_align(X, BOXES + 1, 2)
