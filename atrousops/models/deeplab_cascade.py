"""DeepLab v3 with atrous blocks in cascade."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from atrousops.common.checks import bad_value
from atrousops.models.backbones import RESNETS, load_backbone, resnet, set_rates
from atrousops.models.base import Features, SegmentationModel
from atrousops.models.deeplab import FCNHead
from atrousops.nn import AtrousConv2d
from atrousops.surgery.convert import convert


class CascadeHead(nn.Sequential):
    """Copies of the last block of a ResNet, each at twice the rate of the one before, then scores.

    Features "out" (N, C, h, w) -> (N, num_classes, h, w).
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        blocks: int,
        output_stride: int,
        multi_grid: tuple[int, ...],
        block: type[BasicBlock | Bottleneck] = Bottleneck,
    ) -> None:
        super().__init__()
        for number in range(5, blocks + 1):
            # Input and output have the same shape, so shortcuts need no convolution.
            stage = nn.Sequential(*(block(channels, channels // block.expansion) for _ in multi_grid))
            set_rates(stage, 32 // output_stride * 2 ** (number - 4), multi_grid)
            self.add_module(f"block{number}", stage)
        self.scores = AtrousConv2d(channels, num_classes, 1)
        convert(self)

    def forward(self, features: Features) -> Tensor:
        return super().forward(features["out"])


def deeplabv3_cascade(
    num_classes: int = 21,
    backbone: str = "resnet101",
    output_stride: int = 16,
    blocks: int = 7,
    multi_grid: tuple[int, ...] | None = None,
    aux: bool = False,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
) -> SegmentationModel:
    """DeepLab v3 with atrous blocks in cascade instead of ASPP: blocks 5 to 7 are copies of a ResNet's block 4.

    | part | channels | stride at output_stride 16 (8) | rates of its three blocks |
    |---|---|---|---|
    | conv1 to layer3 | 64 to 1024 | 16 (8, rate 2) | |
    | layer4 ("block4") | 2048 | 16 (8) | 2 (4) x multi_grid |
    | block5, block6, block7 | 2048 | 16 (8) | 4, 8, 16 (8, 16, 32) x multi_grid |
    | 1x1, bilinear to the input's size | num_classes | 1 | |

    Release: none is known; the network follows the paper's tables.

    Args:
        num_classes: K.
        backbone: "resnet18" to "resnet152"; 18 and 34 have a quarter of the channels.
        output_stride: 8 or 16.
        blocks: number of the last block, 4 to 7.
        multi_grid: factors of the rates within each block; by default (1, 2, 1), the best in the paper, or (1, 2) for
            the two blocks of ResNet-18.
        aux: an auxiliary classifier on layer3, whose scores are "aux".
        backbone_weights: state dict of torchvision's classifier to start from; blocks 5 to 7 are initialised randomly.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}, and "aux".

    Raises:
        ArgumentError: backbone, output_stride, blocks or multi_grid is out of range, or a weight is missing.

    Source: Chen et al., Rethinking atrous convolution (2017), sections 3.2, 4.1, tables 2 to 4.
    """
    if backbone not in RESNETS:
        bad_value("deeplabv3_cascade", "backbone", f"be one of {', '.join(RESNETS)}", repr(backbone))
    if output_stride not in (8, 16):
        bad_value("deeplabv3_cascade", "output_stride", "be 8 or 16", output_stride)
    if not 4 <= blocks <= 7:
        bad_value("deeplabv3_cascade", "blocks", "be 4 to 7", blocks)
    if multi_grid is None:
        multi_grid = (1, 2) if backbone == "resnet18" else (1, 2, 1)
    trunk = resnet(int(backbone.removeprefix("resnet")), output_stride, multi_grid, in_channels)
    load_backbone(trunk, backbone_weights)
    block = BasicBlock if backbone in ("resnet18", "resnet34") else Bottleneck
    head = CascadeHead(trunk.channels["out"], num_classes, blocks, output_stride, multi_grid, block)
    return SegmentationModel(trunk, head, FCNHead(trunk.channels["aux"], num_classes) if aux else None)
