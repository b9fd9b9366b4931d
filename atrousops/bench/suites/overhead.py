"""The smallest calls, in inference and in training: what a call costs when there is nothing to compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atrousops.bench.operators import operator
from atrousops.bench.registry import Row, expand

CALLS = 200
DIRECTIONS = ("forward", "training")


def rows() -> Iterator[Row]:
    """Every operator that PyTorch or torchvision has too, at a size where only its overhead is left."""
    for name, op, make, options in _cases():
        prepare = operator(op, make, calls=CALLS, **options)
        quick = ("fp32 nchw forward", "fp32 nchw training")
        yield from expand("overhead", name, "microseconds a call", prepare, {"fp32 nchw": DIRECTIONS}, quick)
    # The smallest size at which a convolution of ours can be chosen at all shows the price of choosing.
    prepare = operator("conv2d", _tensors((1, 32, 16, 16), (32, 32, 3, 3)), calls=CALLS, padding=4, dilation=4)
    yield from expand("overhead", "conv2d 32->32, 16x16, rate 4", "the price of a choice", prepare, {
        "fp32 nchw": DIRECTIONS, "fp32 nhwc": DIRECTIONS,
    })  # fmt: skip


def _cases() -> Iterator[tuple[str, str, Callable[[], tuple[Tensor, ...]], dict[str, Any]]]:
    yield "conv2d 4->4, 4x4", "conv2d", _tensors((1, 4, 4, 4), (4, 4, 3, 3)), {"padding": 2, "dilation": 2}
    yield "conv2d depthwise 8, 4x4", "conv2d", _tensors((1, 8, 4, 4), (8, 1, 3, 3)), {"padding": 1, "groups": 8}
    yield "conv_transpose2d 4->4, 4x4", "conv_transpose2d", _tensors((1, 4, 4, 4), (4, 4, 2, 2)), {"stride": 2}
    options: dict[str, Any] = {"kernel_size": 2, "stride": 2, "gradients": (0,)}
    yield "max_pool2d 4, 8x8", "max_pool2d", _tensors((1, 4, 8, 8)), {**options, "return_indices": True}
    yield "max_unpool2d 4, 4x4", "max_unpool2d", _pooled, options
    options = {"output_size": 2, "gradients": (0,), "uncast": (1,)}
    yield "roi_align, 1 box, 4x8x8", "roi_align", _with_box, {**options, "sampling_ratio": 2}
    yield "roi_pool, 1 box, 4x8x8", "roi_pool", _with_box, options


def _tensors(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.randn(shape) for shape in shapes)


def _pooled() -> tuple[Tensor, ...]:
    return F.max_pool2d(torch.randn(1, 4, 8, 8), 2, 2, return_indices=True)


def _with_box() -> tuple[Tensor, ...]:
    return torch.randn(1, 4, 8, 8), torch.tensor([[0.0, 1.0, 1.0, 6.0, 6.0]])
