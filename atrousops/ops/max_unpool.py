"""max_unpool1d, max_unpool2d, max_unpool3d: write values back to the positions of the maxima."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function

from atrousops import reference
from atrousops.common.checks import bad_type, bad_value, check_device
from atrousops.common.formats import (
    as_answered,
    empty_map,
    in_channels_last,
    prefers_channels_last,
    rises_from_channels,
)
from atrousops.common.values import transformed
from atrousops.dispatch import backends
from atrousops.ops._register import foreign, keep, register, stands_in
from atrousops.ops._routes import Route, autocasts, call_of, is_plain, kernel_of, route_of
from atrousops.ops._small import is_small
from atrousops.ops._windows import check_map, check_tensor, in_float32, integer, per_axis
from atrousops.ops.max_pool import Size, pool_backward

_NAMES = ("", "max_unpool1d", "max_unpool2d", "max_unpool3d")
_ATEN: tuple[Any, ...] = (None, F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)
# If OpenMP gives fewer threads than requested, a call is divided differently.
_FEWER_THREADS = bool({"OMP_DYNAMIC", "OMP_THREAD_LIMIT"} & os.environ.keys())


def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Undoes max_pool1d of a signal (N, C, L) or (C, L); see max_unpool2d."""
    route = route_of(_CALLS[1], input, indices, None, (kernel_size, stride, padding, output_size))
    return route.run(input, indices, *route.rest)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Writes each value to the position of its maximum and zero elsewhere, as torch.nn.functional.max_unpool2d.

    y[n, c, indices[n, c, i, j]] = x[n, c, i, j], where positions are h W_out + w. If several windows have the same
    position, the last in the order of the map is kept (PyTorch leaves this undefined, and refuses under deterministic
    algorithms).

    Args:
        input: (N, C, H, W) or (C, H, W), contiguous or channels_last, float64, float32, bfloat16 or float16.
        indices: of the same shape: int64 positions, or uint8 codes from max_pool2d(..., return_indices="codes"). A code
            whose tap lies outside the output is ignored.
        kernel_size: size of the window that was pooled.
        stride: step between windows; kernel_size if None.
        padding: as in the pooling, on each side; negative for a larger result.
        output_size: (H_out, W_out), or a full shape whose last two are used; each within a stride of the default.

    Returns:
        (N, C, H_out, W_out), by default H_out = (H - 1) stride - 2 padding + kernel_size.

    Raises:
        ArgumentError: shapes that disagree, an index outside the output, a code outside the window.
        ArgumentTypeError: indices that are neither int64 nor uint8.
    """
    route = route_of(_CALLS[2], input, indices, None, (kernel_size, stride, padding, output_size))
    return route.run(input, indices, *route.rest)


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Undoes max_pool3d of a volume (N, C, D, H, W) or (C, D, H, W); see max_unpool2d."""
    route = route_of(_CALLS[3], input, indices, None, (kernel_size, stride, padding, output_size))
    return route.run(input, indices, *route.rest)


