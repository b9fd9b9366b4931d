"""RoIAlign and RoIPool, with torchvision's constructors, attributes and repr."""

from __future__ import annotations

import torchvision
from torch import Tensor

from atrousops import functional
from atrousops.ops._roi import BoxList


class RoIAlign(torchvision.ops.RoIAlign):
    """`functional.roi_align` as a layer, in place of torchvision.ops.RoIAlign.

    Args:
        output_size: bins of the output, (height, width) or one number for both.
        spatial_scale: features' size over the image's size.
        sampling_ratio: samples of a bin along each axis; not positive: as many as the bin has pixels, rounded up.
        aligned: shift by half a pixel, so that pixel centres are at integers.
    """

    def forward(self, input: Tensor, rois: Tensor | BoxList) -> Tensor:
        """(N, C, H, W) features and (K, 5) or N times (L, 4) boxes to (K, C, *output_size)."""
        return functional.roi_align(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )


class RoIPool(torchvision.ops.RoIPool):
    """`functional.roi_pool` as a layer, in place of torchvision.ops.RoIPool.

    Args:
        output_size: bins of the output, (height, width) or one number for both.
        spatial_scale: features' size over the image's size.
    """

    def forward(self, input: Tensor, rois: Tensor | BoxList) -> Tensor:
        """(N, C, H, W) features and (K, 5) or N times (L, 4) boxes to (K, C, *output_size)."""
        return functional.roi_pool(input, rois, self.output_size, self.spatial_scale)
