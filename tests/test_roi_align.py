import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import is_interpreted
from roi_cases import DTYPES, SHAPES, assert_agree, bad_call, features, peer, problems, random_boxes, with_gradient

import atrousops as ao
import atrousops.functional as A
from atrousops import reference

OPTIONS = [(2, False), (-1, True), (3, True), (0, False)]  # sampling_ratio, aligned


def torchvision_at(dtype):
    """torchvision computes in one dtype for features and boxes; it has no bfloat16, and rounds boxes to float16."""
    wide = torch.promote_types(dtype, torch.float32)

    def run(x, boxes, *args):
        return peer("roi_align")(x.to(wide), boxes.to(wide), *args).to(dtype)

    return run


@pytest.mark.torchvision
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sampling_ratio", "aligned"), OPTIONS[:2])
@pytest.mark.parametrize(("shape", "count", "size", "scale"), SHAPES)
def test_matches_torchvision(shape, count, size, scale, sampling_ratio, aligned, dtype, channels_last, backend):
    boxes = random_boxes(count, shape, scale)
    x = features(shape, dtype, channels_last)
    upstream = features((count, shape[1], *size), torch.float64)
    args = (size, scale, sampling_ratio, aligned)
    before = x.clone(), boxes.clone()
    ours = with_gradient(A.roi_align, x, boxes.to(torch.promote_types(dtype, torch.float32)), *args, upstream=upstream)
    exact = with_gradient(peer("roi_align"), x.double(), boxes, *args, upstream=upstream)
    theirs = with_gradient(torchvision_at(dtype), x, boxes, *args, upstream=upstream)
    assert_agree(ours, exact, theirs)
    if channels_last:
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in ours)
    assert torch.equal(x, before[0])
    assert torch.equal(boxes, before[1])


