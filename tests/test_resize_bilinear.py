"""Bilinear resizing against weights in fractions, and which calls are PyTorch's: all but inference on the CPU."""

import functools
import itertools
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, run_on
from torch import nn
from torch.func import jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

import atrousops as ao
from atrousops import models
from atrousops.dispatch import libraries
from atrousops.ops import _resize_bilinear, resize_bilinear

pytestmark = pytest.mark.skipif(not libraries.has_operators, reason="the CPU library is not built")
# (N, C, H, W), (H, W) of the result.
SHAPES = {
    "DeepLab's scores, a row of which is no whole number of vectors": ((1, 21, 9, 9), (129, 129)),
    "one pixel": ((2, 3, 1, 1), (5, 7)),
    "one row, more channels than a strip holds": ((1, 2500, 1, 3), (4, 5)),
    "one column": ((2, 4, 6, 1), (4, 9)),
    "to one pixel": ((2, 17, 6, 7), (1, 1)),
    "smaller, rows left out": ((2, 5, 37, 29), (8, 6)),
    "rows fewer, columns more": ((1, 16, 20, 5), (7, 33)),
    "as large as it was": ((1, 6, 8, 7), (8, 7)),
    "one axis as large as it was": ((1, 33, 8, 7), (8, 20)),
    "one channel": ((3, 1, 7, 6), (18, 40)),
    "fewer channels than a vector, several strips": ((1, 3, 5, 40), (9, 1500)),
    "a whole number of vectors": ((2, 32, 6, 6), (12, 12)),
    "no image": ((0, 4, 3, 3), (6, 6)),
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def calls(monkeypatch):
    """Sizes of what the kernel is called for."""
    found, kernel = [], _resize_bilinear._kernel

    def counted(input, *rest):
        found.append((tuple(input.shape), *rest))
        return kernel(input, *rest)

    monkeypatch.setattr(_resize_bilinear, "_kernel", counted)
    return found


def draw(*shape, channels_last=False, dtype=torch.float32):
    x = torch.randn(shape).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


@functools.cache
def weights(count, size, align_corners, factor=None):
    """(size, count) in fp64: the shares of an axis's pixels in the positions of the resized one."""
    rows = torch.zeros(size, count, dtype=torch.float64)
    step = Fraction(count, size) if factor is None else 1 / Fraction(factor)
    if align_corners:
        step = Fraction(count - 1, size - 1) if size > 1 else Fraction(0)
    for i in range(size):
        at = step * i if align_corners else max(step * (i + Fraction(1, 2)) - Fraction(1, 2), Fraction(0))
        near = min(int(at), count - 1)
        share = min(at - near, Fraction(1))
        rows[i, near] += float(1 - share)
        rows[i, min(near + 1, count - 1)] += float(share)
    return rows


def exactly(x, size, align_corners, factors=(None, None)):
    ends = [weights(n, m, align_corners, f) for n, m, f in zip(x.shape[2:], size, factors)]
    return torch.einsum("nchw,ih,jw->ncij", x.double(), *ends)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_values(name, dtype, calls):
    shape, size = SHAPES[name]
    for channels_last, align_corners in itertools.product((False, True), repeat=2):
        x = draw(*shape, channels_last=channels_last, dtype=dtype)
        before = x.clone()
        theirs = F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
        ours = resize_bilinear(x, size, align_corners=align_corners)
        assert_close(ours, exactly(x, size, align_corners), theirs)
        assert ours.stride() == theirs.stride()
        assert torch.equal(x, before)
    assert len(calls) == 4


@pytest.mark.parametrize("factor", [(2.0, 2.0), (0.6, 1.7), (8.0, 0.3)])
def test_factors(factor, calls):
    """They say where the pixels lie, unless they are to be computed again from the sizes."""
    for dtype, align_corners, again in itertools.product(DTYPES, (False, True), (None, True)):
        x = draw(2, 5, 11, 13, dtype=dtype)
        ours = resize_bilinear(x, None, factor, align_corners, again)
        theirs = F.interpolate(
            x, scale_factor=factor, mode="bilinear", align_corners=align_corners, recompute_scale_factor=again
        )
        assert_close(ours, exactly(x, theirs.shape[2:], align_corners, (None, None) if again else factor), theirs)
    assert len(calls) == 16


def test_memory_formats_are_those_of_pytorch(calls):
    """Of maps that are both formats at once PyTorch goes by the strides."""
    base = draw(2, 6, 9, 8, channels_last=True)
    cases = {
        "a window of channels_last": base[:, :, 2:7, 1:6],
        "some channels of channels_last": base[:, 1:4],
        "one pixel in channels_last": draw(2, 6, 1, 1, channels_last=True),
        "one pixel as a pooling leaves it": base.mean((2, 3), keepdim=True),
        "one channel in channels_last": draw(2, 1, 4, 5, channels_last=True),
        "transposed": draw(2, 3, 5, 4).transpose(2, 3),
        "expanded": draw(1, 1, 4, 5).expand(2, 3, 4, 5),
        "every second": draw(2, 3, 8, 10)[:, :, ::2, ::2],
    }
    for name, x in cases.items():
        theirs = F.interpolate(x, (7, 11), mode="bilinear")
        ours = resize_bilinear(x, (7, 11))
        assert ours.stride() == theirs.stride(), name
        assert_close(ours, exactly(x, (7, 11), False), theirs)
    assert len(calls) == len(cases)


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_not_finite_comes_out_where_pytorch_has_it(channels_last):
    x = draw(1, 18, 5, 6, channels_last=channels_last)
    x[0, 3, 2, 2], x[0, 4, 1, 1], x[0, 17, 4, 5] = torch.nan, torch.inf, -torch.inf
    for dtype in DTYPES:
        theirs = F.interpolate(x.to(dtype), (9, 17), mode="bilinear")
        ours = resize_bilinear(x.to(dtype), (9, 17))
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.isinf(), theirs.isinf())


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_same_bits_for_any_number_of_threads(channels_last):
    x = draw(2, 21, 17, 19, channels_last=channels_last)
    results = []
    for threads in (1, 2, 3):
        with run_on(threads):
            results.append(resize_bilinear(x, (130, 131)))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_the_result_can_be_changed_in_place():
    with torch.inference_mode():
        y = resize_bilinear(torch.ones(1, 2, 3, 3), (4, 4))
        assert float(y.neg_().sum()) == -32


