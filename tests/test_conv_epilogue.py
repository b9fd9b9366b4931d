"""A residual and an activation in the convolution's call: on oneDNN's fused kernel, behind ours, with gradients."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, assert_compiles

import atrousops as ao
import atrousops.functional as A
from atrousops.common.checks import ArgumentError, ArgumentTypeError

ACTIVATIONS = {None: lambda y: y, "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "silu": F.silu}


def inputs(dtype=torch.float32, last=False, residual=(2, 16, 24, 25), groups=1):
    torch.manual_seed(0)
    # More than a small call; 24 and 25, so that rows and columns are not mixed up unseen.
    x, w, b = torch.randn(2, 8, 24, 25), torch.randn(16, 8 // groups, 3, 3), torch.randn(16)
    r = None if residual is None else torch.randn(residual)
    found = [t if t is None else t.to(dtype) for t in (x, w, b, r)]
    if dtype == torch.float64:
        # It has no oracle above it: eighths, whose products add up without rounding.
        found = [t if t is None else (t * 8).round() / 8 for t in found]
    if last:
        found = [
            t.contiguous(memory_format=torch.channels_last) if t is not None and t.dim() == 4 else t for t in found
        ]
    return found


def composed(x, w, b, r, activation, **geometry):
    y = F.conv2d(x, w, b, **geometry)
    return ACTIVATIONS[activation](y if r is None else y + r)


def hold(activation, residual, dtype, last, name):
    x, w, b, r = inputs(dtype, last, residual)
    given = [t for t in (x, w, b, r) if t is not None]
    before = [t.clone() for t in given]
    geometry = {"padding": 6, "dilation": 6}
    with ao.backend(name), torch.no_grad():
        y = A.conv2d(x, w, b, **geometry, residual=r, activation=activation)
    exact = composed(*[t if t is None else t.double() for t in (x, w, b, r)], activation, **geometry)
    assert_close(y, exact, composed(x, w, b, r, activation, **geometry))
    assert all(torch.equal(a, b) for a, b in zip(given, before))
    if name != "reference":
        assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("residual", [None, (2, 16, 24, 25), (2, 16, 1, 1), (16, 1, 1)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_as_composed(activation, residual, last):
    hold(activation, residual, torch.float32, last, None)


@pytest.mark.parametrize("name", ["cpu", "aten", "reference"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_other_dtypes_and_backends(dtype, last, name):
    hold("relu", (2, 16, 24, 25), dtype, last, name)


@pytest.mark.parametrize(
    ("geometry", "groups", "size"),
    [
        ({"stride": 2, "padding": 1}, 1, (2, 16, 12, 13)),
        ({"padding": "same", "dilation": 2}, 1, (2, 16, 24, 25)),
        ({"padding": "valid"}, 1, (2, 16, 22, 23)),
        ({"padding": (0, 2), "dilation": (1, 2)}, 1, (2, 16, 22, 25)),
        ({"padding": 1}, 8, (2, 16, 24, 25)),
    ],
    ids=["stride", "same", "valid", "axes apart", "depthwise"],
)
def test_geometries(geometry, groups, size):
    x, w, b, r = inputs(residual=size, groups=groups)
    with torch.no_grad():
        y = A.conv2d(x, w, b, **geometry, groups=groups, residual=r, activation="relu")
    doubles = [t.double() for t in (x, w, b, r)]
    exact = composed(*doubles, "relu", **geometry, groups=groups)
    assert_close(y, exact, composed(x, w, b, r, "relu", **geometry, groups=groups))


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("channels", "size"), [(8, (1, 1)), (8, (1, 1, 1)), (1, (1, 4)), (1, (4, 1)), (1, (5, 6)), (8, (1, 4))], ids=str
)
def test_a_sum_in_two_formats_at_once(channels, size, last):
    """One position, as behind a pooled branch, or one channel: oneDNN's sum fails there under torch 2.10."""
    torch.manual_seed(0)
    kernel = (3,) * len(size)
    x, w, r = torch.randn(2, 8, *size), torch.randn(channels, 8, *kernel), torch.randn(2, channels, *size)
    if last:
        form = torch.channels_last if len(size) == 2 else torch.channels_last_3d
        x, w, r = (t.to(memory_format=form) for t in (x, w, r))
    ours, theirs = (A.conv2d, F.conv2d) if len(size) == 2 else (A.conv3d, F.conv3d)
    with ao.backend("aten"), torch.no_grad():
        y = ours(x, w, padding=1, residual=r, activation="relu")
    exact = (theirs(x.double(), w.double(), padding=1) + r).relu()
    assert_close(y, exact, (theirs(x, w, padding=1) + r).relu())


