"""conv1d, conv2d, conv3d: convolution with dilation, as torch.nn.functional has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atrousops import reference
from atrousops.common.checks import bad_value
from atrousops.common.conv_arguments import Arguments, check_conv, computed_in, in_pytorch_alone, transposed_size
from atrousops.common.formats import in_channels_last, rises_from_channels
from atrousops.common.values import transformed
from atrousops.dispatch import backends, choice, libraries
from atrousops.dispatch.devices import allow_tf32
from atrousops.dispatch.planner import CallArguments
from atrousops.ops._conv_epilogue import run_with_epilogue
from atrousops.ops._conv_format import in_format
from atrousops.ops._register import foreign, jit_traces, stands_in
from atrousops.ops._routes import Call, Route, kernel_of, route_of, run

Size = int | Sequence[int]
_forced, _is_compiling = backends._forced, torch.compiler.is_compiling


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Convolution over sequences (N, C, L) or (C, L) with weights (K, C / groups, kernel); `conv2d` on one axis."""
    if residual is None and activation is None:
        return run(_CONV1D, input, weight, bias, (stride, padding, dilation, groups))
    args = (stride, padding, dilation, groups)
    return run_with_epilogue(_CONV1D, input, weight, bias, args, residual, activation)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Convolution of images with gaps of `dilation` between the taps (atrous convolution).

    y[n, k, o] = bias[k] + sum over c, r of weight[k, c, r] * x[n, c, stride * o + dilation * r - padding]
    result = activation(y + residual)

    on both axes, with x = 0 outside. A tap that falls only into the padding never affects the result, even if its
    weight is NaN or infinite. 16-bit dtypes are summed in float32 and rounded once. PyTorch handles complex and integer
    tensors.

    Args:
        input: (N, C, H, W) or (C, H, W); N may be 0.
        weight: (K, C / groups, kernel_h, kernel_w), of input's dtype.
        bias: (K,).
        stride: step between outputs, in input pixels.
        padding: zeros on each side, in pixels; "valid" for none, "same" for an output of the input's size.
        dilation: distance between taps, in pixels.
        groups: number of groups that channels are divided into.
        residual: added to the result, of the same shape.
        activation: "relu", "relu6", "hardswish" or "silu", applied last. Residual and activation need no extra pass
            over memory if PyTorch's oneDNN kernel runs and no gradient is needed.

    Returns:
        (N, K, H_out, W_out) or (K, H_out, W_out) in input's dtype and memory format, with
        H_out = floor((H + 2 padding - dilation (kernel_h - 1) - 1) / stride) + 1.

    Raises:
        ArgumentError: a size, stride, padding, dilation or groups that does not fit; it is a RuntimeError too.
        ArgumentTypeError: an argument of a wrong type, or tensors of different dtypes.

    Source: Yu & Koltun, Multi-scale context aggregation by dilated convolutions (2016), eq. (2).
    """
    if residual is None and activation is None:
        # `run` inlined: this is the most frequent call, and it saves a Python frame.
        route = route_of(_CONV2D, input, weight, bias, (stride, padding, dilation, groups))
        return route.run(input, weight, bias, *route.rest) if route.rest else route.run(input, weight, bias)
    args = (stride, padding, dilation, groups)
    return run_with_epilogue(_CONV2D, input, weight, bias, args, residual, activation)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Convolution of volumes (N, C, D, H, W) or (C, D, H, W); `conv2d` on three axes."""
    if residual is None and activation is None:
        return run(_CONV3D, input, weight, bias, (stride, padding, dilation, groups))
    args = (stride, padding, dilation, groups)
    return run_with_epilogue(_CONV3D, input, weight, bias, args, residual, activation)


@dataclass(frozen=True, slots=True)
class Convolution:
    """One of the six functions: its name, the operator's name, the number of spatial axes, its checks and three bodies.

    defaults: of the arguments after the tensors.
    """

    name: str
    op: str
    rank: int
    aten: Callable[..., Tensor]
    check: Callable[..., Arguments]
    ours: Callable[[Tensor, Tensor, Tensor | None, Arguments, int], Tensor]
    reference: Callable[[Tensor, Tensor, Tensor | None, Arguments], Tensor]
    defaults: tuple[int, ...]


