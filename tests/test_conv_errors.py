"""Wrong arguments of convolutions: an exception of PyTorch's class wherever PyTorch has one, and PyTorch's words."""

import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import atrousops as ao
import atrousops.functional as A
from atrousops.common.checks import ArgumentError, ArgumentTypeError

# Sizes, flags and names that mean nothing, each of another type.
NONSENSE = [None, "x", 1.5, [1.5], [], [1, 2, 3, 4], (1, "x"), True, np.ones(2), np.int64(2), np.float32(1), {}]
NONSENSE += [
    object(),
    torch.tensor(1),
    torch.tensor(1.5),
    torch.tensor([1, 1]),
    0,
    -1,
    3,
    (0,),
    (-1,),
    2**63,
    (2**63,),
    [None],
]
SIZES = {1: (9,), 2: (9, 8), 3: (7, 6, 5)}
RANKS = pytest.mark.parametrize("rank", SIZES)


def tensors(good: torch.Tensor) -> list:
    """What might come in place of a float32 tensor: other types, dtypes, and shapes with an axis more, less or empty.

    Meta tensors are left out: PyTorch takes them beside others.
    """
    types = [None, "x", 1.5, [1.0], True, good.numpy(), good.to_sparse(), torch.empty(()), torch.empty(0)]
    dtypes = [good.to(dtype) for dtype in (torch.int32, torch.bool, torch.float64, torch.float16, torch.complex64)]
    shapes = [good[:0], good[1:], good[None], good[0], good[..., :0], good[..., :1]]
    return types + dtypes + shapes + ([good[:, 1:], good[0, 0]] if good.dim() > 1 else [])


def outcome(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    # Whatever PyTorch answers is what is compared.
    except Exception as error:
        return error


def compare(what: str, theirs, ours, *args, **kwargs) -> None:
    expected, got = outcome(theirs, *args, **kwargs), outcome(ours, *args, **kwargs)
    if isinstance(expected, Exception):
        # A kernel that PyTorch lacks is a RuntimeError like another.
        kind = RuntimeError if isinstance(expected, NotImplementedError) else type(expected)
        assert isinstance(got, kind), f"{what}: {type(expected).__name__} {expected} but {got!r}"
    else:
        assert isinstance(got, torch.Tensor), f"{what}: {got!r}"
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), what


@pytest.mark.filterwarnings("ignore::UserWarning")
@RANKS
@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_functions_refuse_with_pytorchs_classes(name, rank):
    name = f"{name}{rank}d"
    theirs, ours = getattr(F, name), getattr(A, name)
    good = {"input": torch.ones(2, 4, *SIZES[rank]), "weight": torch.ones(4, 4, *[3] * rank), "bias": torch.ones(4)}
    for argument, tensor in good.items():
        for i, wrong in enumerate(tensors(tensor)):
            compare(f"{name} {argument} {i}", theirs, ours, *(good | {argument: wrong}).values())
    for dtype in (torch.int32, torch.int64, torch.bool, torch.uint8):
        compare(f"{name} in {dtype}", theirs, ours, *[t.to(dtype) for t in good.values()])
    options = ["stride", "padding", "dilation", "groups"] + ["output_padding"] * name.startswith("conv_t")
    for option in options:
        for wrong in [*NONSENSE, "same", "valid"]:
            compare(f"{name} {option}={wrong!r}", theirs, ours, *good.values(), **{option: wrong})
    compare(f"{name} without weight", theirs, ours, good["input"])
    compare(f"{name} with too much", theirs, ours, *good.values(), 1, 0, 1, 1, 1, 1)


def made(kind, given, x):
    return kind(**given)(x)


@pytest.mark.filterwarnings("ignore::UserWarning")
@RANKS
@pytest.mark.parametrize("name", ["Conv", "ConvTranspose"])
def test_layers_refuse_with_pytorchs_classes(name, rank):
    theirs, ours = getattr(nn, f"{name}{rank}d"), getattr(ao, f"Atrous{name}{rank}d")
    x = torch.ones(2, 4, *SIZES[rank])
    options = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"]
    for option in [*options, "output_padding", "padding_mode", "dtype", "device"]:
        for wrong in [*NONSENSE, "same", "reflect"]:
            given = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, option: wrong}
            compare(f"{name}{rank}d({option}={wrong!r})", partial(made, theirs, given), partial(made, ours, given), x)
    layers = theirs(4, 4, 3), ours(4, 4, 3)
    for i, wrong in enumerate(tensors(x)):
        compare(f"{name}{rank}d(input {i})", *layers, wrong)
    for size in ([5] * 9, "x", 3, [1.5] * rank, [None] * rank):
        compare(f"{name}{rank}d(input, {size})", *layers, x, size)


