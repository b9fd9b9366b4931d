"""Encoders by name: what an output stride does to strides, rates and values."""

import sys

import pytest
import torch
import torchvision

import atrousops as ao
from atrousops import models
from atrousops.common.checks import ArgumentError
from atrousops.models.backbones import resnet
from atrousops.models.xception import Xception65

FAMILIES = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_lite2")
FAMILIES += ("shufflenet_v2_x0_5",)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_strides(name, output_stride):
    encoder = models.encoder(name, output_stride).eval()
    features = encoder(torch.rand(1, 3, 64, 96))
    for feature, stride in zip(("low", "mid", "aux", "out"), (4, 8, 16, 32), strict=True):
        kept = min(stride, output_stride)
        assert features[feature].shape[-2:] == (64 // kept, 96 // kept)
        assert features[feature].shape[1] == encoder.channels[feature]
    assert not [layer for layer in encoder.modules() if type(layer) is torch.nn.Conv2d]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_lite0", "shufflenet_v2_x0_5"])
@torch.inference_mode()
def test_finer_holds_coarser(name):
    """With the same weights, every fourth position of output stride 8 is what output stride 32 gives, borders too."""
    coarse, fine = models.encoder(name, 32).double().eval(), models.encoder(name, 8).double().eval()
    fine.load_state_dict(coarse.state_dict())
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    wanted = coarse(image)["out"]
    assert wanted.std() > 0
    torch.testing.assert_close(fine(image)["out"][..., ::4, ::4], wanted)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_resnet_is_torchvisions(output_stride):
    dilated = [False, output_stride == 8, output_stride <= 16]
    theirs = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=dilated)
    geometry = [
        [(c.stride, c.dilation, c.padding) for c in network.modules() if isinstance(c, torch.nn.Conv2d)]
        for network in (theirs, resnet(50, output_stride))
    ]
    assert geometry[0] == geometry[1]


def test_multi_grid():
    """At output stride 16 block 4 has twice the unit rates, at 8 four times."""
    for output_stride, rates in ((16, [2, 4, 8]), (8, [4, 8, 16])):
        with torch.device("meta"):
            layer4 = models.deeplabv3_resnet50(2, output_stride, multi_grid=(1, 2, 4)).backbone["layer4"]
        assert [block.conv2.dilation for block in layer4] == [(r, r) for r in rates]
        assert [block.conv2.padding for block in layer4] == [(r, r) for r in rates]
    with pytest.raises(ArgumentError, match="multi_grid"):
        models.deeplabv3_resnet50(2, multi_grid=(1, 2))


def geometry(backbone):
    """Stride and rate of each block's convolutions."""
    return {
        name: [
            [(c.stride[0], c.dilation[0]) for c in block.modules() if isinstance(c, torch.nn.Conv2d)] for block in stage
        ]
        for name, stage in backbone.items()
        if name.startswith("layer")
    }


def test_forms():
    """What detectron2 calls dilated C5: layer4 at rate 2 throughout, the strides of others in the first 1x1."""
    with torch.device("meta"):
        found = geometry(models.encoder("resnet50", 16, full_rate=True, stride_in_1x1=True))
        grids = geometry(models.encoder("resnet18", 8, multi_grid={"layer2": (1, 2), "layer3": (1, 3)}))
        stem = models.encoder("resnet18", 32, deep_stem=(4, 6, 10))
    assert found["layer4"][0] == [(1, 1), (1, 2), (1, 1), (1, 1)]
    # The last is the shortcut's.
    assert found["layer3"][0] == [(2, 1), (1, 1), (1, 1), (2, 1)]
    assert [[rate for _, rate in block] for block in grids["layer2"]] == [[1, 1, 1], [2, 2]]
    assert [[rate for _, rate in block] for block in grids["layer3"]] == [[2, 2, 1], [6, 6]]
    assert [stem[f"conv{i}"].weight.shape[:2] for i in (1, 2, 3)] == [(4, 3), (6, 4), (10, 6)]
    assert stem["layer1"][0].conv1.in_channels == 10


@pytest.mark.parametrize(
    ("name", "form", "match"),
    [
        ("mobilenet_v2", {"full_rate": True}, "full_rate"),
        ("resnet18", {"stride_in_1x1": True}, "stride_in_1x1"),
        ("resnet18", {"deep_stem": (64, 128)}, "deep_stem"),
        ("resnet18", {"multi_grid": {"layer5": (1, 2)}}, "multi_grid"),
        ("resnet18", {"multi_grid": (1, 2, 4)}, "multi_grid"),
    ],
)
def test_bad_forms(name, form, match):
    with pytest.raises(ArgumentError, match=match):
        models.encoder(name, 8, **form)


def test_weights():
    theirs = torchvision.models.mobilenet_v2(weights=None)
    ours = models.encoder("mobilenet_v2", 8, theirs.state_dict())
    assert torch.equal(ours["18"][0].weight, theirs.features[18][0].weight)


def test_xception_has_timms_count():
    """timm's xception65 has 39 916 312 parameters, 2 049 000 of them in the classifier."""
    with torch.device("meta"):
        assert sum(p.numel() for p in Xception65().parameters()) == 39_916_312 - 2_049_000


@torch.inference_mode()
def test_xception_finer_holds_coarser():
    coarse, fine = Xception65(32, width=4).double().eval(), Xception65(8, width=4).double().eval()
    fine.load_state_dict(coarse.state_dict())
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    wanted = coarse(image)["out"]
    assert wanted.std() > 0
    torch.testing.assert_close(fine(image)["out"][..., ::4, ::4], wanted, atol=0, rtol=1e-6)


@pytest.mark.parametrize("name", ["vgg16", "densenet121", "convnext_tiny", "alexnet", "vit_b_16"])
def test_cannot_be_dilated(name):
    with pytest.raises(ArgumentError, match="encoder: name"):
        models.encoder(name, 8)


def test_bad_arguments(monkeypatch):
    with pytest.raises(ArgumentError, match="output_stride"):
        models.encoder("resnet18", 4)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ArgumentError, match="timm is not installed"):
        models.encoder("resnet9000", 8)
    with pytest.raises(ArgumentError, match="Xception65"):
        ao.models.deeplabv3plus_xception65(2, width=3)
