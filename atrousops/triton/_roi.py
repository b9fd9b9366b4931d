"""What roi_align and roi_pool share: boxes as tables, tiles of bins, and tiles of pixels that gather a gradient.

A box with corners that are not finite or are inverted, or without an image, belongs to image -1: its output is NaN, and
it sends no gradient. The host never looks at the boxes.
"""

import torch
import triton.language as tl
from torch import Tensor

from atrousops.triton._common import cdiv, inline, interpreted, launch, split, split3


def checked_boxes(boxes: Tensor, images: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images (K) int64 or -1, and corners (K, 4) in the dtype of the geometry, zero where refused."""
    rois = boxes.to(torch.promote_types(torch.promote_types(dtype, torch.float32), boxes.dtype))
    number, corners = rois[:, 0], rois[:, 1:]
    good = rois.isfinite().all(1) & (corners[:, :2] <= corners[:, 2:]).all(1)
    good = good & (number >= 0) & (number < images) & (number == number.floor())
    image = torch.where(good, number, -1).long()
    return image, torch.where(good[:, None], corners, 0)


def by_image(image: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """The boxes in the order of their images, and (images + 1) where each image's begin."""
    sorted, order = image.sort(stable=True)
    return order, torch.searchsorted(sorted, torch.arange(images + 1, device=image.device))


def over_bins(kernel, input: Tensor, tables: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    """Starts a kernel on tiles of the bins of `outputs` (K, C, P, Q), all of one format."""
    boxes, channels, *bins = outputs[0].shape
    count = boxes * bins[0] * bins[1]
    rows, deep = (256, 64) if interpreted() else (16, 32)
    sizes = (count, *input.shape[1:], *bins, *input.stride(), *outputs[0].stride())
    programs = cdiv(count, rows) * cdiv(channels, deep)
    launch(kernel, programs, input, *tables, *outputs, *sizes, rows, deep)


def over_pixels(
    kernel, sources: tuple[Tensor, ...], image: Tensor, tables: tuple[Tensor, ...], dx: Tensor, deep: int, warps: int
) -> Tensor:
    """Starts a kernel on tiles of the pixels of dx (N, C, H, W); it reads `sources` (K, C, P, Q), all of one format.

    deep: channels of a tile, on a GPU.
    """
    n, channels, height, width = dx.shape
    rows, columns, deep = (32, 64, 64) if interpreted() else (4, 16, deep)
    sizes = (channels, height, width, *sources[0].shape[2:], *dx.stride(), *sources[0].stride())
    programs = n * cdiv(height, rows) * cdiv(width, columns) * cdiv(channels, deep)
    launch(kernel, programs, *sources, *by_image(image, n), *tables, dx, *sizes, rows, columns, deep, num_warps=warps)
    return dx


@inline
def bin_tile(images, count, channels, bins_h, bins_w, BM: tl.constexpr, BN: tl.constexpr):
    """This program's bins (box, row, column), which exist, their image and whether it is one; and its channels."""
    tile, chunk = split(tl.program_id(0).to(tl.int64), (channels + BN - 1) // BN)
    i = tile * BM + tl.arange(0, BM)
    live = i < count
    k, p, q = split3(tl.where(live, i, 0), bins_h, bins_w)
    image = tl.load(images + k)
    return k, p, q, live, image, live & (image >= 0), chunk * BN + tl.arange(0, BN)


@inline
def pixel_tile(h, w, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEEP: tl.constexpr):
    """This program's image, first row and column, and its pixels' rows and columns and its channels."""
    down, across = (h + ROWS - 1) // ROWS, (w + COLUMNS - 1) // COLUMNS
    image, rest = split(tl.program_id(0).to(tl.int64), down * across * ((channels + DEEP - 1) // DEEP))
    block, row, column = split3(rest, down, across)
    y, x = split(tl.arange(0, ROWS * COLUMNS), COLUMNS)
    return image, row * ROWS, column * COLUMNS, row * ROWS + y, column * COLUMNS + x, block * DEEP + tl.arange(0, DEEP)
