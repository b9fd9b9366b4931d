from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from atrousops.common.checks import bad_value
from atrousops.common.values import connected, has_values, values_of


def max_unpool(
    input: Tensor,
    indices: Tensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """y[indices[i]] = x[i] in each plane, zero elsewhere; if indices repeat, the last value is kept."""
    axes = len(kernel_size)
    leading = input.shape[:-axes]
    plane = math.prod(output_size)
    if plane == 0 or input.numel() == 0:
        return connected(input.new_zeros((*leading, *output_size)), input)
    _check(indices, plane, kernel_size)
    out = placed(input, indices, output_size, kernel_size, stride, padding)
    batched = torch._C._are_functorch_transforms_active()
    # PyTorch's max_unpool3d returns a contiguous tensor.
    if axes == 2 and len(leading) == 2 and not batched and input.is_contiguous(memory_format=torch.channels_last):
        return out.contiguous(memory_format=torch.channels_last)
    return out


def placed(
    input: Tensor,
    indices: Tensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """The same without checking the values of indices; sizes may be symbolic."""
    leading = input.shape[: -len(kernel_size)]
    values, flat, inside = _flat(input, indices, output_size, kernel_size, stride, padding)

    # The last window that writes to each position, counted from 1; 0 is none.
    order = torch.arange(1, values.shape[-1] + 1, device=input.device).expand(flat.shape) * inside
    writer = torch.zeros(*leading, math.prod(output_size), dtype=torch.int64, device=input.device)
    writer = writer.scatter_reduce(-1, flat * inside, order, "amax")
    last = values.gather(-1, (writer - 1).clamp(min=0))
    return torch.where(writer > 0, last, torch.zeros_like(last)).reshape(*leading, *output_size)


def max_unpool_backward(
    grad: Tensor,
    indices: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """x[i] = y[indices[i]] in each plane, and zero if the index is outside."""
    size = grad.shape[-len(kernel_size) :]
    if math.prod(size) == 0:
        return connected(grad.new_zeros(indices.shape), grad)
    _, flat, inside = _flat(indices, indices, size, kernel_size, stride, padding)
    picked = grad.flatten(-len(size)).gather(-1, flat * inside)
    return torch.where(inside, picked, torch.zeros_like(picked)).view(indices.shape)


def max_pool_backward(
    grad: Tensor,
    indices: Tensor,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """y[indices[i]] += x[i] in each plane; indices outside are ignored."""
    values, flat, inside = _flat(grad, indices, input_size, kernel_size, stride, padding)
    zeros = connected(values.new_zeros((*values.shape[:-1], math.prod(input_size))), values, flat)
    sums = zeros.scatter_add(-1, flat * inside, torch.where(inside, values, torch.zeros_like(values)))
    return sums.view(*values.shape[:-1], *input_size)


def _check(indices: Tensor, plane: int, kernel_size: Sequence[int]) -> None:
    all_indices = values_of(indices)
    if not has_values(all_indices):
        return
    if indices.dtype == torch.uint8:
        taps, largest = math.prod(kernel_size), int(all_indices.max())
        if largest >= taps:
            bad_value("max_unpool", "indices", f"hold codes between 0 and {taps - 1}", largest)
        return
    wrong = all_indices[(all_indices < 0) | (all_indices >= plane)]
    if wrong.numel():
        first = wrong[0].item()
        rule = f"lie between 0 and {plane - 1}"
        bad_value("max_unpool", "indices", rule, first, f"Found an invalid max index: {first}")


def _flat(
    values: Tensor,
    indices: Tensor,
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Planes as rows: the values, their positions in planes of `size`, and whether these lie inside."""
    axes = len(kernel_size)
    if indices.dtype == torch.uint8:
        indices, inside = _positions(indices.long(), indices.shape[-axes:], size, kernel_size, stride, padding)
    else:
        inside = (indices >= 0) & (indices < math.prod(size))
    return values.flatten(-axes), indices.flatten(-axes), inside.flatten(-axes)


def _positions(codes, windows, output_size, kernel_size, stride, padding) -> tuple[Tensor, Tensor]:
    """Flat positions of the taps given by codes, and whether they lie inside the output."""
    flat, inside = torch.zeros_like(codes), torch.ones_like(codes, dtype=torch.bool)
    axes = len(kernel_size)
    for axis in range(axes):
        after = math.prod(kernel_size[axis + 1 :])
        start = torch.arange(windows[axis], device=codes.device) * stride[axis] - padding[axis]
        x = start.reshape(-1, *[1] * (axes - 1 - axis)) + codes // after % kernel_size[axis]
        inside = inside & (x >= 0) & (x < output_size[axis])
        flat = flat * output_size[axis] + x
    return flat, inside
