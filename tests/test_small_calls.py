"""Small calls, which go to PyTorch's operators: the same answers as from ours, and the same refusals."""

import pytest
import torch
from test_max_pool import CASES as POOL_CASES
from test_max_pool import OURS as POOL
from test_max_pool import material, same

import atrousops as ao
import atrousops.functional as A


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
