"""What conv and conv_transpose accept and refuse: PyTorch's own samples, and random arguments."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_close
from torch.testing._internal.common_methods_invocations import op_db

import atrousops as ao
import atrousops.functional as A
from atrousops.common.checks import ArgumentError, ArgumentTypeError
from atrousops.dispatch import libraries

OPS = [op for op in op_db if op.name.startswith("nn.functional.conv")]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64)


def ours_of(op):
    return getattr(A, op.name.rpartition(".")[2])


def exact_in_fp64(value):
    """Eighths: their products add up without rounding, so fp64, which has no oracle above it, must agree to the bit."""
    is_fp64 = isinstance(value, torch.Tensor) and value.dtype == torch.float64
    return (value.detach() * 8).round() / 8 if is_fp64 else value


def wide(value):
    wider = torch.complex128 if isinstance(value, torch.Tensor) and value.is_complex() else torch.float64
    return value.detach().to(wider) if isinstance(value, torch.Tensor) else value


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", [None, "cpu"], ids=["planner", "ours"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_pytorchs_samples(op, dtype, name):
    if name == "cpu" and (dtype.is_complex or not libraries.has_operators):
        name = None  # complex numbers are PyTorch's in any case
    samples = list(op.sample_inputs("cpu", dtype))
    assert len(samples) >= 10
    for sample in samples:
        sample = sample.transform(exact_in_fp64)
        exact = op.op(wide(sample.input), *map(wide, sample.args), **sample.kwargs)
        theirs = op.op(sample.input, *sample.args, **sample.kwargs)
        with ao.backend(name):
            ours = ours_of(op)(sample.input, *sample.args, **sample.kwargs)
        if dtype.is_complex:
            assert torch.equal(ours, theirs)
        else:
            assert_close(ours, exact, theirs)


X, W = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3)
# Of what PyTorch has no words for; the others are in test_conv_errors.py.
BAD = [
    ("conv2d", (X, W), {"stride": 1.5}, ArgumentTypeError, "stride must be an int"),
    ("conv2d", (X, W.to("meta")), {}, ArgumentError, "weight must be on cpu, as input"),
    ("conv2d", (X, None), {}, ArgumentTypeError, "weight must be a Tensor"),
    ("conv2d", (X.numpy(), W), {}, ArgumentTypeError, "input must be a Tensor"),
    ("conv_transpose2d", (X, W), {"padding": "same"}, ArgumentTypeError, "padding must be an int"),
]


@pytest.mark.parametrize("name", [None, "aten", "reference"])
@pytest.mark.parametrize(("function", "args", "kwargs", "kind", "text"), BAD, ids=[f"{b[0]}: {b[4]}" for b in BAD])
def test_bad_arguments_are_named(function, args, kwargs, kind, text, name):
    with ao.backend(name), pytest.raises(kind, match=text) as caught:
        getattr(A, function)(*args, **kwargs)
    assert isinstance(caught.value, RuntimeError)  # as PyTorch's own would be


def test_a_direct_call_of_an_operator_does_not_crash():
    if not libraries.has_operators:
        pytest.skip("the CPU library is not built")
    ops, two = torch.ops.atrousops, [1, 1]
    for bad in (
        lambda: ops.conv(X, W[:, :3], None, two, two, two, 1),
        lambda: ops.conv(X, W.double(), None, two, two, two, 1),
        lambda: ops.conv(X, W, None, [0, 1], two, two, 1),
        lambda: ops.conv(X, W, None, two, [1], two, 1),
        lambda: ops.conv(X, W, torch.zeros(5), two, two, two, 1),
        lambda: ops.conv(X, W, None, two, two, two, 0),
        lambda: ops.conv(X[:, :0], W[:, :0], None, two, two, two, 1),
        lambda: ops.conv_grad_input(X, W, [1, 4], two, two, two, 1),
        lambda: ops.conv_grad_input(X, W, [1, 4, 4, 5], two, two, two, 1),
        lambda: ops.conv_grad_weight(X, X, [9, 9], two, two, two, 1),
        lambda: ops.conv_grad_weight(X, X, [3, 3], two, two, two, 3),
        lambda: ops.conv_transpose(X, W, None, two, two, [1, 1], two, 1),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            bad()


@st.composite
def arguments(draw):
    """Arguments for either function in 1 to 3 dimensions, mostly valid."""
    rank = draw(st.integers(1, 3))
    groups, c, k = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))

    def some(low, high):
        return draw(st.one_of(st.integers(low, high), st.tuples(*[st.integers(low, high)] * rank)))

    size = [draw(st.integers(1, 9)) for _ in range(rank)]
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    n = draw(st.integers(0, 2))
    return rank, (n, groups * c, *size), groups, c, k, kernel, some(1, 3), some(0, 4), some(1, 4), some(0, 3)


def agree(name, *args):
    try:
        theirs = getattr(F, name)(*args)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            getattr(A, name)(*args)
        return
    for backend in (None, "cpu", "reference") if libraries.has_operators else (None, "reference"):
        with ao.backend(backend):
            ours = getattr(A, name)(*args)
        assert_close(ours, theirs, theirs)


@pytest.mark.parametrize("transposed", [False, True])
@settings(max_examples=50, deadline=None, derandomize=True)
@given(drawn=arguments())
def test_random_arguments(transposed, drawn):
    rank, (n, *size), groups, c, k, kernel, stride, padding, dilation, extra = drawn
    x = exact_in_fp64(torch.randn(n, *size, dtype=torch.float64))
    ends, rest = ((groups * c, k), (extra, groups, dilation)) if transposed else ((groups * k, c), (dilation, groups))
    w = exact_in_fp64(torch.randn(*ends, *kernel, dtype=torch.float64))
    agree(f"conv{'_transpose' * transposed}{rank}d", x, w, None, stride, padding, *rest)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transposed_convolutions_without_outputs(dtype, rank):
    """PyTorch answers any of an empty batch and, where oneDNN runs, other results without pixels."""
    answered = 0
    for n, groups, kernel, padding, extra in itertools.product((0, 2), (1, 2), (1, 2, 3), (0, 1, 2), (0, 1)):
        sizes = (n, 2, *(1,) * rank), (2, 1, *(kernel,) * rank), (groups,)
        found = []
        for module in (F, A):
            leaves = [torch.ones(size, dtype=dtype, requires_grad=True) for size in sizes]
            try:
                y = getattr(module, f"conv_transpose{rank}d")(*leaves, 1, padding, extra, groups)
            except RuntimeError:
                found.append(None)
                continue
            found.append([(t.shape, t.stride(), t.tolist()) for t in (y, *torch.autograd.grad(y.sum(), leaves))])
        assert found[1] == found[0], (n, groups, kernel, padding, extra)
        answered += found[0] is not None and 0 in found[0][0][0]
    assert answered
