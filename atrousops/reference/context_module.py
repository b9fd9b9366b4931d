"""The context module in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atrousops.reference.conv import conv


def context_module(
    input: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dilation: Sequence[int]
) -> Tensor:
    """Size-preserving convolutions in sequence, with max(., 0) in between; biases may be empty."""
    for i, (weight, d) in enumerate(zip(weights, dilation)):
        reach = d * (weight.shape[-1] // 2)
        if i:
            input = torch.relu(input)
        input = conv(input, weight, biases[i] if biases else None, (1, 1), (reach, reach), (d, d), 1)
    return input
