import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import assert_compiles, is_interpreted
from roi_cases import repeated
from torch.testing._internal.common_methods_invocations import op_db

import atrousops as ao
import atrousops.functional as A
from atrousops import nn, reference
from atrousops.dispatch import backends

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
OURS = (None, A.max_pool1d, A.max_pool2d, A.max_pool3d)
THEIRS = (None, F.max_pool1d, F.max_pool2d, F.max_pool3d)
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}

# spatial size, kernel, stride, padding, dilation, ceil_mode
CASES = [
    ((11,), 3, 2, 1, 1, False),  # one axis, odd length
    ((9,), (4,), (3,), (2,), (2,), True),  # dilated, and a last window over the edge
    ((8, 10), 2, 2, 0, 1, False),  # side by side: the fast path, and a width that is no multiple of a vector
    ((9, 11), 2, 2, 0, 1, True),  # side by side in name, but the last ones hang over
    ((6, 300), 2, 2, 0, 1, False),  # rows longer than the blocks of the fast path
    ((15, 17), 3, 2, 1, 1, False),  # the stem of a ResNet
    ((9, 8), 3, 1, 1, 1, False),  # stride 1 reads rows where they are
    ((13, 12), (3, 2), (1, 3), (1, 0), (2, 1), True),  # everything different on the two axes, stride 3
    ((7, 7), (1, 5), (4, 1), (0, 2), (1, 1), False),  # windows with gaps between them
    ((1, 1), 2, 1, 1, 1, False),  # more padding than map
    ((2, 2), 2, 1, 1, 3, False),  # a dilated window that steps over the whole map: nothing in it
    ((5, 6, 7), 2, 2, 0, 1, True),  # volumes
    ((4, 7, 6), (3, 2, 3), (2, 1, 2), (1, 1, 0), (1, 2, 1), False),
]


def in_formats(cases):
    """PyTorch has no channels_last for one axis."""
    return [(case, False) for case in cases] + [(case, True) for case in cases if len(case[0]) > 1]


