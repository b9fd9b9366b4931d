"""Mean-field inference in a fully connected CRF, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def mean_field(
    scores: Tensor,
    kernels: Sequence[Callable[[Tensor], Tensor]],
    compatibilities: Sequence[Tensor],
    iterations: int,
) -> Tensor:
    """Q <- softmax(scores - sum_k mu_k K_k Q) from Q = softmax(scores); scores (N, L, P), mu_k (L) or (L, L)."""
    q = torch.softmax(scores, 1)
    for _ in range(iterations):
        logits = scores
        for kernel, mu in zip(kernels, compatibilities):
            message = kernel(q)
            logits = logits - (mu[:, None] * message if mu.dim() == 1 else mu @ message)
        q = torch.softmax(logits, 1)
    return q
