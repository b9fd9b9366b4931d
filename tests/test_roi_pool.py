import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import is_interpreted
from roi_cases import DTYPES, SHAPES, assert_agree, features, peer, problems, random_boxes, with_gradient

import atrousops as ao
import atrousops.functional as A
from atrousops import reference


def exactly(ours, theirs, dtype):
    """Maxima are exact in every dtype; gradients are sums, rounded once."""
    torch.testing.assert_close(ours[0], theirs[0].to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(ours[1], theirs[1].to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.torchvision
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "count", "size", "scale"), SHAPES)
def test_matches_torchvision(shape, count, size, scale, dtype, channels_last, backend):
    # Boxes rounded to quarters, so that rounding to pixels falls the same way in fp32 and fp64.
    boxes = (random_boxes(count, shape, scale) * 4).round() / 4
    x = features(shape, dtype, channels_last)
    before = x.clone(), boxes.clone()
    ours = with_gradient(A.roi_pool, x, boxes.to(torch.promote_types(dtype, torch.float32)), size, scale)
    exactly(ours, with_gradient(peer("roi_pool"), x.double(), boxes, size, scale), dtype)
    if channels_last:
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in ours)
    assert torch.equal(x, before[0])
    assert torch.equal(boxes, before[1])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 40])  # read where they are, and from a tile
def test_subnormals_are_numbers(count, dtype, channels_last):
    """By hand: of subnormals the largest wins, and goes through bit for bit, as does a gradient that is one."""
    least = torch.finfo(dtype).smallest_normal
    x = torch.zeros(1, 17, 4, 4, dtype=dtype)
    x[..., 0, 0], x[..., 0, 1], x[..., 1, 2] = least / 4, least / 2, -least / 4
    x[..., 2:, 2:] = -least
    x[..., 3, 3] = -least / 2
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    boxes = torch.tensor([[0.0, 0, 0, 3, 3]]).repeat(count, 1).to(torch.promote_types(dtype, torch.float32))
    upstream = torch.zeros(count, 17, 2, 2, dtype=dtype)
    upstream[0] = least / 4
    with ao.backend("cpu"):
        y, dx = with_gradient(A.roi_pool, x, boxes, (2, 2), 1.0, upstream=upstream)
    assert torch.equal(y, torch.tensor([[least / 2, 0], [0, -least / 2]], dtype=dtype).expand_as(y))
    assert y[..., 1, 1].ne(0).all()
    expected = torch.zeros_like(dx)
    expected[..., [0, 0, 2, 3], [1, 2, 0, 3]] = least / 4
    assert torch.equal(dx, expected)


def test_worked_by_hand(backend):
    # The box covers rows 1..3 and columns 0..4 (its corners included): bins of 1.5 rows and 2.5 columns overlap.
    x = torch.arange(36.0).view(1, 1, 6, 6)
    boxes = torch.tensor([[0.0, 0, 1, 4, 3]])
    expected = torch.tensor([[[[14.0, 16.0], [20.0, 22.0]]]])
    for run in (A.roi_pool, reference.roi_pool):
        torch.testing.assert_close(run(x, boxes, (2, 2)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("shape", "count", "size", "scale"), SHAPES)
def test_matches_the_definition(shape, count, size, scale, backend):
    x, boxes = features(shape, torch.float32), random_boxes(min(count, 8), shape, scale).float()
    torch.testing.assert_close(
        A.roi_pool(x, boxes, size, scale), reference.roi_pool(x, boxes, size, scale), rtol=0, atol=0
    )


@pytest.mark.torchvision
@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=problems(), channels_last=st.booleans())
def test_random_arguments(problem, channels_last, backend):
    shape, boxes, size, scale = problem
    x = features(shape, torch.float32, channels_last)
    upstream = features((len(boxes), shape[1], *size), torch.float64)
    args = (boxes.float(), size, scale)
    ours = with_gradient(A.roi_pool, x, *args, upstream=upstream)
    theirs = with_gradient(peer("roi_pool"), x, *args, upstream=upstream)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=0)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-5)


def test_gradients_of_any_order(backend):
    shape = (2, 3, 6, 7)
    # All values differ by more than gradcheck's step, so that no maximum changes hands.
    x = torch.randperm(2 * 3 * 6 * 7).double().view(shape).div(10).requires_grad_()
    boxes = random_boxes(4, shape, 1.0)
    fast = is_interpreted(backend)
    assert torch.autograd.gradcheck(lambda x: A.roi_pool(x, boxes, (2, 3)), x, fast_mode=fast)
    assert torch.autograd.gradgradcheck(lambda x: A.roi_pool(x, boxes, 2) ** 2, x, fast_mode=fast)


@pytest.mark.torchvision
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_double_boxes_for_any_features(dtype, channels_last, backend):
    # 24 channels are whole packs of every dtype.
    shape = (1, 24, 7, 9)
    x, boxes = features(shape, dtype, channels_last), random_boxes(6, shape, 1.0)
    exactly(with_gradient(A.roi_pool, x, boxes, 2), with_gradient(peer("roi_pool"), x.double(), boxes, 2), dtype)


def test_nan_and_infinities(backend):
    # Columns: a NaN beside a number; -inf beside a number; +inf; nothing but -inf.
    x = torch.tensor([[torch.nan, 1, -torch.inf, 2, torch.inf, 3, -torch.inf, -torch.inf]]).view(1, 1, 1, 8)
    for run in (A.roi_pool, reference.roi_pool):
        y = run(x, torch.tensor([[0.0, 0, 0, 7, 0]]), (1, 4), 1.0)
        assert y.flatten().tolist() == [1, 2, torch.inf, -torch.inf]


def test_boxes_off_the_map_give_zero(backend):
    x = -torch.ones(1, 2, 5, 5)
    y, grad = with_gradient(A.roi_pool, x, torch.tensor([[0.0, 20, 20, 30, 30]]), 2)
    assert torch.equal(y, torch.zeros(1, 2, 2, 2))
    assert torch.equal(grad, torch.zeros_like(x))


def test_opcheck(backend):
    shape = (2, 3, 8, 9)
    boxes = random_boxes(5, shape, 1.0).float()
    for channels_last in (False, True):
        x = features(shape, torch.float32, channels_last).requires_grad_()
        torch.library.opcheck(torch.ops.atrousops.roi_pool.default, (x, boxes, 1.0, 3, 2))
        y, argmax = torch.ops.atrousops.roi_pool(x.detach(), boxes, 1.0, 3, 2)
        args = (torch.randn_like(y), boxes, argmax, 1.0, *shape, channels_last)
        torch.library.opcheck(torch.ops.atrousops.roi_pool_backward.default, args)


@pytest.mark.torchvision
@pytest.mark.parametrize("name", ["aten", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_backends(name, dtype):
    shape = (2, 5, 9, 8)
    x, boxes = features(shape, dtype), random_boxes(9, shape, 1.0).float()
    exact = with_gradient(A.roi_pool, x.double(), boxes, (3, 2))
    ours = with_gradient(A.roi_pool, x, boxes, (3, 2))
    with ao.backend(name):
        other = with_gradient(A.roi_pool, x, boxes, (3, 2))
    assert torch.equal(ours[0], other[0])
    # Equal features share a maximum's gradient differently in the reference.
    if name == "aten":
        assert_agree(ours[1:], exact[1:], other[1:])
