"""What roi_align and roi_pool must both do: refuse the same, and read, repeat, compile and cast alike."""

import pytest
import torch
from oracle import assert_compiles, is_interpreted
from roi_cases import (
    BAD_BOXES,
    BAD_CALLS,
    assert_agree,
    bad_call,
    check_bad_boxes_on_a_device,
    features,
    peer,
    random_boxes,
    repeated,
    with_gradient,
)

import atrousops as ao
import atrousops.functional as A


@pytest.fixture(params=["roi_align", "roi_pool"])
def name(request):
    return request.param


@pytest.mark.parametrize(("changes", "error", "message"), BAD_CALLS + BAD_BOXES)
@pytest.mark.parametrize("where", ["aten", "reference"])
def test_bad_calls(changes, error, message, where, name):
    with ao.backend(where), pytest.raises(error, match=message):
        getattr(A, name)(**bad_call(changes))


@pytest.mark.parametrize(("changes", "error", "message"), BAD_CALLS)
def test_bad_calls_on_every_backend(changes, error, message, name, backend):
    with pytest.raises(error, match=message):
        getattr(A, name)(**bad_call(changes))


def test_bad_boxes_on_every_backend(name, backend):
    if backend != "cpu":
        check_bad_boxes_on_a_device(getattr(A, name))
        return
    for changes, error, message in BAD_BOXES:
        with pytest.raises(error, match=message):
            getattr(A, name)(**bad_call(changes))


@pytest.mark.parametrize("channels_last", [False, True])
def test_same_bits_every_time(channels_last, name, backend):
    small = is_interpreted(backend)
    shape = (2, 12, 12, 12) if small else (2, 40, 30, 30)
    x, boxes = features(shape, torch.float32, channels_last), random_boxes(100, shape, 1.0).float()
    size = 3 if small else 7
    upstream = torch.randn(100, shape[1], size, size)
    first, *others = repeated(lambda: with_gradient(getattr(A, name), x, boxes, size, 1.0, upstream=upstream), backend)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other))


@pytest.mark.torchvision
def test_gradient_in_several_tiles(name, backend):
    # 260 rows of 80 columns exceed one tile of a gradient, and boxes cross from tile to tile; CUDA's are smaller.
    shape = (1, 3, 40 if is_interpreted(backend) else 260, 80)
    x, boxes = features(shape, torch.float64), random_boxes(20, shape, 1.0)
    args = (3, 1.0, 2) if name == "roi_align" else (3, 1.0)
    exact = with_gradient(peer(name), x, boxes, *args)
    assert_agree(with_gradient(getattr(A, name), x, boxes, *args), exact, exact)


@pytest.mark.torchvision
def test_list_of_boxes(name, backend):
    op, x = getattr(A, name), features((2, 4, 8, 8), torch.float32)
    lists = [torch.tensor([[1.0, 1, 5, 6], [0, 0, 7, 7]]), torch.tensor([[2.0, 3, 4, 5]])]
    torch.testing.assert_close(op(x, lists, 3), peer(name)(x, lists, 3))
    assert op(x, [], 3).shape == (0, 4, 3, 3)


@pytest.mark.parametrize("channels_last", [False, True])
def test_no_boxes_and_no_channels(channels_last, name, backend):
    op, x = getattr(A, name), features((2, 4, 8, 8), torch.float32, channels_last)
    y, grad = with_gradient(op, x, torch.zeros(0, 5), (3, 2))
    assert y.shape == (0, 4, 3, 2)
    assert torch.equal(grad, torch.zeros_like(x))
    assert op(x[:, :0], torch.zeros(3, 5), 2).shape == (3, 0, 2, 2)
    assert op(x[:0], torch.zeros(0, 5), 2).shape == (0, 4, 2, 2)


@pytest.mark.torchvision
def test_views_and_expanded_gradients(name, backend):
    # A sliced, transposed view of a larger buffer, boxes with a stride, and the gradient of a sum (all strides 0).
    x = features((2, 9, 12, 11), torch.float64).transpose(2, 3)[:, 2:7, 1:, 3:]
    boxes = random_boxes(6, tuple(x.shape), 1.0).t().contiguous().t()
    leaves = [x.detach().requires_grad_() for _ in range(2)]
    ours, exact = getattr(A, name)(leaves[0], boxes, 3), peer(name)(leaves[1], boxes, 3)
    torch.testing.assert_close(ours, exact)
    ours.sum().backward()
    exact.sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "open sizes and scale"])
def test_compiles_to_one_graph(name, dynamic, backend):
    shape, op = (2, 3, 8, 9), getattr(A, name)
    x, boxes = features(shape, torch.float32).requires_grad_(), random_boxes(5, shape, 1.0).float()
    assert_compiles(op, (x, boxes, 3, 0.75), dynamic=dynamic, rtol=0, atol=0)
    if backend == "cpu":
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        with pytest.raises(Exception, match="boxes must be finite"):
            compiled(x, torch.full((1, 5), torch.nan), 3, 0.75)


def test_autocast_gives_the_input_dtype(name, backend):
    shape, op = (1, 4, 8, 8), getattr(A, name)
    x, boxes = features(shape, torch.bfloat16), random_boxes(5, shape, 1.0).float()
    with torch.autocast(x.device.type, torch.bfloat16):
        y = op(x, boxes, 3)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, op(x.float(), boxes, 3).bfloat16())
