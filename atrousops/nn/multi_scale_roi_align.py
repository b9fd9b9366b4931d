"""MultiScaleRoIAlign: RoIAlign on the level of a feature pyramid that matches the size of the box."""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor, nn

from atrousops import ops
from atrousops.common.checks import bad_value
from atrousops.nn.in_place import leaf


@leaf
class MultiScaleRoIAlign(nn.Module):
    """RoIAlign on a feature pyramid; replaces torchvision.ops.MultiScaleRoIAlign.

    A box of area A reads level  k = floor(canonical_level + log2(sqrt(A) / canonical_scale)),  clamped to the existing
    levels; a level's spatial scale is the power of two nearest to its height over the image's.

    Args:
        featmap_names: the names of the feature maps that are the levels, finest first.
        output_size: bins of the output, (height, width) or one number for both.
        sampling_ratio: samples per bin along each axis; if not positive, the size of the bin in pixels, rounded up.
        canonical_scale, canonical_level: a box of canonical_scale x canonical_scale reads canonical_level.

    Source: Lin et al., Feature pyramid networks for object detection (2017), eq. (1).
    """

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | tuple[int, int] | list[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.featmap_names = featmap_names
        self.sampling_ratio = sampling_ratio
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Features (N, C, H_l, W_l) by name, N times (L, 4) boxes and N image sizes (height, width) to (K, C, ...).

        Raises:
            ArgumentError: there are no images, or none of the named feature maps.
        """
        if not image_shapes:
            bad_value("MultiScaleRoIAlign", "image_shapes", "hold a size for each image", "none")
        levels = [feature for name, feature in x.items() if name in self.featmap_names]
        if not levels:
            bad_value("MultiScaleRoIAlign", "x", f"hold some of {self.featmap_names}", list(x))
        height = max(shape[0] for shape in image_shapes)
        scales = [2.0 ** round(log2(level.shape[-2] / height)) for level in levels]
        images = [box.new_full((box.shape[0], 1), i) for i, box in enumerate(boxes)]
        rois = torch.cat([torch.cat(images), torch.cat(boxes)], dim=1)
        if len(levels) == 1:
            return self._align(levels[0], rois, scales[0])
        level_of = self._level_of(rois, finest=int(-log2(scales[0])), coarsest=int(-log2(scales[-1])))
        result = levels[0].new_zeros((rois.shape[0], levels[0].shape[1], *self.output_size))
        for i, (level, scale) in enumerate(zip(levels, scales)):
            here = torch.where(level_of == i)[0]
            # Under autocast, levels can differ in dtype.
            result[here] = self._align(level, rois[here], scale).to(result.dtype)
        return result

    def _align(self, level: Tensor, rois: Tensor, scale: float) -> Tensor:
        height, width = self.output_size
        return ops.roi_align(level, rois, (height, width), scale, self.sampling_ratio)

    def _level_of(self, rois: Tensor, finest: int, coarsest: int) -> Tensor:
        side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
        # A box of exactly a power of two belongs to the coarser level in spite of rounding errors.
        level = torch.floor(self.canonical_level + torch.log2(side / self.canonical_scale) + 1e-6)
        return level.clamp(finest, coarsest).long() - finest

    def extra_repr(self) -> str:
        names, size, ratio = self.featmap_names, self.output_size, self.sampling_ratio
        return f"featmap_names={names}, output_size={size}, sampling_ratio={ratio}"
