"""Small calls, which go to PyTorch's operators: the same answers as from ours, and the same refusals."""

import pytest
import torch
from test_max_pool import CASES as POOL_CASES
from test_max_pool import OURS as POOL
from test_max_pool import material, same
from test_max_unpool import exactly, nondeterminism_allowed, pooled

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


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_unpooling_keeps_the_order_too(threads):
    """PyTorch's threads may write one position in any order; it is asked only where none shares a plane."""
    values, indices = torch.randn(4, 3, 8, 8), torch.randint(0, 20, (4, 3, 8, 8))
    expected = reference.max_unpool(values, indices, (16, 16), (2, 2), (2, 2), (0, 0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with nondeterminism_allowed():
            for planes in (12, 11):
                row = ao.explain(A.max_unpool2d, *(t.flatten(0, 1)[:planes] for t in (values, indices)), 2).rows[0]
                assert (row.kernel == "aten") == (planes % threads == 0)
            for _ in range(20):
                exactly(A.max_unpool2d(values, indices, 2), expected)
            flat = (t.flatten(0, 1)[:11] for t in (values, indices))
            exactly(A.max_unpool2d(*flat, 2), expected.flatten(0, 1)[:11])
    finally:
        torch.set_num_threads(before)


def test_unpooling_has_gradients():
    _, x, indices, window = pooled(((8, 10), 2, 2, 0), torch.float64)
    x.requires_grad_()
    with nondeterminism_allowed():
        assert ao.explain(A.max_unpool2d, x, indices, *window).rows[0].kernel == "aten"
        torch.autograd.gradcheck(lambda x: A.max_unpool2d(x, indices, *window), x)
        torch.autograd.gradgradcheck(lambda x: A.max_unpool2d(x, indices, *window), x)


def test_unpooling_refuses_indices_outside_the_output():
    with nondeterminism_allowed(), pytest.raises(ValueError, match="max_unpool2d: indices must lie"):
        A.max_unpool2d(torch.ones(2, 2, 2, 2), torch.full((2, 2, 2, 2), 16), 2)
