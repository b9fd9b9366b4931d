"""conv_quantized: a convolution of int8 or float8_e4m3fn numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atrousops.reference.conv import conv

# What a scale maps the largest magnitude to. An activation beyond its scale may also become int8's -128.
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def quantize(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """q = x (1 / scale) in fp32, rounded half to even (in float8 by its own grid), and clamped to what dtype holds."""
    scaled = x.float() * scale.reciprocal()
    if dtype == torch.int8:
        return scaled.round().clamp(-128, 127).to(dtype)
    return scaled.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


def conv_quantized(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_scale: Tensor,
    weight_scale: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """y[n, k, o] = bias[k] + input_scale weight_scale[k] sum over taps r, channels c of weight[k, c, r] * q[n, c, ...].

    In fp64, q being the quantised input; see `conv`. The sums are exact: of integers, or of products of 8 bits.
    """
    q = quantize(input, input_scale, weight.dtype)
    sums = conv(q.double(), weight.double(), None, stride, padding, dilation, groups)
    across = (-1, *(1,) * len(stride))
    y = sums * (input_scale.double() * weight_scale.double()).view(across)
    return y if bias is None else y + bias.double().view(across)
