"""FCN: geometry of deconvolutions and crops by hand, sizes, and VGG's weights."""

import pytest
import torch
import torchvision
from networks import pass_pixels_on, vgg16_weights
from torch.nn import functional as F

from atrousops import models
from atrousops.models.base import bilinear_deconvolution


@pytest.mark.parametrize("factor", [2, 8])
def test_deconvolution_is_bilinear(factor):
    """Of a linear function, and inside, of anything."""
    up = bilinear_deconvolution(2, factor, padding=factor // 2)
    x = torch.rand(1, 2, 6, 7)
    inner = slice(factor, -factor)
    with torch.no_grad():
        got = up(x)
    wanted = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    assert got.shape == wanted.shape
    torch.testing.assert_close(got[..., inner, inner], wanted[..., inner, inner])


@pytest.mark.parametrize(("name", "stride", "size"), [("fcn32s", 32, 165), ("fcn16s", 16, 85), ("fcn8s", 8, 45)])
@torch.no_grad()
def test_crops_put_scores_where_they_belong(name, stride, size):
    """With padding 100, a position of the last map is centred on the pixels that its receptive field is centred on.

    Filters that pass one pixel on leave the pooling alone: where an image grows to the right, each score is the largest
    abscissa of its window, which is (window - 1) / 2 above the window's centre.
    """
    network = models.build(name, num_classes=1, width=1).eval()
    pass_pixels_on(network)
    # Only the finest map speaks.
    for score in (network.score, *network.skips.values())[:-1]:
        score.weight.zero_()
    abscissa = torch.arange(1.0, size + 1)
    ramp = abscissa.expand(1, 3, size, size).contiguous()
    inside = slice(3 * stride // 2, -3 * stride // 2)
    got = network(ramp)["out"][0, 0, size // 2]
    torch.testing.assert_close(got[inside], abscissa[inside] + (stride - 1) / 2)


def test_vgg_weights():
    """torchvision's fully connected layers become convolutions: on a 7x7 map they say the same."""
    weights = vgg16_weights(width=2)
    network = models.fcn8s(width=2, backbone_weights=weights)
    assert torch.equal(network.backbone.state_dict()["28.weight"], weights["features.28.weight"])
    weights = {name: value.double() for name, value in weights.items()}
    network.double()
    x = torch.rand(1, 16, 7, 7, dtype=torch.float64)
    wanted = F.linear(x.flatten(), weights["classifier.0.weight"], weights["classifier.0.bias"])
    torch.testing.assert_close(network.fc[0](x).flatten(), wanted)
    wanted = F.linear(wanted, weights["classifier.3.weight"], weights["classifier.3.bias"])
    torch.testing.assert_close(network.fc[3](network.fc[0](x)).flatten(), wanted)


# Strides of the features that each network reads.
ON_ENCODER = {"fcn32s": {32}, "fcn16s": {32, 16}, "fcn8s": {32, 16, 8}, "dilated_vgg16": {8}, "deeplabv1": {8}}


@pytest.mark.parametrize("name", ON_ENCODER)
def test_on_an_encoder(name):
    """It starts from the classifier's weights, and its scores depend on the features that the paper adds."""
    weights = torchvision.models.resnet18().state_dict()
    padding = {"dilated_vgg16": {"padding": "zeros"}, "deeplabv1": {}}.get(name, {"padding": 0})
    arguments = {"num_classes": 2, "backbone": "resnet18", "width": 1, "backbone_weights": weights, **padding}
    network = models.build(name, **arguments).eval()
    assert torch.equal(network.backbone.state_dict()["layer4.1.conv2.weight"], weights["layer4.1.conv2.weight"])
    plain, features = network.backbone.forward, {}

    def watched(image):
        features.update({key: value.detach().requires_grad_() for key, value in plain(image).items()})
        return features

    network.backbone.forward = watched
    got = network(torch.rand(1, 3, 61, 64))["out"]
    assert got.shape == (1, 2, 61, 64)
    got.sum().backward()
    assert {64 // value.shape[-1] for value in features.values() if value.grad is not None} == ON_ENCODER[name]


def test_frozen():
    """Only the deconvolutions, which stay bilinear."""
    network = models.fcn8s(width=1, frozen_up=True)
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert frozen == ["doublings.pool4.weight", "doublings.pool3.weight", "upscore.weight"]
