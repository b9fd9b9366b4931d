"""The front end of Yu and Koltun: VGG-16 at 1/8 of the resolution, optionally followed by the context module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.models.backbones import Encoder
from atrousops.models.base import check_images, crop, reflect, resize, whole
from atrousops.models.crf import with_crf
from atrousops.models.vgg import fully_convolutional, load_vgg16, other_trunk, pool_2x2, vgg16
from atrousops.nn import AtrousConv2d, ContextModule

# Pixels lost on each side by unpadded convolutions: 2, 2 x 2, 3 x 4, 3 x 8, 3 x 16 and 12 x 8.
_MARGIN = 186


class DilatedVGG16(nn.Module):
    """The front end, with or without a context module; see `dilated_vgg16`."""

    def __init__(
        self,
        num_classes: int,
        context: str | None,
        padding: str,
        width: int,
        placement: str = "centre",
        context_arguments: Mapping[str, Any] | None = None,
        in_channels: int = 3,
        trunk: Encoder | None = None,
    ) -> None:
        super().__init__()
        if padding not in ("reflect", "zeros"):
            bad_value("dilated_vgg16", "padding", 'be "reflect" or "zeros"', repr(padding))
        if placement not in ("centre", "corner"):
            bad_value("dilated_vgg16", "placement", 'be "centre" or "corner"', repr(placement))
        if trunk is not None and padding != "zeros":
            bad_value("dilated_vgg16", "padding", 'be "zeros" unless the backbone is vgg16', repr(padding))
        self.corner = placement == "corner"
        valid = padding == "reflect"
        self.margin = _MARGIN if valid else 0

        def pool(stage: int) -> nn.Module | None:
            return pool_2x2(stage) if stage <= 3 else None

        if trunk is None:
            trunk = vgg16(width, pool, dilations=(1, 1, 1, 1, 2), valid=valid, in_channels=in_channels)
        self.backbone = trunk
        self.fc = fully_convolutional(trunk.channels["out"], 64 * width, 7, dilation=4, padding=0 if valid else 12)
        self.score = AtrousConv2d(64 * width, num_classes, 1)
        if context is None and context_arguments:
            bad_value("dilated_vgg16", "context_arguments", "be None without a context", context_arguments)
        self.context: nn.Module = nn.Identity()
        if context is not None:
            self.context = ContextModule(num_classes, context, **(context_arguments or {}))

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores of every pixel: (N, in_channels, H, W), any size -> {"out": (N, num_classes, H, W)}."""
        check_images(type(self).__name__, input, self.backbone.in_channels)
        height, width = input.shape[-2:]
        # Rounded up to a whole number of positions of the last map.
        rows, columns = whole(height, 8), whole(width, 8)
        if self.corner:
            # And one more, because the last pixels lie between two positions.
            rows, columns = rows + 8, columns + 8
        padded = reflect(input, self.margin, (self.margin + rows - height, self.margin + columns - width))
        x = self.context(self.score(self.fc(self.backbone(padded)["out"])))
        x = resize(x, (rows - 7, columns - 7), align_corners=True) if self.corner else resize(x, (rows, columns))
        return {"out": crop(x, 0, (height, width))}


def dilated_vgg16(
    num_classes: int = 21,
    context: str | None = None,
    crf: str | None = None,
    padding: str = "reflect",
    width: int = 64,
    backbone_weights: Mapping[str, Tensor] | None = None,
    in_channels: int = 3,
    placement: str = "centre",
    context_arguments: Mapping[str, Any] | None = None,
    backbone: str = "vgg16",
) -> nn.Module:
    """The front end of Yu and Koltun, alone or with their context module: VGG-16 without its last two poolings.

    | part | channels | stride |
    |---|---|---|
    | conv1, conv2, conv3, each with 2x2 pooling | 64 128 256 | 2 4 8 |
    | conv4; conv5 at dilation 2 | 512 | 8 |
    | fc6 7x7 at dilation 4, fc7 1x1, dropout, scores 1x1 | 4096 4096 num_classes | 8 |
    | context: 3x3 at dilation 1 1 2 4 8 16 1, then 1x1; see `ContextModule` | basic: C, large: 2C..32C | 8 |
    | bilinear to the input's size | num_classes | 1 |
    | dense CRF, or CRF-RNN | num_classes | 1 |

    Release: the authors', which has the same layers. It interpolates class probabilities instead of scores, with
    placement "corner"; for Cityscapes with "centre", by a deconvolution. Its context modules are "large" with border
    "input" on VOC, and "basic" on the other data sets, see `ContextModule`. `load_published` reads its weights.

    The context module is initialised to the identity for positive values, so it can be added to a trained front end.

    Args:
        num_classes: C.
        context: None, "basic" or "large".
        crf: None, "dense" (not in training) or "rnn"; see `WithCRF`.
        padding: "reflect": no layer pads and the image is mirrored 186 pixels deep, as in the paper. "zeros": every
            layer keeps the size; this needs a fifth of the work on a 224x224 image, with the same weights.
        width: channels of the first stage; all others are in proportion. With another backbone, of fc6 and fc7 alone.
        backbone_weights: state dict of torchvision's vgg16 to start from; the classifier becomes fc6 and fc7. With
            another backbone the `weights` of `encoder`.
        in_channels: channels of the image; RGB filters are adapted to them, see `channels.adapt`.
        placement: location of position i of the map in the image: "centre": the centre of pixels 8 i to 8 i + 7, as its
            receptive field; "corner": pixel 8 i, whose label the release uses in training.
        context_arguments: keyword arguments of `ContextModule`, dilations, border and noise.
        backbone: a name for `encoder`, whose features at stride 8 take the place of conv5's; the padding is "zeros".
            Encoders with padded 3x3 convolutions, such as EfficientNet-Lite, have the placement "corner".

    Returns:
        (N, in_channels, H, W) -> {"out": (N, C, H, W)}; log-probabilities if there is a CRF.

    Raises:
        ArgumentError: an unknown context, crf, padding or placement, context_arguments without a context or with bad
            values, width is below 1, a bad backbone, or a weight is missing.

    Source: Yu and Koltun, Multi-scale context aggregation by dilated convolutions (2016), sections 3 to 5, tables 1
    and 3.
    """
    trunk = other_trunk(backbone, 8, in_channels, backbone_weights)
    network = DilatedVGG16(num_classes, context, padding, width, placement, context_arguments, in_channels, trunk)
    if trunk is None:
        load_vgg16(network.backbone, network.fc, backbone_weights)
    return with_crf(network, crf, num_classes, in_channels)
