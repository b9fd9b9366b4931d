"""DeconvNet: VGG-16 with its fully connected layers, and a mirrored decoder of unpoolings and deconvolutions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from atrousops.models.base import at_least, check_images, crop, init_relu
from atrousops.models.unpooling import UnpoolingDecoder, coding_vgg16, encode
from atrousops.models.vgg import load_fully_connected, load_vgg16
from atrousops.nn import AtrousConv2d, AtrousConvTranspose2d
from atrousops.nn.blocks import check_pooled
from atrousops.nn.sequence import run_layers

# The smallest image for fc6: seven positions of the last map.
_SIDE = 224


class _FullyConnected(nn.Sequential):
    """fc6, fc7 and the deconvolution; for an image of 224 pixels fc6 has one output position."""

    def forward(self, input: Tensor) -> Tensor:
        # Not recorded in a graph that is traced in evaluation.
        if self.training and tuple(input.shape[-2:]) == (7, 7):
            check_pooled("DeconvNet.fc", self, input)
        return run_layers(self.children(), input)


class DeconvNet(nn.Module):
    """DeconvNet; see `deconvnet`."""

    def __init__(self, num_classes: int, width: int, in_channels: int) -> None:
        super().__init__()
        wide = 64 * width

        def block(layer: nn.Module, channels: int) -> list[nn.Module]:
            return [layer, nn.BatchNorm2d(channels), nn.ReLU()]

        self.backbone = coding_vgg16(width, in_channels)
        self.fc = _FullyConnected(
            *block(AtrousConv2d(8 * width, wide, 7), wide),
            *block(AtrousConv2d(wide, wide, 1), wide),
            *block(AtrousConvTranspose2d(wide, 8 * width, 7), 8 * width),
        )
        init_relu(self.fc)
        self.decoder = UnpoolingDecoder(width, AtrousConvTranspose2d)
        self.score = AtrousConv2d(width, num_classes, 1)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores of every pixel: (N, in_channels, H, W), any size -> {"out": (N, num_classes, H, W)}."""
        check_images(type(self).__name__, input, self.backbone.in_channels)
        size = input.shape[-2:]
        x, pooled = encode(self.backbone, at_least(input, _SIDE))
        return {"out": crop(self.score(self.decoder(self.fc(x), pooled)), 0, size)}


def deconvnet(
    num_classes: int = 21, width: int = 64, backbone_weights: Mapping[str, Tensor] | None = None, in_channels: int = 3
) -> DeconvNet:
    """DeconvNet: VGG-16, its fully connected layers as convolutions, and a mirror that unpools and deconvolves.

    | part | channels | stride | map of a 224x224 image |
    |---|---|---|---|
    | conv1 to conv5 with normalisation, 2x2 pooling rounded up, with codes | 64 128 256 512 512 | 2 to 32 | 7 |
    | fc6 7x7, fc7 1x1 | 4096 | 32 | 1 |
    | deconvolution 7x7 | 512 | 32 | 7 |
    | unpooling 5, three 3x3 deconvolutions | 512 512 512 | 16 | 14 |
    | unpooling 4, three | 512 512 256 | 8 | 28 |
    | unpooling 3, three | 256 256 128 | 4 | 56 |
    | unpooling 2, two | 128 64 | 2 | 112 |
    | unpooling 1, two | 64 64 | 1 | 224 |
    | scores 1x1 | num_classes | 1 | 224 |

    Every layer except the scores is normalised. An image of less than 224 pixels is mirrored up to that size. For a
    larger one, fc6 is applied to every window of seven positions.

    Release: DeconvNet_inference_deploy.prototxt, whose image has 224 pixels and is BGR in 0..255. Weights: those of the
    release fit layer by layer.

    Args:
        num_classes: K.
        width: channels of the first stage; all others are in proportion.
        backbone_weights: state dict of torchvision's vgg16_bn to start from; the classifier becomes fc6 and fc7.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: width is below 1, or a weight is missing.

    Source: Noh, Hong, Han, Learning deconvolution network for semantic segmentation (2015), section 3, table 5.
    """
    network = DeconvNet(num_classes, width, in_channels)
    load_vgg16(network.backbone, None, backbone_weights)
    load_fully_connected(network.fc, backbone_weights)
    return network