def find_unusual(conv: Convolution, input: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> Route:
    """`find` for tensors that are traced, transformed or not plain."""
    in_pytorch = Route(conv.aten, args, "aten")
    # Subclasses override PyTorch's function; they must see that call once, and no other before it.
    if (jit_traces() or foreign(input, weight, bias)) and backends.forced() != "reference":
        return in_pytorch
    if stands_in(input, weight, bias):
        return in_pytorch
    route = find(conv, input, weight, bias, *args)
    # PyTorch handles function transforms and forward-mode derivatives there.
    pytorchs = route.backend != "reference" and transformed()
    return _in_pytorch(conv, input, weight, route.arguments, args) if pytorchs else route


def find(conv: Convolution, input: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> Route:
    """The route of a convolution: PyTorch's operator, ours, or the reference, as the planner predicts."""
    a = conv.check(conv.name, conv.rank, input, weight, bias, *args)
    backend, first = _chosen(conv, input, weight, a)
    if backend == "aten":
        return _in_pytorch(conv, input, weight, a, args, first)
    body: Any = (conv.ours, a, first) if backend in backends.COMPILED else (conv.reference, a)
    if input.dim() == conv.rank + 1:
        return Route(_of_one, body, backend, a)
    return Route(body[0], body[1:], backend, a)


def _in_pytorch(
    conv: Convolution, input: Tensor, weight: Tensor, a: Arguments, args: tuple[Any, ...], first: int = -1
) -> Route:
    """The route to PyTorch's operator. first: of ours, which may take its place, or -1."""
    args = (*args[:2], a.dilation, args[3]) if conv.op == "conv" else (*args[:4], a.dilation)
    args = args if _is_compiling() else _shortest(args, conv.defaults)
    trained = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad or transformed())
    if trained and weight_gradient_may_be_wrong_in_pytorch(weight.shape, a, computed_in(input), input.device):
        # A route is also of weights in another format, or without gradient: each call asks.
        return Route(_trained_in_pytorch, (conv, a, args, first), "aten", a)
    return Route(conv.aten, args, "aten", a)


def _trained_in_pytorch(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: Convolution,
    a: Arguments,
    args: tuple[Any, ...],
    first: int,
) -> Tensor:
    """PyTorch's operator of contiguous tensors; of others ours, or PyTorch's of contiguous copies."""
    derived = weight.requires_grad or transformed()
    if not derived or (input.is_contiguous() and weight.is_contiguous()):
        return conv.aten(input, weight, bias, *args)
    if first >= 0:
        if input.dim() == conv.rank + 2:
            return conv.ours(input, weight, bias, a, first)
        return _of_one(input, weight, bias, conv.ours, a, first)
    y = conv.aten(input.contiguous(), weight.contiguous(), bias, *args)
    last = not transformed() and (rises_from_channels(input) or rises_from_channels(weight)) and y.dim() == 4
    return in_channels_last(y) if last else y


def _shortest(args: tuple[Any, ...], defaults: tuple[int, ...]) -> tuple[Any, ...]:
    """The same for PyTorch, which needs 0.2 us to parse each given argument, and more for a tuple."""
    short = [v[0] if type(v) is tuple and all([n == v[0] for n in v]) else v for v in args]
    while short and short[-1] == defaults[len(short) - 1]:
        short.pop()
    return tuple(short)


def _of_one(input: Tensor, weight: Tensor, bias: Tensor | None, body: Callable[..., Tensor], *rest: Any) -> Tensor:
    """The result for an image without a batch."""
    return body(input.unsqueeze(0), weight, bias, *rest).squeeze(0)


def _chosen(conv: Convolution, input: Tensor, weight: Tensor, arguments: Arguments) -> tuple[str, int]:
    """The backend, and `first` as in choice.Chosen; with PyTorch's backend -1 where ours may not take its place."""
    device = input.device
    size = tuple(input.shape) if input.dim() == conv.rank + 2 else (1, *input.shape)
    if conv.op == "conv_transpose" and in_pytorch_alone(transposed_size(size, weight.shape[2:], arguments), arguments):
        return "aten", -1
    if _forced[0] is not None:
        forced = backends.choose(conv.op, device, input.dtype)
        if forced in backends.COMPILED and forced != "meta" and 0 in weight.shape:
            remedy = "Leave the choice to atrousops with backend(None): PyTorch accepts this call."
            bad_value(conv.name, "weight", f"hold channels where {forced!r} is forced", tuple(weight.shape), remedy)
        return forced, -1 if forced == "aten" else 0
    dtype = computed_in(input)
    known = device.type in backends.PLANNED and dtype in backends.FLOATING
    if not known or weight.numel() == 0 or _is_empty(input):
        return "aten", -1
    needs_grad = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
    kind = "forward" if conv.op == "conv" else "transposed"
    first = _first(kind, size, weight.shape, arguments, dtype, not input.is_contiguous(), device, needs_grad)
    if first is None:
        return "aten", 0 if libraries.has_operators else -1
    return "cpu" if device.type == "cpu" else backends.own(conv.op, device, dtype), first


def _is_empty(input: Tensor) -> bool:
    if not _is_compiling():
        return input.numel() == 0
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    # A data-dependent size counts as positive; the operators also accept zero.
    return guard_or_false(input.numel() == 0)


def _first(
    kind: str,
    size: tuple[int, ...],
    weight_size: torch.Size,
    arguments: Arguments,
    dtype: torch.dtype,
    channels_last: bool,
    device: torch.device,
    needs_grad: bool = False,
    alone: bool = False,
) -> int | None:
    if not (libraries.has_operators if device.type == "cpu" else backends.own("conv", device, dtype)):
        return None
    stride, padding, dilation, groups, extra = arguments
    call = CallArguments(kind, size, tuple(weight_size), stride, padding, dilation, groups, extra)
    return choice.chosen(call, dtype, channels_last, needs_grad, str(device), alone).first


def first_of_gradient(kind: str, size: Any, weight_size: Any, arguments: Arguments, grad: Tensor) -> int | None:
    """`first` of choice.Chosen, for a gradient ("input_grad" or "weight_grad") of a convolution by our kernels."""
    if transformed() or foreign(grad):
        return None
    rank, forced = len(arguments.stride), backends.forced()
    if forced is not None or 0 in (*size, *weight_size):
        return None if forced == "aten" else 0
    asked = (kind, tuple(size), weight_size, arguments, grad.dtype, not grad.is_contiguous(), grad.device)
    if arguments.padding[:rank] == arguments.padding[-rank:]:
        return _first(*asked)
    # PyTorch would have to pad first, which plans do not include: ours runs, if it may.
    return 0 if grad.is_cpu else _first(*asked, alone=True)


def in_right_format(weight_size: Sequence[int], a: Arguments, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The two tensors as PyTorch's convolution may have them where it derives a weight."""
    if weight_gradient_may_be_wrong_in_pytorch(weight_size, a, first.dtype, first.device):
        return first.contiguous(), second.contiguous()
    return first, second


def weight_gradient_may_be_wrong_in_pytorch(
    weight_size: Sequence[int], a: Arguments, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether PyTorch may answer NaN or 1e35: with oneDNN, in bfloat16, of dilated maps, unless all is contiguous.

    There it reads memory that nothing has written to, if the channels of a group fill no blocks of 16. Seen in PyTorch
    2.14 on a CPU with AVX-512, at widths of 29 and more; other CPUs and releases are not trusted either.
    """
    if dtype != torch.bfloat16 or len(weight_size) != 4 or max(a.dilation) == 1 or device.type != "cpu":
        return False
    return not (weight_size[1] % 16 == 0 or (a.groups == 1 and weight_size[1] < 16))


def may_be_channels_last(input: Tensor, weight: Tensor) -> bool:
    """False if neither tensor can be in channels_last: a cheap first test."""
    return not (input.is_contiguous() and weight.is_contiguous() and input.stride(1) != 1 and weight.stride(1) != 1)


def ours(input: Tensor, weight: Tensor, bias: Tensor | None, a: Arguments, first: int = 0) -> Tensor:
    """Our operator."""
    kernel, rest = kernel_of("conv", input, weight, bias), rest_of(a, input, first)
    if may_be_channels_last(input, weight):
        return in_format(kernel, input, weight, bias, a, *rest)
    result: Tensor = kernel(input, weight, bias, *rest)
    return result


def rest_of(a: Arguments, t: Tensor, first: int) -> tuple[Any, ...]:
    """The arguments after the tensors and sizes of each of our three operators."""
    return a.stride, a.padding, a.dilation, a.groups, allow_tf32(t), first


def _reference(input: Tensor, weight: Tensor, bias: Tensor | None, a: Arguments) -> Tensor:
    return reference.conv(input, weight, bias, a.stride, a.padding, a.dilation, a.groups)


def _call(rank: int, aten: Callable[..., Tensor]) -> Call:
    return Call(
        find, find_unusual, Convolution(f"conv{rank}d", "conv", rank, aten, check_conv, ours, _reference, (1, 0, 1, 1))
    )


_CONV1D, _CONV2D, _CONV3D = _call(1, F.conv1d), _call(2, F.conv2d), _call(3, F.conv3d)


def frozen(rank: int) -> Callable[..., Tensor]:
    """conv1d, conv2d or conv3d whose weights are kept in oneDNN's format too; see `prepacked` for what it does not see.

    Called as (input, weight, bias, (stride, padding, dilation, groups), residual, activation).
    """
    return partial(run_with_epilogue, {1: _CONV1D, 2: _CONV2D, 3: _CONV3D}[rank], frozen=True)
