"""At a tiny width: torch.export takes every network, and channels_last, as in training, changes nothing."""

import copy
from typing import Any

import pytest
import torch

from atrousops import models

SMALL: dict[str, dict[str, Any]] = {
    "crfrnn": {"width": 1},
    "deconvnet": {"width": 1},
    "deeplabv1": {"width": 1},
    "dilated_vgg16": {"width": 1, "context": "large"},
    "fcn16s": {"width": 1, "padding": 0},
    "fcn8s": {"width": 1},
    "gcn": {"backbone": "resnet18"},
    "hypercolumns": {"width": 1, "grid": 2},
    "msd": {"depth": 12},
    "segnet": {"width": 1},
    "unet": {"width": 1},
}

# Exported only.
OTHERS: dict[str, dict[str, Any]] = {
    "auto_deeplab": {"width": 4},
    "deeplabv2": {"backbone": "resnet18"},
    "deeplabv3_cascade": {"backbone": "resnet18"},
    "deeplabv3plus_xception65": {"width": 8},
    "enet": {},
    "espnet": {},
    "fcn32s": {"width": 1, "padding": 0},
    "metric_learning": {"backbone": "resnet18", "dimensions": 4},
    "pspnet": {"backbone": "resnet18"},
}


@pytest.mark.parametrize("name", SMALL | OTHERS)
def test_exports(name):
    network = models.build(name, num_classes=3, **(SMALL | OTHERS)[name]).eval()
    image = torch.rand(1, 3, 64, 64)
    program = torch.export.export(network, (image,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image)["out"], network(image)["out"])


@pytest.mark.parametrize("features", ["fpn", "dilated_c5"])
def test_the_trunk_of_mask_rcnn_exports(features):
    """What is ours of it without boxes; torchvision's suppression of boxes branches on how many there are."""
    trunk = models.build("mask_rcnn", num_classes=3, backbone="resnet18", features=features).backbone.eval()
    image = torch.rand(1, 3, 64, 64)
    program = torch.export.export(trunk, (image,))
    with torch.no_grad():
        for name, features_of_level in trunk(image).items():
            torch.testing.assert_close(program.module()(image)[name], features_of_level)


@pytest.mark.parametrize("name", [name for name, arguments in SMALL.items() if "backbone" not in arguments])
def test_channels_last(name):
    """Scores and gradients in fp64, as the trainer runs networks."""
    network = models.build(name, num_classes=3, **SMALL[name]).double().eval()
    for parameter in network.parameters():
        if not parameter.any():
            # Scores that start at zero would hide everything.
            torch.nn.init.normal_(parameter, std=0.1)
    theirs = copy.deepcopy(network).to(memory_format=torch.channels_last)
    image = torch.rand(2, 3, 40, 40, dtype=torch.float64)
    wanted = network(image)["out"]
    got = theirs(image.contiguous(memory_format=torch.channels_last))["out"]
    torch.testing.assert_close(got, wanted)
    for out in (wanted, got):
        out.square().sum().backward()
    for (parameter, q), ours in zip(network.named_parameters(), theirs.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(ours.grad, q.grad, atol=1e-7, rtol=1e-6, msg=parameter)
