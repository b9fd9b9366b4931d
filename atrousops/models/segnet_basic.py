"""SegNet-Basic: four stages with large kernels and a mirrored decoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from atrousops.common.checks import bad_value
from atrousops.models.base import check_images, init_relu
from atrousops.models.channels import check_channels
from atrousops.nn import AtrousConv2d, MaxPool2d, MaxUnpool2d

_STAGES = 4


class SegNetBasic(nn.Module):
    """SegNet-Basic; see `segnet_basic`."""

    def __init__(self, num_classes: int, width: int, local_response: bool, in_channels: int) -> None:
        super().__init__()
        check_channels("segnet_basic", in_channels)
        if width < 1:
            bad_value("segnet_basic", "width", "be at least 1", width)
        self.in_channels, self.local_response = in_channels, local_response

        def block(inner: int) -> nn.Sequential:
            return nn.Sequential(AtrousConv2d(inner, width, 7, padding=3), nn.BatchNorm2d(width))

        self.encoder = nn.ModuleList(block(in_channels if stage == 0 else width) for stage in range(_STAGES))
        self.pool = MaxPool2d(2, 2, ceil_mode=True, return_indices="codes")  # type: ignore[arg-type]
        self.unpool = MaxUnpool2d(2, 2)
        # The deepest first.
        self.decoder = nn.ModuleList(block(width) for _ in range(_STAGES))
        init_relu(self)
        self.score = AtrousConv2d(width, num_classes, 1)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores of every pixel: (N, in_channels, H, W), any size -> {"out": (N, num_classes, H, W)}."""
        check_images(type(self).__name__, input, self.in_channels)
        x = F.local_response_norm(input, 5) if self.local_response else input
        pooled = []
        for block in self.encoder:
            x = block(x).relu()
            size = x.shape[-2:]
            x, codes = self.pool(x)
            pooled.append((codes, size))
        for block, (codes, size) in zip(self.decoder, reversed(pooled), strict=True):
            x = block(self.unpool(x, codes, size))
        return {"out": self.score(x)}


def segnet_basic(
    num_classes: int = 11, width: int = 64, local_response: bool = False, in_channels: int = 3
) -> SegNetBasic:
    """SegNet-Basic, 1.4 M parameters: four stages of one 7x7 layer and pooling, and four of unpooling and one layer.

    | part | channels | stride |
    |---|---|---|
    | four times: 7x7 with normalisation, ReLU, 2x2 pooling rounded up, with codes | 64 | 2 4 8 16 |
    | four times: unpooling, 7x7 with normalisation, no ReLU | 64 | 8 4 2 1 |
    | scores 1x1 | num_classes | 1 |

    Args:
        num_classes: K.
        width: channels of every layer.
        local_response: first normalise the image over channels, x / (1 + 2e-5 sum of squares)^0.75, as the release does
            for images in 0..255.
        in_channels: channels of the image.

    Returns:
        (N, in_channels, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: width or in_channels is below 1.

    Source: Badrinarayanan, Kendall, Cipolla, SegNet: a deep convolutional encoder-decoder architecture for image
    segmentation (2017), section 3.1; the authors' release, segnet_basic_inference.prototxt.
    """
    return SegNetBasic(num_classes, width, local_response, in_channels)
