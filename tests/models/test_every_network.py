"""What every network is held to, in each form that runs other code; its own file says what is its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from networks import losses
from torch.nn import functional as F

import atrousops as ao
from atrousops import models
from atrousops.common.checks import ArgumentError


@dataclass(frozen=True)
class Case:
    """A network of few channels or layers, for three classes.

    training: height and width of the images that it learns from, in so many steps.
    dilates: it has a backbone whose output stride one chooses.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("out",)
    training: tuple[int, int] = (64, 64)
    steps: int = 4
    dilates: bool = False

    def build(self, **arguments: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        return models.build(self.name, num_classes=3, **self.arguments, **arguments)


def front_end(width: int = 4, **arguments: Any) -> Case:
    return Case("dilated_vgg16", {"width": width, **arguments}, training=(32, 32))


RESNET = {"backbone": "resnet18"}
CASES = {
    "Auto-DeepLab": Case("auto_deeplab", {"width": 4}, steps=8),
    "CRF-RNN": Case("crfrnn", {"width": 2}, training=(32, 32), steps=12),
    "DeconvNet": Case("deconvnet", {"width": 2}),
    "DeepLab v1": Case("deeplabv1", {"width": 4}, steps=12),
    "DeepLab v1, 4x4, learnt CRF": Case("deeplabv1", {"width": 4, "kernel_size": 4, "rate": 8, "crf": "rnn"}, steps=12),
    "DeepLab v2, VGG-16": Case("deeplabv2", {"backbone": "vgg16", "width": 4}, steps=12),
    "DeepLab v2, three scales": Case("deeplabv2", {**RESNET, "multi_scale": True}, training=(40, 40)),
    # Any encoder; the smallest ResNet stands for them.
    "DeepLab v3": Case("deeplabv3", {**RESNET, "multi_grid": (1, 2)}, dilates=True),
    "DeepLab v3, ResNet-50": Case("deeplabv3_resnet50", dilates=True),
    "DeepLab v3, MobileNet v3": Case("deeplabv3_mobilenet_v3_large", dilates=True),
    "DeepLab v3, cascade": Case(
        "deeplabv3_cascade", {"backbone": "resnet50", "blocks": 5}, training=(32, 32), dilates=True
    ),
    "DeepLab v3+": Case("deeplabv3plus", RESNET, dilates=True),
    "DeepLab v3+, MobileNet v3": Case("deeplabv3plus_mobilenet_v3_large", dilates=True),
    "DeepLab v3+, EfficientNet-Lite2": Case("deeplabv3plus_efficientnet_lite2", dilates=True),
    "DeepLab v3+, Xception": Case("deeplabv3plus_xception65", {"width": 4}, dilates=True),
    "ENet": Case("enet"),
    "ESPNet": Case("espnet", steps=6),
    "FCN-32s": Case("fcn32s", {"width": 4}),
    "FCN-16s": Case("fcn16s", {"width": 4}),
    "FCN-8s": Case("fcn8s", {"width": 4}),
    "FCN-8s, padding 0": Case("fcn8s", {"width": 4, "padding": 0}),
    "FCN, ResNet-50": Case("fcn_resnet50", dilates=True),
    "GCN": Case("gcn", {**RESNET, "kernel_size": 7}),
    # Its loss rises for two steps first, with the moments of the encoder's normalisations.
    "GCN, stacks": Case("gcn", {**RESNET, "kernel_size": 5, "stack": True}, steps=8),
    "LR-ASPP": Case("lraspp_mobilenet_v3_large"),
    "MS-D": Case("msd", {"depth": 12}, training=(32, 32), steps=12),
    "PSPNet": Case("pspnet", RESNET, ("out", "aux"), dilates=True),
    "SegNet": Case("segnet", {"width": 4}),
    "SegNet-Basic": Case("segnet_basic", {"width": 8}),
    "U-Net": Case("unet", {"width": 4}, steps=12),
    "U-Net, zeros and normalisation": Case("unet", {"width": 4, "padding": "zeros", "batch_norm": True}, steps=12),
    "U-Net on an encoder": Case("unet", {**RESNET, "width": 8}),
    "front end": front_end(2),
    "front end, zeros": front_end(padding="zeros"),
    "front end, basic context": front_end(padding="zeros", context="basic"),
    "front end, large context": front_end(padding="zeros", context="large"),
    "front end, context and CRF-RNN": front_end(padding="zeros", context="basic", crf="rnn"),
    "hypercolumns": Case("hypercolumns", {"width": 4}, steps=12),
    "hypercolumns, grid": Case("hypercolumns", {"width": 4, "grid": 2}, steps=12),
}
# It has losses and outputs of its own.
BUILT = CASES | {"metric learning": Case("metric_learning", {**RESNET, "dimensions": 8})}
DILATING = [name for name, case in CASES.items() if case.dilates]


@pytest.mark.parametrize("name", CASES)
def test_forward_at_odd_size(name):
    """Odd in both axes, so that no pooling divides evenly."""
    with torch.inference_mode():
        scores = CASES[name].build().eval()(torch.rand(1, 3, 49, 67))
    assert tuple(scores) == CASES[name].outputs
    for score in scores.values():
        assert score.shape == (1, 3, 49, 67)
        assert bool(score.isfinite().all())


@pytest.mark.parametrize("name", BUILT)
def test_convolutions_are_ours_and_images_are_checked(name):
    network = BUILT[name].build()
    assert not [name for name, layer in network.named_modules() if type(layer) is torch.nn.Conv2d]
    assert any(isinstance(layer, ao.AtrousConv2d) for layer in network.modules())
    with pytest.raises(ArgumentError, match=r"\(N, 3, H, W\)"):
        network(torch.rand(3, 32, 32))


@pytest.mark.parametrize("name", CASES)
def test_learns(name):
    network = CASES[name].build().train()
    images = torch.rand(2, 3, *CASES[name].training)
    labels = (images[:, 0] > 0.5).long()
    first, *_, last = losses(network, lambda: F.cross_entropy(network(images)["out"], labels), CASES[name].steps)
    assert last < first
    assert not [name for name, p in network.named_parameters() if p.grad is None and not name.startswith("aux")]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", DILATING)
def test_output_stride(name, output_stride):
    backbone = CASES[name].build(output_stride=output_stride).backbone.eval()
    with torch.inference_mode():
        features = backbone(torch.rand(1, 3, 64, 96))
    assert features["out"].shape[-2:] == (64 // output_stride, 96 // output_stride)
    assert features["low"].shape[-2:] == (16, 24)


@pytest.mark.parametrize("name", DILATING)
def test_output_stride_of_weights(name):
    """One set of weights serves both output strides, and there are no others."""
    CASES[name].build(output_stride=8).load_state_dict(CASES[name].build(output_stride=16).state_dict())
    with pytest.raises(ArgumentError, match="output_stride"):
        CASES[name].build(output_stride=12)


# The name of a network, what it refuses, and a word of the message.
REFUSED = [
    ("deconvnet", {"width": 0}, "width"),
    ("deeplabv1", {"backbone": "efficientnet_lite0", "width": 1, "pooling": 4}, "pooling"),
    ("deeplabv1", {"kernel_size": 3, "rate": 4}, "rate"),
    ("deeplabv1", {"crf": "yes", "width": 1}, "crf"),
    ("deeplabv1", {"pooling": 4, "width": 1}, "pooling"),
    ("deeplabv2", {"backbone": "vgg16", "width": 1, "backbone_arguments": {"ceil_pool": True}}, "backbone_arg"),
    ("deeplabv2", {"backbone": "vgg19"}, "backbone"),
    ("deeplabv2", {"backbone": "resnet18", "rates": (0,)}, "rates"),
    ("deeplabv3", {"backbone": "mobilenet_v2", "multi_grid": (1, 2)}, "multi_grid"),
    ("deeplabv3_cascade", {"backbone": "resnet50", "blocks": 8}, "blocks"),
    ("deeplabv3_cascade", {"backbone": "vgg16"}, "backbone"),
    ("deeplabv3_cascade", {"backbone": "resnet50", "output_stride": 32}, "output_stride"),
    ("deeplabv3plus", {"backbone": "resnet18", "form": "mmseg"}, 'form must be "paper" or "smp"'),
    ("dilated_vgg16", {"width": 1, "context": "huge"}, "kind"),
    ("dilated_vgg16", {"width": 1, "context_arguments": {"border": "input"}}, "context_arguments"),
    ("dilated_vgg16", {"width": 1, "crf": "sparse"}, "crf"),
    ("dilated_vgg16", {"width": 1, "padding": "circular"}, "padding"),
    ("dilated_vgg16", {"width": 1, "backbone": "resnet18"}, 'padding must be "zeros" unless the backbone is vgg16'),
    ("dilated_vgg16", {"width": 1, "placement": "middle"}, "placement"),
    ("dilated_vgg16", {"width": 0}, "width"),
    ("espnet", {"width": 4}, "width"),
    ("fcn8s", {"width": 1, "padding": 50}, "padding"),
    ("fcn8s", {"width": 1, "backbone": "resnet18"}, "padding must be 0 unless the backbone is vgg16; got 100"),
    ("gcn", {"kernel_size": 4}, "kernel_size"),
    ("gcn", {"backbone": "resnet18", "kernel_size": 1, "stack": True}, "kernel_size must be at least 3 for a stack"),
    ("hypercolumns", {"width": 1, "grid": 0}, "grid"),
    ("hypercolumns", {"width": 1, "layers": {"pool5": 1}}, "layers"),
    ("hypercolumns", {"width": 1, "layers": {"pool3": 2}}, "layers"),
    ("mask_rcnn", {"backbone": "vgg16", "features": "dilated_c5"}, "backbone|name"),
    ("mask_rcnn", {"features": "c4"}, "features"),
    ("metric_learning", {"backbone": "resnet18", "dimensions": 0}, "dimensions"),
    ("metric_learning", {"backbone": "resnet18", "scales": (0.0,)}, "scales"),
    ("metric_learning", {"backbone": "resnet18", "seed_weight": -1.0}, "seed_weight"),
    ("msd", {"depth": 0}, "depth"),
    ("msd", {"width": 0}, "width"),
    ("msd", {"dilations": ()}, "dilations"),
    ("msd", {"dilations": (0,)}, "dilations"),
    ("pspnet", {"backbone": "resnet18", "sizes": (0,)}, "sizes"),
    ("pspnet", {"backbone": "resnet18", "sizes": (1, 2, 3)}, "sizes"),
    ("pspnet", {"backbone": "vgg16"}, "backbone|name"),
    ("pspnet", {"backbone": "resnet18", "output_stride": 4}, "output_stride"),
    ("segnet", {"width": 0}, "width"),
    ("unet", {"padding": "same"}, "padding"),
    ("unet", {"width": 0}, "width"),
]


@pytest.mark.parametrize(("name", "wrong", "match"), REFUSED)
def test_bad_arguments(name, wrong, match):
    with pytest.raises(ArgumentError, match=match):
        models.build(name, num_classes=2, **wrong)
