"""The memory format that PyTorch gives to the result of a convolution, for our results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from atrousops.common.conv_arguments import Arguments, computed_in
from atrousops.common.formats import CHANNELS_LAST, in_channels_last, rises_from_channels
from atrousops.dispatch.devices import constant_in_graphs

# Elements of (N, C, D, H) above which one image of a volume is oneDNN's.
_LARGE_VOLUME = 20480


def in_format(
    run: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None, a: Arguments, *rest: Any
) -> Tensor:
    """`run` with a result in channels_last if the strides of either tensor say so, as in PyTorch.

    On a CPU, PyTorch's kernels for volumes other than oneDNN's return contiguous results.
    """
    if input.dim() == 3:
        return arranged(run(input, weight, bias, *rest), is_last(weight))
    rises = rises_from_channels(input) or rises_from_channels(weight)
    if not rises or (input.dim() == 5 and input.is_cpu and not _is_onednn_s(input, weight, a)):
        return run(input.contiguous(), weight, bias, *rest)
    result = run(input.contiguous(memory_format=CHANNELS_LAST[input.dim()]), weight, bias, *rest)
    return in_channels_last(result)


def is_last(t: Tensor) -> bool:
    """Whether a sequence's strides say channels_last, as those of a map of one row."""
    return rises_from_channels(t.unsqueeze(2))


def arranged(t: Tensor, last: bool) -> Tensor:
    """The same values, dense, in channels_last or contiguous."""
    if t.dim() == 3 and last:
        return in_channels_last(t.unsqueeze(2)).squeeze(2)
    return t.contiguous(memory_format=CHANNELS_LAST[t.dim()] if last else torch.contiguous_format)


def _is_onednn_s(input: Tensor, weight: Tensor, a: Arguments) -> bool:
    """Whether PyTorch computes a volume with oneDNN: ConvParams::use_mkldnn in ATen's Convolution.cpp."""
    if any([extra >= step for extra, step in zip(a.output_padding, a.stride)]) or not torch.backends.mkldnn.enabled:
        return False
    dtype = computed_in(input)
    if dtype != torch.float32:
        return _has_onednn(dtype)
    height, width = weight.shape[-2:]
    n, c, depth, rows, _ = input.shape
    if max(*a.stride, *a.dilation, height, width, _threads()) == 1 and n < 16:
        return False
    return a.groups > 1 or min(height, width) > 3 or n > 1 or n * c * depth * rows > _LARGE_VOLUME


@constant_in_graphs
def _has_onednn(dtype: torch.dtype) -> bool:
    of_16_bits: dict[torch.dtype, Any] = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in of_16_bits and bool(of_16_bits[dtype]())


@constant_in_graphs
def _threads() -> int:
    return torch.get_num_threads()
