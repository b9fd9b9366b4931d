"""What every network here is: encoder -> head -> scores at the size of the input."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from atrousops._checks import bad_value

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
        if input.dim() != 4 or input.shape[1] != 3:
            bad_value(type(self).__name__, "input", "have shape (N, 3, H, W)", tuple(input.shape))
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
