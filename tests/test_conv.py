"""conv and conv_transpose against PyTorch: results, gradients, formats, the planner's answer overridden and not."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, both_ways, in_order, is_interpreted, worst
from shapes import CONVOLUTIONS, TRANSPOSED, Shape, TransposedShape, channels_last
from torch.nn.grad import conv2d_weight

import atrousops as ao
import atrousops.functional as A
from atrousops.dispatch import libraries

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
compiled = pytest.mark.skipif(not libraries.has_operators, reason="the CPU library is not built")
ALL = (*CONVOLUTIONS, *TRANSPOSED)


def call(module, shape: Shape, *tensors):
    rank = len(shape.size)
    if isinstance(shape, TransposedShape):
        rest = (shape.stride, shape.padding, shape.output_padding, shape.groups, shape.dilation)
        return getattr(module, f"conv_transpose{rank}d")(*tensors, *rest)
    return getattr(module, f"conv{rank}d")(*tensors, shape.stride, shape.padding, shape.dilation, shape.groups)


def random(size, dtype: torch.dtype) -> torch.Tensor:
    """Normal; in fp64, which has no oracle above it, eighths, whose products add up without rounding."""
    t = torch.randn(size)
    return (t * 8).round().to(dtype) / 8 if dtype == torch.float64 else t.to(dtype)


def tensors(shape: Shape, dtype: torch.dtype, last: bool, bias: bool = True):
    transposed = isinstance(shape, TransposedShape)
    first, second = (shape.c, shape.k) if transposed else (shape.k, shape.c)
    x = random((shape.n, shape.c, *shape.size), dtype)
    w = random((first, second // shape.groups, *shape.kernel), dtype)
    b = random((shape.k,), dtype) if bias else None
    return (channels_last(x), channels_last(w), b) if last else (x, w, b)


def with_gradients(module, shape: Shape, arguments, grad: torch.Tensor | None):
    leaves = [None if t is None else t.detach().requires_grad_() for t in arguments]
    y = call(module, shape, *leaves)
    grad = random(y.shape, y.dtype) if grad is None else grad.to(y.dtype)
    return y, *torch.autograd.grad(y, [t for t in leaves if t is not None], grad), grad


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ALL, ids=str)
def test_our_kernels_match_pytorch(shape, dtype, last, backend):
    arguments = tensors(shape, dtype, last)
    before = [t.clone() for t in arguments]
    *exact, grad = with_gradients(F, shape, [t.double() for t in arguments], None)
    grad = grad.to(dtype)
    *exact, _ = with_gradients(F, shape, [t.double() for t in arguments], grad)
    stock = lambda: with_gradients(F, shape, arguments, grad)[:-1]  # noqa: E731
    theirs = both_ways(stock) if dtype == torch.float32 else [stock()]
    *ours, _ = with_gradients(A, shape, arguments, channels_last(grad) if last else grad)
    for mine, right, ways in zip(ours, exact, zip(*theirs, strict=True), strict=True):
        assert_close(mine, right, worst(right, *ways))
    assert all(torch.equal(a, b) for a, b in zip(arguments, before)), "an input was written to"
    if ours[0].numel() and last and len(shape.size) > 1 and 1 not in ours[0].shape:
        # In some dtypes PyTorch's convolutions of volumes on a CPU return contiguous results.
        expected = theirs[0][0].stride(1) if ours[0].is_cpu else 1
        assert ours[0].stride(1) == expected, "another memory format than PyTorch's"


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", ["aten", "reference", None])
@pytest.mark.parametrize("shape", ALL, ids=str)
def test_other_backends_match_pytorch(shape, name):
    arguments = tensors(shape, torch.float32, False)
    exact, theirs = call(F, shape, *(t.double() for t in arguments)), call(F, shape, *arguments)
    with ao.backend(name):
        assert_close(call(A, shape, *arguments), exact, theirs)


@pytest.mark.parametrize("dilation", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_strides_with_dilations(stride, dilation, backend):
    """Every residue of a dilation by a stride, and reaches within and beyond a map of prime sizes."""
    shape = Shape("", 1, 3, 2, (11, 7), (3, 2), (stride, stride), (3, 2), (dilation, dilation))
    arguments = tensors(shape, torch.float64, False)
    *ours, grad = with_gradients(A, shape, arguments, None)
    *exact, _ = with_gradients(F, shape, arguments, grad)
    for mine, right in zip(ours, exact, strict=True):
        assert torch.equal(mine, right)


@compiled
@pytest.mark.parametrize("channels", [1, 2], ids=["depthwise", "grouped"])
@pytest.mark.parametrize("stride", [3, 5, 6, 7, 9])
def test_rows_shorter_than_the_period_of_their_phases(stride, channels):
    """A vector's phases repeat after `stride` vectors; rows of fewer vectors once ended in a division by zero."""
    groups = 4
    for dtype in DTYPES:
        for width in (1, 2, 3, 5, 9):
            shape = TransposedShape(
                "", 1, groups * channels, groups * channels, (2, width), (2, 3), (1, stride), groups=groups
            )
            x, w, _ = tensors(shape, torch.float64, False)
            right = call(F, shape, x, w, None).to(dtype)
            with ao.backend("cpu"):
                assert torch.equal(call(A, shape, x.to(dtype), w.to(dtype), None), right)
            # The input gradient of the convolution is the same map.
            rest = ([1, stride], [0, 0], [1, 1], groups)
            dx = torch.ops.atrousops.conv_grad_input(x.to(dtype), w.to(dtype), right.shape, *rest)
            assert torch.equal(dx, right)


