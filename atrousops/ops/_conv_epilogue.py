"""The epilogue of a convolution: activation(y + residual), before the result is stored."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from atrousops.common.checks import bad_type, bad_value
from atrousops.common.conv_arguments import Arguments, output_size
from atrousops.common.formats import empty_as_kernel, prefers_channels_last
from atrousops.common.values import transformed
from atrousops.dispatch import backends, libraries
from atrousops.dispatch.devices import allow_tf32
from atrousops.ops._prepacked import prepacked
from atrousops.ops._register import foreign, jit_traces, register
from atrousops.ops._routes import Call, Route, route_of, run


class Activation(NamedTuple):
    """PyTorch's function, and oneDNN's name for it."""

    function: Callable[..., Tensor]
    onednn: str
    scalars: tuple[float, ...] = ()


ACTIVATIONS = {
    "relu": Activation(F.relu, "relu"),
    "relu6": Activation(F.relu6, "hardtanh", (0.0, 6.0)),
    "hardswish": Activation(F.hardswish, "hardswish"),
    "silu": Activation(F.silu, "swish"),
}


def run_with_epilogue(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    args: tuple,
    residual: Any,
    activation: Any,
    frozen: bool = False,
) -> Tensor:
    """activation(convolution + residual), fused by oneDNN or Triton, else in place after the convolution.

    frozen: weight is not changed where `prepacked` would not see it, and oneDNN's format of it is kept.
    """
    if activation is not None and activation not in ACTIVATIONS:
        bad_value(call.kind.name, "activation", f"be one of {', '.join(ACTIVATIONS)} or None", repr(activation))
    if residual is not None and not isinstance(residual, Tensor):
        bad_type(call.kind.name, "residual", "be a Tensor or None", type(residual).__name__)
    tensors = (input, weight, bias, residual)
    watched = torch.compiler.is_compiling() or jit_traces()
    if watched or transformed() or foreign(*tensors) or _wants_gradients(*tensors):
        y = run(call, input, weight, bias, args)
        return _add_and_activate(call, y, residual, activation, in_place=False)
    route = route_of(call, input, weight, bias, args)
    if _fits(route, input, weight, bias, residual):
        after = residual is not None or activation is not None
        if (after or frozen) and _onednn_fuses(route, input, residual, activation):
            weight = _packed(route, input, weight) if frozen else weight
            return _onednn(route, input, weight, bias, residual, activation)
        if (
            after
            and route.backend == "triton"
            and backends.choose("conv_epilogue", input.device, input.dtype) == "triton"
        ):
            return _triton(route, input, weight, bias, residual, activation)
    y = route.run(input, weight, bias, *route.rest)
    return _add_and_activate(call, y, residual, activation, in_place=True)


def _add_and_activate(call: Call, y: Tensor, residual: Tensor | None, activation: str | None, in_place: bool) -> Tensor:
    if residual is not None:
        fits = residual.dtype == y.dtype and _broadcasts(call, residual, y) == y.shape
        y = y.add_(residual) if in_place and fits else y + residual
    if activation is None:
        return y
    function = ACTIVATIONS[activation].function
    return function(y, inplace=True) if in_place else function(y)


def _broadcasts(call: Call, residual: Tensor, y: Tensor) -> torch.Size:
    try:
        return torch.broadcast_shapes(residual.shape, y.shape)
    except RuntimeError:
        rule = f"have the convolution's shape {tuple(y.shape)}, or one that broadcasts with it"
        bad_value(call.kind.name, "residual", rule, tuple(residual.shape))


def _wants_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in tensors])


@cache
def _onednn_dtypes() -> frozenset[torch.dtype]:
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")):
        return frozenset()
    bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return frozenset({torch.float32, torch.bfloat16} if bfloat16 else {torch.float32})


def _fits(route: Route, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> bool:
    """Whether the residual needs no broadcast, no cast and no error."""
    a = route.arguments
    return (
        input.dim() == len(a.stride) + 2
        and not torch._C._is_any_autocast_enabled()
        and weight.dtype == input.dtype
        and weight.device == input.device
        and input.numel() * weight.numel() > 0
        and (bias is None or (bias.dtype == input.dtype and bias.shape == weight.shape[:1]))
        and (residual is None or _is_like_output(residual, input, weight, a))
    )


def _onednn_fuses(route: Route, input: Tensor, residual: Tensor | None, activation: str | None) -> bool:
    a = route.arguments
    rank = len(a.stride)
    return (
        route.backend == "aten"
        and rank in (2, 3)
        and input.is_cpu
        and type(input) is not FakeTensor
        and input.dtype in _onednn_dtypes()
        and bool(torch.backends.mkldnn.enabled)
        and a.padding[:rank] == a.padding[-rank:]
        and (residual is None or _onednn_adds(residual))
        and (residual is None or activation is None or (activation == "relu" and _onednn_adds_and_clips(input)))
    )


def _onednn_adds(residual: Tensor) -> bool:
    # PyTorch 2.10 fails ("could not create a memory") if a residual in channels_last is also contiguous.
    return residual.shape[1] > 1 and residual.shape[2:].numel() > 1


def _onednn_adds_and_clips(input: Tensor) -> bool:
    # Except in channels_last, PyTorch falls back to an addition with ReLU that supports only fp32 (2.13, 2.14).
    return input.dtype == torch.float32 or prefers_channels_last(input)


def _is_like_output(residual: Tensor, input: Tensor, weight: Tensor, a: Arguments) -> bool:
    same = residual.dtype == input.dtype and residual.device == input.device
    return same and residual.shape == output_size(input.shape, weight.shape, a)


def _onednn(
    route: Route, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str | None
) -> Tensor:
    a = route.arguments
    padding = a.padding[: len(a.stride)]
    name, scalars = (None, ()) if activation is None else ACTIVATIONS[activation][1:]
    fused = torch.ops.mkldnn._convolution_pointwise
    geometry = (padding, a.stride, a.dilation, a.groups)
    if residual is None:
        return fused.default(input, weight, bias, *geometry, name or "none", scalars, None)
    return fused.binary(input, residual, weight, bias, *geometry, "add", 1.0, name, (), None)


def _packed(route: Route, input: Tensor, weight: Tensor) -> Tensor:
    """The weight in the format that oneDNN multiplies it in; for another size the old format could cost far more."""
    a = route.arguments
    geometry = (a.padding[: len(a.stride)], a.stride, a.dilation, a.groups, tuple(input.shape))
    pack = torch.ops.mkldnn._reorder_convolution_weight
    return prepacked(weight, (), geometry, lambda: pack(weight.detach(), *geometry))


def _triton(
    route: Route, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str | None
) -> Tensor:
    a = route.arguments
    rest = (a.stride, a.padding, a.dilation, a.groups, allow_tf32(input))
    return torch.ops.atrousops.conv_epilogue(input, weight, bias, residual, activation or "none", *rest)


def _fake(input, weight, bias, residual, activation, stride, padding, dilation, groups, allow_tf32=False) -> Tensor:
    a = Arguments(tuple(stride), tuple(padding), tuple(dilation), groups, ())
    return empty_as_kernel(output_size(input.shape, weight.shape, a), input)


if libraries.triton.problem is None:
    register("conv_epilogue", fake=_fake)
