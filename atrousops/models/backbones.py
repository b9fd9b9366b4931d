"""torchvision's classifiers as encoders: their names, their weights, our layers, and the output stride one asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torchvision
from torch import Tensor, nn

from atrousops._checks import bad_value
from atrousops.convert import convert


class Backbone(nn.ModuleDict):
    """Children of a classifier in order, of which some outputs are kept.

    Args:
        children: name -> module, as in the classifier, so that its weights load by key.
        outputs: name of the child -> name of the feature.
        channels: name of the feature -> channels.
    """

    def __init__(self, children: Mapping[str, nn.Module], outputs: Mapping[str, str], channels: Mapping[str, int]):
        super().__init__(children)
        self.outputs = dict(outputs)
        self.channels = dict(channels)
        convert(self)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        features = {}
        for name, module in self.items():
            input = module(input)
            if name in self.outputs:
                features[self.outputs[name]] = input
        return features


def load_backbone(backbone: Backbone, weights: Mapping[str, Tensor] | None) -> None:
    """Loads a torchvision classifier's state dict into a backbone; the classifier's own layers are left out.

    Raises:
        ArgumentError: a weight of the backbone is missing.
    """
    if weights is None:
        return
    # MobileNet keeps its trunk in `features.`, ResNet at the top.
    trunk = {name.removeprefix("features."): value for name, value in weights.items()}
    wanted = backbone.state_dict()
    missing = [name for name in wanted if name not in trunk]
    if missing:
        bad_value("load_backbone", "weights", "hold every weight of the backbone", f"none for {missing[0]}")
    backbone.load_state_dict({name: trunk[name] for name in wanted})


def resnet(depth: int, output_stride: int) -> Backbone:
    """ResNet-50 or -101 with atrous last stages.

    | feature | child | channels | stride at output_stride 16 | at 8 |
    |---|---|---|---|---|
    | low | layer1 | 256 | 4 | 4 |
    |  | layer2 | 512 | 8 | 8 |
    | aux | layer3 | 1024 | 16 | 8, rate 2 |
    | out | layer4 | 2048 | 16, rate 2 | 8, rate 4 |
    """
    _check_stride("resnet", output_stride, (8, 16))
    build: Callable[..., nn.Module] = getattr(torchvision.models, f"resnet{depth}")
    network = build(weights=None, replace_stride_with_dilation=[False, output_stride == 8, True])
    children = {name: child for name, child in network.named_children() if name not in ("avgpool", "fc")}
    return Backbone(
        children,
        {"layer1": "low", "layer3": "aux", "layer4": "out"},
        {"low": 256, "aux": 1024, "out": 2048},
    )


def mobilenet_v3_large(output_stride: int) -> Backbone:
    """MobileNetV3-Large with an atrous last stage.

    | feature | child | channels | stride at output_stride 16 | at 8 |
    |---|---|---|---|---|
    | low | 3 | 24 | 4 | 4 |
    | aux | 4 | 40 | 8 | 8 |
    |  | 7-12 | 80-112 | 16 | 8, rate 2 |
    | out | 16 | 960 | 16, rate 2 | 8, rate 4 |
    """
    _check_stride("mobilenet_v3_large", output_stride, (8, 16))
    features = torchvision.models.mobilenet_v3_large(weights=None, dilated=True).features
    children = {str(index): block for index, block in enumerate(features)}
    if output_stride == 8:
        for index in range(7, len(children)):
            _make_atrous(children[str(index)])
    return Backbone(children, {"3": "low", "4": "aux", "16": "out"}, {"low": 24, "aux": 40, "out": 960})


def _make_atrous(block: nn.Module) -> None:
    """Takes the stride of 2 away, or, behind the layer that lost it, doubles the dilation."""
    for conv in block.modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        if conv.stride == (2, 2):
            conv.stride = (1, 1)
        elif conv.kernel_size != (1, 1):
            conv.dilation = (2 * conv.dilation[0], 2 * conv.dilation[1])
            conv.padding = (2 * int(conv.padding[0]), 2 * int(conv.padding[1]))


def _check_stride(name: str, output_stride: int, allowed: tuple[int, ...]) -> None:
    if output_stride not in allowed:
        bad_value(name, "output_stride", f"be one of {', '.join(map(str, allowed))}", output_stride)
