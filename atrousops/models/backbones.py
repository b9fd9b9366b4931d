"""torchvision's classifiers as encoders: their names, their weights, our layers, and the output stride one asks for."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor, nn

from atrousops._checks import bad_value
from atrousops.convert import convert
from atrousops.nn.sequence import run_layers


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
        features, waiting = {}, list[nn.Module]()
        for name, module in self.items():
            waiting.append(module)
            if name in self.outputs:
                features[self.outputs[name]] = input = run_layers(waiting, input)
                waiting = []
        return features


def load_backbone(backbone: nn.Module, weights: Mapping[str, Tensor] | None) -> None:
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


def encoder(name: str, output_stride: int = 32, weights: Mapping[str, Tensor] | None = None) -> Backbone | TimmBackbone:
    """A classifier of torchvision or timm by name, without its classifier, at the output stride one asks for.

    | feature | stride at output_stride 32 | 16 | 8 |
    |---|---|---|---|
    | low | 4 | 4 | 4 |
    | mid | 8 | 8 | 8 |
    | aux | 16 | 16 | 8, rate 2 |
    | out | 32 | 16, rate 2 | 8, rate 4 |

    Each stage that loses its stride doubles the rate of every layer behind, so that weights mean what they meant.

    Args:
        name: of torchvision, such as "resnet50", "resnext101_32x8d", "mobilenet_v2" or "efficientnet_b0"; or of timm,
            where that is installed, any network that it makes with features_only=True.
        output_stride: 8, 16 or 32.
        weights: state dict of torchvision's classifier to start from, or of timm's feature extractor.

    Returns:
        (N, 3, H, W) -> the features above; `.channels` has the channels of each.

    Raises:
        ArgumentError: no such network, it cannot be had at this output stride, or a weight is missing.
    """
    _check_stride("encoder", output_stride, (8, 16, 32))
    known = name in torchvision.models.list_models(module=torchvision.models)
    backbone = _torchvision_encoder(name, output_stride) if known else TimmBackbone(name, output_stride)
    load_backbone(backbone, weights)
    return backbone


RESNETS = tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))
_LEVELS: dict[float, str] = {4: "low", 8: "mid", 16: "aux", 32: "out"}


def _torchvision_encoder(name: str, output_stride: int) -> Backbone:
    network = torchvision.models.get_model(name, weights=None)
    features = getattr(network, "features", None)
    if features is None:
        tail = ("avgpool", "fc")
        children = {key: child for key, child in network.named_children() if key not in tail}
    else:
        children = dict(features.named_children())
    before = _probe(name, children)
    for level in (16, 32):
        for child, (_, stride) in zip(children.values(), before, strict=True):
            if stride >= level > output_stride:
                _make_atrous(child)
    after = _probe(name, children)
    outputs: dict[str, str] = {}
    channels: dict[str, int] = {}
    for key, (width, _), (_, stride) in zip(children, after, before, strict=True):
        if stride in _LEVELS:
            # The last child of a stage has the last word.
            outputs = {k: level for k, level in outputs.items() if level != _LEVELS[stride]} | {key: _LEVELS[stride]}
            channels[_LEVELS[stride]] = width
    if after[-1][1] != output_stride or len(channels) != len(_LEVELS):
        bad_value("encoder", "name", f"be a network with stages at strides 4 to 32 that can have {output_stride}", name)
    return Backbone(children, outputs, channels)


@torch.no_grad()
def _probe(name: str, children: Mapping[str, nn.Module]) -> list[tuple[int, float]]:
    """Channels and stride behind each child, found on tensors without contents."""
    side = 256
    x = torch.empty(1, 3, side, side, device="meta")
    found = []
    for child in children.values():
        try:
            x = copy.deepcopy(child).to("meta").eval()(x)
        except (RuntimeError, TypeError, AssertionError) as error:
            bad_value("encoder", "name", "be a network whose children run one after the other", f"{name}: {error}")
        found.append((x.shape[1], side / x.shape[-1]))
    return found


class TimmBackbone(nn.Module):
    """timm's feature extractor of that name, on our layers, with the features of `encoder`."""

    def __init__(self, name: str, output_stride: int) -> None:
        super().__init__()
        try:
            timm = importlib.import_module("timm")
        except ImportError:
            bad_value("encoder", "name", "be a network of torchvision, as timm is not installed", repr(name))
        try:
            self.network = timm.create_model(name, features_only=True, output_stride=output_stride, pretrained=False)
        except (RuntimeError, TypeError, NotImplementedError, AttributeError, AssertionError) as error:
            bad_value("encoder", "name", f"be a network that timm makes at output stride {output_stride}", error)
        convert(self.network)
        # A network without a stage at stride 2, such as ConvNeXt, has four of them.
        self.channels = dict(zip(_LEVELS.values(), self.network.feature_info.channels()[-4:], strict=True))

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.channels, self.network(input)[-4:], strict=True))


def resnet(depth: int, output_stride: int, multi_grid: tuple[int, ...] | None = None) -> Backbone:
    """ResNet-18, -34, -50, -101 or -152 with atrous last stages.

    | feature | child | channels (18, 34) | stride at output_stride 32 | 16 | 8 |
    |---|---|---|---|---|---|
    | low | layer1 | 256 (64) | 4 | 4 | 4 |
    | mid | layer2 | 512 (128) | 8 | 8 | 8 |
    | aux | layer3 | 1024 (256) | 16 | 16 | 8, rate 2 |
    | out | layer4 | 2048 (512) | 32 | 16, rate 2 | 8, rate 4 |

    Args:
        multi_grid: factors of the rate of layer4's blocks in turn, such as (1, 2, 4). Without, the first block of an
            atrous stage keeps the rate before it, as in torchvision.
    """
    _check_stride("resnet", output_stride, (8, 16, 32))
    backbone = _torchvision_encoder(f"resnet{depth}", output_stride)
    if multi_grid is not None:
        set_rates(backbone["layer4"], 32 // output_stride, multi_grid)
    return backbone


def set_rates(stage: nn.Module, rate: int, multi_grid: tuple[int, ...]) -> None:
    """Gives the 3x3 convolutions of a stage's i-th block the dilation rate * multi_grid[i].

    Raises:
        ArgumentError: multi_grid does not have a factor of at least 1 for each block.
    """
    blocks = list(stage.children())
    if len(multi_grid) != len(blocks) or min(multi_grid) < 1:
        bad_value("resnet", "multi_grid", f"have {len(blocks)} factors of at least 1", multi_grid, "Such as (1, 2, 4).")
    for block, factor in zip(blocks, multi_grid, strict=True):
        for conv in block.modules():
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (rate * factor, rate * factor)


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
