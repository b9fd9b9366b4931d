"""FusedBranches: parallel convolutions of one map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atrousops import ops
from atrousops.nn.conv import FusedConv2d
from atrousops.nn.in_place import leaf
from atrousops.ops.conv_branches import why_apart


@leaf
class FusedBranches(nn.Module):
    """concat(branch_1(input), ..., branch_n(input), others...), computed by `run_branches`.

    Args:
        branches: of stride 1, with equal zero padding on both sides; either all or none have a bias.
        activation: "relu" or None.

    Shapes:
        input: (N, C, H, W); others: (N, K, H_out, W_out) each.
        output: (N, all K together, H_out, W_out).
    """

    def __init__(self, branches: Sequence[FusedConv2d], activation: str | None = None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.activation = activation

    def forward(self, input: Tensor, *others: Tensor) -> Tensor:
        return run_branches(list(self.branches), self.activation, input, others)


def run_branches(layers: list[Any], activation: str | None, input: Tensor, others: Sequence[Tensor]) -> Tensor:
    """concat(activation(layer_1(input)), ..., others...), by `functional.conv_branches` if that is one launch."""
    if input.dim() == 4 and (joined := _joined(layers, activation, input, others)) is not None:
        return joined
    return torch.cat([*[layer(input, None, activation) for layer in layers], *others], 1)


def _joined(layers: list[Any], activation: str | None, input: Tensor, others: Sequence[Tensor]) -> Tensor | None:
    first = layers[0]
    alike = all([fits(layer) and (layer.bias is None) == (first.bias is None) for layer in layers])
    hooks = any([layer._forward_hooks or layer._forward_pre_hooks for layer in layers])
    # Concatenation promotes all to one dtype.
    if not alike or hooks or activation not in (None, "relu") or any([t.dtype != input.dtype for t in others]):
        return None
    if first.channels_last:
        input = input.contiguous(memory_format=torch.channels_last)
    padding: list[Any] = [padding_of(layer) for layer in layers]
    weights, around = [layer.weight for layer in layers], (padding, [layer.dilation for layer in layers])
    if why_apart(input, weights, *around, activation is not None, others):
        return None
    biases = None if first.bias is None else [layer.bias for layer in layers]
    return ops.conv_branches(input, weights, biases, *around, activation, others)


def fits(layer: Any) -> bool:
    """Whether a layer can be part of a joint launch."""
    return (
        type(layer) is FusedConv2d
        and layer.stride == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and padding_of(layer) is not None
    )


def padding_of(layer: FusedConv2d) -> tuple[int, int] | None:
    """The zero padding along both axes; None if the two sides differ."""
    if isinstance(layer.padding, str):
        total = [d * (k - 1) if layer.padding == "same" else 0 for d, k in zip(layer.dilation, layer.kernel_size)]
        return None if any(t % 2 for t in total) else (total[0] // 2, total[1] // 2)
    return layer.padding[0], layer.padding[1]
