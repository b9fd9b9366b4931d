"""y = 0 where the exponent of x is 0, else x; any shape, any dense memory format."""

import torch
import triton.language as tl
from torch import Tensor

from atrousops.triton._common import block, cdiv, elements, jit, launch

# The integers that hold a dtype's bits, and those of its exponent.
_BITS = {
    torch.float64: (torch.int64, 0x7FF0000000000000),
    torch.float32: (torch.int32, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
}


@jit
def flush_subnormals_kernel(
    x, y, count: tl.int64, EXPONENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # On bits, since a comparison of subnormal numbers may itself flush them.
    i, live = elements(count, BLOCK)
    bits = tl.load(x + i, mask=live, other=0)
    tl.store(y + i, tl.where((bits & EXPONENT) == 0, 0, bits), mask=live)


def flush_subnormals(input: Tensor) -> Tensor:
    output = torch.empty_like(input)
    # empty_like has the order of strides of a dense input, and any of another.
    source = input if input.stride() == output.stride() else torch.empty_like(output).copy_(input)
    integer, exponent = _BITS[input.dtype]
    count = input.numel()
    size = block(1024, count)
    launch(
        flush_subnormals_kernel, cdiv(count, size), source.view(integer), output.view(integer), count, exponent, size
    )
    return output