def _find(
    axes: int,
    input: Tensor,
    indices: Tensor,
    _: None,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    output_size: Sequence[int] | None,
) -> Route:
    op = _NAMES[axes]
    if stands_in(input, indices):
        record = functools.partial(handle_torch_function, globals()[op], (input, indices))
        return Route(record, (kernel_size, stride, padding, output_size))
    check_tensor(op, "input", input)
    check_tensor(op, "indices", indices)
    apart = foreign(input, indices)
    if apart and indices.dtype == torch.int64 and backends.forced() != "reference":
        return Route(_ATEN[axes], (kernel_size, stride, padding, output_size))
    kernel = per_axis(op, "kernel_size", kernel_size, axes)
    steps = kernel if stride is None else per_axis(op, "stride", stride, axes)
    pads = per_axis(op, "padding", padding, axes)
    _check(op, axes, input, indices, kernel, steps, pads)
    wide = in_float32(input)
    if wide is not input:
        route = _find(axes, wide, indices, None, kernel, steps, pads, output_size)
        return Route(lambda input, indices, *rest: route.run(in_float32(input), indices, *rest), route.rest)
    size = _output_size(op, input.shape[-axes:], kernel, steps, pads, output_size)
    # Only codes are read by the window, and of positions PyTorch allows a padding that no pooling has.
    read = tuple([max(p, 0) for p in pads])
    if _pytorch_keeps_order(axes, input, indices, size):
        theirs = (size, steps, pads) if axes == 3 else (size,)
        ours = kernel_of("max_unpool", input, indices)
        return Route(_in_pytorch, (_SMALL[axes], theirs, ours, size, kernel, steps, read))
    backend = backends.choose("max_unpool", input.device, input.dtype)
    if backend in backends.COMPILED and not apart:
        # Maps of one channel or one pixel are in both formats, and their strides are not asked here.
        either = input.dim() == axes + 2 and (input.shape[1] == 1 or math.prod(input.shape[2:]) == 1)
        ordered = axes > 1 and input.dim() == axes + 2 and (either or not input.is_contiguous())
        return Route(_unpool_in_order if ordered else _unpool, (size, kernel, steps, read))
    if backend == "aten" and indices.dtype == torch.int64:
        return Route(_ATEN[axes], (kernel, steps, pads, size))
    return Route(reference.max_unpool, (size, kernel, steps, read))


def _unpool_in_order(input: Tensor, indices: Tensor, *rest: Any) -> Tensor:
    last = input.dim() == 4 and rises_from_channels(input) and not transformed()
    # PyTorch's max_unpool3d answers contiguous, and so does its gradient.
    input, indices = (input.contiguous(), indices.contiguous()) if input.dim() == 5 else (as_answered(input), indices)
    result: Tensor = kernel_of("max_unpool", input, indices)(input, indices, *rest)
    return in_channels_last(result) if last else result


