"""FusedBranches: convolutions of one map side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atrousops import functional
from atrousops.nn._stock import leaf
from atrousops.nn.conv import FusedConv2d
from atrousops.ops.conv_branches import why_apart


@leaf
class FusedBranches(nn.Module):
    """concat(branch_1(input), ..., branch_n(input), others...): what `atrousops.optimize` makes of ASPP's branches.

    `functional.conv_branches` where that is one launch, else the branches one by one.

    Args:
        branches: with one activation, "relu" or None, and one memory format; stride 1 and zeros for padding, as many on
            either side; all of them with a bias, or none.

    Shapes:
        input: (N, C, H, W); others: (N, K, H_out, W_out) each.
        output: (N, all K together, H_out, W_out).
    """

    def __init__(self, branches: Sequence[FusedConv2d]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.padding = [p for b in branches if (p := padding_of(b)) is not None]
        self.dilation: list[Any] = [b.dilation for b in branches]
        self.activation, self.memory_format = branches[0].activation, branches[0].memory_format

    def forward(self, input: Tensor, *others: Tensor) -> Tensor:
        if input.dim() == 4:
            if self.memory_format is not None:
                input = input.contiguous(memory_format=self.memory_format)
            if (joined := self._joined(input, others)) is not None:
                return joined
        return torch.cat([*[branch(input) for branch in self.branches], *others], 1)

    def _joined(self, input: Tensor, others: tuple[Tensor, ...]) -> Tensor | None:
        layers: list[Any] = list(self.branches)
        weights = [layer.weight for layer in layers]
        biases = None if layers[0].bias is None else [layer.bias for layer in layers]
        around = (self.padding, self.dilation)
        # A concatenation finds one dtype for all.
        mixed = any([t.dtype != input.dtype for t in others])
        watched = any([layer._forward_hooks or layer._forward_pre_hooks for layer in layers])
        if mixed or watched or why_apart(input, weights, *around, self.activation is not None, others):
            return None
        return functional.conv_branches(input, weights, biases, *around, self.activation, others)


def padding_of(layer: FusedConv2d) -> tuple[int, int] | None:
    """Zeros on either side along both axes; None where a side has others than the other."""
    if isinstance(layer.padding, str):
        total = [d * (k - 1) if layer.padding == "same" else 0 for d, k in zip(layer.dilation, layer.kernel_size)]
        return None if any(t % 2 for t in total) else (total[0] // 2, total[1] // 2)
    return layer.padding[0], layer.padding[1]
