"""What every network here is: encoder -> head -> scores at the size of the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atrousops._checks import bad_value
from atrousops.nn import AtrousConvTranspose2d

Features = dict[str, Tensor]


class SegmentationModel(nn.Module):
    """A network that gives every pixel a score for every class.

    A backbone maps the image to named features ("out", the deepest; "low" and "aux" where it has them); each head
    maps the features to scores, which are then resized bilinearly to the size of the image.

    Args:
        backbone: image (N, 3, H, W) -> dict of features.
        classifier: features -> scores (N, num_classes, h, w).
        aux_classifier: a second head for training, or None.
    """

    def __init__(self, backbone: nn.Module, classifier: nn.Module, aux_classifier: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores for every pixel.

        Args:
            input: normalised images (N, 3, H, W), any size.

        Returns:
            {"out": (N, num_classes, H, W)}, and "aux" of the same shape if the network has an auxiliary head.
        """
        check_images(type(self).__name__, input)
        features = self.backbone(input)
        scores = {"out": self.classifier(features)}
        if self.aux_classifier is not None:
            scores["aux"] = self.aux_classifier(features)
        return {name: resize(score, input.shape[-2:]) for name, score in scores.items()}


def resize(input: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation to `size` (H, W), corners not aligned."""
    if tuple(input.shape[-2:]) == tuple(size):
        return input
    return F.interpolate(input, size=tuple(size), mode="bilinear", align_corners=False)


def check_images(network: str, input: Tensor) -> None:
    """Raises ArgumentError unless input is (N, 3, H, W)."""
    if input.dim() != 4 or input.shape[1] != 3:
        bad_value(network, "input", "have shape (N, 3, H, W)", tuple(input.shape))


def check_objects(op: str, images: Tensor, labels: Tensor) -> None:
    """Raises ArgumentError unless labels are (N, 2, H, W), class and number of the object, for images (N, 3, H, W)."""
    wanted = (len(images), 2, *images.shape[-2:])
    if tuple(labels.shape) != wanted:
        remedy = "Objects are numbered in the sets nuclei and coco_panoptic."
        bad_value(op, "labels", f"have shape {wanted}, class and number of the object", tuple(labels.shape), remedy)


def crop(input: Tensor, offset: int, size: Sequence[int]) -> Tensor:
    """The window of `size` (H, W) that starts `offset` rows and columns from the corner."""
    return input[..., offset : offset + size[0], offset : offset + size[1]]


def reflect(input: Tensor, before: int, after: Sequence[int]) -> Tensor:
    """Pads rows and columns by mirroring at the border pixel, as often as needed, so that any size will do.

    Args:
        input: (N, C, H, W).
        before: pixels above and to the left.
        after: pixels (below, to the right).
    """
    for axis, extra in zip((2, 3), after, strict=True):
        size = input.shape[axis]
        period = max(2 * (size - 1), 1)
        index = torch.arange(-before, size + extra, device=input.device) % period
        input = input.index_select(axis, torch.minimum(index, period - index) if size > 1 else 0 * index)
    return input


def at_least(input: Tensor, side: int) -> Tensor:
    """Mirrored at the lower and right border where the image has fewer rows or columns than `side`."""
    missing = [max(0, side - size) for size in input.shape[-2:]]
    return reflect(input, 0, missing) if any(missing) else input


def bilinear_deconvolution(channels: int, factor: int, padding: int = 0) -> AtrousConvTranspose2d:
    """A learnable transposed convolution, kernel 2 factor and that stride, which starts as bilinear upsampling.

    w[c, k, r, s] = [c = k] (1 - |r - centre| / factor) (1 - |s - centre| / factor), centre = factor - 1/2

    With padding factor / 2 the output of (N, C, H, W) is (N, C, factor H, factor W), as F.interpolate gives it inside.

    Source: Long et al., Fully convolutional networks for semantic segmentation (2015), section 3.3.
    """
    layer = AtrousConvTranspose2d(channels, channels, 2 * factor, stride=factor, padding=padding, bias=False)
    ramp = 1 - (torch.arange(2 * factor) - factor + 0.5).abs() / factor
    with torch.no_grad():
        layer.weight.zero_()
        for channel in range(channels):
            layer.weight[channel, channel] = ramp[:, None] * ramp
    return layer


def init_relu(network: nn.Module) -> None:
    """Gives every convolution in front of a ReLU the weights of He et al. (2015), as torchvision's VGG has them."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
