"""PSPNet: the map, concatenated with its averages over regions of four sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.models.backbones import encoder
from atrousops.models.base import Features, SegmentationModel, resize
from atrousops.models.deeplab import FCNHead
from atrousops.nn import AtrousConv2d, conv_norm_relu
from atrousops.nn.blocks import check_pooled
from atrousops.nn.sequence import run_layers


class PyramidPooling(nn.Module):
    """y = concat(x, up(f_1(average of x over 1x1 bins)), ..., up(f_n(average over s_n x s_n bins))).

    f is a 1x1 convolution to C / n channels with normalisation and ReLU, up is bilinear.
    (N, C, H, W) -> (N, 2 C, H, W).

    Args:
        channels: C, a multiple of the number of sizes.
        sizes: bins on each axis.
        align_corners: of up.

    Raises:
        ArgumentError: a size below 1, C is not such a multiple, or one image in training with a size of 1.

    Source: Zhao et al. (2017), section 3.2, figure 3.
    """

    def __init__(self, channels: int, sizes: Sequence[int] = (1, 2, 3, 6), align_corners: bool = False) -> None:
        super().__init__()
        if not sizes or min(sizes) < 1:
            bad_value("PyramidPooling", "sizes", "be integers of at least 1", sizes, "For example (1, 2, 3, 6).")
        if channels % len(sizes):
            bad_value("PyramidPooling", "channels", f"be a multiple of {len(sizes)}, the number of sizes", channels)
        self.sizes = tuple(sizes)
        width = channels // len(sizes)
        self.align_corners = align_corners
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), *conv_norm_relu(channels, width)) for size in sizes
        )

    def forward(self, input: Tensor) -> Tensor:
        size = input.shape[-2:]
        for number, branch in enumerate(self.branches):
            if self.sizes[number] == 1:
                check_pooled(f"PyramidPooling.branches.{number}", branch, input)
        averages = [resize(self._average(branch, input), size, self.align_corners) for branch in self.branches]
        return torch.cat([input, *averages], dim=1)

    @staticmethod
    def _average(branch: nn.Module, input: Tensor) -> Tensor:
        assert isinstance(branch, nn.Sequential)
        bins: Any = branch[0].output_size
        if not torch.compiler.is_exporting() or bins == 1:
            return branch(input)
        # PyTorch's own export of this layer is valid only for the traced size.
        rows, columns = (averaging(side, bins, input) for side in input.shape[-2:])
        return branch[1:](rows @ input @ columns.T)


def averaging(side: int, bins: int, like: Tensor) -> Tensor:
    """The matrix (bins, side) of adaptive average pooling along an axis; `side` may be symbolic.

    Row i is 1 / (b - a) from a = floor(i side / bins) to b = ceil((i + 1) side / bins), and 0 elsewhere.
    """
    bin = torch.arange(bins, device=like.device)[:, None]
    begin, end = bin * side // bins, -(-(bin + 1) * side // bins)
    position = torch.arange(side, device=like.device)
    return ((position >= begin) & (position < end)).to(like.dtype) / (end - begin)


class PSPHead(nn.Sequential):
    """Pyramid pooling, a 3x3 convolution, scores: features "out" (N, C, h, w) -> (N, num_classes, h, w)."""

    def __init__(self, channels: int, num_classes: int, sizes: Sequence[int], align_corners: bool) -> None:
        super().__init__(
            PyramidPooling(channels, sizes, align_corners),
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
    align_corners: bool = False,
    backbone_arguments: Mapping[str, Any] | None = None,
    in_channels: int = 3,
) -> SegmentationModel:
    """PSPNet: a dilated encoder, pyramid pooling, and a second head for training.

    | part | channels (ResNet-50 and deeper) | stride |
    |---|---|---|
    | encoder, see `encoder` | 2048 | 8, rates 2 and 4 |
    | pyramid pooling to 1x1, 2x2, 3x3, 6x6, 1x1 convolutions, bilinear, concat with the map | 4 x 512 + 2048 | 8 |
    | 3x3, dropout, scores 1x1 | 512 num_classes | 8 |
    | bilinear to the input's size | num_classes | 1 |
    | "aux": 3x3, dropout, 1x1 on the stage before the last | 256 num_classes | 1 |

    The encoder is torchvision's by default. The authors' release aligns corners, has three 3x3 convolutions in the
    stem, and uses a stage's rate in its first block too: align_corners=True with backbone_arguments {"deep_stem": (64,
    64, 128), "full_rate": True}, for images of 8 n + 1 pixels.

    Releases: hszhao's semseg, by the authors, and MMSegmentation, which does not align corners and whose stem is
    (32, 32, 64) wide; `load_published` reads the weights of both. The authors' prototxts have semseg's layers, but pool
    a map of fixed size, 60 or 90, in windows without overlap; here any size is pooled adaptively.

    Args:
        num_classes: K.
        backbone: a name for `encoder`.
        output_stride: 8 in the paper, 16 or 32.
        sizes: bins of the pyramid.
        aux: whether to have the second head; the weight of its loss is 0.4 in the paper.
        backbone_weights: state dict of torchvision's classifier to start from.
        align_corners: for every interpolation.
        backbone_arguments: further arguments of `encoder`.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}, and "aux".

    Raises:
        ArgumentError: a bad backbone, backbone_arguments, output_stride or size, or a weight is missing.

    Source: Zhao et al., Pyramid scene parsing network (2017), sections 3.2 and 3.3, figures 3 and 4.
    """
    trunk = encoder(backbone, output_stride, backbone_weights, in_channels, **(backbone_arguments or {}))
    head = PSPHead(trunk.channels["out"], num_classes, sizes, align_corners)
    second = FCNHead(trunk.channels["aux"], num_classes) if aux else None
    return SegmentationModel(trunk, head, second, align_corners)
