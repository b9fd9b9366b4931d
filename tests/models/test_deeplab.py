"""DeepLab v3 against torchvision's, v3+ by what it must do."""

from functools import partial

import pytest
import torch
import torchvision
from torch.nn import functional as F

from atrousops import models
from atrousops.common.checks import ArgumentError


def test_v3plus_exports():
    """torch.export takes the network whole, with a batch size left open."""
    network = models.deeplabv3plus_mobilenet_v3_large(3).eval()
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(network, (torch.rand(2, 3, 64, 64),), dynamic_shapes=({0: batch},))
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images)["out"], network(images)["out"])


v3 = partial(models.deeplabv3, 3, "resnet18", multi_grid=(1, 2))


def test_parts():
    """Rates by output stride; no rates, no image pooling: only the branches asked for."""
    with torch.device("meta"):
        for stride, first in ((32, 3), (16, 6), (8, 12)):
            branches = v3(output_stride=stride).classifier[0].convs
            assert [branch[0].dilation[0] for branch in branches[1:4]] == [first, 2 * first, 3 * first]
            assert len(branches) == 5
        assert len(v3(image_pooling=False).classifier[0].convs) == 4
        assert len(v3(rates=()).classifier[0].convs) == 2
        grid = v3(output_stride=16).backbone["layer4"]
        assert [block.conv1.dilation[0] for block in grid] == [2, 4]


def test_is_the_one_with_a_name():
    """deeplabv3(backbone="resnet50") is deeplabv3_resnet50."""
    with torch.device("meta"):
        general = models.deeplabv3(3, "resnet50", output_stride=8, aux=True)
        named = models.deeplabv3_resnet50(3, aux=True)
    assert str(general) == str(named)


@torch.no_grad()
def test_papers_head():
    """Scores of what ASPP says, corners aligned."""
    network = v3(last_3x3=False, align_corners=True).eval()
    assert [type(layer).__name__ for layer in network.classifier] == ["ASPP", "AtrousConv2d"]
    picture = torch.rand(1, 3, 33, 33)
    scores = network.classifier(network.backbone(picture))
    wanted = F.interpolate(scores, (33, 33), mode="bilinear", align_corners=True)
    torch.testing.assert_close(network(picture)["out"], wanted)


@pytest.mark.parametrize(("separable", "separable_aspp"), [(True, False), (False, True), (False, None)])
def test_separable_parts(separable, separable_aspp):
    """Decoders and ASPPs that are separable or not: depthwise layers in 3 branches, in 2 layers."""
    with torch.device("meta"):
        network = models.deeplabv3plus(
            2, "resnet18", separable=separable, separable_aspp=separable_aspp, align_corners=True
        )
    counts = [
        sum(isinstance(layer, torch.nn.Conv2d) and layer.groups > 1 for layer in part.modules())
        for part in (network.classifier.aspp, network.classifier.decoder)
    ]
    assert counts == [3 * bool(separable if separable_aspp is None else separable_aspp), 2 * separable]
    assert network.align_corners
    assert network.classifier.align_corners


@pytest.mark.parametrize(("output_stride", "first"), [(16, 2), (8, 4)])
def test_cascade_doubles_its_rates(output_stride, first):
    """Blocks 4 to 7, each with multi-grid (1, 2, 1); three copies of three blocks without shortcuts."""
    with torch.device("meta"):
        network = models.deeplabv3_cascade(3, output_stride=output_stride)
    blocks = [network.backbone["layer4"], *(network.classifier.get_submodule(f"block{i}") for i in (5, 6, 7))]
    for block, rate in zip(blocks, (first, 2 * first, 4 * first, 8 * first), strict=True):
        assert [b.conv2.dilation[0] for b in block] == [rate, 2 * rate, rate]
    copy = 2048 * 512 * 2 + 512 * 512 * 9 + 2 * (512 + 512 + 2048)
    assert sum(p.numel() for p in network.classifier.parameters()) == 9 * copy + 3 * 2049


def test_cascade_of_basic_blocks():
    """ResNet-18: two blocks of two 3x3 at 512 channels, rates 4 and 8 behind layer4's 2 and 4."""
    with torch.device("meta"):
        network = models.deeplabv3_cascade(3, "resnet18", blocks=5)
    for blocks, rate in ((network.backbone["layer4"], 2), (network.classifier.get_submodule("block5"), 4)):
        assert [(b.conv1.dilation[0], b.conv2.dilation[0]) for b in blocks] == [(rate, rate), (2 * rate, 2 * rate)]
    assert sum(p.numel() for p in network.classifier.parameters()) == 4 * (512 * 512 * 9 + 2 * 512) + 3 * 513


@pytest.mark.parametrize("name", ["deeplabv3_resnet101", "deeplabv3plus_resnet101"])
def test_resnet101_has_its_blocks(name):
    with torch.device("meta"):
        network = models.build(name)
    assert [len(network.backbone[f"layer{i}"]) for i in range(1, 5)] == [3, 4, 23, 3]


@pytest.mark.parametrize("kind", ["resnet50", "mobilenet_v3_large"])
def test_backbone_weights(kind):
    classifier = getattr(torchvision.models, kind)(weights=None)
    network = models.build(f"deeplabv3plus_{kind}", backbone_weights=classifier.state_dict())
    last = {"resnet50": ("layer4.2.conv3.weight",) * 2, "mobilenet_v3_large": ("16.0.weight", "features.16.0.weight")}
    ours, theirs = last[kind]
    assert torch.equal(network.backbone.state_dict()[ours], classifier.state_dict()[theirs])


def test_backbone_weights_of_another_network():
    weights = torchvision.models.mobilenet_v3_small(weights=None).state_dict()
    with pytest.raises(ArgumentError, match="every weight of the backbone"):
        models.deeplabv3_mobilenet_v3_large(backbone_weights=weights)
