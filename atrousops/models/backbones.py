"""torchvision's classifiers as encoders: with their names and weights, our layers, and a chosen output stride."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.models.channels import adapted, check_channels, first_layer, set_in_channels
from atrousops.models.efficientnet_lite import VERSIONS as LITE
from atrousops.models.efficientnet_lite import EfficientNetLite
from atrousops.nn.sequence import run_layers
from atrousops.surgery.convert import convert


class Backbone(nn.ModuleDict):
    """Children of a classifier in order; some of their outputs are returned as features.

    Args:
        children: name -> module, as in the classifier, so that its weights load by key.
        outputs: name of the child -> name of the feature.
        channels: name of the feature -> channels.

    Attributes:
        in_channels: channels of the image.
        least: the shortest side of an image for which the pooled map is not empty.
    """

    least = 1

    def __init__(self, children: Mapping[str, nn.Module], outputs: Mapping[str, str], channels: Mapping[str, int]):
        super().__init__(children)
        self.outputs = dict(outputs)
        self.channels = dict(channels)
        self.in_channels = first_layer(self).in_channels
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
    """Loads a torchvision classifier's state dict into a backbone, without the layers of the classifier.

    If the backbone does not read RGB, the filters of its first layer are adapted, see `channels.adapt`.

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
    trunk = adapted(trunk, wanted)
    backbone.load_state_dict({name: trunk[name] for name in wanted})


class ResNetForm(NamedTuple):
    """Differences between releases of ResNets; the defaults are torchvision's.

    multi_grid: factors of the rates of a stage's blocks, such as (1, 2, 4) for layer4, or for several stages by name.
    full_rate: the first block of an atrous stage has the stage's rate, not that of the previous stage (Caffe's DeepLab
        v2, PSPNet, detectron2); this always holds for stages with a multi-grid.
    stride_in_1x1: a stage's stride is in the first 1x1 convolution of its first block instead of the 3x3 (He et al.'s
        own weights, DeepLab v2).
    ceil_pool: the stem's pooling rounds its size up, as Caffe does (DeepLab v2): 320 pixels give 81 instead of 80.
    deep_stem: widths of three 3x3 convolutions instead of one 7x7: (64, 64, 128) in PSPNet and DeepLab's ResNet-v1
        "beta", (32, 32, 64) in ResNet-v1c. Keys are conv1, bn1, conv2, bn2, conv3, bn3.
    """

    multi_grid: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    full_rate: bool = False
    stride_in_1x1: bool = False
    ceil_pool: bool = False
    deep_stem: Sequence[int] | None = None


def encoder(
    name: str,
    output_stride: int = 32,
    weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
    **form: Any,
) -> Encoder:
    """The encoder of a classifier of torchvision or timm, at a chosen output stride.

    | feature | stride at output_stride 32 | 16 | 8 |
    |---|---|---|---|
    | low | 4 | 4 | 4 |
    | mid | 8 | 8 | 8 |
    | aux | 16 | 16 | 8, rate 2 |
    | out | 32 | 16, rate 2 | 8, rate 4 |

    A stage without its stride doubles the rate of every later layer, so that pretrained weights stay valid.

    Args:
        name: of torchvision, such as "resnet50", "resnext101_32x8d", "mobilenet_v2" or "efficientnet_b0"; or any
            network of timm, if installed, that supports features_only=True; or "efficientnet_lite0" to "4", see
            `EfficientNetLite`.
        output_stride: 8, 16 or 32.
        weights: state dict of torchvision's classifier to start from, or of timm's feature extractor, for RGB. With
            other in_channels its first filters are adapted, see `channels.adapt`.
        in_channels: C, channels of the image; 1 for grey.
        form: for a ResNet of torchvision, the fields of `ResNetForm`.

    Returns:
        (N, C, H, W) -> the features above; `.channels` has the channels of each.

    Raises:
        ArgumentError: no such network, it does not support this output stride or form, in_channels is below 1, or a
            weight is missing.
    """
    _check_stride("encoder", output_stride, (8, 16, 32))
    check_channels("encoder", in_channels)
    known = name in torchvision.models.list_models(module=torchvision.models)
    if not known and form:
        bad_value("encoder", "name", f"be a ResNet of torchvision to have {', '.join(form)}", name)
    backbone: Encoder
    if name in LITE:
        backbone = EfficientNetLite(name, output_stride, in_channels)
    elif known:
        backbone = _torchvision_encoder(name, output_stride, ResNetForm(**form), in_channels)
    else:
        backbone = TimmBackbone(name, output_stride, in_channels)
    load_backbone(backbone, weights)
    return backbone


