from __future__ import annotations

import torch
from torch import Tensor


def roi_pool(input: Tensor, boxes: Tensor, output_size: tuple[int, int], spatial_scale: float = 1.0) -> Tensor:
    """The largest feature of each bin; boxes (K, 5) in fp32 or fp64."""
    return roi_pool_with_argmax(input, boxes, spatial_scale, *output_size)[0]


def roi_pool_with_argmax(
    input: Tensor, boxes: Tensor, spatial_scale: float, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """The largest feature of each bin, and its position y W + x in its plane (int32), -1 where there is none."""
    rois = boxes.detach().to(torch.promote_types(torch.promote_types(input.dtype, torch.float32), boxes.dtype))
    x1, y1, x2, y2 = _round_half_away(rois[:, 1:] * spatial_scale).unbind(1)
    rows = _windows(y1, y2, input.shape[2], height)
    columns = _windows(x1, x2, input.shape[3], width)
    image = rois[:, 0].long()
    features = torch.where(input.isnan(), -torch.inf, input).detach()
    marks = [
        _first_of_largest(features.index_select(0, image[k : k + 1])[0], rows[k], columns[k]) for k in range(len(rois))
    ]
    size = (len(rois), input.shape[1], height, width)
    argmax = torch.stack(marks) if marks else image.new_zeros(size)
    return gather_maxima(input, boxes, argmax, (rows.any(2)[:, :, None] & columns.any(2)[:, None])[:, None])


def gather_maxima(input: Tensor, boxes: Tensor, argmax: Tensor, filled: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """input at argmax in each box's image; elsewhere 0, or -inf where a bin is filled. Also argmax as int32."""
    plane = input.shape[2] * input.shape[3]
    position = _positions(boxes, argmax, input.shape[1], plane).view(-1)
    values = input.reshape(-1).index_select(0, position).view(argmax.shape)
    nothing = torch.zeros_like(values)
    if filled is not None:
        nothing = torch.where(filled, -torch.inf, nothing)
    return torch.where(argmax >= 0, values, nothing), argmax.int()


def roi_pool_backward(grad: Tensor, boxes: Tensor, argmax: Tensor, size: tuple[int, int, int, int]) -> Tensor:
    """Each bin's gradient, added at its largest feature."""
    n, c, h, w = size
    position = _positions(boxes, argmax, c, h * w).view(-1)
    sent = torch.where(argmax >= 0, grad, torch.zeros_like(grad)).reshape(-1)
    return grad.new_zeros(n * c * h * w).index_add(0, position, sent).view(size)


def _positions(boxes: Tensor, argmax: Tensor, channels: int, plane: int) -> Tensor:
    """The index of each maximum among all features."""
    image = boxes.detach()[:, 0].long()[:, None, None, None]
    channel = torch.arange(channels, device=argmax.device)[None, :, None, None]
    return (image * channels + channel) * plane + argmax.long().clamp(min=0)


def _round_half_away(x: Tensor) -> Tensor:
    whole = x.trunc()
    return torch.where((x - whole).abs() >= 0.5, whole + x.sign(), whole)


def _windows(start: Tensor, end: Tensor, size: int, bins: int) -> Tensor:
    """(K, bins, size): whether a bin of a box holds a position of the map along one axis."""
    bin = ((end - start + 1).clamp(min=1) / bins)[:, None]
    p = torch.arange(bins, dtype=start.dtype, device=start.device)
    begin, stop = (p * bin).floor() + start[:, None], ((p + 1) * bin).ceil() + start[:, None]
    at = torch.arange(size, dtype=start.dtype, device=start.device)
    return (at >= begin[..., None]) & (at < stop[..., None])


def _first_of_largest(features: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(C, P, Q) positions in features (C, H, W) of the first of the largest of each bin, -1 where all are -inf."""
    found = []
    for column in columns.unbind(0):
        # The first column in each row, then the first row.
        largest, x = torch.where(column, features, -torch.inf).max(2)
        here = []
        for row in rows.unbind(0):
            best, y = torch.where(row, largest, -torch.inf).max(1, keepdim=True)
            position = y * features.shape[2] + x.gather(1, y)
            here.append(torch.where(best > -torch.inf, position, -1))
        found.append(torch.cat(here, 1))
    return torch.stack(found, 2)