def material(spatial, dtype, channels=3, channels_last=False):
    """Few values, so that ties abound; NaN, -inf, signed zeros and subnormals among them; a plane of -inf alone."""
    x = torch.randint(-2, 3, (2, channels, *spatial)).to(dtype)
    flat = x.view(-1)
    flat[::5] = float("-inf")
    flat[3::17] = float("nan")
    flat[4::19] = -0.0
    flat[1::23] = torch.finfo(dtype).smallest_normal / 2
    flat[2::29] = torch.finfo(dtype).smallest_normal / 4
    x[0, 0] = float("-inf")
    if channels_last:
        x = x.to(memory_format=FORMATS[len(spatial)])
    return x


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", [None, "aten", "reference"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_other_backends_give_pytorchs_values_and_indices(case, name):
    with ao.backend(name):
        check_values_and_indices(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_indices_are_pytorchs(case, backend):
    check_values_and_indices(case)


def check_values_and_indices(case):
    spatial, *arguments = case
    # In channels_last 130: more than a block of the CPU's kernel, and no multiple of a vector; 24 is one, for CUDA's.
    for dtype, channels in itertools.product(DTYPES, (3, 130, 24)):
        channels_last = channels > 3
        if channels_last and len(spatial) == 1:
            continue
        x = material(spatial, dtype, channels, channels_last)
        before = x.clone()
        y, indices = OURS[len(spatial)](x, *arguments, return_indices=True)
        alone = OURS[len(spatial)](x, *arguments)
        # On the CPU: where algorithms are to be deterministic, PyTorch pools a volume on a GPU by a decomposition that
        # gives the position of the first NaN in place of the last.
        theirs = THEIRS[len(spatial)](x.cpu(), *arguments, return_indices=True)
        expected, expected_indices = (t.to(x.device) for t in theirs)
        same(y, expected)
        same(alone, expected)
        assert torch.equal(indices, expected_indices)
        if not x.is_contiguous():
            assert y.is_contiguous(memory_format=FORMATS[len(spatial)])
        same(x, before)


@pytest.mark.parametrize(("case", "channels_last"), [c for c in in_formats(CASES) if c[0][4] == 1], ids=str)
def test_codes_say_the_same_as_indices(case, channels_last, backend):
    spatial, *arguments = case
    for dtype, channels in ((torch.float32, 5), *((dtype, 16) for dtype in DTYPES)):
        x = material(spatial, dtype, channels, channels_last)
        y, codes = OURS[len(spatial)](x, *arguments, return_indices="codes")
        with ao.backend("reference"):
            expected, expected_codes = OURS[len(spatial)](x, *arguments, return_indices="codes")
        same(y, expected)
        assert codes.dtype == torch.uint8
        assert torch.equal(codes, expected_codes)


def test_views_offsets_unbatched_and_empty_batch(backend):
    for x in (
        torch.randn(3, 2, 8, 9).transpose(0, 1),  # neither format
        torch.randn(200)[5:].as_strided((1, 2, 5, 6), (90, 45, 7, 1)),  # rows further apart than they are long
        torch.randn(3, 8, 9),  # unbatched
        torch.randn(1, 1, 1, 7).expand(2, 3, 6, 7),  # one row seen many times
        torch.randn(0, 3, 8, 9),  # empty batch
    ):
        for ours, theirs in zip(
            A.max_pool2d(x, 3, 2, 1, return_indices=True), F.max_pool2d(x, 3, 2, 1, 1, False, True)
        ):
            same(ours, theirs)
    empty = torch.randn(0, 3, 8, 9, requires_grad=True)
    A.max_pool2d(empty, 2).sum().backward()
    assert empty.grad.shape == empty.shape


@pytest.mark.parametrize("channels_last", [False, True])
def test_indices_of_windows_that_start_2_to_the_32_before_the_map(channels_last):
    """A position counted from the first tap, which lies 2^20 rows of 4096 above the map, needs more than 32 bits."""
    x = torch.rand(1, 2, 3, 4096, generator=torch.Generator().manual_seed(0))
    x = (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
    window = ((1 << 21, 4096), (1 << 20, 1), (1 << 20, 0))
    results = []
    for function in (A.max_pool2d, F.max_pool2d):
        with ao.backend("cpu"):
            values, indices = function(x, *window, return_indices=True)
        results.append((values, indices, *torch.autograd.grad(values.sum(), x)))
    for got, expected in zip(*results):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("marks", [False, True, "codes"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_graph_of_a_gradient_leads_to_the_input(axes, marks):
    """Its derivative is zero, as PyTorch's, though nothing behind the pooling has one."""
    x = torch.randn(1, 2, *[6] * axes)
    results = []
    for function in (OURS[axes], getattr(F, f"max_pool{axes}d")):
        with ao.backend("cpu"):
            leaf = x.clone().requires_grad_()
            y = function(2 * leaf, 2, return_indices=marks if function is OURS[axes] else False)
            (grad,) = torch.autograd.grad((y if torch.is_tensor(y) else y[0]).sum(), leaf, create_graph=True)
            assert grad.requires_grad
            results.append((grad, *torch.autograd.grad((grad * leaf.detach()).sum(), leaf)))
    for got, expected in zip(*results):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("marks", [False, True, "codes"])
@pytest.mark.parametrize(("case", "channels_last"), [c for c in in_formats(CASES) if c[0][0] != (2, 2)], ids=str)
def test_gradient(case, channels_last, marks, backend):
    """PyTorch in fp64 is the oracle; sums of 16-bit gradients are ours in fp32, so at most one rounding away."""
    spatial, *arguments = case
    if marks == "codes" and arguments[3] not in (1, (1, 1)):
        marks = False
    for dtype in DTYPES:
        x = torch.randn(2, 18, *spatial).to(dtype)
        if channels_last:
            x = x.to(memory_format=FORMATS[len(spatial)])
        mine, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        y = OURS[len(spatial)](mine, *arguments, return_indices=marks)
        y = y[0] if marks else y
        expected = THEIRS[len(spatial)](exact, *arguments)
        grad = torch.randn(y.shape).to(dtype)
        if channels_last:
            grad = grad.to(memory_format=FORMATS[len(spatial)])
        y.backward(grad)
        expected.backward(grad.double())
        assert mine.grad.stride() == x.stride()
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=eps, atol=4 * eps * (dtype.itemsize > 2))


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradient_of_many_windows(channels_last, backend):
    """81 windows around a position, more than the CPU's kernel lists; sums of small integers are exact."""
    x = torch.randint(0, 4, (2, 18, 10, 9)).float()
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    grad = torch.randint(-4, 5, x.shape).float()
    A.max_pool2d(mine, 9, 1, 4).backward(grad)
    F.max_pool2d(theirs, 9, 1, 4).backward(grad)
    same(mine.grad, theirs.grad)


@pytest.mark.parametrize("marks", [False, True, "codes"])
def test_gradcheck(marks, backend):
    x = torch.randperm(2 * 2 * 5 * 6).double().reshape(2, 2, 5, 6).requires_grad_()

    def pool(x):
        y = A.max_pool2d(x, 3, 2, 1, return_indices=marks)
        return y[0] if marks else y

    assert torch.autograd.gradcheck(pool, x, fast_mode=is_interpreted(backend))
    assert torch.autograd.gradgradcheck(pool, x, fast_mode=is_interpreted(backend))


def test_many_taps_need_indices(backend):
    x = torch.randn(1, 2, 20, 20, requires_grad=True)  # 17 x 17 taps are more than a byte counts
    A.max_pool2d(x, 17, 1).sum().backward()
    with pytest.raises(ValueError, match="kernel_size must have at most 256 taps"):
        A.max_pool2d(x, 17, 1, return_indices="codes")
    A.max_pool2d(x, 16, 1, return_indices="codes")
    mine, x.grad = x.grad, None
    F.max_pool2d(x, 17, 1).sum().backward()
    torch.testing.assert_close(mine, x.grad)


@pytest.mark.parametrize("channels_last", [False, True])
def test_same_bits_every_time(channels_last, backend):
    x = torch.randn(3, 20, 40, 50)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    grad = torch.sin(torch.arange(x.numel()).reshape(x.shape).float())

    def run():
        leaf = x.clone().requires_grad_()
        y, i = A.max_pool2d(leaf, 3, 1, 1, return_indices=True)
        return y.detach(), i, *torch.autograd.grad(y, leaf, grad)

    first, *others = repeated(run, backend)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other))


def test_opcheck(backend):
    ops = torch.ops.atrousops
    for x in (
        torch.randn(2, 3, 6, 7, requires_grad=True),
        torch.randn(2, 3, 6, 7).to(memory_format=torch.channels_last).requires_grad_(),
        torch.randn(3, 6, 7, requires_grad=True),
    ):
        window = ([3, 2], [2, 1], [1, 0], [1, 2])
        for op in (ops.max_pool, ops.max_pool_codes):
            torch.library.opcheck(op.default, (x, *window, True))
            y, marks = op(x.detach(), *window, True)
            torch.library.opcheck(ops.max_pool_backward.default, (y.requires_grad_(), marks, [6, 7], *window))
        torch.library.opcheck(ops.max_pool_values.default, (x.detach(), *window, False))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic, backend):
    def run(x):
        y, i = A.max_pool2d(x, 3, 2, 1, return_indices=True)
        return A.max_pool2d(y, 2), i

    sizes = ((2, 3, 16, 20), (1, 3, 24, 28))
    assert_compiles(run, *((torch.randn(size, requires_grad=True),) for size in sizes), dynamic=dynamic)