X, W, B = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3), torch.randn(4)
VOLUME = torch.randn(1, 1, 4, 5, 5)
# A call, and what ours says besides PyTorch's words.
MESSAGES = [
    ("conv2d", (X, W), {"stride": 0}, "stride must be positive"),
    ("conv2d", (X, W), {"dilation": (1, 0)}, "dilation must be positive"),
    ("conv2d", (X, W), {"padding": -1}, "padding must not be negative"),
    ("conv2d", (X, W), {"padding": "some"}, "padding must be 'same'"),
    ("conv2d", (X, W), {"padding": "same", "stride": 2}, "padding must be a number"),
    ("conv2d", (X, W), {"stride": (1, 2, 3)}, "stride must have 1 or 2 entries"),
    ("conv2d", (X, W), {"padding": (1, 2, 3)}, ""),
    ("conv2d", (X, W), {"dilation": (1, 2, 3)}, ""),
    ("conv2d", (X, W), {"groups": 0}, "groups must be positive"),
    ("conv2d", (X, W), {"groups": 3}, "weight must have a multiple of groups"),
    ("conv2d", (X, W[:2]), {"groups": 4}, ""),
    ("conv2d", (X, W), {"groups": 2}, ""),
    ("conv2d", (X, W[:, :3]), {}, "input must have 3 channels"),
    ("conv2d", (X[0], W[:, :3]), {}, ""),
    ("conv2d", (X, W), {"dilation": 3}, "input must be at least as large as the dilated kernel, 7"),
    ("conv2d", (X[..., :1], W), {"padding": (1, 0)}, ""),
    ("conv2d", (X[0], torch.randn(4, 4, 7, 3)), {}, ""),
    ("conv2d", (X, W, B[:3]), {}, "bias must have shape"),
    ("conv2d", (X, W, B[:, None]), {}, ""),
    ("conv2d", (X, W.double()), {}, "weight must have input's dtype"),
    ("conv2d", (X.double(), W), {}, ""),
    ("conv2d", (X.half(), W), {}, ""),
    ("conv2d", (X.long(), W), {}, ""),
    ("conv2d", (X, W, B.double()), {}, "bias must have input's dtype"),
    ("conv2d", (X.half(), W.half(), B), {}, ""),
    ("conv2d", (X[0, 0], W), {}, "input must have 3 or 4 dimensions"),
    ("conv2d", (X[None], W), {}, ""),
    ("conv2d", (X, W[0, 0]), {}, "weight must have 4 dimensions"),
    ("conv2d", (X, W[..., :0]), {}, ""),
    ("conv1d", (X[0, 0, 0], W[0]), {}, ""),
    ("conv1d", (X[0], W[0, :, :]), {"stride": (1, 1)}, ""),
    ("conv1d", (X[0], torch.randn(4, 3, 2)), {}, ""),
    ("conv3d", (X[0], W[None]), {}, ""),
    ("conv3d", (VOLUME, torch.randn(2, 3, 1, 1, 1)), {}, ""),
    ("conv3d", (VOLUME, torch.randn(2, 1, 7, 1, 1)), {}, ""),
    ("conv_transpose2d", (X, W), {"stride": 0}, "stride must be positive"),
    ("conv_transpose2d", (X, W), {"padding": -1}, ""),
    ("conv_transpose2d", (X, W), {"padding": 9}, "padding must leave an output"),
    ("conv_transpose2d", (X, W), {"dilation": 0}, ""),
    ("conv_transpose2d", (X, W), {"output_padding": 1}, "output_padding must be smaller"),
    ("conv_transpose2d", (X, W), {"output_padding": -1}, "output_padding must not be negative"),
    ("conv_transpose2d", (X, W), {"output_padding": (1, 1, 1)}, ""),
    ("conv_transpose2d", (X, W), {"groups": 3}, ""),
    ("conv_transpose2d", (X, W[:3]), {}, "input must have 3 channels"),
    ("conv_transpose2d", (X, W, B[:3]), {}, "bias must have shape"),
    ("conv_transpose2d", (X, W, B[:3]), {"groups": 2}, ""),
    ("conv_transpose2d", (X[0, 0], W), {}, ""),
    ("conv_transpose2d", (X, W.double()), {}, ""),
    ("conv_transpose1d", (X[0], W[0]), {}, ""),
    ("conv_transpose3d", (VOLUME, VOLUME[..., :1, :1, :1]), {"padding": 4}, ""),
    ("conv_transpose3d", (VOLUME, VOLUME[..., :1, :1, :1]), {"output_padding": 4}, ""),
]