def naive(x, boxes, size, scale, sampling_ratio, aligned):
    """The definition, one sample at a time."""
    y = torch.zeros(len(boxes), x.shape[1], *size, dtype=torch.float64)
    h, w = x.shape[2:]
    for k, (n, *corners) in enumerate(boxes.tolist()):
        x1, y1, x2, y2 = (v * scale - 0.5 * aligned for v in corners)
        roi_w, roi_h = (max(side, 0 if aligned else 1) for side in (x2 - x1, y2 - y1))
        bh, bw = roi_h / size[0], roi_w / size[1]
        gh, gw = (sampling_ratio if sampling_ratio > 0 else int(-(-b // 1)) for b in (bh, bw))
        for p in range(size[0]):
            for q in range(size[1]):
                for i in range(gh):
                    for j in range(gw):
                        row, column = y1 + p * bh + (i + 0.5) * bh / gh, x1 + q * bw + (j + 0.5) * bw / gw
                        if -1 <= row <= h and -1 <= column <= w:
                            row, column = min(max(row, 0), h - 1), min(max(column, 0), w - 1)
                            top, left = int(row), int(column)
                            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
                            fy, fx = row - top, column - left
                            image = x[int(n)]
                            y[k, :, p, q] += (1 - fy) * ((1 - fx) * image[:, top, left] + fx * image[:, top, right])
                            y[k, :, p, q] += fy * ((1 - fx) * image[:, bottom, left] + fx * image[:, bottom, right])
        y[k] /= max(gh * gw, 1)
    return y


@pytest.mark.parametrize(("sampling_ratio", "aligned"), OPTIONS)
def test_matches_the_definition(sampling_ratio, aligned, backend):
    shape = (2, 3, 9, 10)
    x, boxes = features(shape, torch.float64), random_boxes(12, shape, 0.5)
    expected = naive(x, boxes, (3, 2), 0.5, sampling_ratio, aligned)
    for run in (A.roi_align, reference.roi_align):
        torch.testing.assert_close(run(x, boxes, (3, 2), 0.5, sampling_ratio, aligned), expected, rtol=0, atol=1e-12)


def test_worked_by_hand(backend):
    # A ramp of slope 1 across and 10 down: the mean over a bin is the ramp at the bin's centre. The box spans rows 1..3
    # and columns 2..6, so that bins are 1 x 2 pixels and their centres are rows 1.5, 2.5 and columns 3, 5.
    ramp = 10 * torch.arange(8.0)[:, None] + torch.arange(8.0)
    y = A.roi_align(ramp[None, None], torch.tensor([[0.0, 2, 1, 6, 3]]), 2, sampling_ratio=2)
    torch.testing.assert_close(y, torch.tensor([[[[18.0, 20.0], [28.0, 30.0]]]]))


@pytest.mark.torchvision
@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    problem=problems(),
    sampling_ratio=st.sampled_from([-1, 1, 2, 5]),
    aligned=st.booleans(),
    channels_last=st.booleans(),
)
def test_random_arguments(problem, sampling_ratio, aligned, channels_last, backend):
    shape, boxes, size, scale = problem
    x = features(shape, torch.float32, channels_last)
    upstream = features((len(boxes), shape[1], *size), torch.float64)
    args = (size, scale, sampling_ratio, aligned)
    ours = with_gradient(A.roi_align, x, boxes.float(), *args, upstream=upstream)
    exact = with_gradient(peer("roi_align"), x.double(), boxes, *args, upstream=upstream)
    theirs = with_gradient(peer("roi_align"), x, boxes.float(), *args, upstream=upstream)
    assert_agree(ours, exact, theirs)


def test_bad_sampling_ratio():
    with pytest.raises(TypeError, match="sampling_ratio must be an integer"):
        A.roi_align(**bad_call({"sampling_ratio": 1.5}))


def test_gradcheck(backend):
    shape = (2, 3, 6, 7)
    x, boxes = features(shape, torch.float64).requires_grad_(), random_boxes(4, shape, 1.0)

    def run(x):
        return A.roi_align(x, boxes, (2, 3), 1.0, -1, True)

    assert torch.autograd.gradcheck(run, (x,), fast_mode=is_interpreted(backend))
    assert torch.autograd.gradgradcheck(run, (x,), fast_mode=is_interpreted(backend))


@pytest.mark.torchvision
@pytest.mark.parametrize("channels_last", [False, True])
def test_more_boxes_than_threads_in_a_block(channels_last, backend):
    # 600 boxes of three images in no order: a CUDA block lists them 256 at a time.
    shape = (3, 2, 5, 6)
    x, boxes = features(shape, torch.float64, channels_last), random_boxes(600, shape, 1.0)
    ours = with_gradient(A.roi_align, x, boxes, (1, 2), 1.0, 1)
    exact = with_gradient(peer("roi_align"), x, boxes, (1, 2), 1.0, 1)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.torchvision
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_double_boxes_for_any_features(dtype, channels_last, backend):
    # 1/3 is another number in fp32; 24 channels are whole packs of every dtype.
    shape = (1, 24, 7, 9)
    x, boxes = features(shape, dtype, channels_last), random_boxes(6, shape, 1.0) / 3
    boxes[:, 0] = 0
    ours = with_gradient(A.roi_align, x, boxes, 2, 1.0, 2)
    exact = with_gradient(peer("roi_align"), x.double(), boxes, 2, 1.0, 2)
    theirs = with_gradient(torchvision_at(dtype), x, boxes, 2, 1.0, 2)
    assert_agree(ours, exact, theirs)


@pytest.mark.torchvision
def test_boxes_are_never_rounded(backend):
    # 1001.3 is 1000 in bfloat16: the box would move by more than a pixel.
    x = torch.arange(1100.0).expand(1, 1, 4, 1100).bfloat16() / 1024
    boxes = torch.tensor([[0, 1001.3, 0, 1011.3, 3]])
    y = A.roi_align(x, boxes, 1, 1.0, 2)
    exact = peer("roi_align")(x.float(), boxes, 1, 1.0, 2)
    torch.testing.assert_close(y, exact.bfloat16(), rtol=0, atol=0)


def test_nan_reaches_only_the_bins_that_read_it(backend):
    x = features((1, 2, 10, 10), torch.float32)
    x[0, 0, 0, 0] = torch.nan
    # Far from the NaN; on it; and wholly off the map, where torchvision would multiply pixel (0, 0) by zero.
    boxes = torch.tensor([[0.0, 4, 4, 8, 8], [0, 0, 0, 2, 2], [0, 40, 40, 50, 50]])
    y = A.roi_align(x, boxes, 1, 1.0, 2)
    assert y[:, 0].isnan().flatten().tolist() == [False, True, False]
    assert torch.equal(y[2], torch.zeros(2, 1, 1))
    torch.testing.assert_close(reference.roi_align(x, boxes, (1, 1), 1.0, 2), y, equal_nan=True)


def test_a_box_far_larger_than_the_map_is_finite_work(backend):
    y = A.roi_align(torch.ones(1, 1, 8, 8), torch.tensor([[0, -1e9, -1e9, 1e9, 1e9]]), 1)
    assert 0 <= y.item() < 1e-6


def test_opcheck(backend):
    shape = (2, 3, 8, 9)
    boxes = random_boxes(5, shape, 1.0).float()
    for channels_last in (False, True):
        x = features(shape, torch.float32, channels_last).requires_grad_()
        torch.library.opcheck(torch.ops.atrousops.roi_align.default, (x, boxes, 1.0, 3, 2, 2, False))
        grad = features((5, 3, 3, 2), torch.float32, channels_last).requires_grad_()
        args = (grad, boxes, 1.0, *shape, 2, False, channels_last)
        torch.library.opcheck(torch.ops.atrousops.roi_align_backward.default, args)


@pytest.mark.torchvision
@pytest.mark.parametrize("name", ["aten", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_backends(name, dtype):
    shape = (2, 5, 9, 8)
    x, boxes = features(shape, dtype), random_boxes(9, shape, 1.0).float()
    ours = with_gradient(A.roi_align, x, boxes, (3, 2), 1.0, -1)
    exact = with_gradient(peer("roi_align"), x.double(), boxes.double(), (3, 2), 1.0, -1)
    with ao.backend(name):
        other = with_gradient(A.roi_align, x, boxes, (3, 2), 1.0, -1)
    assert_agree(ours, exact, other)