RESNETS = tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))
_LEVELS: dict[float, str] = {4: "low", 8: "mid", 16: "aux", 32: "out"}


def _torchvision_encoder(name: str, output_stride: int, form: ResNetForm, in_channels: int) -> Backbone:
    network = torchvision.models.get_model(name, weights=None)
    resnet = isinstance(network, torchvision.models.ResNet)
    if form != ResNetForm() and not resnet:
        changed = [key for key, value in form._asdict().items() if value != ResNetForm._field_defaults[key]]
        bad_value("encoder", "name", f"be a ResNet to have {', '.join(changed)}", name)
    features = getattr(network, "features", None)
    if features is None:
        tail = ("avgpool", "fc")
        children = {key: child for key, child in network.named_children() if key not in tail}
        if form.deep_stem is not None:
            stem = _deep_stem(network, form.deep_stem)
            children = stem | {key: child for key, child in children.items() if key not in stem}
    else:
        children = dict(features.named_children())
    set_in_channels(nn.ModuleList(children.values()), in_channels)
    before = _probe(name, children)
    for level in (16, 32):
        for child, (_, stride) in zip(children.values(), before, strict=True):
            if stride >= level > output_stride:
                _make_atrous(child)
    if resnet:
        _reshape(children, output_stride, form)
    after = _probe(name, children)
    outputs: dict[str, str] = {}
    channels: dict[str, int] = {}
    for key, (width, _), (_, stride) in zip(children, after, before, strict=True):
        if stride in _LEVELS:
            # A feature is the output of the last child of its stage.
            outputs = {k: level for k, level in outputs.items() if level != _LEVELS[stride]} | {key: _LEVELS[stride]}
            channels[_LEVELS[stride]] = width
    if after[-1][1] != output_stride or len(channels) != len(_LEVELS):
        bad_value("encoder", "name", f"be a network with stages at strides 4 to 32 that can have {output_stride}", name)
    if form.ceil_pool:
        children["maxpool"].ceil_mode = True  # type: ignore[assignment]
    return Backbone(children, outputs, channels)


def _deep_stem(network: torchvision.models.ResNet, widths: Sequence[int]) -> dict[str, nn.Module]:
    """Three 3x3 convolutions, the first with the stride, and a first stage with matching input channels."""
    if len(widths) != 3 or min(widths) < 1:
        bad_value("encoder", "deep_stem", "be three widths of at least 1", widths, "Such as (64, 64, 128).")
    stem: dict[str, nn.Module] = {}
    channels = 3
    for number, width in enumerate(widths, start=1):
        stride = 2 if number == 1 else 1
        stem[f"conv{number}"] = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        stem[f"bn{number}"] = nn.BatchNorm2d(width)
        stem["relu" if number == 1 else f"relu{number}"] = nn.ReLU()
        channels = width
    network.inplanes = channels
    first = network.layer1[0]
    network.layer1 = network._make_layer(type(first), 64, len(network.layer1))
    for layer in (*stem.values(), *network.layer1.modules()):
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    network.conv1, network.bn1 = stem["conv1"], stem["bn1"]
    stem["maxpool"], stem["layer1"] = network.maxpool, network.layer1
    return stem


