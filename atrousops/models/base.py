"""The base of the networks: encoder -> head -> scores at the size of the input."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.nn import AtrousConvTranspose2d
from atrousops.ops import resize_bilinear

Features = dict[str, Tensor]


class SegmentationModel(nn.Module):
    """A network that computes a score for every class at every pixel.

    A backbone maps the image to named features ("out", the deepest; optionally "low" and "aux"). Each head maps the
    features to scores, which are resized bilinearly to the size of the image.

    Args:
        backbone: image (N, in_channels, H, W) -> dict of features. Its attribute `in_channels` is 3 by default. Its
            optional attribute `least` is the shortest side for which the pooled map is not empty; smaller images are
            mirrored up to it.
        classifier: features -> scores (N, num_classes, h, w).
        aux_classifier: a second head for training, or None.
        align_corners: for the interpolation.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module,
        aux_classifier: nn.Module | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier
        self.in_channels: int = getattr(backbone, "in_channels", 3)
        self.least: int = getattr(backbone, "least", 1)

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        """Scores for every pixel.

        Args:
            input: normalised images (N, in_channels, H, W), any size.

        Returns:
            {"out": (N, num_classes, H, W)}, and "aux" of the same shape if the network has an auxiliary head.
        """
        return {name: self.enlarge(scores, input.shape[-2:]) for name, scores in self.maps(input).items()}

    def maps(self, input: Tensor) -> dict[str, Tensor]:
        """The scores of the heads before they are resized to the image."""
        check_images(type(self).__name__, input, self.in_channels)
        features = self.backbone(at_least(input, self.least))
        scores = {"out": self.classifier(features)}
        if self.aux_classifier is not None:
            scores["aux"] = self.aux_classifier(features)
        return scores

    def enlarge(self, scores: Tensor, size: Sequence[int]) -> Tensor:
        """A map of scores at the `size` (H, W) of the image."""
        if self.least == 1:
            return resize(scores, size, self.align_corners)
        return crop(resize(scores, [_larger(side, self.least) for side in size], self.align_corners), 0, size)


def is_recorded() -> bool:
    """Whether torch.export or torch.jit.trace is making a graph, which must be valid for any batch and image size."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def _larger(a: int, b: int) -> int:
    # torch.jit.trace records sizes as tensors; Python's max would fix the result of the comparison.
    return a.clamp(min=b) if isinstance(a, Tensor) else max(a, b)


def whole(side: int, step: int) -> int:
    """The least multiple of `step` that is at least `side`, as a product that torch.export can divide.

    torch.export does not recognise side + -side % step as a multiple, and could not simplify sizes after pooling.
    """
    return (side + step - 1) // step * step


def scaled(side: int, scale: float) -> int:
    """round(scale side), halves to even, in integer arithmetic, for exported programs and traces."""
    ratio = Fraction(scale).limit_denominator(2**20)
    n, d = ratio.numerator, ratio.denominator
    return n * side if d == 1 else (2 * n * side + d - 1 + n * side // d % 2) // (2 * d)


def resize(input: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear interpolation to `size` (H, W).

    align_corners aligns the first and last positions of both grids, as the releases on Caffe and TensorFlow do, for
    image sizes of 8 n + 1. Otherwise the pixels of both grids cover the same area.
    """
    # Sizes that are equal for one image may differ for another.
    if not is_recorded() and tuple(input.shape[-2:]) == tuple(size):
        return input
    return resize_bilinear(input, tuple(size), align_corners=align_corners)


def check_images(network: str, input: Tensor, channels: int = 3) -> None:
    """Raises ArgumentError unless input is (N, channels, H, W) with at least one pixel."""
    if input.dim() != 4 or input.shape[1] != channels:
        bad_value(network, "input", f"have shape (N, {channels}, H, W)", tuple(input.shape))
    if input.shape[2] == 0 or input.shape[3] == 0:
        bad_value(network, "input", f"have shape (N, {channels}, H, W) with at least one pixel", tuple(input.shape))


def check_objects(op: str, images: Tensor, labels: Tensor) -> None:
    """Raises ArgumentError unless labels are (N, 2, H, W), class and number of the object, for images (N, C, H, W)."""
    wanted = (len(images), 2, *images.shape[-2:])
    if tuple(labels.shape) != wanted:
        remedy = "Objects are numbered in the sets nuclei and coco_panoptic."
        bad_value(op, "labels", f"have shape {wanted}, class and number of the object", tuple(labels.shape), remedy)


def crop(input: Tensor, offset: int, size: Sequence[int]) -> Tensor:
    """The window of `size` (H, W) that starts `offset` rows and columns from the corner."""
    if torch.compiler.is_compiling():
        # The graph of a slice would be valid only if images are cropped, or not, as the traced one was.
        rows, columns = (torch.arange(offset, offset + side, device=input.device) for side in size)
        return input.index_select(2, rows).index_select(3, columns)
    return input[..., offset : offset + size[0], offset : offset + size[1]]


def reflect(input: Tensor, before: int, after: Sequence[int]) -> Tensor:
    """Pads rows and columns by mirroring at the border pixel, as often as needed for any size.

    Args:
        input: (N, C, H, W).
        before: pixels above and to the left.
        after: pixels (below, to the right).
    """
    for axis, extra in zip((2, 3), after, strict=True):
        size = input.shape[axis]
        period = max(2 * (size - 1), 1)
        index = torch.arange(-before, size + extra, device=input.device)
        # ONNX has no remainder by a dynamic size.
        index = index - index // period * period
        input = input.index_select(axis, torch.minimum(index, period - index) if size > 1 else 0 * index)
    return input


def at_least(input: Tensor, side: int) -> Tensor:
    """Mirrors the image at the lower and right border if it has fewer rows or columns than `side`."""
    missing = [_larger(side - size, 0) for size in input.shape[-2:]]
    return reflect(input, 0, missing) if torch.jit.is_tracing() or any(missing) else input


def bilinear_deconvolution(channels: int, factor: int, padding: int = 0) -> AtrousConvTranspose2d:
    """A learnable transposed convolution with kernel 2 factor and stride factor, initialised to bilinear upsampling.

    w[c, k, r, s] = [c = k] (1 - |r - centre| / factor) (1 - |s - centre| / factor), centre = factor - 1/2

    With padding factor / 2 the output of (N, C, H, W) is (N, C, factor H, factor W), equal to F.interpolate except at
    borders.

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
    """Initialises every convolution before a ReLU as He et al. (2015), as in torchvision's VGG."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
