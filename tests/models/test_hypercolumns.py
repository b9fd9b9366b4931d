"""Hypercolumns: scores before interpolation are scores after it, and the grid of classifiers by hand."""

import torch
from networks import parameters
from torch.nn import functional as F

from atrousops import models


def test_parameters():
    fc = 25_088 * 4096 + 4096 + 4096 * 4096 + 4096
    assert parameters("hypercolumns") == 14_714_688 + fc + 21 * (128 + 512 + 4096 + 3)


@torch.no_grad()
def test_is_a_classifier_of_hypercolumns():
    """The 128 + 512 + 4096 numbers above a pixel (here a sixteenth of each), and one linear map of them."""
    network = models.hypercolumns(3, width=4).double().eval()
    image = torch.rand(1, 3, 45, 70, dtype=torch.float64)
    features = network.backbone(image)
    columns = [features["pool2"], features["conv4"], network.fc(features["out"])]
    columns = torch.cat([F.interpolate(c, size=(45, 70), mode="bilinear") for c in columns], dim=1)
    assert columns.shape[1] == (128 + 512 + 4096) // 16
    weight = torch.cat([score.weight for score in network.scores.values()], dim=1)
    bias = sum(score.bias for score in network.scores.values())
    torch.testing.assert_close(network(image)["out"], F.conv2d(columns, weight, bias))


@torch.no_grad()
def test_grid():
    """Two by two classifiers that say 1, 2, 3, 4: the corners say so, the middle of the image their mean."""
    network = models.hypercolumns(1, grid=2, width=1).eval()
    for score in network.scores.values():
        score.weight.zero_()
        score.bias.zero_()
    network.scores["fc7"].bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    out = network(torch.rand(1, 3, 33, 33))["out"][0, 0]
    torch.testing.assert_close(out[[0, 0, -1, -1], [0, -1, 0, -1]], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(out[16, 16], torch.tensor(2.5))


@torch.no_grad()
def test_of_the_release():
    """model_defs/hypercolumn_test.prototxt: pool3 by 3x3, pool4 and fc7 by 1x1, 25 classifiers of 20 classes."""
    network = models.hypercolumns(20, grid=5, width=2, layers={"pool3": 3, "pool4": 1, "fc7": 1}).double().eval()
    assert {name: tuple(score.weight.shape) for name, score in network.scores.items()} == {
        "pool3": (500, 8, 3, 3), "pool4": (500, 16, 1, 1), "fc7": (500, 128, 1, 1)
    }  # fmt: skip
    image = torch.rand(1, 3, 50, 50, dtype=torch.float64)
    features = network.backbone(image)
    features["fc7"] = network.fc(features["out"])
    x = 0
    for name, side in (("pool3", 3), ("pool4", 1), ("fc7", 1)):
        score = network.scores[name]
        x = x + F.interpolate(
            F.conv2d(features[name], score.weight, score.bias, padding=side // 2), size=(50, 50), mode="bilinear"
        )
    torch.testing.assert_close(network(image)["out"], network._blend(x))
