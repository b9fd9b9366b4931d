"""RoIAlign and RoIPool, with torchvision's constructors, attributes and repr."""

from __future__ import annotations

from torch import Tensor, nn

from atrousops import ops
from atrousops.common.formats import BoxList
from atrousops.nn.in_place import leaf


@leaf
class RoIAlign(nn.Module):
    """`functional.roi_align` as a layer; replaces torchvision.ops.RoIAlign.

    Args:
        output_size: bins of the output, (height, width) or one number for both.
        spatial_scale: features' size over the image's size.
        sampling_ratio: samples per bin along each axis; if not positive, the size of the bin in pixels, rounded up.
        aligned: shift by half a pixel, so that pixel centres are at integers.
    """

    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool = False
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor | BoxList) -> Tensor:
        """(N, C, H, W) features and (K, 5) or N times (L, 4) boxes to (K, C, *output_size)."""
        return ops.roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


@leaf
class RoIPool(nn.Module):
    """`functional.roi_pool` as a layer; replaces torchvision.ops.RoIPool.

    Args:
        output_size: bins of the output, (height, width) or one number for both.
        spatial_scale: features' size over the image's size.
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor | BoxList) -> Tensor:
        """(N, C, H, W) features and (K, 5) or N times (L, 4) boxes to (K, C, *output_size)."""
        return ops.roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"
