"""Convolutions that keep the size of the map, max(., 0) between them: each layer's own kernel, in turn."""

from torch import Tensor

from atrousops.triton.conv import conv


def context_module(
    input: Tensor, weights: list[Tensor], biases: list[Tensor], dilation, allow_tf32: bool = False
) -> Tensor:
    for i, (weight, d) in enumerate(zip(weights, dilation)):
        reach = d * (weight.shape[-1] // 2)
        if i:
            input = input.relu_()
        bias = biases[i] if biases else None
        input = conv(input, weight, bias, (1, 1), (reach, reach), (d, d), 1, allow_tf32)
    return input
