"""Drawings of networks and what they cost: against cases worked by hand, and torchvision's own figures."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import segmentation

from atrousops import models
from atrousops.bench import costs, drawing, flow, pages

FOLDER = Path(__file__).parents[2] / "docs" / "networks"


class Small(nn.Module):
    """Two convolutions and a pooling; at half the size two branches, one of rate 3, which are concatenated; a skip."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1))
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.wide = nn.Conv2d(8, 16, 3, padding=3, dilation=3)
        self.plain = nn.Conv2d(8, 4, 1)
        self.join = nn.Conv2d(20, 8, 1)
        self.unused = nn.Conv2d(8, 8, 1)

    def forward(self, input):
        fine = self.first(input)
        coarse = self.pool(fine)
        self.unused(coarse)
        coarse = self.join(torch.cat([self.wide(coarse), self.plain(coarse)], 1))
        return {"out": fine + F.interpolate(coarse, size=input.shape[-2:])}


def test_stages_of_a_small_network():
    with torch.device("meta"):
        nodes = [*flow.flow(Small()).items()]
    numbers = [number for number, _ in nodes]
    seen = [
        (node.merge, node.layers, node.rates, node.shape[0], node.stride, {numbers.index(s) for s in node.sources})
        for _, node in nodes
    ]
    assert seen == [
        ("", [], [], 3, 1, set()),
        ("", ["conv 3x3", "conv 3x3"], [], 8, 1, {0}),
        ("", ["max pooling 2x2"], [], 8, 2, {1}),
        ("", ["conv 3x3"], [3], 16, 2, {2}),
        ("", ["conv 1x1"], [], 4, 2, {2}),
        ("concatenation", ["conv 1x1"], [], 8, 2, {3, 4}),
        ("", ["nearest resizing"], [], 8, 1, {5}),
        ("sum", [], [], 8, 1, {1, 6}),
        ("output", [], [], 8, 1, {7}),
    ]


@pytest.mark.parametrize("name", ["unet", "segnet_basic", "fcn8s", "espnet", "deeplabv3_resnet50"])
def test_committed_drawing_is_what_the_module_gives(name):
    """Skips, unpooling by indices, sums of scores, functions that are no modules, ASPP."""
    assert (FOLDER / f"{name}.svg").read_text() == pages._drawn(name)


def test_every_page_has_its_drawing_and_nothing_else():
    shown = {"../demo.jpg"}
    for name in models.registry.NETWORKS:
        found = re.findall(r"!\[.*?\]\((.*?)\)", (FOLDER / f"{name}.md").read_text())
        assert found[0] == f"{name}.svg"
        shown |= {*found}
    assert all((FOLDER / name).exists() for name in shown)
    assert {path.name for path in FOLDER.iterdir() if path.suffix != ".md"} == shown - {"../demo.jpg"}


def test_boxes_of_drawings_do_not_meet():
    """Nor leave the picture."""
    for path in FOLDER.glob("*.svg"):
        picture = ElementTree.fromstring(path.read_text())
        rects = [
            [float(rect.get(key, "0")) for key in ("x", "y", "width", "height")]
            for rect in picture.iter("{http://www.w3.org/2000/svg}rect")
        ]
        (_, _, width, height), *boxes = rects
        assert width == drawing.WIDTH
        for i, (x, y, w, h) in enumerate(boxes):
            assert min(x, y, width - x - w, height - y - h) >= 0
            assert all(x + w <= u or u + a <= x or y + h <= v or v + b <= y for u, v, a, b in boxes[:i]), path.name


@pytest.mark.parametrize(
    ("name", "weights", "arguments"),
    [
        ("deeplabv3_resnet50", segmentation.DeepLabV3_ResNet50_Weights, {"aux": True}),
        ("lraspp_mobilenet_v3_large", segmentation.LRASPP_MobileNet_V3_Large_Weights, {}),
    ],
)
def test_multiply_adds_are_those_that_torchvision_publishes(name, weights, arguments):
    """In units of 10^9, of an image of 520 x 520."""
    with torch.device("meta"):
        network = models.build(name, **arguments)
    assert round(costs.count(network, 520)[0] / 1e9, 3) == weights.DEFAULT.meta["_ops"]


def test_maps_that_live_at_once():
    """Most live at the sum: the image (3), the fine map (8) and the resized one (8), the joined one at half the size
    (8 / 4), and the result (8)."""
    with torch.device("meta"):
        _, most = costs.count(Small(), 8)
    assert most == 4 * 64 * (3 + 8 + 8 + 2 + 8)
