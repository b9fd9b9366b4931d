"""Parallel convolutions of one map, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atrousops.reference.conv import conv


def conv_branches(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    others: Sequence[Tensor],
    padding: Sequence[Sequence[int]],
    dilation: Sequence[Sequence[int]],
    relu: bool,
) -> Tensor:
    """The concatenation of each convolution, with max(., 0), and of others; biases may be empty."""
    parts = []
    for i, (weight, p, d) in enumerate(zip(weights, padding, dilation)):
        y = conv(input, weight, biases[i] if biases else None, (1,) * len(p), p, d, 1)
        parts.append(torch.relu(y) if relu else y)
    return torch.cat([*parts, *others], 1)
