"""FCN-32s, FCN-16s and FCN-8s: a fully convolutional VGG-16, and learnable deconvolutions, initially bilinear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.models.backbones import Encoder
from atrousops.models.base import bilinear_deconvolution, check_images, crop
from atrousops.models.vgg import fully_convolutional, load_vgg16, other_trunk, vgg16
from atrousops.nn import AtrousConv2d, MaxPool2d

# By the factor of the last deconvolution: the skips, each with the crop of its scores, and the crop of the result, for
# padding 100.
_SKIPS: dict[int, tuple[dict[str, int], int]] = {
    32: ({}, 19),
    16: ({"pool4": 5}, 27),
    8: ({"pool4": 5, "pool3": 9}, 31),
}


# The features of an encoder that are at the strides of VGG-16's poolings.
_FEATURES = {"pool4": "aux", "pool3": "mid"}


class FCN(nn.Module):
    """A fully convolutional VGG-16; see `fcn8s`."""

    def __init__(
        self,
        num_classes: int,
        stride: int,
        width: int,
        padding: int,
        frozen_up: bool = False,
        in_channels: int = 3,
        trunk: Encoder | None = None,
    ) -> None:
        super().__init__()
        if padding not in (0, 100):
            bad_value(f"fcn{stride}s", "padding", "be 100, as in the paper, or 0", padding)
        if trunk is not None and padding:
            bad_value(f"fcn{stride}s", "padding", "be 0 unless the backbone is vgg16", padding)
        self.padding = padding
        self.crops, self.final_crop = _SKIPS[stride]
        self.names = {name: _FEATURES[name] if trunk is not None else name for name in self.crops}
        if trunk is None:
            # Rounded up, so that no border pixel is lost.
            trunk = vgg16(
                width, lambda _: MaxPool2d(2, 2, ceil_mode=True), keep=tuple(self.crops), in_channels=in_channels
            )
        self.backbone = trunk
        if padding:
            cast(AtrousConv2d, trunk.get_submodule("0")).padding = (padding, padding)
        self.fc = fully_convolutional(trunk.channels["out"], 64 * width, 7, dilation=1, padding=0 if padding else 3)
        self.score = _zero(64 * width, num_classes)
        self.skips = nn.ModuleDict({name: _zero(trunk.channels[at], num_classes) for name, at in self.names.items()})
        self.doublings = nn.ModuleDict({name: self._up(num_classes, 2) for name in self.crops})
        self.upscore = self._up(num_classes, stride)
        if frozen_up:
            self.doublings.requires_grad_(False)
            self.upscore.requires_grad_(False)

    def _up(self, num_classes: int, factor: int) -> nn.Module:
        return bilinear_deconvolution(num_classes, factor, padding=0 if self.padding else factor // 2)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores of every pixel.

        Args:
            input: normalised images (N, in_channels, H, W), any size.

        Returns:
            {"out": (N, num_classes, H, W)}.
        """
        check_images(type(self).__name__, input, self.backbone.in_channels)
        features = self.backbone(input)
        x = self.score(self.fc(features["out"]))
        for name, offset in self.crops.items():
            x = self.doublings[name](x)
            skip = self.skips[name](features[self.names[name]])
            if self.padding:
                x = x + crop(skip, offset, x.shape[-2:])
            else:
                x = crop(x, 0, skip.shape[-2:]) + skip
        return {"out": crop(self.upscore(x), self.final_crop if self.padding else 0, input.shape[-2:])}


def _zero(in_channels: int, num_classes: int) -> AtrousConv2d:
    """A scoring layer initialised to zero, so that training starts from the coarser scores."""
    layer = AtrousConv2d(in_channels, num_classes, 1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _fcn(
    num_classes: int,
    stride: int,
    width: int,
    padding: int,
    backbone_weights: Mapping[str, Tensor] | None,
    frozen_up: bool,
    in_channels: int,
    backbone: str,
) -> FCN:
    trunk = other_trunk(backbone, 32, in_channels, backbone_weights)
    network = FCN(num_classes, stride, width, padding, frozen_up, in_channels, trunk)
    if trunk is None:
        load_vgg16(network.backbone, network.fc, backbone_weights)
    return network


def fcn32s(
    num_classes: int = 21,
    width: int = 64,
    padding: int = 100,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
    frozen_up: bool = False,
    backbone: str = "vgg16",
) -> FCN:
    """FCN-32s: the scores of VGG-16's last layer, and one deconvolution of kernel 64 and stride 32.

    Release: as `fcn8s`.

    Stages up to the scores, arguments, result and source as `fcn8s`.
    """
    return _fcn(num_classes, 32, width, padding, backbone_weights, frozen_up, in_channels, backbone)


def fcn16s(
    num_classes: int = 21,
    width: int = 64,
    padding: int = 100,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
    frozen_up: bool = False,
    backbone: str = "vgg16",
) -> FCN:
    """FCN-16s: FCN-32s' scores upsampled by 2, plus those of pool4, and a deconvolution of kernel 32 and stride 16.

    Release: as `fcn8s`.

    Stages up to the scores, arguments, result and source as `fcn8s`.
    """
    return _fcn(num_classes, 16, width, padding, backbone_weights, frozen_up, in_channels, backbone)


def fcn8s(
    num_classes: int = 21,
    width: int = 64,
    padding: int = 100,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
    frozen_up: bool = False,
    backbone: str = "vgg16",
) -> FCN:
    """FCN-8s: a fully convolutional VGG-16 with added scores of pool4 and pool3.

    | part | channels | stride |
    |---|---|---|
    | conv1 to conv5, 2x2 pooling rounded up | 64 128 256 512 512 | 2 4 8 16 32 |
    | fc6 7x7, fc7 1x1, dropout | 4096 | 32 |
    | score 1x1; deconvolution k4 s2, + score of pool4 | num_classes | 16 |
    | deconvolution k4 s2, + score of pool3 | num_classes | 8 |
    | deconvolution k16 s8, cropped to the input's size | num_classes | 1 |

    Deconvolutions are initialised to bilinear and are learned unless frozen_up is set; score layers are initialised to
    zero.

    Release: fcn.berkeleyvision.org, by the authors, with padding 100. Its images are BGR in 0..255; `load_published`
    changes the first filters so that the network takes RGB images, normalised as its `info` says.

    Args:
        num_classes: K.
        width: channels of the first stage; all others are in proportion. With another backbone, of fc6 and fc7 alone.
        padding: 100: conv1_1 pads by 100, fc6 does not pad, and crops of 5, 9 and 31 (FCN-16s: 5, 27; FCN-32s: 19)
            align the scores, as in the authors' release. 0: every layer keeps the size (fc6 pads by 3); this needs less
            than half the work on a 224x224 image, with the same weights.
        backbone_weights: state dict of torchvision's vgg16 to start from; the classifier becomes fc6 and fc7. With
            another backbone the `weights` of `encoder`.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.
        frozen_up: keep the deconvolutions bilinear, as in the authors' release (a learning rate of 0).
        backbone: a name for `encoder`, whose features at strides 32, 16 and 8 take the place of pool5, pool4 and pool3;
            the padding is 0.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: padding is neither 100 nor 0, width is below 1, a bad backbone, or a weight is missing.

    Source: Long, Shelhamer, Darrell, Fully convolutional networks for semantic segmentation (2015), section 4 and
    figure 3.
    """
    return _fcn(num_classes, 8, width, padding, backbone_weights, frozen_up, in_channels, backbone)
