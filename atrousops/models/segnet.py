"""SegNet: VGG-16 and a mirrored decoder, which unpools each map with the encoder's pooling positions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from atrousops.models.base import check_images
from atrousops.models.unpooling import UnpoolingDecoder, coding_vgg16, encode
from atrousops.models.vgg import load_vgg16
from atrousops.nn import AtrousConv2d


class SegNet(nn.Module):
    """SegNet; see `segnet`."""

    def __init__(self, num_classes: int, width: int, in_channels: int) -> None:
        super().__init__()
        self.backbone = coding_vgg16(width, in_channels)
        self.decoder = UnpoolingDecoder(width, AtrousConv2d)
        # The last layer of the decoder gives scores.
        last = self.decoder.stages[-1]
        assert isinstance(last, nn.Sequential)
        self.decoder.stages[-1] = last[:3]
        self.score = AtrousConv2d(width, num_classes, 3, padding=1)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores of every pixel: (N, in_channels, H, W), any size -> {"out": (N, num_classes, H, W)}."""
        check_images(type(self).__name__, input, self.backbone.in_channels)
        return {"out": self.score(self.decoder(*encode(self.backbone, input)))}


def segnet(
    num_classes: int = 11, width: int = 64, backbone_weights: Mapping[str, Tensor] | None = None, in_channels: int = 3
) -> SegNet:
    """SegNet: 13 convolutions, 13 mirrored ones, and max-unpooling with the encoder's pooling positions in between.

    | part | channels | stride |
    |---|---|---|
    | conv1 to conv5 of VGG-16, normalised; 2x2 pooling rounded up, with codes | 64 128 256 512 512 | 2 4 8 16 32 |
    | unpooling 5, three 3x3 | 512 512 512 | 16 |
    | unpooling 4, three 3x3 | 512 512 256 | 8 |
    | unpooling 3, three 3x3 | 256 256 128 | 4 |
    | unpooling 2, two 3x3 | 128 64 | 2 |
    | unpooling 1, two 3x3 | 64 num_classes | 1 |

    The layers are those of the authors' release. Poolings round up and each unpooling gives the size that was pooled:
    360x480, the authors' CamVid, becomes 45x60, 23x30 and 12x15 and the same on the way back.

    Release: SegNet-Tutorial's segnet_inference.prototxt, except for its input, which is BGR in 0..255. Its weights fit
    layer by layer; its normalisations have only a scale and a shift, so mean and variance are 0 and 1 - eps here.

    Args:
        num_classes: K.
        width: channels of the first stage; all others are in proportion.
        backbone_weights: state dict of torchvision's vgg16_bn to start from.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: width is below 1, or a weight is missing.

    Source: Badrinarayanan, Kendall, Cipolla, SegNet: a deep convolutional encoder-decoder architecture for image
    segmentation (2017), section 3, figure 2.
    """
    network = SegNet(num_classes, width, in_channels)
    load_vgg16(network.backbone, None, backbone_weights)
    return network
