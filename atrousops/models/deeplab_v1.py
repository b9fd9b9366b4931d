"""DeepLab v1: VGG-16 at output stride 8, fc6 with holes, and the dense CRF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.models.backbones import Backbone
from atrousops.models.base import Features, SegmentationModel, crop, resize
from atrousops.models.crf import with_crf
from atrousops.models.vgg import fully_convolutional, load_vgg16, other_trunk, pool_2x2, vgg16
from atrousops.nn import AtrousConv2d, MaxPool2d

# Kernel and rate of fc6 -> its channels at width 64.
VARIANTS = {(7, 4): 4096, (4, 4): 4096, (4, 8): 4096, (3, 12): 1024}


def atrous_vgg16(width: int, pooling: int, in_channels: int = 3) -> Backbone:
    """VGG-16 at output stride 8: the last two poolings are 3x3 with stride 1, and conv5 has rate 2.

    Args:
        pooling: side of the three poolings with stride. 3: padded by 1 and rounded up, as in the authors' releases, so
            that position i of the last map is centred on pixel 8 i; 2: as in VGG-16.
    """
    _check_pooling(pooling)

    def pool(stage: int) -> nn.Module:
        if stage > 3:
            return MaxPool2d(3, 1, 1)
        return pool_2x2(stage) if pooling == 2 else MaxPool2d(3, 2, 1, ceil_mode=True)

    backbone = vgg16(width, pool, dilations=(1, 1, 1, 1, 2), in_channels=in_channels)
    # The map of a shorter side would be empty after three poolings of 2x2.
    backbone.least = 8 if pooling == 2 else 1
    return backbone


def _check_pooling(pooling: int) -> None:
    if pooling not in (2, 3):
        bad_value("deeplab", "pooling", "be 3, as in the authors' release, or 2, as in VGG-16", pooling)


class ZoomedModel(SegmentationModel):
    """A SegmentationModel with position i of the map on pixel 8 i: enlarges scores to 8 n - 7 pixels and crops them."""

    def enlarge(self, scores: Tensor, size: Sequence[int]) -> Tensor:
        return _zoom(scores, size)


def _zoom(scores: Tensor, size: Sequence[int]) -> Tensor:
    return crop(resize(scores, [8 * side - 7 for side in scores.shape[-2:]], align_corners=True), 0, size)


def scores(in_channels: int, num_classes: int, kernel_size: int = 1, rate: int = 1) -> AtrousConv2d:
    """The layer of the scores, with the authors' initial weights: normal with standard deviation 0.01."""
    layer = AtrousConv2d(in_channels, num_classes, kernel_size, padding=rate * (kernel_size // 2), dilation=rate)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class LargeFOVHead(nn.Module):
    """Optional average pooling, atrous fc6, fc7, scores: features "out" (N, C, h, w) -> (N, num_classes, h, w)."""

    def __init__(
        self, in_channels: int, channels: int, num_classes: int, kernel_size: int, rate: int, average: bool
    ) -> None:
        super().__init__()
        # "pool5a" of the release, whose averages include the zeros of the padding.
        self.pool = nn.AvgPool2d(3, 1, 1) if average else nn.Identity()
        # A 4x4 filter also keeps the size, because its rate is even.
        self.fc = fully_convolutional(in_channels, channels, kernel_size, rate, rate * (kernel_size - 1) // 2)
        self.scores = scores(channels, num_classes)

    def forward(self, features: Features) -> Tensor:
        return self.scores(self.fc(self.pool(features["out"])))


def deeplabv1(
    num_classes: int = 21,
    kernel_size: int = 3,
    rate: int = 12,
    crf: str | None = None,
    width: int = 64,
    backbone_weights: Mapping[str, Tensor] | None = None,
    pooling: int = 3,
    in_channels: int = 3,
    backbone: str = "vgg16",
) -> nn.Module:
    """DeepLab v1 (DeepLab-LargeFOV): VGG-16 at output stride 8; a large rate gives fc6 a large field of view.

    | part | channels | stride |
    |---|---|---|
    | conv1, conv2, conv3, 3x3 pooling of stride 2, rounded up | 64 128 256 | 2 4 8 |
    | conv4, 3x3 pooling of stride 1 | 512 | 8 |
    | conv5 at rate 2, 3x3 pooling of stride 1, 3x3 average pooling of stride 1 | 512 | 8 |
    | fc6 kernel_size^2 at `rate`, fc7 1x1, dropout | 1024 (3x3) or 4096 | 8 |
    | scores 1x1, bilinear, position i on pixel 8 i | num_classes | 1 |
    | dense CRF, or CRF-RNN | num_classes | 1 |

    | fc6 | rate | field of view | parameters (21 classes) |
    |---|---|---|---|
    | 7x7 | 4 | 224 | 134.3 M |
    | 4x4 | 4 | 128 | 65.1 M |
    | 4x4 | 8 | 224 | 65.1 M |
    | 3x3 | 12 | 224 | 20.5 M |

    Release: DeepLab-LargeFOV's prototxt (kernel 3, rate 12), whose weights `load_published` reads; images of 8 n + 1
    pixels give the same result, others are interpolated to 8 n + 1 and cropped instead of padded. With pooling=2 the
    poolings with stride are 2x2, as in VGG-16, there is no average pooling, and bilinear interpolation places each
    score at the centre of its pixels.

    Args:
        num_classes: K.
        kernel_size, rate: of fc6, one of the four rows above.
        crf: None, "dense" (not in training) or "rnn"; see `WithCRF`.
        width: channels of the first stage; all others are in proportion. With another backbone, of fc6 and fc7 alone.
        backbone_weights: state dict of torchvision's vgg16 to start from; its classifier is subsampled to fc6 and fc7.
            With another backbone the `weights` of `encoder`.
        pooling: side of the poolings with stride, 3 as in the release or 2.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.
        backbone: a name for `encoder`, whose features at stride 8 take the place of conv5's. Its poolings are its own;
            with pooling=3 its map is averaged, and scores are interpolated with aligned corners.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}; log-probabilities if there is a CRF.

    Raises:
        ArgumentError: another kernel_size, rate or pooling, crf is none of these, width is below 1, a bad backbone, or
            a weight is missing.

    Source: Chen et al., Semantic image segmentation with deep convolutional nets and fully connected CRFs (2015),
    section 3, table 2.
    """
    if (kernel_size, rate) not in VARIANTS:
        known = ", ".join(f"{size} at {r}" for size, r in VARIANTS)
        bad_value("deeplabv1", "kernel_size and rate", f"be one of {known}", f"{kernel_size} at {rate}")
    _check_pooling(pooling)
    other = other_trunk(backbone, 8, in_channels, backbone_weights)
    trunk = atrous_vgg16(width, pooling, in_channels) if other is None else other
    channels = VARIANTS[kernel_size, rate] * width // 64
    head = LargeFOVHead(trunk.channels["out"], channels, num_classes, kernel_size, rate, average=pooling == 3)
    network: SegmentationModel
    if other is None:
        load_vgg16(trunk, head.fc, backbone_weights)
        network = ZoomedModel(trunk, head) if pooling == 3 else SegmentationModel(trunk, head)
    else:
        network = SegmentationModel(trunk, head, align_corners=pooling == 3)
    return with_crf(network, crf, num_classes, in_channels)
