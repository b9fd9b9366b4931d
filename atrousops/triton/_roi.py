"""What roi_align and roi_pool share: boxes as tables, and the tiles of pixels that gather a gradient.

A box with corners that are not finite or are inverted, or without an image, belongs to image -1: its output is NaN, and
it sends no gradient. The host never looks at the boxes.
"""

import torch
import triton.language as tl
from torch import Tensor

from atrousops.triton._common import cdiv, inline, interpreted, split, split3


def checked_boxes(boxes: Tensor, images: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Images (K) int64 or -1, corners (K, 4) in the dtype of the geometry, zero where refused, and which are good."""
    rois = boxes.to(torch.promote_types(torch.promote_types(dtype, torch.float32), boxes.dtype))
    number, corners = rois[:, 0], rois[:, 1:]
    good = rois.isfinite().all(1) & (corners[:, :2] <= corners[:, 2:]).all(1)
    good = good & (number >= 0) & (number < images) & (number == number.floor())
    image = torch.where(good, number, -1).long()
    return image, torch.where(good[:, None], corners, 0), good


def by_image(image: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """The boxes in the order of their images, and (images + 1) where each image's begin."""
    sorted, order = image.sort(stable=True)
    return order, torch.searchsorted(sorted, torch.arange(images + 1, device=image.device))


def pixel_tile(height: int, width: int, channels: int) -> tuple[int, int, int, int]:
    """Rows, columns and channels of a tile, and how many tiles there are in an image."""
    rows, columns, deep = (32, 64, 64) if interpreted() else (4, 16, 32)
    return rows, columns, deep, cdiv(height, rows) * cdiv(width, columns) * cdiv(channels, deep)


@inline
def tile_pixels(program, h, w, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEEP: tl.constexpr):
    """A tile's image, first row and column, and its pixels' rows and columns and its channels."""
    image, rest = split(
        program, ((h + ROWS - 1) // ROWS) * ((w + COLUMNS - 1) // COLUMNS) * ((channels + DEEP - 1) // DEEP)
    )
    block, row, column = split3(rest, (h + ROWS - 1) // ROWS, (w + COLUMNS - 1) // COLUMNS)
    y, x = split(tl.arange(0, ROWS * COLUMNS), COLUMNS)
    return image, row * ROWS, column * COLUMNS, row * ROWS + y, column * COLUMNS + x, block * DEEP + tl.arange(0, DEEP)
