import torch
from torch import Tensor


def roi_pool(input: Tensor, boxes: Tensor, output_size: tuple[int, int], spatial_scale: float = 1.0) -> Tensor:
    """The largest feature of each bin; boxes (K, 5) in fp32 or fp64."""
    rois = boxes.to(torch.promote_types(torch.promote_types(input.dtype, torch.float32), boxes.dtype))
    x1, y1, x2, y2 = _round_half_away(rois[:, 1:] * spatial_scale).unbind(1)
    rows = _windows(y1, y2, input.shape[2], output_size[0])
    columns = _windows(x1, x2, input.shape[3], output_size[1])
    features = torch.where(input.isnan(), -torch.inf, input)
    pooled = [
        _largest(features[n, :, top:bottom, left:right])
        for n, row, column in zip(rois[:, 0].long().tolist(), rows, columns)
        for top, bottom in row
        for left, right in column
    ]
    if not pooled:
        return input.new_zeros(0, input.shape[1], *output_size)
    return torch.stack(pooled).view(len(rois), *output_size, -1).movedim(-1, 1)


def _round_half_away(x: Tensor) -> Tensor:
    whole = x.trunc()
    return torch.where((x - whole).abs() >= 0.5, whole + x.sign(), whole)


def _windows(start: Tensor, end: Tensor, size: int, bins: int) -> list[list[list[int]]]:
    """[begin, end) of every bin of every box along one axis, clipped to the map."""
    bin = ((end - start + 1).clamp(min=1) / bins)[:, None]
    p = torch.arange(bins, dtype=start.dtype, device=start.device)
    begin, stop = (p * bin).floor() + start[:, None], ((p + 1) * bin).ceil() + start[:, None]
    return torch.stack((begin, stop), 2).clamp(0, size).long().tolist()


def _largest(window: Tensor) -> Tensor:
    if window.numel() == 0:
        return window.new_zeros(window.shape[0])
    return window.flatten(1).max(1).values