def words(error: Exception) -> str:
    """PyTorch's first sentence, without the names of its axes and what else it can do with a MKLDNN tensor."""
    first = str(error).partition("\n")[0].replace("[[", "[").replace("]]", "]")
    first = re.sub(r", but got (kernel|dilation|output_padding)(_|=|\[| \[).*", "", first)
    return re.sub(r"(dilation should be greater than zero), but got.*", r"\1", first).partition(" or input should")[0]


@pytest.mark.parametrize(
    ("name", "args", "options", "text"), MESSAGES, ids=[f"{name} {i}" for i, (name, *_) in enumerate(MESSAGES)]
)
def test_ours_says_what_and_pytorchs_words(name, args, options, text):
    expected = outcome(getattr(F, name), *args, **options)
    assert isinstance(expected, RuntimeError)
    for backend in (None, "aten", "reference"):
        with ao.backend(backend):
            got = outcome(getattr(A, name), *args, **options)
        assert isinstance(got, RuntimeError)  # as PyTorch's own
        assert words(expected) in str(got), backend
        assert text in str(got), backend
        if text:
            assert isinstance(got, ArgumentTypeError if "dtype" in text else ArgumentError)


@pytest.mark.parametrize("name", ["conv_transpose1d", "conv_transpose2d"])
def test_what_no_memory_holds_is_a_runtime_error(name):
    """As where PyTorch cannot allocate a result; planning such a call had taken all memory before."""
    rank = int(name[-2])
    x, w = torch.ones(1, 1, *[2] * rank), torch.ones(1, 1, *[2] * rank)
    for function in (getattr(A, name), getattr(F, name)):
        with pytest.raises(RuntimeError):
            function(x, w, stride=1 << 40)


def test_layers_say_the_same():
    layer, stock = ao.AtrousConv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
    for wrong in (X, X[0], X[0, 0], X[:, :3, :2], X[:, :3].double()):
        assert words(outcome(stock, wrong)) in str(outcome(layer, wrong))


def test_a_gpus_words_for_tensors_on_two_devices():
    got = outcome(A.conv2d, X, W.to("meta"))
    assert "Input type (torch.FloatTensor) and weight type (torch.meta.FloatTensor) should be the same" in str(got)


@pytest.mark.parametrize(
    ("op", "name", "value"),
    [
        ("conv2d", "padding", 1 << 31),
        ("conv2d", "padding", 1 << 62),
        ("conv2d", "padding", (1, 1 << 62)),
        ("conv_transpose2d", "stride", 1 << 32),
        ("conv_transpose2d", "stride", (1 << 62, 1)),
        ("conv_transpose2d", "dilation", 1 << 31),
        ("conv_transpose2d", "dilation", (1, 1 << 62)),
    ],
)
def test_what_leaves_64_bits_is_named(op, name, value):
    x, w = torch.ones(1, 2, 9, 9), torch.ones(2, 2, 3, 3)
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError, match=rf"^{op}: {name} must keep the output below 2\^63 elements"):
            getattr(A, op)(x.to(device), w.to(device), **{name: value})


@pytest.mark.parametrize("forced", [None, "cpu"])
def test_a_stride_beyond_every_map_takes_one_output(forced):
    x, w = torch.randn(1, 2, 9, 9).requires_grad_(), torch.randn(2, 2, 3, 3)
    with ao.backend(forced):
        y = A.conv2d(x, w, stride=((1 << 63) - 1, 1 << 40))
        (got,) = torch.autograd.grad(y.sum(), x)
    expected = F.conv2d(x, w)[:, :, :1, :1]
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(got, torch.autograd.grad(expected.sum(), x)[0])


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_an_input_on_meta_passes_through_weights_with_values(name):
    """A network's shapes are asked so; weights on meta have no values for an input that has some."""
    x, w, b = torch.ones(1, 2, 9, 9, device="meta"), torch.ones(2, 2, 3, 3), torch.ones(2)
    expected, got = (getattr(module, name)(x, w, b) for module in (F, A))
    assert got.is_meta
    assert got.shape == expected.shape
    layers = ao.nn.AtrousConv2d(2, 2, 3), torch.nn.Conv2d(2, 2, 3)
    assert layers[0](x).shape == layers[1](x).shape
    with pytest.raises(ArgumentError, match="weight must be on cpu, as input; got meta"):
        getattr(A, name)(torch.ones(1, 2, 9, 9), w.to("meta"), b)