def test_a_residual_larger_than_the_result():
    x, w, b, _ = inputs()
    r = torch.randn(3, 2, 16, 24, 25)
    with torch.no_grad():
        y = A.conv2d(x, w, b, padding=1, residual=r)
    assert y.shape == r.shape
    torch.testing.assert_close(y, composed(x, w, b, r, None, padding=1))


def test_gradients():
    arguments = [t.double().requires_grad_() for t in inputs(residual=(2, 16, 24, 25))]
    ours = A.conv2d(*arguments[:3], padding=1, residual=arguments[3], activation="silu")
    theirs = composed(*arguments, "silu", padding=1)
    dy = torch.randn_like(theirs)
    for got, expected in zip(torch.autograd.grad(ours, arguments, dy), torch.autograd.grad(theirs, arguments, dy)):
        torch.testing.assert_close(got, expected)


def test_empty_batch():
    x, w, b, r = inputs()
    with torch.no_grad():
        assert A.conv2d(x[:0], w, b, padding=1, residual=r[:0], activation="relu").shape == (0, 16, 24, 25)


def test_compiled_in_one_graph():
    with torch.no_grad():
        assert_compiles(lambda x, w, b, r: A.conv2d(x, w, b, padding=1, residual=r, activation="relu"), inputs())


def test_explained():
    x, w, b, r = inputs()
    with torch.no_grad():
        (row,) = ao.explain(A.conv2d, x, w, b, padding=1, residual=r, activation="relu").rows
    assert (row.operator, row.backend) == ("conv2d", "aten")


def test_says_what_is_wrong():
    x, w, b, r = inputs()
    with pytest.raises(ArgumentError, match="activation must be one of relu, relu6"):
        A.conv2d(x, w, b, padding=1, activation="tanh")
    with pytest.raises(ArgumentTypeError, match="residual must be a Tensor"):
        A.conv2d(x, w, b, padding=1, residual=1)
    with torch.no_grad(), pytest.raises(ArgumentError, match="broadcasts with it; got"):
        A.conv2d(x, w, b, padding=1, residual=r[..., :3])
    with torch.no_grad(), pytest.raises(ArgumentError, match="bias"):
        A.conv2d(x, w, b[:3], padding=1, activation="relu")


@pytest.mark.triton
@pytest.mark.parametrize("groups", [1, 8], ids=["matrix", "depthwise"])
@pytest.mark.parametrize("residual", [None, (2, 16, 24, 25), (2, 16, 1, 1)], ids=["alone", "added", "broadcast"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_in_the_launch_of_triton(activation, dtype, residual, groups, monkeypatch):
    """One launch; a residual to be broadcast is added behind it."""
    from atrousops.triton import conv

    x, w, b, r = inputs(dtype, residual=residual, groups=groups)
    # Neither bias nor residual lies as the kernel reads them.
    b = torch.stack([b, b], 1)[:, 0]
    r = r.transpose(2, 3).contiguous().transpose(2, 3) if r is not None else None
    launches = []
    monkeypatch.setattr(conv, "launch", lambda *args, start=conv.launch, **meta: launches.append(start(*args, **meta)))
    keywords = {"padding": 6, "dilation": 6, "groups": groups}
    with torch.no_grad(), ao.backend("triton"):
        y = A.conv2d(x, w, b, **keywords, residual=r, activation=activation)
        (row,) = ao.explain(A.conv2d, x, w, b, **keywords, residual=r, activation=activation).rows
    exact = composed(*[t if t is None else t.double() for t in (x, w, b, r)], activation, **keywords)
    assert_close(y, exact, composed(x, w, b, r, activation, **keywords))
    assert len(launches) == 2
    fused = (activation or r is not None) and residual != (2, 16, 1, 1)
    assert (row.backend, "in its launch" in row.reason) == ("triton", bool(fused))
