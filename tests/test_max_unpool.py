import contextlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import assert_compiles, is_interpreted
from roi_cases import repeated
from test_max_pool import DTYPES, FORMATS, in_formats, same
from test_max_pool import OURS as OUR_POOL
from test_max_pool import THEIRS as POOL
from torch.testing._internal.common_methods_invocations import op_db

import atrousops as ao
import atrousops.functional as A
from atrousops import nn, reference

OURS = (None, A.max_unpool1d, A.max_unpool2d, A.max_unpool3d)

# spatial size of the pooled map, kernel, stride, padding
CASES = [
    ((12,), 2, 2, 0),  # one axis
    ((8, 10), 2, 2, 0),  # SegNet and ENet
    ((6, 45), 2, 2, 0),  # vectors of windows, a last one that overlaps, and a column that no window covers
    ((9, 11), 2, 2, 0),  # a last row and column that no window covers
    ((15, 17), 3, 2, 1),  # overlapping windows name a position twice
    ((9, 12), (3, 2), (3, 4), (1, 0)),  # gaps between windows; different axes
    ((10, 10), 3, 1, 1),  # each position may be named nine times
    ((5, 6, 7), 2, 2, 0),  # volumes
    ((5, 6, 7), 3, 2, 1),
]


@contextlib.contextmanager
def nondeterminism_allowed():
    """PyTorch's own max_unpool refuses to run under deterministic algorithms."""
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True)


def theirs(axes, x, indices, *arguments, **keywords):
    """On the CPU: the order in which a GPU of PyTorch writes is nobody's."""
    with nondeterminism_allowed():
        unpool = (None, F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)[axes]
        return unpool(x.cpu(), indices.cpu(), *arguments, **keywords).to(x.device)


def pooled(case, dtype=torch.float32, channels=5, channels_last=False, batch=2):
    """Values and indices of a pooling; the values are then made distinct, so that it shows which one was kept."""
    spatial, *window = case
    axes = len(spatial)
    _, indices = POOL[axes](torch.randn(batch, channels, *spatial), *window, return_indices=True)
    values = torch.randn(indices.shape).to(dtype)
    if channels_last:
        values, indices = (t.to(memory_format=FORMATS[axes]) for t in (values, indices))
    return axes, values, indices, window