def _reshape(children: Mapping[str, nn.Module], output_stride: int, form: ResNetForm) -> None:
    """Applies the form to a ResNet that already has the output stride."""
    grids = form.multi_grid or {}
    if not isinstance(grids, Mapping):
        grids = {"layer4": grids}
    if unknown := [stage for stage in grids if stage not in children or not stage.startswith("layer")]:
        bad_value("resnet", "multi_grid", "be of stages layer1 to layer4", unknown)
    for number, stage in enumerate(("layer1", "layer2", "layer3", "layer4")):
        rate = max(1, 2 ** (number + 2) // output_stride)
        if stage in grids:
            set_rates(children[stage], rate, tuple(grids[stage]))
        elif form.full_rate and rate > 1:
            set_rates(children[stage], rate, (1,) * len(list(children[stage].children())))
        if form.stride_in_1x1:
            _stride_in_1x1(children[stage])


def _stride_in_1x1(stage: nn.Module) -> None:
    for block in stage.children():
        if not isinstance(block, torchvision.models.resnet.Bottleneck):
            bad_value("encoder", "stride_in_1x1", "be false for blocks without 1x1 convolutions", True)
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


@torch.no_grad()
def _probe(name: str, children: Mapping[str, nn.Module]) -> list[tuple[int, float]]:
    """Channels and stride after each child, found by running it on meta tensors."""
    side = 256
    x = torch.empty(1, first_layer(nn.ModuleList(children.values())).in_channels, side, side, device="meta")
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

    def __init__(self, name: str, output_stride: int, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        try:
            timm = importlib.import_module("timm")
        except ImportError:
            bad_value("encoder", "name", "be a network of torchvision, as timm is not installed", repr(name))
        try:
            self.network = timm.create_model(
                name, features_only=True, output_stride=output_stride, pretrained=False, in_chans=in_channels
            )
        except (RuntimeError, TypeError, NotImplementedError, AttributeError, AssertionError) as error:
            bad_value("encoder", "name", f"be a network that timm makes at output stride {output_stride}", error)
        convert(self.network)
        # A network without a stage at stride 2, such as ConvNeXt, has four of them.
        self.channels = dict(zip(_LEVELS.values(), self.network.feature_info.channels()[-4:], strict=True))

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.channels, self.network(input)[-4:], strict=True))


# Any features of `encoder`.
Encoder = Backbone | EfficientNetLite | TimmBackbone


def resnet(
    depth: int, output_stride: int, multi_grid: Sequence[int] | None = None, in_channels: int = 3, **form: Any
) -> Backbone:
    """ResNet-18, -34, -50, -101 or -152 with atrous last stages.

    | feature | child | channels (18, 34) | stride at output_stride 32 | 16 | 8 |
    |---|---|---|---|---|---|
    | low | layer1 | 256 (64) | 4 | 4 | 4 |
    | mid | layer2 | 512 (128) | 8 | 8 | 8 |
    | aux | layer3 | 1024 (256) | 16 | 16 | 8, rate 2 |
    | out | layer4 | 2048 (512) | 32 | 16, rate 2 | 8, rate 4 |

    Args:
        multi_grid: factors of the rates of layer4's blocks, such as (1, 2, 4). Without it, the first block of an atrous
            stage keeps the rate of the previous stage, as in torchvision.
        in_channels: channels of the image.
        form: other fields of `ResNetForm`.
    """
    _check_stride("resnet", output_stride, (8, 16, 32))
    return _torchvision_encoder(f"resnet{depth}", output_stride, ResNetForm(multi_grid, **form), in_channels)


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


def mobilenet_v3_large(output_stride: int, in_channels: int = 3) -> Backbone:
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
    set_in_channels(features, in_channels)
    children = {str(index): block for index, block in enumerate(features)}
    if output_stride == 8:
        for index in range(7, len(children)):
            _make_atrous(children[str(index)])
    return Backbone(children, {"3": "low", "4": "aux", "16": "out"}, {"low": 24, "aux": 40, "out": 960})


def _make_atrous(block: nn.Module) -> None:
    """Removes the stride of 2, or doubles the dilation of later layers."""
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