def test_integers_go_to_pytorch():
    x = torch.arange(64).reshape(1, 1, 8, 8)
    same(A.max_pool2d(x, 2), F.max_pool2d(x, 2))
    assert backends.choose("max_pool", x.device, x.dtype) == "aten"


@pytest.mark.parametrize("info", [o for o in op_db if "functional.max_pool" in o.name], ids=lambda o: o.name)
def test_pytorchs_own_samples(info):
    ours = getattr(A, info.name.rpartition(".")[2])
    count = 0
    # Every seventh of up to 1440: they run through all combinations, and 7 divides no period of theirs.
    for sample in itertools.islice(info.sample_inputs("cpu", torch.float32, requires_grad=True), 0, None, 7):
        expected = info.op(sample.input, *sample.args, **sample.kwargs)
        for backend in (None, "cpu"):
            with ao.backend(backend):
                mine = ours(sample.input, *sample.args, **sample.kwargs)
            assert isinstance(mine, tuple) == isinstance(expected, tuple)
            for a, b in zip(mine, expected):
                same(a, b)
        count += 1
    assert count > 80


X = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize(
    ("message", "arguments", "keywords"),
    [
        ("kernel_size must be positive; got \\(0, 2\\)", (X, (0, 2)), {}),
        ("kernel_size must be one integer or 2; got 2.5", (X, 2.5), {}),
        ("kernel_size must be one integer or 2; got \\(1, 2, 3\\)", (X, (1, 2, 3)), {}),
        ("stride must be positive; got \\(-1, -1\\)", (X, 2, -1), {}),
        ("padding must be at most half of kernel_size, 1; got \\(2, 2\\)", (X, 2, 2, 2), {}),
        ("dilation must be positive", (X, 2), {"dilation": 0}),
        ("input must hold a window once padded .* got spatial size \\(8, 8\\)", (X, 9), {}),
        ("input must be \\(N, C, H, W\\) or \\(C, H, W\\) .* got shape \\(8, 8\\)", (X[0, 0], 2), {}),
        ("return_indices must be True, False or \"codes\"; got 'yes'", (X, 2), {"return_indices": "yes"}),
        ("dilation must be 1 where return_indices", (X, 2), {"dilation": 2, "return_indices": "codes"}),
    ],
)
def test_messages(message, arguments, keywords):
    with pytest.raises((ValueError, TypeError), match=f"max_pool2d: {message}"):
        A.max_pool2d(*arguments, **keywords)