def _pytorch_keeps_order(axes: int, input: Tensor, indices: Tensor, size: tuple[int, ...]) -> bool:
    """Whether the call is small and PyTorch's operator, which takes less time, gives our result bit for bit.

    PyTorch divides the elements of all planes among threads, each of which writes in order. So for equal positions the
    last value is kept if no two threads share a plane. For maps of one pixel it may return another memory format.
    """
    if not is_small(input) or indices.dtype != torch.int64:
        return False
    pixels = math.prod(input.shape[-axes:])
    if pixels == 1 or 0 in size or autocasts() or not is_plain((input, indices)):
        return False
    threads = torch.get_num_threads()
    return threads == 1 or (not _FEWER_THREADS and input.numel() // pixels % threads == 0)


def _in_pytorch(input: Tensor, indices: Tensor, aten: Any, theirs: tuple[Any, ...], ours: Any, *rest: Any) -> Tensor:
    # Under deterministic algorithms ours must run: PyTorch refuses, because its order is undefined.
    if not torch._C._get_deterministic_algorithms():
        try:
            return aten(input, indices, *theirs)
        except RuntimeError:
            # Our operator reports an index outside with its own message; other errors occur there as well.
            pass
    result: Tensor = ours(input, indices, *rest)
    return result


def _unpool_line(input: Tensor, indices: Tensor, size: tuple[int]) -> Tensor:
    return torch._C._nn.max_unpool2d(input.unsqueeze(-1), indices.unsqueeze(-1), (*size, 1)).squeeze(-1)


# PyTorch's operators without its Python checks, which we have already made.
_SMALL: tuple[Any, ...] = (None, _unpool_line, torch._C._nn.max_unpool2d, torch._C._nn.max_unpool3d)


def _check(
    op: str,
    axes: int,
    input: Tensor,
    indices: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> None:
    if indices.dtype != torch.int64 and indices.dtype != torch.uint8:
        bad_type(
            op,
            "indices",
            "be int64, or uint8 codes",
            indices.dtype,
            "(PyTorch: elements in indices should be type int64)",
        )
    shape = input.shape
    if shape != indices.shape:
        bad_value(
            op,
            "indices",
            f"have the shape of input, {tuple(shape)}",
            f"shape {tuple(indices.shape)}",
            "(PyTorch: Expected shape of indices to be same as that of the input tensor)",
        )
    check_device(op, "input", input, indices=indices)
    check_map(op, axes, input, or_channels=True)
    if min(kernel) <= 0:
        bad_value(op, "kernel_size", "be positive", kernel)
    if min(stride) <= 0:
        bad_value(op, "stride", "be positive", stride, "(PyTorch: strides should be greater than zero)")
    if min(padding) < 0 and indices.dtype == torch.uint8:
        bad_value(op, "padding", "not be negative where indices are codes", padding)


def _output_size(
    op: str,
    size: Sequence[int],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    wish: Sequence[int] | None,
) -> tuple[int, ...]:
    default = tuple([(n - 1) * s + k - 2 * p for n, k, s, p in zip(size, kernel, stride, padding)])
    if wish is None:
        out = default
    else:
        axes = len(kernel)
        rule = f"be a sequence of {axes} or {axes + 2} integers, or None"
        if not isinstance(wish, (tuple, list)):
            bad_type(op, "output_size", rule, repr(wish))
        out = tuple([integer(op, "output_size", n, rule) for n in (wish[2:] if len(wish) == axes + 2 else wish)])
        if len(out) != axes:
            bad_value(
                op,
                "output_size",
                f"have {axes} or {axes + 2} numbers",
                tuple(wish),
                f"(PyTorch: output_size should be a sequence containing {axes} or {axes + 2} elements, "
                f"but it has a length of '{len(wish)}')",
            )
        for axis, (got, usual, s) in enumerate(zip(out, default, stride)):
            if not usual - s < got < usual + s:
                bad_value(
                    op,
                    "output_size",
                    f"be within a stride of the default {default}",
                    tuple(wish),
                    f'(PyTorch: invalid output_size "{out}" (dim {axis} must be between {usual - s} and {usual + s}))',
                )
    for axis, n in enumerate(out):
        if n < 0:
            bad_value(
                op,
                "output_size",
                "not be negative",
                out,
                "(PyTorch: max_unpooling: output_size must contain non-negative spatial dimensions, "
                f"but got output_size[{axis}]={n})",
            )
        if n > (1 << 63) - 1:
            bad_value(op, "output_size", "be smaller than 2^63", out, "Use a smaller stride or kernel_size.")
    return out


def _fake(input, indices, output_size, kernel_size, stride, padding):
    return empty_map(input, output_size, prefers_channels_last(input, len(kernel_size)))


def _setup(ctx, inputs, output) -> None:
    _, indices, _, kernel, stride, padding = inputs
    keep(ctx, indices)
    ctx.window = (kernel, stride, padding, [1] * len(kernel))


def _backward(ctx, grad):
    (indices,) = ctx.saved_tensors
    # In the map's format; PyTorch's is always contiguous, which here would take one more pass, and one back.
    return _unpool_backward(grad, indices, *ctx.window), None, None, None, None, None


def _backward_fake(grad, indices, kernel_size, stride, padding, dilation):
    axes = len(kernel_size)
    return empty_map(grad, indices.shape[-axes:], prefers_channels_last(indices, axes))


def _backward_setup(ctx, inputs, output) -> None:
    grad, indices, *ctx.window = inputs
    keep(ctx, indices)
    ctx.size = grad.shape[-len(ctx.window[0]) :]


def _double_backward(ctx, grad):
    (indices,) = ctx.saved_tensors
    return pool_backward(grad, indices, ctx.size, *ctx.window), None, None, None, None, None


_unpool = register("max_unpool", fake=_fake, otherwise=reference.max_unpool, backward=_backward, setup_context=_setup)
_unpool_backward = register(
    "max_unpool_backward",
    fake=_backward_fake,
    otherwise=reference.max_unpool_backward,
    backward=_double_backward,
    setup_context=_backward_setup,
)
_CALLS = [call_of("max_unpool", _find, axes) for axes in range(4)]
