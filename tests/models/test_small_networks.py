"""ESPNet's parameters, U-Net on encoders, and GCN's stacks of small kernels."""

import pytest
import torch
import torchvision
from networks import parameters

from atrousops import models
from atrousops.common.checks import ArgumentError
from atrousops.models.gcn import GlobalConv2d, StackedConv2d


def test_parameters_of_espnet():
    """0.364 M in the paper, for 20 classes (section 5); we count 0.365 M, to which the weights fit."""
    assert abs(parameters("espnet", num_classes=20) / 1e6 - 0.364) < 0.002


def test_stack_sees_its_window():
    """7x7 through three layers without anything between: a pixel four away changes nothing, one three away does."""
    stack = StackedConv2d(4, 2, 7).double()
    assert [type(layer).__name__ for layer in stack] == ["AtrousConv2d"] * 3
    image = torch.rand(1, 4, 15, 15, dtype=torch.float64)
    base = stack(image)[0, :, 7, 7]
    for distance, same in ((4, True), (3, False)):
        other = image.clone()
        other[0, 0, 7 + distance, 7 + distance] += 1
        assert torch.equal(stack(other)[0, :, 7, 7], base) == same
    # Linear, as the global convolution of the same window.
    zero = stack(torch.zeros_like(image))
    torch.testing.assert_close(stack(2 * image) - zero, 2 * (stack(image) - zero))
    assert isinstance(models.gcn(2, "resnet18", 7).levels["out"][0], GlobalConv2d)


def test_unet_on_an_encoder_takes_its_weights():
    weights = torchvision.models.resnet18(weights=None).state_dict()
    network = models.unet(2, 8, backbone="resnet18", backbone_weights=weights, in_channels=1)
    torch.testing.assert_close(network.backbone["conv1"].weight.data, weights["conv1.weight"].sum(1, True))
    with pytest.raises(ArgumentError, match="backbone_weights must be None"):
        models.unet(2, backbone_weights=weights)
