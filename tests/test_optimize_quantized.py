"""optimize(..., dtype=..., calibration=...): which convolutions become narrow, by what scales, and how far off."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import atrousops as ao
from atrousops.common.checks import ArgumentError, ArgumentTypeError
from atrousops.nn import FusedConv2d, QuantizedConv2d
from atrousops.surgery.quantize import rms_error
from atrousops.surgery.watch import Watch, run_seeded

LARGEST = {torch.int8: 127, torch.float8_e4m3fn: 448}
# Of noise through layers of random weights, by dtype: 7 bits and 4 bits a number, over a few layers.
ERROR = {torch.int8: 0.03, torch.float8_e4m3fn: 0.1}
both = pytest.mark.parametrize("dtype", LARGEST)


class Net(nn.Module):
    """A first layer, a dilated one and a depthwise one with normalisations, two ways, and two last layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.dilated = nn.Sequential(nn.Conv2d(16, 16, 3, padding=2, dilation=2), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU())
        self.mix = nn.Conv2d(32, 24, 1)
        self.scores, self.side = nn.Conv2d(24, 4, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        x = self.dilated(x)
        joined = torch.cat([x, self.depthwise(x)], 1)
        scores = F.interpolate(self.scores(self.mix(joined).relu()), scale_factor=2)
        return {"out": scores, "aux": self.side(x)}


def made(seed=0):
    torch.manual_seed(seed)
    net = Net()
    for _ in range(3):
        net(torch.randn(2, 3, 24, 32))
    return net.eval()


def images(count=3, height=24, width=32):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))


@both
def test_which_layers_and_why(dtype):
    net, given = made(), images()
    before, same = copy.deepcopy(net.state_dict()), given.clone()
    narrow = ao.optimize(net, dtype=dtype, calibration=given)
    assert {name for name, m in narrow.named_modules() if type(m) is QuantizedConv2d} == {"dilated.0", "mix"}
    report = ao.optimization_report(narrow)
    assert [row.name for row in report.quantized] == ["dilated.0", "mix"]
    reasons = {row.name: row.reason for row in report.left if "stays in" in row.reason}
    assert reasons == {
        "stem.0": "stays in torch.float32: it sees the image",
        "depthwise.0": "stays in torch.float32: its channels are in groups",
        "scores": "stays in torch.float32: its result is what the model returns",
        "side": "stays in torch.float32: its result is what the model returns",
    }
    kind = str(dtype).removeprefix("torch.")
    assert f"mix                                          {kind}, input scale" in str(report)
    assert "changes the outputs for the first calibration image by" in report.notes[-1]
    assert f"{kind}, input_scale=" in repr(narrow.mix)
    rows = {row.module: row for row in ao.explain(narrow, given).rows}
    assert (rows["mix"].operator, rows["mix"].dtype, rows["mix"].backend) == ("conv_quantized", dtype, "aten")
    # Nothing is left behind in what was given.
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(given, same)
    assert not any(m._forward_hooks for m in [*net.modules(), *narrow.modules()])
    assert type(net.mix) is nn.Conv2d


@both
def test_scales_are_of_the_largest_input_over_all_images(dtype):
    net, given = made(), [images(1), 3 * images(2), images(1, 40, 17)]
    seen = []
    net.mix.register_forward_pre_hook(lambda layer, args: seen.append(args[0].abs().max()))
    for image in given:
        net(image)
    net.mix._forward_pre_hooks.clear()
    narrow = ao.optimize(net, dtype=dtype, calibration=given)
    torch.testing.assert_close(narrow.mix.input_scale, max(seen) / LARGEST[dtype], rtol=1e-5, atol=0)
    torch.testing.assert_close(narrow.mix.weight_scale, net.mix.weight.abs().amax((1, 2, 3)) / LARGEST[dtype])


@both
def test_results_are_those_of_rounded_numbers(dtype):
    """Against the model in fp64, its inputs and weights rounded by hand where the copy's are."""
    net, given = made(), images()
    narrow = ao.optimize(net, dtype=dtype, calibration=given)
    by_hand = copy.deepcopy(ao.optimize(net, given)).double()

    def rounded(t, scale):
        t = t / scale.double()
        return (t.round().clamp(-128, 127) if dtype == torch.int8 else t.float().to(dtype).double()) * scale.double()

    for name in ("dilated.0", "mix"):
        layer, ours = by_hand.get_submodule(name), narrow.get_submodule(name)
        weight_scale = layer.weight.abs().amax((1, 2, 3), keepdim=True) / LARGEST[dtype]
        layer.weight.data = rounded(layer.weight, weight_scale)
        layer.register_forward_pre_hook(lambda _, args, s=ours.input_scale: (rounded(args[0], s), *args[1:]))
    for ours, exact, wide in zip(narrow(given).values(), by_hand(given.double()).values(), net(given).values()):
        # One input that fp32 rounds to the other side of a half is off by a step.
        assert rms_error(ours, exact) < 1e-3
        assert 1e-4 < rms_error(ours, wide) < ERROR[dtype]


