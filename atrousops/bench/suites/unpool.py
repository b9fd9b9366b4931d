"""Max pooling with indices and max-unpooling, at the sizes of SegNet, DeconvNet and ENet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atrousops import functional
from atrousops.bench.operators import PYTORCH, operator
from atrousops.bench.registry import Row, expand

WAYS = {**dict.fromkeys(("fp32 nchw", "fp32 nhwc"), ("forward", "backward")), "bf16 nhwc": ("forward", "backward")}
# shape of the large map, reason
MAPS = (
    ((4, 64, 256, 256), "SegNet's first stage: 67 MB a map, so freshly mapped pages count for all"),
    ((1, 64, 180, 240), "ENet's on CamVid: a result of 11 MB, memory that is used again"),
    ((4, 512, 28, 28), "DeconvNet's deep stages: many small maps"),
)
QUICK = {
    "max_pool with indices": ("fp32 nchw forward", "fp32 nhwc forward"),
    "max_unpool": ("fp32 nchw forward", "fp32 nhwc forward"),
    "max_unpool with codes": ("fp32 nchw forward",),
}


def rows() -> Iterator[Row]:
    """Pooling and unpooling of 2x2 windows; with int64 indices, and with ours of one byte."""
    for shape, reason in MAPS:
        case = "x".join(map(str, shape))
        options: dict[str, Any] = {"kernel_size": 2, "stride": 2, "gradients": (0,)}
        pool = operator("max_pool2d", _map(shape), return_indices=True, **options)
        codes = operator("max_pool2d", _map(shape), functions=(_pool_codes, _pool), **options)
        unpool = operator("max_unpool2d", _pooled(shape), **options)
        unpool_codes = operator(
            "max_unpool2d", _with_codes(shape), functions=(_unpool_codes, _unpool), untouched=(1,), **options
        )
        for name, prepare in {
            "max_pool with indices": pool,
            "max_pool with codes": codes,
            "max_unpool": unpool,
            "max_unpool with codes": unpool_codes,
        }.items():
            quick = QUICK.get(name, ()) if shape in (MAPS[0][0], MAPS[1][0]) else ()
            yield from expand("unpool", f"{name}, {case}", reason, prepare, WAYS, quick)
    stem = operator("max_pool2d", _map((1, 64, 256, 256)), kernel_size=3, stride=2, padding=1, gradients=(0,))
    reason = "the stem of every ResNet, on 512x512: windows overlap"
    ways = dict.fromkeys(("fp32 nchw", "fp32 nhwc"), ("forward", "training"))
    yield from expand("unpool", "max_pool 3x3 s2, 1x64x256x256", reason, stem, ways)


def _map(shape: tuple[int, ...]) -> Callable[[], tuple[Tensor]]:
    return lambda: (torch.randn(shape),)


def _pooled(shape: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: F.max_pool2d(torch.randn(shape), 2, 2, return_indices=True)


def _with_codes(shape: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    def make() -> tuple[Tensor, ...]:
        x = torch.randn(shape)
        return (*F.max_pool2d(x, 2, 2, return_indices=True), functional.max_pool2d(x, 2, 2, return_indices="codes")[1])

    return make


# What is compared is the values: codes are not indices.


def _pool_codes(x: Tensor, **options: Any) -> Tensor:
    return functional.max_pool2d(x, return_indices="codes", **options)[0]


def _pool(x: Tensor, **options: Any) -> Tensor:
    return PYTORCH.max_pool2d(x, return_indices=True, **options)[0]


def _unpool_codes(values: Tensor, indices: Tensor, codes: Tensor, **options: Any) -> Tensor:
    return functional.max_unpool2d(values, codes, **options)


def _unpool(values: Tensor, indices: Tensor, codes: Tensor, **options: Any) -> Tensor:
    return PYTORCH.max_unpool2d(values, indices, **options)
