"""What operators take for numbers and what they refuse, as PyTorch; gradients of empty inputs."""

import numpy as np
import pytest
import samples
import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db

import atrousops as ao
import atrousops.functional as A

WHOLE = [np.int64(2), np.int32(2), np.uint8(2), torch.tensor(2), torch.tensor(2, dtype=torch.int32)]
WHOLE += [(np.int64(2), np.int32(2)), [torch.tensor(2), 2], torch.Size([2, 2]), (np.int64(2),)]
NOT_WHOLE = [True, np.True_, 2.0, np.float64(2), torch.tensor(2.0), (2.0, 2.0), (True, True), (2, 2.0), "2"]
NOT_WHOLE += [range(2, 4)]


def maps(size: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Of 8 and of 200 pixels a side: small calls go another way."""
    return F.max_pool2d(samples.rand(1, 2, size, size), 2, return_indices=True)


@pytest.mark.parametrize("size", [8, 200])
@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_whole_numbers(value, size):
    torch.use_deterministic_algorithms(False)
    x, (values, indices) = samples.rand(1, 2, size, size), maps(size)
    for argument in ("kernel_size", "stride", "padding", "dilation"):
        options = {"kernel_size": 4, argument: value}
        assert torch.equal(A.max_pool2d(x, **options), F.max_pool2d(x, **options)), argument
        for ours, theirs in zip(*(f(x, **options, return_indices=True) for f in (A.max_pool2d, F.max_pool2d))):
            assert torch.equal(ours, theirs), argument
    for argument in ("kernel_size", "stride"):
        # PyTorch's own comes to grief over some of them, in comparing sizes.
        options = {"kernel_size": 2, argument: value}
        assert torch.equal(A.max_unpool2d(values, indices, **options), F.max_unpool2d(values, indices, 2))
    if not isinstance(value, tuple) or len(value) == 2:
        x, boxes = samples.rand(2, 3, 8, 9), samples.boxes()
        assert torch.equal(A.roi_align(x, boxes, value), A.roi_align(x, boxes, 2))
        assert torch.equal(A.roi_pool(x, boxes, value), A.roi_pool(x, boxes, 2))


@pytest.mark.parametrize("number", [np.int64, torch.tensor, int], ids=["numpy", "tensor", "int"])
def test_whole_numbers_of_an_output_size(number):
    values, indices = maps(8)
    for size in ((8, 8), (1, 2, 8, 8)):
        got = A.max_unpool2d(values, indices, 2, output_size=tuple(number(n) for n in size))
        assert torch.equal(got, A.max_unpool2d(values, indices, 2))
    x, boxes = samples.rand(2, 3, 8, 9), samples.boxes()
    assert torch.equal(A.roi_align(x, boxes, 2, 0.5, number(2)), A.roi_align(x, boxes, 2, 0.5, 2))


@pytest.mark.parametrize("scale", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5)], ids=type)
def test_real_numbers(scale):
    x, boxes = samples.rand(2, 3, 8, 9), samples.boxes()
    assert torch.equal(A.roi_align(x, boxes, 2, scale), A.roi_align(x, boxes, 2, 0.5))
    assert torch.equal(A.roi_pool(x, boxes, 2, scale), A.roi_pool(x, boxes, 2, 0.5))


@pytest.mark.parametrize("size", [8, 200])
@pytest.mark.parametrize("value", NOT_WHOLE, ids=repr)
def test_what_is_no_whole_number(value, size):
    x, (values, indices) = samples.rand(1, 2, size, size), maps(size)
    for argument in ("kernel_size", "stride", "padding", "dilation"):
        for function in (A.max_pool2d, F.max_pool2d):
            with pytest.raises(TypeError, match=argument):
                function(x, **{"kernel_size": 4, argument: value})
    for argument in ("kernel_size", "stride", "padding", "output_size"):
        with pytest.raises(TypeError, match=argument):
            A.max_unpool2d(values, indices, **{"kernel_size": 2, argument: value})
    for function in (A.roi_align, A.roi_pool):
        with pytest.raises(TypeError, match="output_size"):
            function(x, samples.boxes()[:1], value)


@pytest.mark.parametrize("wrong", [None, 3, "x", [1.0], np.ones((1, 2, 8, 8))], ids=lambda v: type(v).__name__)
def test_what_is_no_tensor(wrong):
    values, indices = maps(8)
    boxes = samples.boxes()[:1]
    for call in (
        lambda: A.max_pool2d(wrong, 2),
        lambda: A.max_pool2d(wrong, 2, return_indices="codes"),
        lambda: A.max_unpool2d(wrong, indices, 2),
        lambda: A.max_unpool2d(values, wrong, 2),
        lambda: A.roi_align(wrong, boxes, 2),
        lambda: A.roi_pool(values, wrong, 2),
        lambda: A.max_pool2d(values, 2, ceil_mode=1),
        lambda: A.roi_align(values, boxes, 2, 1.0, 1.5),
        lambda: A.roi_align(values, boxes, 2, "1"),
    ):
        with pytest.raises(TypeError):
            call()


REFUSING = ("nn.functional.conv", "nn.functional.max_pool", "nn.functional.max_unpool")
REFUSING = [op for op in op_db if op.name.startswith(REFUSING) and op.error_inputs_func]


@pytest.mark.parametrize("backend", [None, "cpu"])
@pytest.mark.parametrize("op", REFUSING, ids=lambda op: op.name)
def test_pytorchs_own_error_inputs(op, backend):
    ours = getattr(A, op.name.rpartition(".")[2])
    for wrong in op.error_inputs("cpu"):
        sample = wrong.sample_input
        with ao.backend(backend), pytest.raises(wrong.error_type, match=wrong.error_regex):
            ours(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "max_pool2d", "max_unpool2d", "roi_align", "roi_pool"])
def test_where_no_gradient_comes_none_goes_on(name):
    """An optimiser skips what has none; zeros it decays."""

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    (x, second, *rest), kwargs = samples.FUNCTIONS[name]()
    leaves = [t.requires_grad_() for t in (x, second) if isinstance(t, torch.Tensor) and name.startswith("conv")]
    leaves = leaves or [x.requires_grad_()]
    with ao.backend("cpu"):
        y = getattr(A, name)(x, second, *rest, **kwargs)
    grads = torch.autograd.grad(Nothing.apply(y).sum(), leaves, allow_unused=True)
    assert grads == (None,) * len(leaves)


@pytest.mark.usefixtures("nondeterministic")
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_unpooling_of_no_channels(axes):
    x = torch.empty(0, *[4] * axes)
    for name in ("cpu", "reference", None):
        with ao.backend(name):
            got = getattr(A, f"max_unpool{axes}d")(x, x.long(), 2)
        assert got.shape == getattr(F, f"max_unpool{axes}d")(x, x.long(), 2).shape


def test_a_forced_convolution_without_channels():
    w = torch.empty(2, 0, 2, 2)
    assert A.conv2d(X[:, :0], w).shape == F.conv2d(X[:, :0], w).shape
    with ao.backend("cpu"), pytest.raises(ValueError, match="conv2d: weight must hold channels where 'cpu' is forced"):
        A.conv2d(X[:, :0], w)


def test_padding_in_bytes():
    """PyTorch reads them as a string."""
    assert torch.equal(A.conv2d(X, W, padding=b"same"), F.conv2d(X, W, padding=b"same"))
    with pytest.raises(ValueError, match="padding must be 'same', 'valid'"):
        A.conv2d(X, W, padding=b"full")


NOTHING_LIVE = {
    "conv2d, all taps in the padding": lambda: A.conv2d(X[..., :1, :1], W, padding=2, dilation=2, stride=5),
    "conv2d of no images": lambda: A.conv2d(X[:0], W),
    "conv_transpose2d of no images": lambda: A.conv_transpose2d(X[:0], W),
    "conv_transpose2d, nothing written inside": lambda: A.conv_transpose2d(
        X[..., :1, :1], W, stride=4, padding=1, dilation=2
    ),
    "max_pool2d of no images": lambda: A.max_pool2d(X[:0], 2),
    "max_unpool2d of no images": lambda: A.max_unpool2d(X[:0], torch.zeros(0, 3, 6, 6).long(), 2),
    "max_unpool2d to nothing": lambda: A.max_unpool2d(X[..., :1, :1], torch.zeros(2, 3, 1, 1).long(), 2, padding=1),
    "roi_align of no boxes": lambda: A.roi_align(X, torch.zeros(0, 5), 2),
    "roi_align outside": lambda: A.roi_align(X, torch.tensor([[0.0, 50, 50, 60, 60]]), 2),
    "roi_pool of no boxes": lambda: A.roi_pool(X, torch.zeros(0, 5), 2),
    "roi_pool outside": lambda: A.roi_pool(X, torch.tensor([[0.0, 50, 50, 60, 60]]), 2),
    "permutohedral_filter of no images": lambda: A.permutohedral_filter(X[:0], X[:0].detach()),
    "mean_field of no steps": lambda: A.mean_field(X, [], [], 0),
}
X = samples.rand(2, 3, 6, 6).requires_grad_()
W = samples.rand(3, 3, 2, 2).requires_grad_()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", NOTHING_LIVE)
def test_gradients_where_nothing_is_live(case, backend):
    """Zeros, not missing; and an output that belongs to a graph."""
    with ao.backend(backend):
        y = NOTHING_LIVE[case]()
        assert y.requires_grad
        (grad,) = torch.autograd.grad(y.sum(), X)
        with torch.no_grad():
            assert not NOTHING_LIVE[case]().requires_grad
    assert grad.shape == X.shape
    if case != "mean_field of no steps":
        assert not grad[:, :, 2:].any()
