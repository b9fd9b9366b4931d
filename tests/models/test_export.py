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

# Exported only, as the networks that are not here, with their defaults.
OTHERS: dict[str, dict[str, Any]] = {
    "auto_deeplab": {"width": 4},
    "deeplabv2": {"backbone": "resnet18"},
    "deeplabv3_cascade": {"backbone": "resnet18"},
    "deeplabv3plus_xception65": {"width": 8},
    "fcn32s": {"width": 1, "padding": 0},
    "metric_learning": {"backbone": "resnet18", "dimensions": 4},
    "pspnet": {"backbone": "resnet18"},
}


@pytest.mark.parametrize("name", [name for name in models.list("networks") if name != "mask_rcnn"])
def test_exports(name):
    network = models.build(name, num_classes=3, **(SMALL | OTHERS).get(name, {})).double().eval()
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    program = torch.export.export(network, (image,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image)["out"], network(image)["out"])


@pytest.mark.parametrize(
    ("features", "lowest"), [("fpn", 0.0), ("dilated_c5", 0.0), ("dilated_c5", 1.0)], ids=["fpn", "c5", "no object"]
)
def test_mask_rcnn_exports(features, lowest):
    """From two images to boxes and masks; as many as there are in others, and none where no score is good enough."""
    settings = {"min_size": 64, "max_size": 96, "box_score_thresh": lowest, "box_detections_per_img": 5}
    network = models.build("mask_rcnn", num_classes=3, backbone="resnet18", features=features, **settings)
    network = network.double().eval()
    traced, images = ([torch.rand(3, *size).double() for size in ((61, 83), (64, 64))] for _ in range(2))
    with torch.no_grad():
        expected = network(images)
        program = torch.export.export(network, (traced,))
        for got, wanted in zip(program.module()(images), expected, strict=True):
            assert bool(len(wanted["labels"])) == (lowest == 0)
            for name, value in wanted.items():
                torch.testing.assert_close(got[name], value, msg=name)


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
