"""The layers against torch.nn's own: state dict, initialisation, results, and what else is done to a module."""

import copy

import pytest
import torch
from oracle import assert_close
from torch import nn

from atrousops import nn as ours

PAIRS = [
    (ours.AtrousConv1d, nn.Conv1d),
    (ours.AtrousConv2d, nn.Conv2d),
    (ours.AtrousConv3d, nn.Conv3d),
    (ours.AtrousConvTranspose1d, nn.ConvTranspose1d),
    (ours.AtrousConvTranspose2d, nn.ConvTranspose2d),
    (ours.AtrousConvTranspose3d, nn.ConvTranspose3d),
]
CONVS, TRANSPOSED = PAIRS[:3], PAIRS[3:]
# Sizes that differ on every axis, so that no two axes can be swapped unnoticed.
SIZES = ((13,), (13, 11), (7, 9, 8))


def rank_of(stock) -> int:
    return int(stock.__name__[-2])


def make(pair, *args, **kwargs):
    """Our layer and the stock one with equal weights, and an input."""
    layer, stock = pair
    theirs = stock(*args, **kwargs)
    mine = layer(*args, **kwargs)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs, torch.randn(2, args[0], *SIZES[rank_of(stock) - 1], dtype=kwargs.get("dtype"))


def check(mine, theirs, *inputs):
    y = mine(*inputs)
    expected = theirs(*inputs)
    if y.dtype == torch.bfloat16:
        return assert_close(y, copy.deepcopy(theirs).double()(*(t.double() for t in inputs)), expected)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if y.dtype == torch.float64 else {}
    torch.testing.assert_close(y, expected, **tolerance)


@pytest.mark.parametrize("pair", PAIRS)
def test_same_initialisation_and_repr(pair):
    layers = []
    for kind in pair:
        torch.manual_seed(3)
        layers.append(kind(4, 6, 3, stride=2, padding=1, dilation=2, groups=2))
    mine, theirs = layers
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for a, b in zip(mine.parameters(), theirs.parameters()):
        assert torch.equal(a, b)
    assert repr(mine) == repr(theirs).replace(type(theirs).__name__, type(mine).__name__)


@pytest.mark.parametrize("pair", CONVS)
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
# An even filter with "same" pads more on the right; an integer padding wider than the filter's half.
@pytest.mark.parametrize(("kernel_size", "padding"), [(3, "same"), (2, "same"), (3, "valid"), (3, 3)])
def test_padding(pair, padding_mode, kernel_size, padding):
    options = {"padding": padding, "padding_mode": padding_mode, "dilation": 2, "dtype": torch.float64}
    mine, theirs, x = make(pair, 4, 6, kernel_size, **options)
    check(mine, theirs, x)
    check(mine, theirs, x[0])


@pytest.mark.parametrize("pair", TRANSPOSED)
def test_output_size(pair):
    mine, theirs, x = make(pair, 4, 6, 3, stride=3, padding=1, dilation=2, groups=2, dtype=torch.float64)
    smallest = theirs(x).shape
    for extra in range(3):
        size = [n + extra for n in smallest[2:]]
        assert list(mine(x, size).shape[2:]) == size
        check(mine, theirs, x, size)
        # torch also takes the size with batch and channels in front, and inputs without a batch.
        check(mine, theirs, x[0], [6, *size])


@pytest.mark.parametrize("pair", PAIRS)
def test_compile_and_export(pair):
    mine, _, x = make(pair, 4, 6, 3, padding=2, dilation=2)
    expected = mine(x)
    torch.testing.assert_close(torch.compile(mine, fullgraph=True, backend="aot_eager")(x), expected)
    torch.testing.assert_close(torch.export.export(mine, (x,)).module()(x), expected)


@pytest.mark.parametrize("pair", PAIRS)
def test_device_and_dtype_arguments(pair):
    meta = pair[0](4, 6, 3, device="meta", dtype=torch.bfloat16)
    assert meta.weight.device.type == "meta"
    assert meta.weight.dtype == torch.bfloat16
    double, theirs, x = make(pair, 4, 6, 3, dtype=torch.float64)
    low, x = theirs.bfloat16(), x.bfloat16()
    exact = copy.deepcopy(low).double()(x.double())
    assert_close(double.bfloat16()(x), exact, low(x))


@pytest.mark.parametrize("padding_mode", ["reflect", "circular"])
def test_rejects_padding_wider_than_the_input(padding_mode):
    layer = ours.AtrousConv2d(4, 6, 3, padding=(2, 11), dilation=2, padding_mode=padding_mode)
    with pytest.raises(
        ValueError, match=r"padding must be at most .* got padding \[2, 11\] for an input of \[13, 10\]"
    ):
        layer(torch.randn(1, 4, 13, 10))


@pytest.mark.parametrize("pair", TRANSPOSED)
def test_rejects_output_sizes_out_of_range(pair):
    mine, theirs, x = make(pair, 4, 6, 3, stride=2)
    too_large = [n + 2 for n in theirs(x).shape[2:]]
    with pytest.raises(ValueError, match="valid sizes range"):
        mine(x, too_large)
    with pytest.raises(ValueError, match="input must have shape"):
        mine(x[0, 0], too_large)
