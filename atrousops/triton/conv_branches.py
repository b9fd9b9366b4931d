"""Convolutions of one map side by side: each one's own kernel, with its ReLU, in turn."""

from torch import Tensor

from atrousops.common.formats import empty_as_kernel
from atrousops.triton.conv import conv_epilogue


def conv_branches(
    input: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    others: list[Tensor],
    padding,
    dilation,
    relu: bool,
    allow_tf32: bool,
) -> Tensor:
    rank, parts = input.dim() - 2, []
    for i, weight in enumerate(weights):
        around = slice(i * rank, (i + 1) * rank)
        bias, activation = biases[i] if biases else None, "relu" if relu else "none"
        rest = ((1,) * rank, padding[around], dilation[around], 1, allow_tf32)
        parts.append(conv_epilogue(input, weight, bias, None, activation, *rest))
    parts += others
    channels = [part.shape[1] for part in parts]
    out = empty_as_kernel((input.shape[0], sum(channels), *parts[0].shape[2:]), input)
    for part, place in zip(parts, out.split(channels, 1)):
        place.copy_(part)
    return out
