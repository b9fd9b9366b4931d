"""Whole networks with fresh weights, from a normalised image to labels."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import segmentation

import atrousops as ao
from atrousops import models
from atrousops.bench import apart
from atrousops.bench.modules import module
from atrousops.bench.registry import Prepared, Row, Setting, expand

WAYS = {way: ("forward",) for way in ("fp32 nchw", "fp32 nhwc", "bf16 nhwc", "tf32 nhwc")}
# network, height, width, whether torchvision has it, reason
CASES = (
    ("deeplabv3_resnet50", 513, 513, True, "the network that most people start with"),
    ("deeplabv3_resnet101", 513, 513, True, "the paper's backbone"),
    ("deeplabv3_mobilenet_v3_large", 513, 513, True, "depthwise filters, dilated 5x5 among them"),
    ("deeplabv3plus_resnet50", 513, 513, False, "separable ASPP and decoder"),
    ("deeplabv3plus_efficientnet_lite2", 500, 375, False, "the weights that come with the package"),
    ("enet", 360, 480, False, "max-unpooling, transposed, dilated and asymmetric filters; overhead counts"),
    ("fcn_resnet50", 513, 513, True, "dense 3x3 filters in the head where the others have atrous ones"),
    ("unet", 360, 480, False, "3x3 filters on large maps without padding, and transposed 2x2"),
)
# The networks of docs/networks as their papers have them, on a CamVid image; metric learning without the grouping, for
# fresh weights leave nothing to group. name: arguments.
PAGES: dict[str, dict[str, Any]] = {
    "auto_deeplab": {},
    "deconvnet": {},
    "deeplabv1": {},
    "deeplabv2": {},
    "deeplabv3": {},
    "deeplabv3_cascade": {},
    "deeplabv3_mobilenet_v3_large": {},
    "deeplabv3_resnet50": {},
    "deeplabv3_resnet101": {},
    "deeplabv3plus": {},
    "deeplabv3plus_mobilenet_v3_large": {},
    "deeplabv3plus_resnet50": {},
    "deeplabv3plus_resnet101": {},
    "deeplabv3plus_efficientnet_lite2": {},
    "deeplabv3plus_xception65": {},
    "dilated_vgg16": {"context": "basic"},
    "enet": {},
    "enet_davidtvs": {},
    "espnet": {},
    "fcn8s": {},
    "fcn16s": {},
    "fcn32s": {},
    "fcn_resnet50": {},
    "fcn_resnet101": {},
    "gcn": {},
    "hypercolumns": {},
    "metric_learning": {},
    "msd": {},
    "pspnet": {},
    "segnet": {},
    "unet": {},
}
# The table of DeepLab v1 by kernel size and rate of fc6.
LARGE_FOV = ((7, 4), (4, 4), (4, 8), (3, 12))
APART = {"crfrnn": apart.crfrnn, "mask_rcnn": apart.mask_rcnn}
ON_CAMVID = "360x480, 11 classes"
# What segmentation_models_pytorch calls the same, on the same backbone where it has one; it builds them in its own way.
SMP = {
    "deeplabv3": ("DeepLabV3", "resnet101"),
    "deeplabv3_resnet50": ("DeepLabV3", "resnet50"),
    "deeplabv3_resnet101": ("DeepLabV3", "resnet101"),
    "deeplabv3plus": ("DeepLabV3Plus", "resnet101"),
    "deeplabv3plus_resnet50": ("DeepLabV3Plus", "resnet50"),
    "deeplabv3plus_resnet101": ("DeepLabV3Plus", "resnet101"),
    "pspnet": ("PSPNet", "resnet50"),
    "unet": ("Unet", "vgg16"),
}
QUICK = {
    "deeplabv3_resnet50 optimised": ("fp32 nhwc forward",),
    "deeplabv3_mobilenet_v3_large optimised": ("fp32 nhwc forward",),
    "enet": ("fp32 nchw forward",),
    "enet optimised": ("fp32 nchw forward",),
}


def rows() -> Iterator[Row]:
    """One image each. Against torchvision's network, or against ours on PyTorch's kernels where it has none."""
    for name, height, width, known, reason in CASES:
        make = partial(
            module,
            partial(_ours, name),
            partial(_stock, name) if known else None,
            partial(torch.randn, 1, 3, height, width),
            output=_to_labels,
        )
        size = f"{height}x{width}"
        yield from expand("networks", f"{name}, {size}", reason, make(), WAYS, QUICK.get(name, ()))
        fast = f"{name} optimised"
        prepare = make(made_ready=partial(ao.optimize, freeze=True), in_file=_Labelled, outputs=("scores", "labels"))
        yield from expand("networks", f"{fast}, {size}", f"optimize: {reason}", prepare, WAYS, QUICK.get(fast, ()))
    for name, arguments in PAGES.items():
        arguments = {"num_classes": 11, **arguments}
        prepare = module(
            partial(models.build, name, **arguments),
            partial(_stock, name, 11) if callable(getattr(segmentation, name, None)) else None,
            partial(torch.randn, 1, 3, 360, 480),
            output=_to_labels,
            **_smp(name),
        )
        yield from _page_row(name, prepare)
    for kernel, rate in LARGE_FOV:
        make_network = partial(models.build, "deeplabv1", num_classes=11, kernel_size=kernel, rate=rate)
        prepare = module(make_network, None, partial(torch.randn, 1, 3, 360, 480), output=_to_labels)
        yield from _page_row(f"deeplabv1 {kernel}x{kernel} rate {rate}", prepare)
    for name, of_size in APART.items():
        yield from _page_row(name, partial(of_size, height=360, width=480, num_classes=11))


def _page_row(name: str, prepare: Callable[[Setting], Prepared]) -> Iterator[Row]:
    return expand("networks", f"{name}, {ON_CAMVID}", "for its page", prepare, {"fp32 nhwc": ("forward",)})


def _ours(name: str) -> nn.Module:
    return models.build(name, num_classes=21)


def _stock(name: str, num_classes: int = 21) -> nn.Module:
    factory: Callable[..., nn.Module] = getattr(segmentation, name)
    return factory(weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=False)


def _smp(name: str) -> dict[str, Any]:
    if name not in SMP:
        return {}
    kind, encoder = SMP[name]
    label = f"smp {kind} {encoder}"
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        return {"missing": {label: "pip install segmentation-models-pytorch"}}
    return {"beside": {label: partial(_Smp, kind, encoder)}}


class _Smp(nn.Module):
    """A network of segmentation_models_pytorch, whose images have sides that 32 divides."""

    def __init__(self, kind: str, encoder: str) -> None:
        super().__init__()
        smp = importlib.import_module("segmentation_models_pytorch")
        self.network = getattr(smp, kind)(encoder_name=encoder, encoder_weights=None, classes=11)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h, w = x.shape[-2:]
        scores = self.network(F.pad(x, (0, -w % 32, 0, -h % 32)))
        return {"out": scores[..., :h, :w]}


class _Labelled(nn.Module):
    """What `_to_labels` computes, as the outputs of a file."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.network(image)["out"]
        return scores, scores.argmax(1)


def _to_labels(outputs: dict[str, Any]) -> Tensor:
    # Labels are what users want; scores are what can be held to a tolerance.
    scores = outputs["out"]
    scores.max(1)  # with indices; PyTorch's argmax takes up to three times as long on a CPU
    return scores
