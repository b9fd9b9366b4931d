import torch
from torch import Tensor

from atrousops.common.values import values_of


def roi_align(
    input: Tensor,
    boxes: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Bilinear samples of each bin, averaged; boxes (K, 5) in fp32 or fp64."""
    dtype = input.dtype
    x = input.to(torch.promote_types(dtype, torch.float32))
    rois = boxes.detach().to(torch.promote_types(x.dtype, boxes.dtype))
    image = rois[:, 0].long()
    offset = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (rois[:, 1:] * spatial_scale - offset).unbind(1)
    rows = _Axis(y1, y2, x.shape[2], output_size[0], sampling_ratio, aligned)
    columns = _Axis(x1, x2, x.shape[3], output_size[1], sampling_ratio, aligned)

    total = x.new_zeros(len(rois), x.shape[1], *output_size)
    for y, y_weight in rows.corners:
        for x_, x_weight in columns.corners:
            # (K, C, P, G_h, Q, G_w): every sample of every bin.
            values = x[image[:, None, None, None, None], :, y[:, :, :, None, None], x_[:, None, None]]
            weights = y_weight[:, :, :, None, None] * x_weight[:, None, None]
            # A sample without weight must not contribute a NaN.
            values = torch.where(weights.isnan()[..., None], 0, values)
            total = total + (values * weights.nan_to_num(0.0)[..., None]).sum((2, 4)).movedim(-1, 1)
    count = (rows.samples * columns.samples).clamp(min=1).to(total.dtype)
    return (total / count[:, None, None, None]).to(dtype)


class _Axis:
    """Along one axis: the two neighbours (K, bins, G) of every sample and their weights; NaN if none has weight."""

    def __init__(self, start: Tensor, end: Tensor, size: int, bins: int, sampling_ratio: int, aligned: bool) -> None:
        length = end - start if aligned else (end - start).clamp(min=1)
        bin = (length / bins)[:, None, None]
        self.samples = (
            torch.full_like(length, sampling_ratio) if sampling_ratio > 0 else (length / bins).ceil()
        ).long()
        most = sampling_ratio
        if sampling_ratio <= 0:
            most = int(values_of(self.samples).max()) if len(start) else 0
        p = torch.arange(bins, device=start.device)[None, :, None]
        i = torch.arange(most, device=start.device)[None, None, :]
        samples = self.samples[:, None, None]
        position = start[:, None, None] + p * bin + (i + 0.5) * bin / samples
        counts = (i < samples) & (position >= -1) & (position <= size)
        position = position.clamp(min=0, max=size - 1)
        low = position.nan_to_num(0.0).long()
        fraction = torch.where(counts, position - low, torch.nan)
        self.corners = (low, 1 - fraction), ((low + 1).clamp(max=size - 1), fraction)


def roi_align_backward(
    grad: Tensor,
    boxes: Tensor,
    size: tuple[int, int, int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """The transpose of the map above, from its output's shape to features of `size`."""
    bins = (grad.shape[2], grad.shape[3])
    features = grad.new_zeros(size)
    transposed = torch.func.vjp(lambda x: roi_align(x, boxes, bins, spatial_scale, sampling_ratio, aligned), features)[
        1
    ]
    return transposed(grad)[0]
