"""PSPNet: averages of the map over regions of four sizes beside the map itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from atrousops._checks import bad_value
from atrousops.models.backbones import encoder
from atrousops.models.base import Features, SegmentationModel, resize
from atrousops.models.deeplab import FCNHead
from atrousops.nn import AtrousConv2d, conv_norm_relu
from atrousops.nn.sequence import run_layers


class PyramidPooling(nn.Module):
    """y = concat(x, up(f_1(average of x over 1x1 bins)), ..., up(f_n(average over s_n x s_n bins))).

    f is a 1x1 convolution to C / n channels with normalisation and ReLU, up is bilinear.
    (N, C, H, W) -> (N, 2 C, H, W).

    Args:
        channels: C, a multiple of the number of sizes.
        sizes: bins on each axis.

    Raises:
        ArgumentError: a size below 1, or C is no such multiple.

    Source: Zhao et al. (2017), section 3.2, figure 3.
    """

    def __init__(self, channels: int, sizes: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        if not sizes or min(sizes) < 1:
            bad_value("PyramidPooling", "sizes", "be integers of at least 1", sizes, "For example (1, 2, 3, 6).")
        if channels % len(sizes):
            bad_value("PyramidPooling", "channels", f"be a multiple of {len(sizes)}, the number of sizes", channels)
        width = channels // len(sizes)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), *conv_norm_relu(channels, width)) for size in sizes
        )

    def forward(self, input: Tensor) -> Tensor:
        size = input.shape[-2:]
        return torch.cat([input, *(resize(branch(input), size) for branch in self.branches)], dim=1)


class PSPHead(nn.Sequential):
    """Pyramid pooling, a 3x3 convolution, scores: features "out" (N, C, h, w) -> (N, num_classes, h, w)."""

    def __init__(self, channels: int, num_classes: int, sizes: Sequence[int]) -> None:
        super().__init__(
            PyramidPooling(channels, sizes),
            *conv_norm_relu(2 * channels, channels // 4, 3),
            nn.Dropout(0.1),
            AtrousConv2d(channels // 4, num_classes, 1),
        )

    def forward(self, features: Features) -> Tensor:
        return run_layers(self.children(), features["out"])


def pspnet(
    num_classes: int = 21,
    backbone: str = "resnet50",
    output_stride: int = 8,
    sizes: Sequence[int] = (1, 2, 3, 6),
    aux: bool = True,
    backbone_weights: Mapping[str, Tensor] | None = None,
) -> SegmentationModel:
    """PSPNet: a dilated encoder, pyramid pooling, and a second head for training.

    | part | channels (ResNet-50 and deeper) | stride |
    |---|---|---|
    | encoder, see `encoder` | 2048 | 8, rates 2 and 4 |
    | pyramid pooling to 1x1, 2x2, 3x3, 6x6, 1x1 convolutions, bilinear, beside the map | 4 x 512 + 2048 | 8 |
    | 3x3, dropout, scores 1x1 | 512 num_classes | 8 |
    | bilinear to the input's size | num_classes | 1 |
    | "aux": 3x3, dropout, 1x1 on the stage before the last | 256 num_classes | 1 |

    The encoder is torchvision's, whose first layer is one 7x7 convolution; the authors' release has three 3x3 there.

    Args:
        num_classes: K.
        backbone: a name for `encoder`.
        output_stride: 8 in the paper, 16 or 32.
        sizes: bins of the pyramid.
        aux: whether the second head is there; its loss counts 0.4 in the paper.
        backbone_weights: state dict of torchvision's classifier to start from.

    Returns:
        (N, 3, H, W) -> {"out": (N, K, H, W)}, and "aux".

    Raises:
        ArgumentError: a bad backbone, output_stride or size, or a weight is missing.

    Source: Zhao et al., Pyramid scene parsing network (2017), sections 3.2 and 3.3, figures 3 and 4.
    """
    trunk = encoder(backbone, output_stride, backbone_weights)
    head = PSPHead(trunk.channels["out"], num_classes, sizes)
    return SegmentationModel(trunk, head, FCNHead(trunk.channels["aux"], num_classes) if aux else None)