@given(
    axes=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    kernel=st.integers(0, 4),
    stride=st.integers(0, 4),
    padding=st.integers(-1, 3),
    dilation=st.integers(0, 3),
    ceil_mode=st.booleans(),
)
@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_arguments(axes, sizes, kernel, stride, padding, dilation, ceil_mode, backend):
    x = torch.randint(-3, 4, (1, 2, *sizes[:axes])).float()
    arguments = (kernel, stride, padding, dilation, ceil_mode, True)
    try:
        expected = THEIRS[axes](x, *arguments)
    except RuntimeError:
        with pytest.raises((ValueError, TypeError)):
            OURS[axes](x, *arguments)
        return
    for ours, theirs in zip(OURS[axes](x, *arguments), expected):
        same(ours, theirs)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_layer(axes):
    arguments = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": True, "return_indices": True}
    ours = getattr(nn, f"MaxPool{axes}d")(**arguments)
    theirs = getattr(torch.nn, f"MaxPool{axes}d")(**arguments)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == f"atrousops.{theirs}"
    assert ours.state_dict() == {}
    x = torch.randn(2, 3, *(8, 9, 7)[:axes])
    for a, b in zip(ours(x), theirs(x)):
        same(a, b)


def test_reference_at_a_hand_worked_case():
    x = torch.tensor([[[[1.0, 5.0, 5.0], [2.0, 5.0, float("nan")]]]])
    y, i = reference.max_pool(x, (2, 2), (1, 1), (0, 0), (1, 1), False)
    # The first of three fives, at position 1; then NaN above all, at position 5.
    same(y, torch.tensor([[[[5.0, float("nan")]]]]))
    assert i.tolist() == [[[[1, 5]]]]


@pytest.mark.parametrize("return_indices", [False, True])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_compiles_whole(axes, return_indices):
    # Small enough for PyTorch's operator to be asked straight away.
    x = torch.randn(1, 2, *(6, 5, 4)[:axes])
    call = torch.compile(lambda x: OURS[axes](x, 2, return_indices=return_indices), fullgraph=True, backend="eager")
    torch.testing.assert_close(call(x), THEIRS[axes](x, 2, return_indices=return_indices))


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_one_tap_has_no_dilation(axes, indices):
    """Its window is its own position, also at the largest dilation that an int64 holds."""
    x = torch.randn(2, 3, *[5] * axes)
    got = getattr(A, f"max_pool{axes}d")(x, 1, 1, 0, 2**63 - 1, return_indices=indices)
    assert torch.equal(got[0] if indices else got, x)
    whole, _ = torch.ops.atrousops.max_pool(x, [1] * axes, [1] * axes, [0] * axes, [2**63 - 1] * axes, False)
    assert torch.equal(whole, x)
    if indices:
        assert torch.equal(got[1], torch.arange(5**axes).view(*[5] * axes).expand_as(x))
