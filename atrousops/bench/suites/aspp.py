"""The whole ASPP module: five branches, batch normalisation, ReLU, concatenation, projection."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

import atrousops as ao
from atrousops.bench.modules import module
from atrousops.bench.registry import Row, expand
from atrousops.nn import ASPP

INFERENCE = {way: ("forward",) for way in ("fp32 nchw", "fp32 nhwc", "bf16 nchw", "bf16 nhwc", "tf32 nhwc")}
TRAINING = {way: ("training",) for way in ("fp32 nchw", "fp32 nhwc", "bf16 nhwc")}
# name, rates, size, batch, reason
CASES = (
    ("v3 OS16", (6, 12, 18), 33, 1, "DeepLab v3 as it was published"),
    ("torchvision OS8", (12, 24, 36), 65, 1, "torchvision's: rates beyond half of the map"),
    ("v3 OS16", (6, 12, 18), 33, 8, "training: statistics of the batch, gradients of everything"),
)


def rows() -> Iterator[Row]:
    """2048 -> 256, inference at batch 1 and training."""
    case = "v3 OS16 optimised, rates 6 12 18, 33x33, batch 1"
    reason = "after optimize: normalisation folded, and on an H100 the branches one launch"
    rates = CASES[0][1]
    prepare = module(partial(_ours, rates), partial(_stock, rates), partial(_input, 1, 33), made_ready=ao.optimize)
    yield from expand("aspp", case, reason, prepare, {way: ("forward",) for way in ("fp32 nhwc", "bf16 nhwc")})
    for name, rates, size, batch, reason in CASES:
        case = f"{name}, rates {' '.join(map(str, rates))}, {size}x{size}, batch {batch}"
        prepare = module(partial(_ours, rates), partial(_stock, rates), partial(_input, batch, size))
        quick = ("fp32 nhwc forward",) if (size, batch) == (33, 1) else ()
        yield from expand("aspp", case, reason, prepare, INFERENCE if batch == 1 else TRAINING, quick)


def _ours(rates: tuple[int, ...]) -> nn.Module:
    return ASPP(2048, rates, dropout=0.0)


def _stock(rates: tuple[int, ...]) -> nn.Module:
    from torchvision.models.segmentation import deeplabv3

    stock = deeplabv3.ASPP(2048, rates)
    stock.project[3].p = 0.0
    return stock


def _input(batch: int, size: int) -> Tensor:
    # As behind a ReLU.
    return torch.randn(batch, 2048, size, size).relu()