@pytest.mark.parametrize("name", [None, "reference"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_last_in_order_stays_on_other_backends(case, name):
    with ao.backend(name):
        check_the_last_stays(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_last_in_order_stays(case, backend):
    check_the_last_stays(case)


def check_the_last_stays(case):
    # In channels_last 130: more than a block of the CPU's kernel, and no multiple of a vector; 24 is one, for CUDA's.
    for dtype in DTYPES:
        for channels in (5, 130, 24):
            channels_last = channels > 5
            if channels_last and len(case[0]) == 1:
                continue
            axes, x, indices, window = pooled(case, dtype, channels, channels_last)
            before = x.clone(), indices.clone()
            y = OURS[axes](x, indices, *window, output_size=case[0])
            # PyTorch on one thread is sequential, so the last write stays.
            torch.set_num_threads(1)
            same(y, theirs(axes, x.contiguous(), indices.contiguous(), *window, output_size=case[0]))
            torch.set_num_threads(2)
            # PyTorch's max_unpool3d returns a contiguous tensor.
            kept = channels_last and axes < 3
            assert y.is_contiguous(memory_format=FORMATS[axes] if kept else torch.contiguous_format)
            same(x, before[0])
            assert torch.equal(indices, before[1])


@pytest.mark.parametrize(("case", "channels_last"), in_formats(CASES), ids=str)
def test_codes_place_as_indices_do(case, channels_last, backend):
    spatial, *window = case
    axes, pool = len(spatial), OUR_POOL[len(spatial)]
    # One channel a thread, and vectors of them in each size: an even number and three.
    for dtype, channels in ((torch.float32, 5), (torch.float16, 24), *((dtype, 16) for dtype in DTYPES)):
        x = torch.randn(2, channels, *spatial).to(dtype)
        if channels_last:
            x = x.to(memory_format=FORMATS[axes])
        values, indices = pool(x, *window, return_indices=True)
        _, codes = pool(x, *window, return_indices="codes")
        grads = []
        for marks in (indices, codes):
            leaf = values.clone().requires_grad_()
            y = OURS[axes](leaf, marks, *window, output_size=spatial)
            y.backward(torch.sin(torch.arange(y.numel()).reshape(y.shape)).to(dtype))
            grads.append((y.detach(), leaf.grad))
        for a, b in zip(*grads):
            assert torch.equal(a, b)
        with ao.backend("reference"):
            same(OURS[axes](values, codes, *window, output_size=spatial), grads[0][0])


@pytest.mark.parametrize("channels_last", [False, True])
def test_indices_may_point_anywhere(channels_last, backend):
    """Not only into their own window, and in any order: PyTorch knows no windows here."""
    # Many planes, and one of more windows than a block of the CUDA kernel reads at once.
    for n, c, h, w in ((2, 20, 6, 7), (1, 2, 17, 18)):
        x = torch.randn(n, c, h, w)
        indices = torch.stack([torch.randperm(4 * h * w)[: h * w] for _ in range(n * c)]).reshape(x.shape)
        for marks in (indices, torch.full_like(indices, 4 * h * w - 1), indices % 5):
            if channels_last:
                x, marks = x.to(memory_format=torch.channels_last), marks.to(memory_format=torch.channels_last)
            torch.set_num_threads(1)
            expected = theirs(2, x.contiguous(), marks.contiguous(), 2)
            torch.set_num_threads(2)
            same(A.max_unpool2d(x, marks, 2), expected)


def test_nan_stays_where_it_is_put(backend):
    axes, x, indices, window = pooled(((8, 10), 2, 2, 0))
    x[0, 0, 0, 0], x[1, 1, 2, 2] = float("nan"), float("inf")
    same(A.max_unpool2d(x, indices, *window), theirs(axes, x, indices, *window))


def test_views_offsets_unbatched_and_empty_batch(backend):
    _, x, indices, _ = pooled(((8, 10), 2, 2, 0), batch=3)
    cases = [
        (x.transpose(0, 1), indices.transpose(0, 1)),  # neither format
        (x[1:], indices[1:]),  # an offset
        (x[:, :, ::2], indices[:, :, ::2] // 2),  # rows left out
        (x[0], indices[0]),  # unbatched
        (x[:0], indices[:0]),  # empty batch
        (x.to(memory_format=torch.channels_last), indices),  # formats that differ
        (x, indices.to(memory_format=torch.channels_last)),
    ]
    for a, b in cases:
        same(A.max_unpool2d(a, b, 2), theirs(2, a, b, 2))


@pytest.mark.parametrize(("case", "channels_last"), in_formats(CASES), ids=str)
def test_gradient(case, channels_last, backend):
    for dtype in DTYPES:
        axes, x, indices, window = pooled(case, dtype, 18, channels_last)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y = OURS[axes](a, indices, *window, output_size=case[0])
        expected = theirs(axes, b, indices, *window, output_size=case[0])
        grad = torch.randn(y.shape).to(dtype)
        y.backward(grad)
        expected.backward(grad)
        same(a.grad, b.grad)


@pytest.mark.parametrize("case", [c for c in CASES if c[1] == 2], ids=str)
def test_gradcheck(case, backend):
    axes, x, indices, window = pooled(case, torch.float64, 2)
    x.requires_grad_()

    def unpool(x):
        return OURS[axes](x, indices, *window, output_size=case[0])

    assert torch.autograd.gradcheck(unpool, x, fast_mode=is_interpreted(backend))
    assert torch.autograd.gradgradcheck(unpool, x, fast_mode=is_interpreted(backend))


@pytest.mark.parametrize("channels_last", [False, True])
def test_same_bits_every_time(channels_last, backend):
    _, x, indices, window = pooled(((80, 90), 3, 1, 1), channels=20, channels_last=channels_last)
    first, *others = repeated(lambda: A.max_unpool2d(x, indices, *window), backend)
    assert all(torch.equal(first, other) for other in others)


def test_opcheck(backend):
    ops = torch.ops.atrousops
    for channels_last in (False, True):
        _, x, indices, _ = pooled(((8, 10), 2, 2, 0), channels_last=channels_last)
        x.requires_grad_()
        window = ([2, 2], [2, 2], [0, 0])
        torch.library.opcheck(ops.max_unpool.default, (x, indices, [8, 10], *window))
        grad = ops.max_unpool(x.detach(), indices, [8, 10], *window).requires_grad_()
        torch.library.opcheck(ops.max_unpool_backward.default, (grad, indices, *window, [1, 1]))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic, backend):
    def run(x):
        y, i = A.max_pool2d(x, 2, return_indices=True)
        return A.max_unpool2d(y * 2, i, 2, output_size=x.shape)

    sizes = ((2, 3, 16, 20), (1, 3, 25, 28))
    assert_compiles(run, *((torch.randn(size, requires_grad=True),) for size in sizes), dynamic=dynamic)


OP_DB = [o for o in op_db if o.name.startswith("nn.functional.max_unpool")]


@pytest.mark.parametrize("info", OP_DB, ids=lambda o: f"{o.name} {o.variant_test_name}")
def test_pytorchs_own_samples(info):
    ours = getattr(A, info.name.rpartition(".")[2])
    count = 0
    with nondeterminism_allowed():
        # All of them in float32, every fifth in bfloat16.
        for dtype, step in ((torch.float32, 1), (torch.bfloat16, 5)):
            for sample in itertools.islice(info.sample_inputs("cpu", dtype, requires_grad=True), 0, None, step):
                expected = info.op(sample.input, *sample.args, **sample.kwargs)
                grad = torch.randn(expected.shape).to(dtype)
                (expected_grad,) = torch.autograd.grad(expected, sample.input, grad)
                for backend in (None, "cpu"):
                    with ao.backend(backend):
                        mine = ours(sample.input, *sample.args, **sample.kwargs)
                    same(mine, expected)
                    same(torch.autograd.grad(mine, sample.input, grad)[0], expected_grad)
                count += 1
    # Plain samples: 144, 288 and 96; with gradients 13, 33 and 12.
    assert count >= 12


X = torch.zeros(1, 1, 4, 4)
I = torch.zeros(1, 1, 4, 4, dtype=torch.int64)  # noqa: E741


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("wrong", [64, -1, 2**40, -(2**32)])  # the last two would look right if cut to 32 bits
def test_indices_outside_the_output(wrong, channels_last, backend):
    """The CPU and the reference raise; a GPU leaves them out, as the host would have to wait for the device."""
    x, indices = torch.randn(2, 4, 4, 4), torch.arange(128).reshape(2, 4, 4, 4) % 16
    if channels_last:
        x, indices = x.to(memory_format=torch.channels_last), indices.to(memory_format=torch.channels_last)
    if backend != "cpu":
        expected = A.max_unpool2d(x.clone().index_fill_(3, torch.tensor([2]), 0.0), indices, 2)
        same(A.max_unpool2d(x, indices.index_fill(3, torch.tensor([2]), wrong), 2), expected)
        return
    indices[1, 2, 0, 3] = wrong
    for name in ("cpu", "reference"):
        said = f"indices must lie between 0 and 63.*Found an invalid max index: {wrong}"
        with ao.backend(name), pytest.raises(ValueError, match=said):
            A.max_unpool2d(x, indices, 2)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("indices must be int64, or uint8 codes; got torch.int32", (X, I.int(), 2)),
        ("indices must have the shape of input, \\(1, 1, 4, 4\\); got shape \\(1, 1, 2, 4\\)", (X, I[:, :, :2], 2)),
        ("input must be \\(N, C, H, W\\) or", (X[0, 0], I[0, 0], 2)),
        ("input must be .* with only N allowed to be 0", (X[:, :0], I[:, :0], 2)),
        ("kernel_size must be positive; got \\(0, 0\\)", (X, I, 0)),
        ("kernel_size must be one integer or 2; got \\(2, 2, 2\\)", (X, I, (2, 2, 2))),
        ("stride must be positive; got \\(0, 0\\)", (X, I, 2, 0)),
        ("padding must not be negative where indices are codes", (X, I.byte(), 2, 2, -1)),
        ("output_size must be within a stride of the default \\(8, 8\\); got \\(12, 9\\)", (X, I, 2, 2, 0, (12, 9))),
        ("output_size must have 2 or 4 numbers; got \\(8,\\)", (X, I, 2, 2, 0, (8,))),
        ("output_size must be a sequence", (X, I, 2, 2, 0, 8)),
        ("output_size must not be negative", (X, I, 2, 1, 3)),
        ("one-byte codes in indices must lie between 0 and 3 for a window of 4; got 9", (X, I.byte() + 9, 2)),
    ],
)
def test_messages(message, arguments, backend):
    if "one-byte codes" in message and backend != "cpu":
        # A kernel that looks at values after the call has returned cannot raise.
        x, indices, *window = arguments
        where = torch.get_default_device()
        assert A.max_unpool2d(x.to(where), indices.to(where), *window).shape == (1, 1, 8, 8)
        return
    with pytest.raises((ValueError, TypeError), match=f"max_unpool(2d)?: {message}"):
        A.max_unpool2d(*arguments)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("wish", [0, 1])
def test_negative_padding_is_a_larger_result(axes, wish, backend, nondeterministic):
    """No pooling has it, and PyTorch's unpooling takes it: by default (5 - 1) * 2 + 2 + 2 = 12 positions."""
    x = torch.randn(2, 3, *[5] * axes, requires_grad=True)
    indices = torch.stack([torch.randperm(12**axes)[: 5**axes] for _ in range(6)]).view(x.shape)
    size = [12 + wish] * axes if wish else None
    expected = theirs(axes, x, indices, 2, 2, -1, size)
    y = OURS[axes](x, indices, 2, 2, -1, size)
    same(y, expected)
    grad = torch.randn(y.shape)
    same(torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(expected, x, grad)[0])


@given(
    axes=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 4),
    padding=st.integers(0, 2),
    more=st.integers(-2, 2),
    channels_last=st.booleans(),
    high=st.integers(1, 300),
)
@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_arguments(axes, sizes, kernel, stride, padding, more, channels_last, high, backend):
    x = torch.randn(1, 2, *sizes[:axes])
    indices = torch.randint(0, high, x.shape)
    if channels_last and axes > 1:
        x, indices = (t.to(memory_format=FORMATS[axes]) for t in (x, indices))
    size = [(n - 1) * stride + kernel - 2 * padding + more for n in sizes[:axes]]
    if min(size) < 0:  # PyTorch before 2.14 lets some of them pass
        with pytest.raises(ValueError, match=r"output_size must (not be negative|be within a stride)"):
            OURS[axes](x, indices, kernel, stride, padding, size)
        return
    torch.set_num_threads(1)
    try:
        expected = theirs(axes, x.contiguous(), indices.contiguous(), kernel, stride, padding, size)
    except (RuntimeError, ValueError):
        if backend != "cpu" and high > 1:
            return  # perhaps only for an index outside, which is left out
        with pytest.raises((ValueError, TypeError)):
            OURS[axes](x, indices, kernel, stride, padding, size)
        return
    finally:
        torch.set_num_threads(2)
    same(OURS[axes](x, indices, kernel, stride, padding, size), expected)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_layer(axes):
    ours, other = (getattr(m, f"MaxUnpool{axes}d")(2, stride=2) for m in (nn, torch.nn))
    assert isinstance(ours, type(other))
    assert repr(ours) == f"atrousops.{other}"
    assert ours.state_dict() == {}
    x = torch.randn(2, 3, *(8, 9, 7)[:axes])
    y, indices = POOL[axes](x, 2, return_indices=True)
    with nondeterminism_allowed():
        same(ours(y, indices, output_size=x.size()), other(y, indices, output_size=x.size()))


