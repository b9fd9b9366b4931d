"""What all kernels share: how they are declared and launched, and how they turn an element's number into a place."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from atrousops.common.formats import prefers_channels_last
from atrousops.dispatch.triton_library import interpreted

# Larger steps than a GPU would take: the interpreter's time is that of its calls.
_INTERPRETED_BLOCK = 1 << 16


def jit(kernel):
    """triton.jit, with integers as 64 bits whatever their value: another image size is no other kernel."""
    sizes = [name for name, kind in kernel.__annotations__.items() if kind is tl.int64]
    return triton.jit(kernel, do_not_specialize=sizes)


def inline(helper):
    """triton.jit for what kernels call; the interpreter takes it as it is, which saves it a millisecond a call."""
    return helper if interpreted() else triton.jit(helper)


def wrap_triton(kernel):
    """torch.library.wrap_triton, which before torch 2.14 refuses what Triton interprets."""
    return kernel if interpreted() else torch.library.wrap_triton(kernel)


def launch(kernel, programs: int, *args, **meta) -> None:
    """Starts `programs` programs on one axis, whose limit is 2^31 - 1."""
    if programs > 0:
        wrap_triton(kernel)[(programs,)](*args, **meta)


def block(gpu: int, count: int) -> int:
    """Elements of a program; under the interpreter there are at least two programs, unless that is too few."""
    return min(triton.next_power_of_2(max(gpu, count // 2)), _INTERPRETED_BLOCK) if interpreted() else gpu


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def channels_are_inner(t: Tensor) -> bool:
    """Dense as (N, *, C), and not as (N, C, *) as well."""
    return prefers_channels_last(t)


@inline
def elements(count, BLOCK: tl.constexpr):
    """The numbers of this program's elements, and which of them exist."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return i, i < count


@inline
def split(i, size):
    """i = high * size + low, for i >= 0: (high, low)."""
    high = i // size
    return high, i - high * size


@inline
def split3(i, h, w):
    """i = (z * h + y) * w + x: (z, y, x)."""
    up, x = split(i, w)
    z, y = split(up, h)
    return z, y, x


@inline
def wide(x):
    """In the dtype of sums: float64, or float32."""
    if x.dtype == tl.float64:
        return x
    elif x.dtype == tl.bfloat16:
        # On bits, since the interpreter's conversion flushes subnormal numbers.
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@inline
def full(SHAPE: tl.constexpr, value, like):
    """Of the dtype in which values behind the pointer `like` are summed."""
    if like.dtype.element_ty == tl.float64:
        return tl.full(SHAPE, value, tl.float64)
    else:
        return tl.full(SHAPE, value, tl.float32)


def _narrow(x, like):
    """In the dtype behind the pointer `like`, rounded to nearest even."""
    return x.to(like.dtype.element_ty)


def _narrow_interpreted(x, like):
    # On bits, since the interpreter cuts bfloat16 off.
    if like.dtype.element_ty != tl.bfloat16:
        return x.to(like.dtype.element_ty)
    bits = x.to(tl.float32).to(tl.uint32, bitcast=True).to(tl.int64)
    rounded = tl.where(x != x, 0x7FC0, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
    return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)


narrow = _narrow_interpreted if interpreted() else triton.jit(_narrow)
