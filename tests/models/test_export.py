"""torch.export takes every network whole, at a tiny width, and its program says the same."""

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
    "pspnet": {"backbone": "resnet18"},
    "segnet": {"width": 1},
    "unet": {"width": 1},
}


@pytest.mark.parametrize("name", SMALL)
def test_exports(name):
    network = models.build(name, num_classes=3, **SMALL[name]).eval()
    image = torch.rand(1, 3, 64, 64)
    program = torch.export.export(network, (image,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image)["out"], network(image)["out"])
