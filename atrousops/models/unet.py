"""U-Net: a contracting and an expanding path, joined at every resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atrousops._checks import bad_value
from atrousops.models.base import check_images, crop, init_relu, reflect
from atrousops.nn import AtrousConv2d, AtrousConvTranspose2d, MaxPool2d

# What the convolutions without padding take away on each side.
_MARGIN = 92


class UNet(nn.Module):
    """U-Net; see `unet`."""

    def __init__(self, num_classes: int, width: int, padding: str, batch_norm: bool) -> None:
        super().__init__()
        if padding not in ("reflect", "zeros"):
            bad_value("unet", "padding", 'be "reflect" or "zeros"', repr(padding))
        if width < 1:
            bad_value("unet", "width", "be at least 1", width)
        self.valid = padding == "reflect"
        widths = [width * 2**level for level in range(5)]

        def double(inner: int, outer: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for channels in (inner, outer):
                layers.append(AtrousConv2d(channels, outer, 3, padding=0 if self.valid else 1, bias=not batch_norm))
                layers += [nn.BatchNorm2d(outer)] if batch_norm else []
                layers.append(nn.ReLU())
            return nn.Sequential(*layers)

        self.down = nn.ModuleList(double(i, o) for i, o in zip([3, *widths], widths, strict=False))
        # At the end of the contracting path.
        self.dropout = nn.Dropout(0.5)
        self.pool = MaxPool2d(2, 2)
        self.up = nn.ModuleList(AtrousConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.join = nn.ModuleList(double(2 * w, w) for w in reversed(widths[:-1]))
        init_relu(self)
        self.score = AtrousConv2d(width, num_classes, 1)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores of every pixel: (N, 3, H, W), any size -> {"out": (N, num_classes, H, W)}."""
        check_images(type(self).__name__, input)
        size = input.shape[-2:]
        x = _padded(input, self.valid)
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            if level >= 3:
                x = self.dropout(x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
            x = up(x)
            # The middle of the skip: what its own convolutions have left more of.
            x = join(torch.cat([crop(skip, (skip.shape[-1] - x.shape[-1]) // 2, x.shape[-2:]), x], dim=1))
        return {"out": crop(self.score(x), 0, size)}


def _padded(input: Tensor, valid: bool) -> Tensor:
    """To a size that all four poolings halve evenly: 16 n + 188 without padding, 16 n with."""
    margin = _MARGIN if valid else 0
    # 16 n + 4 pixels come back of 16 n + 188, and no fewer than 20 have a middle at every level.
    rest = 4 if valid else 0
    after = [margin + max(-(side - rest) % 16, 16 + rest - side) for side in input.shape[-2:]]
    return reflect(input, margin, after)


def unet(num_classes: int = 2, width: int = 64, padding: str = "reflect", batch_norm: bool = False) -> UNet:
    """U-Net: four poolings, four up-convolutions, and at each resolution the encoder's maps beside the decoder's.

    | part | channels | stride | side of a 388x388 image, mirrored to 572 |
    |---|---|---|---|
    | two 3x3; pooling | 64 | 1 | 568 |
    | two 3x3; pooling | 128 | 2 | 280 |
    | two 3x3; pooling | 256 | 4 | 136 |
    | two 3x3, dropout; pooling | 512 | 8 | 64 |
    | two 3x3, dropout | 1024 | 16 | 28 |
    | four times: up-convolution 2x2, the middle of the encoder's map, two 3x3 | 512 256 128 64 | 8 4 2 1 | 388 |
    | scores 1x1 | num_classes | 1 | 388 |

    Args:
        num_classes: K.
        width: channels of the first level; they double from each to the next.
        padding: "reflect": no layer pads and the image is mirrored 92 pixels deep, as in the paper. "zeros": every
            layer keeps the size; the same weights serve.
        batch_norm: normalisation after each 3x3 convolution, which the paper does not have.

    Returns:
        (N, 3, H, W) -> {"out": (N, K, H, W)}.

    Raises:
        ArgumentError: padding is neither, or width is below 1.

    Source: Ronneberger, Fischer, Brox, U-Net: convolutional networks for biomedical image segmentation (2015),
    section 2, figure 1.
    """
    return UNet(num_classes, width, padding, batch_norm)