@pytest.mark.parametrize("shape", [s for s in ALL if s.n], ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_same_bits_every_time_and_in_any_order(shape, backend):
    for last in (False, True):
        arguments = tensors(shape, torch.float32, last)
        first = with_gradients(A, shape, arguments, None)
        # Fibers in the same order do the same.
        again = first if is_interpreted(backend) else with_gradients(A, shape, arguments, first[-1])
        with in_order(backend, 1):
            other = with_gradients(A, shape, arguments, first[-1])
        for a, b, c in zip(first, again, other, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


@compiled
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_thousands_of_rows_of_few_channels_in_16_bits(dtype, last):
    """They share few GEMMs: the 4096 positions and more of a phase are cut into equal parts."""
    shape = TransposedShape("", 1, 12, 12, (65, 66), (4, 4), (2, 2), (1, 1))
    arguments = tensors(shape, dtype, last)
    exact, theirs = call(F, shape, *(t.double() for t in arguments)), call(F, shape, *arguments)
    with ao.backend("cpu"):
        ours = call(A, shape, *arguments)
        with in_order("cpu", 1):
            assert torch.equal(ours, call(A, shape, *arguments))
    assert_close(ours, exact, theirs)


@pytest.mark.parametrize("groups", [1, 8], ids=["dense", "depthwise"])
def test_views_unbatched_and_offset_pointers(groups, backend):
    # Whole numbers, whose sums are exact: what matters here is where they are read.
    whole = lambda *size: torch.randint(-3, 4, size).float()  # noqa: E731
    base = whole(3, 9, 20, 22)
    w = whole(8, 9, 3, 3)[:, 1 : 1 + 8 // groups]
    # Whole vectors of channels, but none of them begins on 16 bytes.
    off = whole(2 * 20 * 22 * 8 + 1)[1:].view(2, 20, 22, 8).movedim(3, 1)
    views = {
        "every second column": base[:, 1:, :, ::2],
        "pointer off by one channel": base[1:, 1:],
        "unbatched": base[1, 1:],
        "transposed": base[:, 1:].transpose(2, 3),
        "expanded": base[:1, 1:].expand(2, 8, 20, 22),
        "a slice of channels_last": channels_last(base)[:, 1:],
        "channels_last off by one element": off,
    }
    for what, x in views.items():
        ours = A.conv2d(x, w, None, 1, 2, 2, groups)
        exact = F.conv2d(x.double(), w.double(), None, 1, 2, 2, groups)
        assert torch.equal(ours.double(), exact), what
        if x.dim() == 4:
            mine = torch.ops.atrousops.conv_grad_weight(ours, x, [3, 3], [1, 1], [2, 2], [2, 2], groups)
            assert torch.equal(mine.double(), conv2d_weight(x.double(), w.shape, exact, 1, 2, 2, groups)), what


@pytest.mark.parametrize("groups", [1, 4], ids=["dense", "depthwise"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_the_weight_of_a_dead_tap_reaches_nothing(groups, last, backend):
    x, w = torch.randn(1, 4, 5, 6), torch.randn(4, 4 // groups, 3, 3)
    poisoned = w.clone()
    # With rate 8 on a 5x6 map only the centre tap reads inside.
    poisoned[:, :, [0, 0, 2, 2], [0, 2, 0, 1]] = torch.tensor([float("nan"), float("inf"), -float("inf"), float("nan")])
    if last:
        x, w, poisoned = map(channels_last, (x, w, poisoned))
    clean, ours = (A.conv2d(x, v, None, 1, 8, 8, groups) for v in (w, poisoned))
    dx, dw = torch.ops.atrousops.conv_grad_input, torch.ops.atrousops.conv_grad_weight
    rest = ([1, 1], [8, 8], [8, 8], groups)
    assert torch.equal(dx(clean, w, x.shape, *rest), dx(clean, poisoned, x.shape, *rest))
    assert dw(clean, x, [3, 3], *rest)[:, :, 0, 0].eq(0).all()
    assert torch.equal(clean, ours)


UNREAD = (
    Shape("columns between windows and behind the last", 1, 8, 8, (7, 23), (1, 2), (2, 5), groups=8),
    Shape("rows of one vector and a column", 2, 8, 16, (3, 19), (2, 2), (1, 2), groups=8),
    Shape("the same, dense", 1, 3, 5, (7, 23), (1, 2), (2, 5)),
    Shape("1-D", 1, 6, 6, (38,), (3,), (4,), (0,), (1,), groups=6),
    TransposedShape("outputs between those that are reached", 1, 8, 8, (3, 7), (2, 1), (3, 3), groups=8),
    TransposedShape("inputs whose outputs are cut off", 1, 8, 8, (4, 9), (1, 1), (1, 1), (1, 2), groups=8),
    TransposedShape("the same, dense", 1, 3, 5, (4, 9), (1, 1), (1, 1), (1, 2)),
)


@compiled
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", UNREAD, ids=str)
def test_what_no_window_reads_reaches_nothing(shape, last):
    """NaN and infinities there change no bit of result or gradient."""
    for dtype in DTYPES:
        x, w, _ = tensors(shape, dtype, last, bias=False)
        ones = [torch.ones_like(t, dtype=torch.float64).requires_grad_() for t in (x, w)]
        y = call(F, shape, *ones, None)
        unread, unreached = torch.autograd.grad(y.sum(), ones[0])[0] == 0, y == 0
        assert unread.any() or unreached.any()
        grad = random(y.shape, dtype)
        with ao.backend("cpu"):
            clean = with_gradients(A, shape, (x, w, None), grad)[:3]
            for value in (float("nan"), float("inf")):
                other, sent = x.clone(), grad.clone()
                other[unread], sent[unreached] = value, value
                found = with_gradients(A, shape, (other, w, None), sent)[:3]
                assert all(torch.equal(a, b) for a, b in zip(clean, found))


@compiled
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("groups", [1, 4], ids=["dense", "depthwise"])
def test_the_weight_of_a_dead_tap_in_phases(groups, last):
    """Three phases of one tap each, of which only the middle one's output lies on the map."""
    grad, w = random((1, 4, 1, 1), torch.float64), random((4, 4 // groups, 1, 3), torch.float64)
    grad, w = (channels_last(grad), channels_last(w)) if last else (grad, w)
    dx = lambda w: torch.ops.atrousops.conv_grad_input(grad, w, (1, 4, 1, 5), [1, 3], [0, 2], [1, 4], groups)  # noqa: E731
    poisoned = w.clone()
    poisoned[..., [0, 2]] = float("nan")
    assert torch.equal(dx(poisoned), dx(w))
    assert dx(w)[..., 2].any()


@pytest.mark.parametrize("groups", [1, 4], ids=["dense", "depthwise"])
def test_nan_and_inf_elsewhere_spread_as_in_pytorch(groups, backend):
    x, w = torch.randn(1, 4, 9, 8), torch.randn(4, 4 // groups, 3, 3)
    x[0, 1, 4, 4], x[0, 2, 0, 0], w[1, 0, 1, 1] = float("nan"), float("inf"), float("inf")
    ours = A.conv2d(x, w, None, 1, 1, 1, groups)
    # Without padding's products 0 * inf: only interior outputs are comparable with PyTorch.
    theirs = F.conv2d(x, w, None, 1, 1, 1, groups)[:, :, 1:-1, 1:-1]
    ours = ours[:, :, 1:-1, 1:-1]
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.isinf(), theirs.isinf())


def test_integers_and_complex_go_to_pytorch():
    x, w = torch.arange(32).view(1, 2, 4, 4), torch.ones(2, 2, 3, 3, dtype=torch.int64)
    assert torch.equal(A.conv2d(x, w, dilation=1, padding=1), F.conv2d(x, w, padding=1))
    z, v = torch.randn(1, 2, 5, 5, dtype=torch.complex64), torch.randn(2, 2, 3, 3, dtype=torch.complex64)
    assert torch.equal(A.conv2d(z, v, padding=2, dilation=2), F.conv2d(z, v, padding=2, dilation=2))
    assert torch.equal(A.conv_transpose2d(z, v, stride=2), F.conv_transpose2d(z, v, stride=2))
    with pytest.raises(NotImplementedError):
        A.conv_transpose2d(x.int(), w.int())


@compiled
@pytest.mark.parametrize("groups", [1, 4], ids=["dense", "depthwise"])
def test_autocast(groups):
    x, w = torch.randn(1, 4, 9, 8), torch.randn(4, 4 // groups, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = F.conv2d(x, w, None, 1, 4, 4, groups)
        with ao.backend("cpu"):
            ours = A.conv2d(x, w, None, 1, 4, 4, groups)
        assert A.conv2d(x, w.bfloat16(), None, 1, 4, 4, groups).dtype == torch.bfloat16
    assert_close(ours, F.conv2d(x.double(), w.double(), None, 1, 4, 4, groups), theirs)


def operator_samples():
    x, w, b = (torch.randn(s, requires_grad=True) for s in ((2, 4, 6, 5), (6, 2, 3, 3), (6,)))
    dw = torch.randn(1, 3, 5, 4, requires_grad=True), torch.randn(3, 1, 3, 3, requires_grad=True)
    y, t = torch.randn(2, 6, 6, 5, requires_grad=True), torch.randn(4, 3, 2, 2, requires_grad=True)
    last = torch.randn(2, 4, 6, 5).to(memory_format=torch.channels_last).requires_grad_()
    ops, one, two = torch.ops.atrousops, [1, 1], [2, 2]
    return [
        (ops.conv, (x, w, b, one, two, two, 2)),
        (ops.conv, (last, w, None, one, [1, 1, 3, 3], two, 2)),
        (ops.conv, (*dw, None, two, one, one, 3)),
        (ops.conv_grad_input, (y, w, list(x.shape), one, two, two, 2)),
        (ops.conv_grad_weight, (y, x, [3, 3], one, two, two, 2)),
        (ops.conv_grad_weight, (dw[0].detach(), dw[0], [3, 3], one, one, one, 3)),
        (ops.conv_transpose, (x, t, None, two, [0, 0], one, one, 1)),
        (ops.conv_transpose, (last, t, torch.randn(3), two, one, [0, 0], one, 1)),
    ]


@pytest.mark.parametrize("index", range(8))
def test_opcheck(index, backend):
    operator, args = operator_samples()[index]
    # The gradients too are ours with a forced backend, and not the planner's choice of the day.
    torch.library.opcheck(operator.default, args)
