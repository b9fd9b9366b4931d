"""Accuracy near the borders of objects, and far from them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from atrousops.common.checks import bad_value
from atrousops.metrics.confusion import ConfusionMatrix, default_void


def trimap(target: Tensor, width: int) -> Tensor:
    """True at pixels at most `width` pixels (Chebyshev) from a pixel with another label: (H, W) -> bool (H, W).

    Void is treated as a label, because Pascal VOC marks borders with it.

    Source: Kohli et al., Robust higher order potentials for enforcing label consistency (2009), section 5.
    """
    if width < 1:
        bad_value("trimap", "width", "be at least 1 pixel", width)
    labels = target[None, None].double()
    side = 2 * width + 1
    most = F.max_pool2d(labels, side, stride=1, padding=width)
    least = -F.max_pool2d(-labels, side, stride=1, padding=width)
    return (most != least)[0, 0]


class BoundaryScores:
    """Confusion matrices of the pixels within given distances of a border, and of the remaining pixels.

    Args:
        num_classes, ignore_index: as in ConfusionMatrix.
        widths: of the bands, in pixels.

    Attributes:
        bands: width -> ConfusionMatrix; its `pixel_accuracy` and `mean_iou` are the values of the papers' trimap plots.
        interior: ConfusionMatrix of the pixels in no band.

    Source: Kraehenbuehl and Koltun (2011), section 5.1; Peng et al., Large kernel matters (2017), section 4.1.2.
    """

    def __init__(
        self, num_classes: int, widths: tuple[int, ...] = (1, 3, 7, 15), ignore_index: int | None = None
    ) -> None:
        if not widths:
            bad_value("BoundaryScores", "widths", "be distances of at least 1 pixel", widths, "Such as (3, 7).")
        self.ignore_index = default_void(num_classes) if ignore_index is None else ignore_index
        self.bands = {width: ConfusionMatrix(num_classes, self.ignore_index) for width in widths}
        self.interior = ConfusionMatrix(num_classes, self.ignore_index)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds an image: classes and labels (H, W)."""
        inside = torch.ones_like(target, dtype=torch.bool)
        for width, matrix in self.bands.items():
            near = trimap(target, width)
            matrix.update(prediction, torch.where(near, target, self.ignore_index))
            inside &= ~near
        self.interior.update(prediction, torch.where(inside, target, self.ignore_index))
