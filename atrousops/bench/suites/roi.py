"""RoIAlign and RoIPool at the sizes of Mask R-CNN, against torchvision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from atrousops.bench.operators import operator
from atrousops.bench.registry import Row, expand

WAYS = {**dict.fromkeys(("fp32 nchw", "fp32 nhwc"), ("forward", "backward")), "bf16 nhwc": ("forward", "backward")}
ALIGN = {"spatial_scale": 0.25, "sampling_ratio": 2, "aligned": True}
# name, operator, channels and side of the map, boxes, options, reason
CASES: tuple[tuple[str, str, int, int, int, dict[str, Any], str], ...] = (
    ("box head 7x7", "roi_align", 256, 200, 512, {"output_size": 7, **ALIGN}, "the finest level of an 800x800 image"),
    ("mask head 14x14", "roi_align", 256, 200, 100, {"output_size": 14, **ALIGN}, "four times the bins a box"),
    ("box head 7x7, adaptive", "roi_align", 256, 200, 128, {"output_size": 7, **ALIGN, "sampling_ratio": -1},
     "samples as many as a bin has pixels: unequal work"),
    ("coarse level 7x7", "roi_align", 256, 25, 512, {"output_size": 7, **ALIGN, "spatial_scale": 1 / 32},
     "a map that fits in the cache"),
    ("RoIPool 7x7", "roi_pool", 512, 50, 128, {"output_size": 7, "spatial_scale": 1 / 16}, "Fast R-CNN on VGG"),
)  # fmt: skip
QUICK = {
    "box head 7x7": ("fp32 nchw forward", "fp32 nhwc forward", "fp32 nchw backward"),
    "RoIPool 7x7": ("fp32 nchw forward",),
}


def rows() -> Iterator[Row]:
    """Each case forward and backward."""
    for name, op, channels, size, count, options, reason in CASES:
        case = f"{name}, {count} boxes, {channels}x{size}x{size}"
        prepare = operator(op, _inputs(channels, size, count, options), gradients=(0,), uncast=(1,), **options)
        yield from expand("roi", case, reason, prepare, WAYS, QUICK.get(name, ()))


def _inputs(channels: int, size: int, count: int, options: dict[str, Any]) -> Callable[[], tuple[Tensor, Tensor]]:
    def make() -> tuple[Tensor, Tensor]:
        image = size / options["spatial_scale"]
        corner = torch.rand(count, 2) * image * 0.75
        sides = image * (0.025 + 0.225 * torch.rand(count, 2))
        boxes = torch.cat([torch.zeros(count, 1), corner, corner + sides], dim=1)
        return torch.randn(1, channels, size, size), boxes

    return make