def test_layers_pass_codes():
    x = torch.randn(2, 3, 9, 8)
    y, codes = nn.MaxPool2d(2, return_indices="codes")(x)
    _, indices = nn.MaxPool2d(2, return_indices=True)(x)
    unpool = nn.MaxUnpool2d(2)
    same(unpool(y, codes, output_size=x.shape), unpool(y, indices, output_size=x.shape))


def test_reference_at_a_hand_worked_case():
    x, indices = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[4, 0, 4]]])
    same(reference.max_unpool(x, indices, (6,), (2,), (2,), (0,)), torch.tensor([[[2.0, 0, 0, 0, 3.0, 0]]]))


@pytest.mark.parametrize("channels", [3, 40], ids=["one block of channels", "several"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_maps_without_elements(channels, channels_last):
    """Nothing to place, or nowhere to place it: no kernel divides by the size of a map."""
    op, grad_op = torch.ops.atrousops.max_unpool, torch.ops.atrousops.max_pool_backward
    for small, large in (((0, 3), (4, 6)), ((2, 0), (4, 6)), ((0, 0), (4, 6)), ((2, 3), (0, 6)), ((2, 3), (4, 0))):
        x, marks = torch.ones(2, channels, *small), torch.zeros(2, channels, *small, dtype=torch.long)
        if channels_last:
            x, marks = (t.to(memory_format=torch.channels_last) for t in (x, marks))
        # Windows that meet, too, which another kernel sums.
        for window in ([2, 2], [3, 3]):
            last = op(x, marks, large, window, [2, 2], [0, 0])
            total = grad_op(x, marks, large, window, [2, 2], [0, 0], [1, 1])
            assert last.shape == total.shape == (2, channels, *large)
            assert not last.any()
            assert not total.any()