@both
def test_residuals_aspp_and_their_activations(dtype):
    pytest.importorskip("torchvision")
    from torchvision.models.resnet import BasicBlock
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), BasicBlock(16, 16), DeepLabHead(16, 5, (2, 4, 6))).eval()
    given = images(2, 20, 24)
    fast, narrow = ao.optimize(net, given), ao.optimize(net, given, dtype=dtype, calibration=given)
    assert {"0", "2.4"} <= {row.name for row in ao.optimization_report(narrow).left}
    assert len(ao.optimization_report(narrow).quantized) == sum(type(m) is FusedConv2d for m in fast.modules()) - 2
    assert 0 < rms_error(narrow(given), net(given)) < 2 * ERROR[dtype]


@both
@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype, wide):
    net, given = made().to(wide), images().to(wide)
    narrow = ao.optimize(net, dtype=dtype, calibration=given)
    assert narrow(given)["out"].dtype == wide
    assert rms_error(narrow(given)["out"], net(given)["out"]) < ERROR[dtype] + 8 * torch.finfo(wide).eps


@both
def test_saved_copied_and_exported(dtype):
    net, given = made(), images()
    narrow = ao.optimize(net, dtype=dtype, calibration=given)
    expected = narrow(given)["out"]
    file = io.BytesIO()
    torch.save(narrow.state_dict(), file)
    file.seek(0)
    other = ao.optimize(made(1), dtype=dtype, calibration=images(1))
    other.load_state_dict(torch.load(file, weights_only=True))
    file = io.BytesIO()
    torch.save(narrow, file)
    file.seek(0)
    for same in (other, copy.deepcopy(narrow), torch.load(file, weights_only=False)):
        assert torch.equal(same(given)["out"], expected)
    with torch.inference_mode():
        assert torch.equal(narrow(given)["out"], expected)
    with pytest.raises(RuntimeError, match="weight_scale"):
        net.load_state_dict(narrow.state_dict())
    with pytest.raises(RuntimeError, match="weight must be"):
        narrow.load_state_dict(net.state_dict())
    batch = {0: torch.export.Dim("batch", min=2, max=8)}
    program = torch.export.export(narrow, (given,), dynamic_shapes=(batch,))
    # A number that rounds to the other side of a half is off by a step.
    assert rms_error(program.module()(given[:2])["out"], narrow(given[:2])["out"]) < 1e-3


def test_without_a_check_and_without_an_example():
    class OfTwo(Net):
        def forward(self, x, factor):
            return super().forward(x * factor)

    torch.manual_seed(0)
    net, calls = OfTwo().eval(), [(images(1), 0.5), (images(2), 2.0)]
    for options in ({}, {"check": False}):
        narrow = ao.optimize(net, dtype=torch.int8, calibration=iter(calls), **options)
        assert {row.name for row in ao.optimization_report(narrow).quantized} >= {"mix"}
        assert rms_error(narrow(*calls[1])["out"], net(*calls[1])["out"]) < ERROR[torch.int8]


def test_what_cannot_be_quantised_stays():
    net = made()
    net.mix.weight.data[0, 0] = torch.inf
    narrow = ao.optimize(net, images(), dtype=torch.int8, calibration=images())
    assert [row.name for row in ao.optimization_report(narrow).quantized] == ["dilated.0"]
    assert "its weights are not finite" in str(ao.optimization_report(narrow))
    alone = ao.optimize(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), dtype=torch.int8, calibration=images())
    assert "no convolution could become int8" in ao.optimization_report(alone).notes


def test_wrong_arguments():
    net, given = made(), images()
    broken = given.clone()
    broken[1, 0, 3, 3] = torch.nan

    def refused(error, text, **options):
        with pytest.raises(error, match=text):
            ao.optimize(net, **options)

    refused(ArgumentError, "dtype must be one of torch.int8, torch.float8_e4m3fn", dtype=torch.int4, calibration=given)
    refused(ArgumentError, "calibration must come with a dtype", calibration=given)
    refused(ArgumentTypeError, "calibration must be images; got NoneType. Give a tensor", dtype=torch.int8)
    refused(ArgumentError, "calibration must hold an image at least", dtype=torch.int8, calibration=[])
    refused(ArgumentError, "calibration must hold an image at least", dtype=torch.int8, calibration=given[:0])
    refused(ArgumentError, "calibration must hold images", dtype=torch.int8, calibration=torch.ones(3))
    refused(ArgumentTypeError, r"calibration\[1\] must be a tensor", dtype=torch.int8, calibration=[given, "a.jpg"])
    refused(ArgumentError, r"calibration\[1\] must be finite", dtype=torch.int8, calibration=broken)
    refused(RuntimeError, "expected input", dtype=torch.int8, calibration=given[:, :2])


def test_ends_of_a_model():
    """By hand: two convolutions see the image, one in between, and two are what the outputs are made of."""

    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("left", "right", "middle", "top"):
                setattr(self, name, nn.Conv2d(3, 3, 1))

        def forward(self, x):
            y = self.left(x.relu()) + self.right(x)
            return [self.top(self.middle(y)).sigmoid() * x, y.sum()]

    net = Forked()
    watch = Watch(net)
    run_seeded(net, (torch.randn(1, 3, 4, 4),), watch)
    first, last = watch.ends({"left", "right", "middle", "top"})
    assert (first, last) == ({"left", "right"}, {"top", "left", "right"})
