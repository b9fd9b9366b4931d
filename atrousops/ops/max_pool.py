"""max_pool1d, max_pool2d, max_pool3d: the maximum of each window, and its position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function

from atrousops import reference
from atrousops.common.checks import bad_value
from atrousops.common.formats import (
    CHANNELS_LAST,
    as_answered,
    empty_map,
    in_channels_last,
    pooled_size,
    prefers_channels_last,
    rises_from_channels,
)
from atrousops.common.values import connected, transformed
from atrousops.dispatch import backends
from atrousops.ops import _routes
from atrousops.ops._register import foreign, jit_traces, keep, register, stands_in
from atrousops.ops._small import is_small
from atrousops.ops._windows import check_bool, check_map, check_tensor, in_float32, per_axis

Size = int | Sequence[int]
ReturnIndices = bool | Literal["codes"]

_NAMES = ("", "max_pool1d", "max_pool2d", "max_pool3d")
_ATEN: tuple[Any, ...] = (None, F.max_pool1d, F.max_pool2d, F.max_pool3d)
# PyTorch's operators without and with indices, without its Python wrapper.
_SMALL: tuple[Any, ...] = (
    (),
    (torch.max_pool1d, torch.max_pool1d_with_indices),
    (torch.max_pool2d, torch._C._nn.max_pool2d_with_indices),
    (torch.max_pool3d, torch._C._nn.max_pool3d_with_indices),
)
# Up to this many elements in channels_last, PyTorch's 2x2 pooling with indices takes less time than ours with overhead.
_SMALL_LAST = 1 << 20
# PyTorch's message for an input that is not a map.
_EXPECTED = [
    f"(PyTorch: Expected {axes + 1}D or {axes + 2}D (batch mode) tensor with optional 0 dim batch size for input"
    + ("; Expected input's non-batch dimensions to have positive length)" if axes == 3 else ")")
    for axes in range(4)
]
# A code is one byte.
_MOST_TAPS = 256


def max_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: ReturnIndices = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum over windows of a signal (N, C, L) or (C, L); see max_pool2d."""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: ReturnIndices = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum over windows, equal to torch.nn.functional.max_pool2d including indices.

    y[n, c, i, j] = max over (u, v) of x[n, c, i s - p + u d, j s - p + v d], with -inf outside the map. Among equal
    values the first in the order of the map is taken; NaN is larger than any number.

    Args:
        input: (N, C, H, W) or (C, H, W), contiguous or channels_last, float64, float32, bfloat16 or float16.
        kernel_size: size of the window.
        stride: step between windows; kernel_size if None.
        padding: at each side, at most half of kernel_size.
        dilation: step between the taps of a window.
        ceil_mode: also compute a last window that extends beyond the edge, if it starts inside the map or its left
            padding.
        return_indices: True for int64 positions h W + w of each maximum in its (H, W) plane, as in PyTorch. "codes" for
            the uint8 number u K_w + v of the tap in its window, an eighth of the bytes; max_unpool2d accepts both.

    Returns:
        (N, C, H_out, W_out), H_out = floor((H + 2 p - d (K - 1) - 1) / s) + 1; with return_indices, also the indices.

    Raises:
        ArgumentError: an invalid argument; the message has a remedy.
        ArgumentTypeError: a size that is no integer.
    """
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: ReturnIndices = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum over windows of a volume (N, C, D, H, W) or (C, D, H, W); see max_pool2d."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _max_pool(
    axes: int,
    input: Tensor,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    dilation: Size,
    ceil_mode: bool,
    return_indices: ReturnIndices,
) -> Tensor | tuple[Tensor, Tensor]:
    op = _NAMES[axes]
    if jit_traces() and not isinstance(return_indices, str):
        return _ATEN[axes](input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if (return_indices is True or return_indices is False) and type(kernel_size) is int:
        step = kernel_size if stride is None else stride
        if _goes_to_pytorch(axes, input, kernel_size, step, padding, dilation, ceil_mode, return_indices):
            return _SMALL[axes][1 if return_indices else 0](input, kernel_size, step, padding, dilation, ceil_mode)
    if stands_in(input):
        options: Any = (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        return handle_torch_function(globals()[op], (input,), input, *options)
    check_tensor(op, "input", input)
    codes = isinstance(return_indices, str)
    if codes and return_indices != "codes":
        bad_value(op, "return_indices", 'be True, False or "codes"', repr(return_indices))
    return_indices = return_indices if codes else bool(return_indices)
    if not codes and foreign(input) and backends.forced() != "reference":
        return _ATEN[axes](input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    kernel = per_axis(op, "kernel_size", kernel_size, axes)
    # PyTorch treats an empty list as None.
    given = stride is not None and not (isinstance(stride, (tuple, list)) and len(stride) == 0)
    steps = per_axis(op, "stride", stride, axes) if given else kernel
    pads = per_axis(op, "padding", padding, axes)
    rates = per_axis(op, "dilation", dilation, axes)
    # Only here PyTorch limits padding by the dilated extent.
    half_extent = axes == 1 and not return_indices
    check_bool(op, "ceil_mode", ceil_mode)
    _check(op, axes, input, kernel, steps, pads, rates, ceil_mode, half_extent)
    if codes:
        _check_codes(op, kernel, rates)
    # One tap has no dilation; near 2^63 the kernels' arithmetic would overflow.
    rates = tuple([1 if k == 1 else d for k, d in zip(kernel, rates)])
    if axes == 3 and not return_indices:
        input = in_float32(input)
    backend = backends.choose("max_pool", input.device, input.dtype)
    if backend in backends.COMPILED and not foreign(input):
        if axes == 1 and input.dim() == 3 and not input.is_contiguous() and _is_map(input, return_indices):
            sizes = ((1, *kernel), (1, *steps), (0, *pads), (1, *rates))
            results = _in_format(input.unsqueeze(-2), *sizes, ceil_mode, return_indices)
            if isinstance(results, Tensor):
                return results.squeeze(-2)
            return results[0].squeeze(-2), results[1].squeeze(-2)
        if input.dim() == axes + 2 and (not input.is_contiguous() or input.stride(1) == 1):
            return _in_format(input, kernel, steps, pads, rates, ceil_mode, return_indices)
        return _run(input, kernel, steps, pads, rates, ceil_mode, return_indices)
    if backend == "aten" and not codes:
        return _ATEN[axes](input, kernel, steps, pads, rates, ceil_mode, return_indices)
    values, marks = reference.max_pool(input, kernel, steps, pads, rates, ceil_mode, codes=codes)
    return (values, marks) if return_indices else values


def _run(
    input: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool,
    return_indices: ReturnIndices,
) -> Tensor | tuple[Tensor, Tensor]:
    args = (kernel, stride, padding, dilation, ceil_mode)
    if return_indices:
        values, marks = (pool_codes if isinstance(return_indices, str) else pool)(input, *args)[:2]
        return values, marks
    if not (torch.is_grad_enabled() and input.requires_grad) and not transformed():
        result: Tensor = _pool_values(input, *args)
        return result
    # The backward pass needs the positions of the maxima: one byte per window is enough for small windows.
    result = (pool_codes if _taps(kernel) <= _MOST_TAPS else pool)(input, *args)[0]
    return result


def _in_format(input: Tensor, *args: Any) -> Tensor | tuple[Tensor, Tensor]:
    """Of maps with a batch, in the format that PyTorch answers in."""
    results = _run(as_answered(input), *args)
    if transformed() or not rises_from_channels(input):
        return results
    if isinstance(results, Tensor):
        return in_channels_last(results)
    return in_channels_last(results[0]), in_channels_last(results[1])


def _is_map(input: Tensor, return_indices: ReturnIndices) -> bool:
    """Whether PyTorch pools sequences as maps of one row, which keep (N, L, C)."""
    return bool(return_indices) or not input.is_cpu or (torch.is_grad_enabled() and input.requires_grad)


def _goes_to_pytorch(
    axes: int, input: Any, kernel: int, stride: Any, padding: Any, dilation: Any, ceil_mode: Any, indices: bool
) -> bool:
    """Whether PyTorch's pooling is called directly: a small call with nothing that it could refuse.

    Two bugs of PyTorch are avoided: after a dilated window that contains no input, its gradient would write outside its
    memory; and for a negative view its max_pool1d without indices takes the maxima before negation.
    """
    if not (type(stride) is type(padding) is type(dilation) is int and dilation == 1):
        return False
    if not (stride > 0 and 0 <= 2 * padding <= kernel and (ceil_mode is True or ceil_mode is False)):
        return False
    last = _SMALL_LAST if axes == 2 and kernel == stride == 2 and indices else 0
    if not is_small(input, last):
        return False
    if axes == 1 and input.is_neg():
        return False
    shape = input.shape
    return len(shape) in (axes + 1, axes + 2) and min(shape[-axes:]) + 2 * padding >= kernel > 0


def _taps(kernel: tuple[int, ...]) -> int:
    taps = 1
    for k in kernel:
        taps *= k
    return taps


def _check_codes(op: str, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> None:
    if _taps(kernel) > _MOST_TAPS:
        bad_value(
            op,
            "kernel_size",
            f'have at most {_MOST_TAPS} taps where return_indices="codes"',
            kernel,
            "Use return_indices=True.",
        )
    if any(d != 1 for d in dilation):
        bad_value(
            op,
            "dilation",
            'be 1 where return_indices="codes", since unpooling knows no dilation',
            dilation,
            "Use return_indices=True.",
        )


def _check(
    op: str,
    axes: int,
    input: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool,
    half_extent: bool,
) -> None:
    for name, values in (("kernel_size", kernel), ("stride", stride), ("dilation", dilation)):
        if min(values) <= 0:
            bad_value(
                op, name, "be positive", values, f"(PyTorch: {name} must be greater than zero, but got {min(values)})"
            )
    for k, p, d in zip(kernel, padding, dilation):
        if p < 0:
            bad_value(op, "padding", "not be negative", padding, "(PyTorch: pad must be non-negative)")
        most = (k - 1) * d + 1 if half_extent else k
        if 2 * p > most:
            bad_value(
                op,
                "padding",
                f"be at most half of {'the extent of the window' if half_extent else 'kernel_size'}, {most // 2}",
                padding,
                "(PyTorch: pad should be at most half of effective kernel size)",
            )
    shape = input.shape
    check_map(op, axes, input, _EXPECTED[axes])
    for size, k, s, p, d in zip(shape[-axes:], kernel, stride, padding, dilation):
        if pooled_size(size, k, s, p, d, ceil_mode) < 1:
            out = [pooled_size(*each, ceil_mode) for each in zip(shape[-axes:], kernel, stride, padding, dilation)]
            rule = f"hold a window once padded (window {kernel}, padding {padding}, dilation {dilation})"
            theirs = (
                f"max_pool1d() Invalid computed output size: {out[0]}"
                if axes == 1
                else f"Calculated output size: {tuple(out)}. Output size is too small"
            )
            bad_value(op, "input", rule, f"spatial size {tuple(shape[-axes:])}", f"(PyTorch: {theirs})")


def _fake(dtype: torch.dtype | None) -> Any:
    def fake(input, kernel_size, stride, padding, dilation, ceil_mode):
        spatial = [
            pooled_size(*each, ceil_mode)
            for each in zip(input.shape[-len(kernel_size) :], kernel_size, stride, padding, dilation)
        ]
        nhwc = prefers_channels_last(input, len(kernel_size))
        values = empty_map(input, spatial, nhwc)
        return values if dtype is None else (values, empty_map(input, spatial, nhwc, dtype))

    return fake


def _setup(ctx, inputs, output) -> None:
    input, kernel, stride, padding, dilation, _ = inputs
    keep(ctx, *output[1:])
    ctx.set_materialize_grads(False)
    ctx.window = (kernel, stride, padding, dilation)
    ctx.shape = input.shape
    ctx.last = input.dim() == len(kernel) + 2 and rises_from_channels(input)


def _backward(ctx, grad, _, anchor=None):
    if grad is None:
        return None if anchor is None else anchor.new_zeros(ctx.shape), None, None, None, None, None
    marks, *anchors = ctx.saved_tensors
    if not transformed():
        # In PyTorch the input's format is the gradient's.
        grad = grad.contiguous(memory_format=CHANNELS_LAST[grad.dim()] if ctx.last else torch.contiguous_format)
    out = pool_backward(grad, marks, ctx.shape[-len(ctx.window[0]) :], *ctx.window)
    out = in_channels_last(out) if ctx.last and not transformed() else out
    if torch.is_grad_enabled():
        # The graph of this gradient includes the input, with a derivative of zero, as in PyTorch.
        out = connected(out, *anchors)
    return out, None, None, None, None, None


def _jvp(ctx, tangent):
    kernel, stride, padding, dilation = ctx.window
    marks = ctx.saved_tensors[0]
    return _routes.CALLS["max_unpool_backward"](tangent, marks, kernel, stride, padding, dilation), None


def _otherwise(codes: bool) -> Any:
    def pool(input, kernel_size, stride, padding, dilation, ceil_mode):
        kernel, steps, pads, rates = (tuple(sizes) for sizes in (kernel_size, stride, padding, dilation))
        return reference.max_pool(input, kernel, steps, pads, rates, ceil_mode, codes)

    return pool


def _backward_fake(grad, indices, input_size, kernel_size, stride, padding, dilation):
    return empty_map(grad, input_size, prefers_channels_last(grad, len(kernel_size)))


def _backward_setup(ctx, inputs, output) -> None:
    _, indices, _, *ctx.window = inputs
    keep(ctx, indices)


def _double_backward(ctx, grad):
    (indices,) = ctx.saved_tensors
    return _routes.CALLS["max_unpool_backward"](grad, indices, *ctx.window), None, None, None, None, None, None


_derivatives: dict[str, Any] = {"backward": _backward, "setup_context": _setup, "jvp": _jvp, "anchored": True}
pool = register("max_pool", fake=_fake(torch.int64), otherwise=_otherwise(codes=False), **_derivatives)
pool_codes = register("max_pool_codes", fake=_fake(torch.uint8), otherwise=_otherwise(codes=True), **_derivatives)
_pool_values = register("max_pool_values", fake=_fake(None))
pool_backward = register(
    "max_pool_backward",
    fake=_backward_fake,
    otherwise=reference.max_pool_backward,
    backward=_double_backward,
    setup_context=_backward_setup,
)