def test_gradients_are_those_of_pytorch(calls):
    x = draw(2, 3, 5, 6).requires_grad_()
    ours, theirs = resize_bilinear(x, (9, 7)), F.interpolate(x, (9, 7), mode="bilinear")
    assert torch.equal(ours, theirs)
    dy = torch.randn_like(theirs)
    assert torch.equal(*[torch.autograd.grad(y, x, dy)[0] for y in (ours, theirs)])
    assert not calls
    with torch.no_grad():
        resize_bilinear(x, (9, 7))
    assert len(calls) == 1


class Own(torch.Tensor):
    pass


OTHERS = {
    "autocast": lambda f, x: torch.autocast("cpu", torch.bfloat16)(f)(x),
    "vmap": lambda f, x: vmap(f)(x[None]),
    "jvp": lambda f, x: jvp(f, (x,), (x,))[1],
    "a subclass": lambda f, x: f(x.as_subclass(Own)),
    "a mode": lambda f, x: _with(FlopCounterMode(display=False), f, x),
    "a default device": lambda f, x: _with(torch.device("cpu"), f, x),
    "meta": lambda f, x: f(x.to("meta")).shape,
    "another backend": lambda f, x: _with(ao.backend("reference"), f, x),
    "bytes": lambda f, x: f((x * 10).to(torch.uint8)),
    "compiled": lambda f, x: torch.compile(f, backend="aot_eager", fullgraph=True)(x),
    "traced": lambda f, x: torch.jit.trace(f, (x,), check_trace=False)(x),
    "exported": lambda f, x: torch.export.export(Calling(f), (x,)).module()(x),
    "symbolic": lambda f, x: torch.fx.symbolic_trace(f)(x),
}


