"""Blocks of torchvision and of this package whose code is known: what `optimize` makes of them."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from atrousops.nn.aspp import run_aspp
from atrousops.nn.sequence import Variant, run_layers


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


# By name: a model cannot hold a class whose module is not imported.
_VARIANTS = {
    ("torchvision.models.resnet", "BasicBlock"): _BasicBlock,
    ("torchvision.models.resnet", "Bottleneck"): _Bottleneck,
    ("torchvision.models.mobilenetv2", "InvertedResidual"): _InvertedV2,
    ("torchvision.models.mobilenetv3", "InvertedResidual"): _InvertedV3,
    ("torchvision.models._utils", "IntermediateLayerGetter"): _Getter,
    ("torchvision.models.segmentation.deeplabv3", "ASPP"): _ASPP,
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
    return _VARIANTS.get(_key(layer))


def outputs_of(layer: nn.Module) -> set[str] | None:
    """Of a container that runs its children in order, those whose outputs it also returns; None for other modules."""
    attribute = _ORDERED.get(_key(layer))
    return None if attribute is None else set(getattr(layer, attribute)) if attribute else set()


def _key(layer: nn.Module) -> tuple[str, str]:
    """Where a class and its `forward` stand, if it is the very class of that place and neither was replaced."""
    kind: Any = type(layer)
    key = (kind.__module__, kind.__qualname__)
    own = getattr(sys.modules.get(key[0]), key[1], None) is kind
    code = getattr(kind.__dict__.get("forward"), "__code__", None)
    named = getattr(code, "co_filename", None) == getattr(sys.modules.get(key[0]), "__file__", "")
    return key if own and named else ("", "")
