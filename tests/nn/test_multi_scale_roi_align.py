from collections import OrderedDict

import pytest
import torch
from torchvision import ops

from atrousops.nn import MultiScaleRoIAlign

IMAGES = [(128, 96), (120, 128)]


def pyramid(channels=3):
    # The maps of a 128x128 batch at strides 4 to 32, and one that nobody asks for.
    sizes = {"0": 32, "1": 16, "2": 8, "3": 4, "other": 2}
    return OrderedDict((name, torch.randn(2, channels, n, n, dtype=torch.float64)) for name, n in sizes.items())


def boxes():
    # Sides from 2 to 120 pixels: with a canonical scale of 56 they reach every level, and some are clamped to the ends.
    sides = torch.tensor([2.0, 13.0, 27.9, 28.0, 56.0, 80.0, 119.0], dtype=torch.float64)
    corner = torch.rand(len(sides), 2, dtype=torch.float64)
    return [
        torch.cat([corner, corner + sides[:, None]], dim=1),
        torch.cat([corner, corner + sides[:, None] / 2], dim=1),
    ]


@pytest.mark.parametrize("names", [["0", "1", "2", "3"], ["1", "2"], ["2"]])
def test_equals_torchvision(names):
    arguments = {"featmap_names": names, "output_size": (3, 2), "sampling_ratio": 2, "canonical_scale": 56}
    ours, theirs = MultiScaleRoIAlign(**arguments), ops.MultiScaleRoIAlign(**arguments)
    assert repr(ours) == repr(theirs)
    x, rois = pyramid(), boxes()
    leaves = [f.requires_grad_() for f in x.values()]
    y, expected = ours(x, rois, IMAGES), theirs(x, rois, IMAGES)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(y)
    used = [f for name, f in zip(x, leaves) if name in names]
    for a, b in zip(torch.autograd.grad(y, used, upstream), torch.autograd.grad(expected, used, upstream)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_no_boxes():
    none = [torch.empty(0, 4, dtype=torch.float64)] * 2
    assert MultiScaleRoIAlign(["0", "1"], 7, 2)(pyramid(), none, IMAGES).shape == (0, 3, 7, 7)


def test_rejects_missing_images_and_maps():
    layer = MultiScaleRoIAlign(["0"], 7, 2)
    with pytest.raises(ValueError, match="image_shapes must hold a size for each image"):
        layer(pyramid(), boxes(), [])
    with pytest.raises(ValueError, match=r"x must hold some of \['0'\]; got \['1'\]"):
        layer({"1": torch.zeros(1, 1, 2, 2)}, boxes(), IMAGES)
