"""Known blocks of PyTorch, torchvision and this package, and their variants in `optimize`."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from atrousops.nn.aspp import run_aspp
from atrousops.nn.sequence import Variant, run_layers
from atrousops.ops import resize_bilinear


class _BasicBlock(Variant):
    def forward(self: Any, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return super().forward(x)  # type: ignore[misc]
        identity = x if self.downsample is None else self.downsample(x)
        return run_layers([self.conv1, self.bn1, self.relu, self.conv2, self.bn2], x, identity, self.relu)


class _Bottleneck(Variant):
    def forward(self: Any, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return super().forward(x)  # type: ignore[misc]
        identity = x if self.downsample is None else self.downsample(x)
        layers = [self.conv1, self.bn1, self.relu, self.conv2, self.bn2, self.relu, self.conv3, self.bn3]
        return run_layers(layers, x, identity, self.relu)


class _InvertedV2(Variant):
    def forward(self: Any, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return super().forward(x)  # type: ignore[misc]
        return run_layers([self.conv], x, x if self.use_res_connect else None)


class _InvertedV3(Variant):
    def forward(self: Any, input: Any) -> Any:
        if not isinstance(input, Tensor):
            return super().forward(input)  # type: ignore[misc]
        return run_layers([self.block], input, input if self.use_res_connect else None)


class _Getter(Variant):
    def forward(self: Any, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return super().forward(x)  # type: ignore[misc]
        out, waiting = OrderedDict(), []
        for name, layer in self.items():
            waiting.append(layer)
            if name in self.return_layers:
                out[self.return_layers[name]] = x = run_layers(waiting, x)
                waiting = []
        return out


class _ASPP(Variant):
    def forward(self: Any, x: Any) -> Any:
        joined = run_aspp(self, x)
        return super().forward(x) if joined is None else joined  # type: ignore[misc]


class _Resizing(Variant):
    """Base of variants that resize bilinearly."""

    gain = "resized by our kernel on the CPU"


class _Segmentation(_Resizing):
    def forward(self: Any, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return super().forward(x)  # type: ignore[misc]
        features, out = self.backbone(x), OrderedDict()
        out["out"] = resize_bilinear(self.classifier(features["out"]), x.shape[-2:], align_corners=False)
        if self.aux_classifier is not None:
            out["aux"] = resize_bilinear(self.aux_classifier(features["aux"]), x.shape[-2:], align_corners=False)
        return out


class _LRASPP(_Resizing):
    def forward(self: Any, input: Any) -> Any:
        if not isinstance(input, Tensor):
            return super().forward(input)  # type: ignore[misc]
        scores = self.classifier(self.backbone(input))
        return OrderedDict(out=resize_bilinear(scores, input.shape[-2:], align_corners=False))


class _LRASPPHead(_Resizing):
    def forward(self: Any, input: Any) -> Any:
        low, high = input["low"], input["high"]
        x = resize_bilinear(self.cbr(high) * self.scale(high), low.shape[-2:], align_corners=False)
        return self.low_classifier(low) + self.high_classifier(x)


class _Upsample(_Resizing):
    def forward(self: Any, input: Any) -> Any:
        if self.mode != "bilinear" or not isinstance(input, Tensor):
            return super().forward(input)  # type: ignore[misc]
        return resize_bilinear(input, self.size, self.scale_factor, self.align_corners, self.recompute_scale_factor)


class _MeanOfImage(Variant):
    """AdaptiveAvgPool2d to one pixel, for which PyTorch copies 16 bits into float; its pooling to any size does not."""

    gain = "16 bits are averaged without a copy in float"

    def forward(self: Any, input: Any) -> Any:
        plain = type(input) is Tensor and input.dim() == 4 and input.is_cpu and input.itemsize == 2
        if not plain or input.numel() == 0 or (torch.is_grad_enabled() and input.requires_grad):
            return super().forward(input)  # type: ignore[misc]
        return torch.ops.aten._adaptive_avg_pool2d(input, (1, 1))


# Keyed by module and name of the class that defines `forward`; a model's classes are always imported.
_VARIANTS = {
    ("torchvision.models.resnet", "BasicBlock"): _BasicBlock,
    ("torchvision.models.resnet", "Bottleneck"): _Bottleneck,
    ("torchvision.models.mobilenetv2", "InvertedResidual"): _InvertedV2,
    ("torchvision.models.mobilenetv3", "InvertedResidual"): _InvertedV3,
    ("torchvision.models._utils", "IntermediateLayerGetter"): _Getter,
    ("torchvision.models.segmentation.deeplabv3", "ASPP"): _ASPP,
    ("torchvision.models.segmentation._utils", "_SimpleSegmentationModel"): _Segmentation,
    ("torchvision.models.segmentation.lraspp", "LRASPP"): _LRASPP,
    ("torchvision.models.segmentation.lraspp", "LRASPPHead"): _LRASPPHead,
    ("torch.nn.modules.pooling", "AdaptiveAvgPool2d"): _MeanOfImage,
    ("torch.nn.modules.upsampling", "Upsample"): _Upsample,
}
# Subclasses without a `forward` of their own.
_HEIRS = {
    ("torchvision.models.segmentation.deeplabv3", "DeepLabV3"),
    ("torchvision.models.segmentation.fcn", "FCN"),
    ("torch.nn.modules.upsampling", "UpsamplingBilinear2d"),
}
# Containers that run their children in order in a `forward` of their own: the attribute that names those children
# whose outputs other layers get too.
_ORDERED = {
    ("torchvision.models._utils", "IntermediateLayerGetter"): "return_layers",
    ("torchvision.models.segmentation.deeplabv3", "ASPPPooling"): "",
    ("atrousops.nn.aspp", "_ImagePooling"): "",
    ("atrousops.models.backbones", "Backbone"): "outputs",
    ("atrousops.models.deconvnet", "_FullyConnected"): "",
    ("atrousops.models.deeplab", "DeepLabV3Head"): "",
    ("atrousops.models.deeplab", "FCNHead"): "",
    ("atrousops.models.pspnet", "PSPHead"): "",
}


def variant_of(layer: nn.Module) -> type | None:
    """What can be mixed into the class of a block, if it is one of those known here."""
    kind = type(layer)
    if _place(kind) in _HEIRS:
        kind = kind.__bases__[0]
    known = _VARIANTS.get(_key(kind))
    if known is _MeanOfImage:
        return known if layer.output_size in (1, (1, 1), [1, 1]) else None
    return None if known is _Upsample and layer.mode != "bilinear" else known


def gain_of(known: type) -> str:
    """The gain of this variant, for the report."""
    return getattr(known, "gain", "what follows a convolution is done in its call")


def outputs_of(layer: nn.Module) -> set[str] | None:
    """Of a container that runs its children in order, those whose outputs it also returns; None for other modules."""
    attribute = _ORDERED.get(_key(type(layer)))
    return None if attribute is None else set(getattr(layer, attribute)) if attribute else set()


def _key(kind: Any) -> tuple[str, str]:
    """Where a class and its `forward` stand, if it is the very class of that place and neither was replaced."""
    key = _place(kind)
    code = getattr(kind.__dict__.get("forward"), "__code__", None)
    named = getattr(code, "co_filename", None) == getattr(sys.modules.get(key[0]), "__file__", "")
    return key if named else ("", "")


def _place(kind: type) -> tuple[str, str]:
    """Where a class stands, if it is the very class of that place."""
    key = (kind.__module__, kind.__qualname__)
    return key if getattr(sys.modules.get(key[0]), key[1], None) is kind else ("", "")
