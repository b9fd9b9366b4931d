"""Multi-scale and flip inference: scores averaged over image scales and mirrored images."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atrousops.common.checks import bad_value
from atrousops.engine.tiles import GRID


class MultiScale(nn.Module):
    """A network whose scores are averaged over scaled and mirrored copies of its input.

    score(x) = mean over r in scales, m in mirrors of  m^-1 resize(network(m resize(x, r)), size of x)

    As in Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (2017), table 6, "MS" and "Flip",
    except that the mean is over scores, not probabilities, so that a CRF can refine it.

    Args:
        network: images (N, C, H, W) -> scores (N, L, h, w), or a mapping with them under "out"; h and w may be smaller.
        scales: of the image's sides, which are rounded to a multiple of 32 pixels; 1 leaves the image unchanged.
        flip: also use the mirrored image at each scale.
        odd_sides: round to a multiple of 32 and 1 pixel more, at scale 1 too. A network that was trained on crops of
            16 n + 1 pixels, whose strided layers pad on both sides, has its positions at pixels 16 i. At other sizes
            bilinear resizing shifts its maps: by 6 pixels at an output stride of 16, and by 1.5 at 4.

    Forward: (N, C, H, W) -> {"out": (N, L, H, W)}, in the dtype of the network's scores.

    Raises:
        ArgumentError: no scale, or one that is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        scales: Sequence[float] = (0.75, 1.0, 1.25),
        flip: bool = True,
        odd_sides: bool = False,
    ) -> None:
        super().__init__()
        if not scales or not all(isfinite(scale) and scale > 0 for scale in scales):
            bad_value("MultiScale", "scales", "be positive numbers, at least one", tuple(scales))
        self.network = network
        self.scales = tuple(scales)
        self.flip = flip
        self.odd_sides = odd_sides

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        total: Tensor | None = None
        for scale in self.scales:
            sides = [_side(length, scale) + self.odd_sides for length in image.shape[2:]]
            scaled = image if scale == 1 and not self.odd_sides else resize(image, sides)
            for mirror in (False, True) if self.flip else (False,):
                seen = scaled.flip(-1) if mirror else scaled
                scores = resize(_scores(self.network(seen)), image.shape[2:])
                scores = scores.flip(-1) if mirror else scores
                total = scores if total is None else total + scores
        assert total is not None
        return {"out": total / (len(self.scales) * (2 if self.flip else 1))}

    def extra_repr(self) -> str:
        return f"scales={self.scales}, flip={self.flip}" + (", odd_sides=True" if self.odd_sides else "")


def resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, (N, C, H, W) to (N, C, *size); antialiased, which changes nothing when enlarging."""
    if tuple(image.shape[2:]) == tuple(size):
        return image
    return F.interpolate(image, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


def _side(length: int, scale: float) -> int:
    return max(1, int(length * scale / GRID + 0.5)) * GRID


def _scores(output: Tensor | dict[str, Tensor]) -> Tensor:
    return output if isinstance(output, torch.Tensor) else output["out"]