class Calling(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def _with(context, function, x):
    with context:
        return function(x)


@pytest.mark.parametrize("name", OTHERS)
def test_other_calls_are_pytorchs(name, calls):
    x = draw(2, 3, 5, 6)
    with torch.no_grad():
        ours = OTHERS[name](lambda x: resize_bilinear(x, (9, 7), align_corners=True), x)
        theirs = OTHERS[name](lambda x: F.interpolate(x, (9, 7), mode="bilinear", align_corners=True), x)
    assert ours == theirs if name == "meta" else torch.equal(ours, theirs)
    assert not calls


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 2, 0, 3), (4, 4)), ((1, 0, 3, 3), (4, 4)), ((1, 2, 3, 3), (0, 4)), ((2, 3, 3), (4, 4)),
                        ((1, 2, 3, 3), (4, 4, 4)), ((1, 2, 3, 3), (4.5, 4))]
)  # fmt: skip
def test_pytorch_raises_what_it_raises(shape, size):
    x = torch.zeros(shape)
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        F.interpolate(x, size, mode="bilinear")
    with pytest.raises(type(theirs.value)) as ours:
        resize_bilinear(x, size)
    assert str(ours.value) == str(theirs.value)


def test_the_operator_keeps_to_its_memory():
    call = torch.ops.atrousops.resize_bilinear
    for shape, size in (((1, 2, 0, 3), [4, 4]), ((1, 2, 3, 3), [0, 4]), ((2, 3, 3), [4, 4]), ((1, 2, 3, 3), [4])):
        with pytest.raises(RuntimeError, match="resize_bilinear: "):
            call(torch.zeros(shape), size, False, None, None)
    # Factors that put every position but the first behind the last pixel.
    x = draw(1, 3, 4, 5)
    assert torch.equal(call(x, [6, 7], False, 1e-300, 1e-30), x[..., -1:, -1:].expand(1, 3, 6, 7))


def _torchvision(name):
    segmentation = pytest.importorskip("torchvision").models.segmentation
    network = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=4)
    return network.eval()


def _upsampling():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        nn.UpsamplingBilinear2d(scale_factor=2), nn.Conv2d(8, 4, 1), nn.Upsample(size=(20, 24), mode="bilinear"),
        nn.Upsample(scale_factor=2, mode="nearest"),
    )  # fmt: skip


# With how many calls of it, and whether the copy is held to random images, as by default.
NETWORKS = {
    "deeplabv3_mobilenet_v3_large": (lambda: _torchvision("deeplabv3_mobilenet_v3_large"), 1, True),
    "lraspp_mobilenet_v3_large": (lambda: _torchvision("lraspp_mobilenet_v3_large"), 2, False),
    "layers": (_upsampling, 3, True),
    "our DeepLab v3+": (lambda: models.build("deeplabv3plus", num_classes=4, backbone="resnet18"), 2, False),
}


@pytest.mark.torchvision
@pytest.mark.parametrize("name", NETWORKS)
def test_optimised_networks_resize_with_it(name, calls):
    build, count, random = NETWORKS[name]
    network, x = build().eval(), torch.rand(1, 3, 49, 65)
    fast = ao.optimize(network) if random else ao.optimize(network, x)
    assert isinstance(fast, type(network))
    assert "undone" not in str(ao.optimization_report(fast))
    with torch.no_grad():
        calls.clear()
        fast(x)
        assert len(calls) == count
        targets = [str(node.target) for node in torch.export.export(fast, (x,)).graph.nodes]
    assert sum("upsample_bilinear2d" in target for target in targets) == count
    assert not any("resize_bilinear" in target for target in targets)


@pytest.mark.torchvision
def test_an_optimised_copy_is_optimised_once(calls):
    network, x = _torchvision("lraspp_mobilenet_v3_large"), torch.rand(1, 3, 49, 65)
    fast = ao.optimize(ao.optimize(network, x), x)
    calls.clear()
    with torch.no_grad():
        assert fast(x)["out"].shape == (1, 4, 49, 65)
    assert calls[-1] == ((1, 4, 7, 9), [49, 65], False, None, None)
    assert len(calls) == 2


class Mine(nn.Upsample):
    """A user's layer with what PyTorch's has not."""

    def forward(self, input):
        return 2 * super().forward(input)


def test_what_a_user_wrote_stays(calls):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Mine(scale_factor=2, mode="bilinear")).eval()
    fast, x = ao.optimize(network), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), network(x))
    assert not calls
