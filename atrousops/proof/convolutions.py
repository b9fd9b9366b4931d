"""A planned convolution as a call: of PyTorch's operator, and of ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from atrousops.dispatch.planner import CallArguments


def operands(a: CallArguments, tensor: Callable[[tuple[int, ...]], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and what comes from above, each made by `tensor` from its size; both sides are padded alike."""
    with torch.device("meta"):
        size = aten(a._replace(kind=_forward(a)), torch.empty(a.input_size), torch.empty(a.weight_size)).shape
    return tensor(a.input_size), tensor(a.weight_size), tensor(tuple(size))


def _forward(a: CallArguments) -> str:
    return "transposed" if a.kind == "transposed" else "forward"


def aten(a: CallArguments, input: Tensor, weight: Tensor, grad: Tensor | None = None) -> Tensor:
    """PyTorch's operator; a gradient ("input_grad", "weight_grad") is that for `grad` from above."""
    rank = len(a.stride)
    padding = a.padding[:rank]
    if a.kind == "transposed":
        stock = getattr(F, f"conv_transpose{rank}d")
        return stock(input, weight, None, a.stride, padding, a.output_padding, a.groups, a.dilation)
    if a.kind == "forward":
        return getattr(F, f"conv{rank}d")(input, weight, None, a.stride, padding, a.dilation, a.groups)
    wants_input = a.kind == "input_grad"
    rest = (a.stride, padding, a.dilation, False, (0,) * rank, a.groups, (wants_input, not wants_input, False))
    return torch.ops.aten.convolution_backward(grad, input, weight, None, *rest)[0 if wants_input else 1]


def ours(
    a: CallArguments, input: Tensor, weight: Tensor, grad: Tensor | None = None, *, tf32: bool, first: int = 0
) -> Tensor:
    """Our operator, on whichever kernels are registered for the device; `first` as in choice.Chosen."""
    ops, padding = torch.ops.atrousops, a.padding[: len(a.stride)]
    rest = (a.stride, padding, a.dilation, a.groups, tf32, first)
    if a.kind == "transposed":
        around = (a.stride, padding, a.output_padding, a.dilation, a.groups, tf32, first)
        return ops.conv_transpose(input, weight, None, *around)
    if a.kind == "forward":
        return ops.conv(input, weight, None, *rest)
    if a.kind == "input_grad":
        return ops.conv_grad_input(grad, weight, a.input_size, *rest)
    return ops.conv_grad_weight(grad, input, a.weight_size[2:], *rest)
